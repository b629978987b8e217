"""Names of images, and which files of a source are images, labels or neither."""

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
"""Endings (lower case) of files taken as images in a folder or archive; others are ignored."""

LABEL_ENDINGS = (".cls", ".json", ".txt")
"""Endings (lower case) of files that may hold the label of the image beside them, as in webdataset's shards."""

MAX_NAME_BYTES = 65_535
"""Maximum length of an image's name in bytes; what a zip can hold, and far more than a file system can."""

Kind = Literal["image", "label", "unknown", "other"]

_DRIVE = re.compile(r"[A-Za-z]:")
_SHARE = re.compile(r"^\\\\[^\\]+\\[^\\]+")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://[^/]*/")


def sort_key(name: str) -> bytes:
    """Return a name's sort key: UTF-8, with undecodable bytes unchanged.

    Examples
    --------
    >>> sorted(["b.png", "é.png", "B.png"], key=sort_key)
    ['B.png', 'b.png', 'é.png']
    """
    return name.encode("utf-8", "surrogateescape")  # os.fsencode fails on letters that the locale lacks


def member_name(stored: str) -> str:
    """Return an archive member's name in POSIX form, without ``.`` and empty parts.

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
    r"""Return the name for a path in a table or list: without scheme and host, drive, leading ``/`` or ``../``.

    With ``backslashes``, a path is a Windows path if it has backslashes and no ``/``, or a drive or share.

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
    """Return whether a name or one of its folders is hidden or macOS's own (``.x``, ``._x``, ``__MACOSX``).

    Examples
    --------
    >>> [is_hidden(n) for n in ("a/.b.png", "__MACOSX/a/b.png", "a/b.png")]
    [True, True, False]
    """
    return name.startswith((".", "__MACOSX/")) or "/." in name


def is_image_name(name: str) -> bool:
    """Return whether a name has an image ending.

    Examples
    --------
    >>> [is_image_name(n) for n in ("a/b.JPG", "a/b.txt", "jpg")]
    [True, False, False]
    """
    return ending_of(name) in IMAGE_EXTENSIONS


_WIDE_ENDINGS = (".png", ".tif", ".tiff", ".apng")


def may_be_16_bit(name: str) -> bool:
    """Return whether an image of this name may have 16 bits of unstated range."""
    return name.lower().endswith(_WIDE_ENDINGS) or not is_image_name(name)


def ending_of(name: str) -> str:
    """Return a name's ending in lower case, empty without one.

    Examples
    --------
    >>> ending_of("a.b/c.JPG_large"), ending_of("a.b/c")
    ('.jpg_large', '')
    """
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return f".{ending.lower()}" if dot and stem else ""


def counted(others: Counter[str]) -> str:
    """Describe counts of files by ending.

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
    """Describe the files that were left out, and the options that read them."""
    if not others:
        return ""
    beside = [ending for ending in LABEL_ENDINGS if 2 * others[ending] >= unlabelled > 0]
    advice = ["--any-name takes those that hold images"]
    if beside:
        advice.append(f"--label-files={beside[0][1:]} takes the {beside[0]} file beside an image for its label")
    return f"left out {counted(others)}; {', '.join(advice)}"


_LABEL_KEYS = ("label", "labels", "class", "cls", "class_name", "category")
_LABEL_BYTES = 1 << 20  # maximum read of a file with a label
NAMES = ("name", "file_name", "filename", "path")
IDS = ("id", "_id", "__key__", "key", "uuid")


@dataclass(frozen=True)
class SourceOptions(Options):
    """What to take from a source, and how."""

    any_name: bool = option(False, "Also take files without an image ending, if they hold images.")
    label_level: int | None = option(
        None, "Which folder of a name is its label: 1 the first, -1 the innermost.", unit="N", shown="1"
    )
    label_files: str | None = option(
        None, "Read labels from files of this ending beside the images, as in webdataset's shards.",
        choices=[ending[1:] for ending in LABEL_ENDINGS],
    )  # fmt: skip
    column: str | None = option(None, "Column with images or vectors.", unit="NAME", shown="what fits the model")
    id_column: str | None = option(
        None, "Column with names.", unit="NAME", shown=f"the first of {', '.join(NAMES + IDS)}"
    )
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
    """Sorts the files of a source by name into images, their labels, and others, which it counts."""

    def __init__(self, options: SourceOptions) -> None:
        self.others: Counter[str] = Counter()
        self._any_name, self._key = options.any_name, options.label_column
        self.ending = options.label_files and f".{options.label_files}"
        self._texts: dict[str, _Read] = {}

    def kind(self, name: str) -> Kind:
        """Return a file's kind by its name; an ``unknown`` file must be opened to tell."""
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
        """Return whether a file is an image, from its ``head`` if necessary; register it if it is a label."""
        if kind == "label":
            self.add_label(name, read)
        return kind == "image" or (kind == "unknown" and identify(read_or_nothing(head or read)))

    def add_label(self, name: str, read: _Read) -> None:
        """Register a file that labels an image."""
        self._texts[name[: -len(self.ending or "")]] = read

    def label(self, name: str) -> str:
        """Return the label in the file beside an image, empty without one."""
        stem = name.rpartition(".")[0]
        for beside in (stem, group_of(name), name):
            if (read := self._texts.get(beside)) is not None:
                return self._parse(read_or_nothing(read))
        return ""

    def labels(self, path: Path | str, names: Sequence[str]) -> list[str] | None:
        """Return the label of each image of a source, None if labels are not read from files."""
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
    """Return the key that a sample's files share in webdataset's shards: the name up to its first dot.

    Examples
    --------
    >>> group_of("a.b/0001.seg.png"), group_of("0001.cls")
    ('a.b/0001', '0001')
    """
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def read_or_nothing(read: _Read) -> bytes:
    """Return a file's bytes, empty if it cannot be read."""
    try:
        return read()
    except ImageError:
        return b""
