"""Names of images, and what is taken from a source by them: images, labels, other files."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stochcl.codes import label_text
from stochcl.data.pixels import FULL_DEPTH, LEAST_DEPTH, OWN_DEPTH
from stochcl.data.preprocess import identify
from stochcl.errors import ImageError, SourceError, UsageError
from stochcl.messages import escape_name, plural
from stochcl.options import Options, option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    _Read = Callable[[], bytes]

IMAGE_EXTENSIONS = frozenset(
    [
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
        ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".qoi", ".jxl", ".heic", ".heif", ".mpo",
    ]
)  # fmt: skip
"""Endings (lower case) of the files that are taken for images in a folder or archive; others are ignored."""

LABEL_ENDINGS = (".cls", ".json", ".txt")
"""Endings (lower case) of the files that may say the label of the image beside them, as in webdataset's shards."""

MAX_NAME_BYTES = 65_535
"""Longest name of an image, in bytes; what a zip can hold, and far more than a file system does."""

Kind = Literal["image", "label", "unknown", "other"]

_DRIVE = re.compile(r"[A-Za-z]:")
_SHARE = re.compile(r"^\\\\[^\\]+\\[^\\]+")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://[^/]*/")


def sort_key(name: str) -> bytes:
    """Return the bytes that names are ordered by: UTF-8, with undecodable bytes as they were.

    Examples
    --------
    >>> sorted(["b.png", "é.png", "B.png"], key=sort_key)
    ['B.png', 'b.png', 'é.png']
    """
    return name.encode("utf-8", "surrogateescape")  # os.fsencode would fail on letters that the locale lacks


def member_name(stored: str) -> str:
    """Bring an archive member's name into POSIX form, without ``.`` and empty parts.

    Examples
    --------
    >>> member_name("./cats//tom.jpg")
    'cats/tom.jpg'
    """
    if "\0" in stored:
        raise ValueError("the name holds a NUL character")
    if stored.startswith(("/", "\\")) or _DRIVE.match(stored):
        raise ValueError("the name is absolute")
    if ".." in re.split(r"[/\\]", stored):
        raise ValueError("the name climbs out of the archive with '..'")
    name = "/".join(part for part in stored.split("/") if part not in ("", "."))
    if not name:
        raise ValueError("the name is empty")
    if len(sort_key(name)) > MAX_NAME_BYTES:
        raise ValueError(f"the name is longer than {MAX_NAME_BYTES:,} bytes")
    return name


def path_name(given: str, *, backslashes: bool = True) -> str:
    r"""Make a name of a path that a table or a list gives: without scheme and host, drive, leading ``/`` or ``../``.

    With ``backslashes`` a path that has them and no ``/``, or begins with a drive or a share, is one of Windows.

    Examples
    --------
    >>> path_name("s3://bucket/cats/1.jpg"), path_name("../photos/cats/1.jpg"), path_name(r"C:\photos\cats\1.jpg")
    ('cats/1.jpg', 'photos/cats/1.jpg', 'photos/cats/1.jpg')
    """
    text = _URL.sub("", given)
    if backslashes and (_DRIVE.match(text) or text.startswith("\\\\") or ("\\" in text and "/" not in text)):
        text = _SHARE.sub("", _DRIVE.sub("", text, count=1)).replace("\\", "/")
    parts: list[str] = []
    for part in text.split("/"):
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
    return member_name("/".join(parts).lstrip("/"))


def is_hidden(name: str) -> bool:
    """Tell whether a name, or a folder of it, is hidden or macOS's own (``.x``, ``._x``, ``__MACOSX``).

    Examples
    --------
    >>> [is_hidden(n) for n in ("a/.b.png", "__MACOSX/a/b.png", "a/b.png")]
    [True, True, False]
    """
    return name.startswith((".", "__MACOSX/")) or "/." in name


def is_image_name(name: str) -> bool:
    """Tell by its ending whether a name is taken for an image.

    Examples
    --------
    >>> [is_image_name(n) for n in ("a/b.JPG", "a/b.txt", "jpg")]
    [True, False, False]
    """
    return ending_of(name) in IMAGE_EXTENSIONS


_WIDE_ENDINGS = (".png", ".tif", ".tiff", ".apng")


def may_be_16_bit(name: str) -> bool:
    """Tell by its name whether an image may be one of 16 bits whose range its format does not say."""
    return name.lower().endswith(_WIDE_ENDINGS) or not is_image_name(name)


def ending_of(name: str) -> str:
    """Return the ending of a name in lower case, or an empty string where it has none.

    Examples
    --------
    >>> ending_of("a.b/c.JPG_large"), ending_of("a.b/c")
    ('.jpg_large', '')
    """
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return f".{ending.lower()}" if dot and stem else ""


def counted(others: Counter[str]) -> str:
    """Say how many files there are by the endings of their names.

    Examples
    --------
    >>> from collections import Counter
    >>> counted(Counter({".txt": 2, "": 1}))
    '3 files whose names end otherwise (2 .txt, 1 without an ending)'
    """
    parts = [f"{count:,} {escape_name(ending) or 'without an ending'}" for ending, count in others.most_common(4)]
    more = ", ..." if len(others) > 4 else ""
    names = "name ends" if others.total() == 1 else "names end"
    return f"{plural(others.total(), 'file')} whose {names} otherwise ({', '.join(parts)}{more})"


