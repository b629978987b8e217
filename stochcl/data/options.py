"""What is taken from a source: options, and which of its files are images or say their labels."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stochcl.codes import label_text
from stochcl.data.names import LABEL_ENDINGS, is_image_name
from stochcl.data.pixels import FULL_DEPTH, LEAST_DEPTH, OWN_DEPTH
from stochcl.data.remarks import ending_of
from stochcl.errors import ImageError, SourceError, UsageError
from stochcl.messages import escape_name
from stochcl.options import Options, option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from stochcl.data.source import Entry

    Kind = Literal["image", "label", "unknown", "other"]

_LABEL_KEYS = ("label", "labels", "class", "cls", "class_name", "category")
_LABEL_BYTES = 1 << 20  # of a file with a label, at most


@dataclass(frozen=True)
class SourceOptions(Options):
    """What is taken from a source, and how."""

    any_name: bool = option(False, "Also take files whose names do not end as images' do, if they hold images.")
    label_level: int | None = option(
        None, "Which folder of a name is its label: 1 the first, -1 the innermost.", unit="N", shown="1"
    )
    label_files: str | None = option(
        None, "Take the file with this ending beside an image for its label, as in webdataset's shards.",
        choices=[ending[1:] for ending in LABEL_ENDINGS],
    )  # fmt: skip
    column: str | None = option(
        None, "Column of a table with the images or vectors.", unit="NAME", shown="the one that fits the model"
    )
    id_column: str | None = option(
        None, "Column of a table with the names.", unit="NAME", shown="name, file_name, path or id"
    )
    label_column: str | None = option(
        None, "Column of a table, or key of --label-files json, with the labels.", unit="NAME",
        shown="label, labels or class",
    )  # fmt: skip
    depth: int | None = option(
        None, f"Significant bits of 16-bit images, {LEAST_DEPTH} to {FULL_DEPTH}; 0: what each image uses.",
        at_least=OWN_DEPTH, at_most=FULL_DEPTH, unit="BITS", shown="what the images use together",
    )  # fmt: skip
    max_pixels: int | None = option(
        None, "Decode images of up to N pixels.", at_least=1, unit="N", shown="178,956,970"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None and OWN_DEPTH < self.depth < LEAST_DEPTH:
            raise UsageError(f"--depth must be {OWN_DEPTH}, or {LEAST_DEPTH} to {FULL_DEPTH}, got {self.depth}.")
        if self.label_level == 0:
            raise UsageError("--label-level counts folders from 1, the outermost, or from -1, the innermost; not 0.")
        if self.label_level is not None and (self.label_files or self.label_column):
            raise UsageError(
                "--label-level says that labels are folders; leave out --label-files and --label-column."
            )


DEFAULTS = SourceOptions()


class FileFilter:
    """Sorts the files of a source by their names: images, files that label them, and others, which are counted."""

    def __init__(self, options: SourceOptions) -> None:
        self.others: Counter[str] = Counter()
        self._any_name, self._key = options.any_name, options.label_column
        self.ending = options.label_files and f".{options.label_files}"
        self._texts: dict[str, Callable[[], bytes]] = {}

    def kind(self, name: str) -> Kind:
        """Return what a file is by its name; ``unknown`` has to be looked into."""
        if is_image_name(name):
            return "image"
        if self.ending and name.lower().endswith(self.ending):
            return "label"
        if self._any_name:
            return "unknown"
        self.others[ending_of(name)] += 1
        return "other"

    def add_label(self, name: str, read: Callable[[], bytes]) -> None:
        """Enter a file that labels an image."""
        self._texts[name[: -len(self.ending or "")]] = read

    def label(self, name: str) -> str:
        """Return the label that a file beside an image gives it, an empty one where there is none."""
        stem = name.rpartition(".")[0]
        for beside in (stem, group_of(name), name):
            if (read := self._texts.get(beside)) is not None:
                return self._parse(read_or_nothing(read))
        return ""

    def labels(self, path: Path | str, entries: Sequence[Entry]) -> list[str] | None:
        """Return the label of each image of a source, None where no files say labels."""
        if not self.ending:
            return None
        found = [self.label(entry.name) for entry in entries]
        if entries and not any(found):
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
                keys = [self._key] if self._key else [key for key in _LABEL_KEYS if key in value]
                value = value.get(keys[0]) if keys else None
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


def read_or_nothing(read: Callable[[], bytes]) -> bytes:
    """Read a file that may say a label, or be an image; nothing where it cannot be read."""
    try:
        return read()
    except ImageError:
        return b""