def remark_on_others(others: Counter[str] | None, unlabelled: int) -> str:
    """Say which files of a source were left out, and which option reads them; some may label images without one."""
    if not others:
        return ""
    beside = [ending for ending in LABEL_ENDINGS if 2 * others[ending] >= unlabelled > 0]
    advice = ["--any-name takes those that hold images"]
    if beside:
        advice.append(f"--label-files={beside[0][1:]} takes the {beside[0]} file beside an image for its label")
    return f"left out {counted(others)}; {', '.join(advice)}"


_LABEL_KEYS = ("label", "labels", "class", "cls", "class_name", "category")
_LABEL_BYTES = 1 << 20  # of a file with a label, at most


@dataclass(frozen=True)
class SourceOptions(Options):
    """What is taken from a source, and how."""

    any_name: bool = option(False, "Also take files without an image ending, if they hold images.")
    label_level: int | None = option(
        None, "Which folder of a name is its label: 1 the first, -1 the innermost.", unit="N", shown="1"
    )
    label_files: str | None = option(
        None, "Read labels from files of this ending beside the images, as in webdataset's shards.",
        choices=[ending[1:] for ending in LABEL_ENDINGS],
    )  # fmt: skip
    column: str | None = option(None, "Column with images or vectors.", unit="NAME", shown="what fits the model")
    id_column: str | None = option(None, "Column with names.", unit="NAME", shown="name, file_name, path or id")
    label_column: str | None = option(
        None, "Column of a table, or key of --label-files json, with the labels.", unit="NAME",
        shown="label, labels or class",
    )  # fmt: skip
    depth: int | None = option(
        None, f"Significant bits of 16-bit images, {LEAST_DEPTH} to {FULL_DEPTH}; 0: what each image uses.",
        at_least=OWN_DEPTH, at_most=FULL_DEPTH, unit="BITS", shown="what the images use together",
    )  # fmt: skip
    max_pixels: int | None = option(None, "Decode images up to N pixels.", at_least=1, unit="N", shown="178,956,970")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None and OWN_DEPTH < self.depth < LEAST_DEPTH:
            raise UsageError(f"--depth must be {OWN_DEPTH}, or {LEAST_DEPTH} to {FULL_DEPTH}, got {self.depth}.")
        if self.label_level == 0:
            raise UsageError("--label-level counts folders from 1, the outermost, or from -1, the innermost; not 0.")
        if self.label_level is not None and (self.label_files or self.label_column):
            raise UsageError("--label-level takes folders for labels; leave out --label-files and --label-column.")


DEFAULTS = SourceOptions()


class FileFilter:
    """Sorts the files of a source by their names: images, files that label them, and others, which are counted."""

    def __init__(self, options: SourceOptions) -> None:
        self.others: Counter[str] = Counter()
        self._any_name, self._key = options.any_name, options.label_column
        self.ending = options.label_files and f".{options.label_files}"
        self._texts: dict[str, _Read] = {}

    def kind(self, name: str) -> Kind:
        """Return what a file is by its name; ``unknown`` has to be looked into."""
        if is_hidden(name):
            return "other"
        if is_image_name(name):
            return "image"
        if self.ending and name.lower().endswith(self.ending):
            return "label"
        if self._any_name:
            return "unknown"
        self.others[ending_of(name)] += 1
        return "other"

    def takes(self, name: str, kind: Kind, read: _Read, head: _Read | None = None) -> bool:
        """Tell whether a file of a kind is an image, which its ``head`` may say; enter one that labels an image."""
        if kind == "label":
            self.add_label(name, read)
        return kind == "image" or (kind == "unknown" and identify(read_or_nothing(head or read)))

    def add_label(self, name: str, read: _Read) -> None:
        """Enter a file that labels an image."""
        self._texts[name[: -len(self.ending or "")]] = read

    def label(self, name: str) -> str:
        """Return the label that a file beside an image gives it, an empty one where there is none."""
        stem = name.rpartition(".")[0]
        for beside in (stem, group_of(name), name):
            if (read := self._texts.get(beside)) is not None:
                return self._parse(read_or_nothing(read))
        return ""

    def labels(self, path: Path | str, names: Sequence[str]) -> list[str] | None:
        """Return the label of each image of a source, None where no files say labels."""
        if not self.ending:
            return None
        found = [self.label(name) for name in names]
        if names and not any(found):
            key = f" with {escape_name(self._key)}" if self._key else ""
            raise SourceError(f"{escape_name(path)}: no image has a label in a {self.ending} file{key} beside it.")
        return found

    def _parse(self, data: bytes) -> str:
        text = data[:_LABEL_BYTES].decode("utf-8", "surrogateescape").strip()
        if self.ending == ".json":
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                return ""
            if isinstance(value, dict):
                keys = (self._key,) if self._key else _LABEL_KEYS
                value = next((value[key] for key in keys if key in value), None)
            return "" if isinstance(value, dict | list) else label_text(value)
        return label_text(int(text)) if self.ending == ".cls" and text.lstrip("-").isdecimal() else text


def group_of(name: str) -> str:
    """Return what the files of one sample share in webdataset's shards: the name up to its first dot.

    Examples
    --------
    >>> group_of("a.b/0001.seg.png"), group_of("0001.cls")
    ('a.b/0001', '0001')
    """
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def read_or_nothing(read: _Read) -> bytes:
    """Read a file that may say a label, or be an image; nothing where it cannot be read."""
    try:
        return read()
    except ImageError:
        return b""
