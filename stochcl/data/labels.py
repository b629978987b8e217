"""Labels and targets from a CSV file (``name,label`` and any further columns), an array, or a table's columns."""

from __future__ import annotations

import csv
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import folder_label, label_text
from stochcl.data import arrow
from stochcl.data.array import MAGIC, load_array, row_names, shape_of
from stochcl.data.names import IDS, NAMES
from stochcl.errors import LabelsError
from stochcl.files import PathLike, reading, refuse_pointer, seems_utf16
from stochcl.lazy import cached_property
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from stochcl.data.source import Entry


def held_out(
    names: Iterable[str | Entry], per_class: int = 20, label: Callable[[str], str] = folder_label
) -> NDArray[np.bool_]:
    """Mark the images of one source that are never trained on: the last ``per_class`` of each class.

    All training and evaluation uses this one function for the held-out split.

    Examples
    --------
    >>> held_out(["a/0", "a/1", "a/2", "b/0", "b/1"], per_class=1).tolist()
    [False, False, True, False, True]
    """
    labels = [label(n if isinstance(n, str) else n.name) for n in names]
    mask = np.zeros(len(labels), dtype=np.bool_)
    seen: dict[str, int] = {}
    for i in range(len(labels) - 1, -1, -1):
        count = seen.get(labels[i], 0)
        mask[i] = count < per_class
        seen[labels[i]] = count + 1
    return mask


_SHOWN = 3  # names that a message lists
_READ_ROWS = 65_536
_NAMES = ("name", "file_name", "filename", "file", "path", "image")
_DELIMITERS = ",;\t"


@dataclass(frozen=True, eq=False)
class LabelTable:
    """The labels and other columns of a CSV file.

    Parameters
    ----------
    path : Path
        The file, for messages.
    columns : tuple of str
        The columns after ``name``; the first is the label unless another is asked for.
    rows : dict of str to tuple of str
        The values of each name, one per column.
    is_array : bool
        Whether this is an array of labels, named by row numbers.

    Examples
    --------
    >>> table = LabelTable(Path("l.csv"), ("label", "age"), {"a.png": ("cat", "3"), "b.png": ("dog", "4.5")})
    >>> table.match(["b.png", "a.png"])
    ('dog', 'cat')
    >>> table.match(["b.png"], "age")
    ('4.5',)
    """

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    is_array: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def match(self, names: Sequence[str], column: str | None = None, *, partial: bool = False) -> tuple[str, ...]:
        """Return the label of each name, from ``column`` or the first; with ``partial`` up to half may have none.

        Names that are row numbers also match without leading zeros. An array of labels is matched by row numbers,
        or in order if names are not numbers and are as many.
        """
        at = self._position(column)
        if self.is_array and not all(name.isdecimal() for name in names):
            if len(names) != len(self.rows):
                raise LabelsError(
                    f"{escape_name(self.path)}: it has {len(self.rows):,} labels for {len(names):,} rows; an array "
                    "of labels has one for each, in their order: write a CSV of name,label."
                )
            names = row_names(range(len(names)), len(names))
        found = [self.rows.get(name) or self._folded.get(_fold(name)) for name in names]
        missing = [name for name, row in zip(names, found, strict=True) if row is None]
        if missing and (not partial or 2 * len(missing) > len(names)):
            raise LabelsError(
                f"{escape_name(self.path)}: {len(missing):,} of {len(names):,} names have no row here: "
                f"{_listed(missing)}. Names are paths relative to the source, such as those that "
                f"this file gives: {_listed(list(self.rows))}."
            )
        return tuple("" if row is None else row[at] for row in found)

    def of(self, names: Sequence[str]) -> LabelTable:
        """Return a table keyed by a source's names; an array of labels is matched by order."""
        if not self.is_array:
            return self
        rows: dict[str, tuple[str, ...]] = {}
        for name, label in zip(names, self.match(names), strict=True):
            if rows.setdefault(name, (label,)) != (label,):
                raise LabelsError(
                    f"{escape_name(self.path)}: two rows are named {escape_name(name)} and have different labels; "
                    "an array cannot label them: make the names differ."
                )
        return LabelTable(self.path, self.columns, rows)

    @cached_property
    def _folded(self) -> dict[str, tuple[str, ...]]:
        """Rows by normalised name, for names without an exact match."""
        folded: dict[str, tuple[str, ...]] = {}
        for name, values in self.rows.items():
            if folded.setdefault(_fold(name), values) != values:
                raise LabelsError(
                    f"{escape_name(self.path)}: it gives {escape_name(name)} other values than another spelling of "
                    "this name (spaces, ./, backslashes or accents); write names as the source has them."
                )
        return folded

    def _position(self, column: str | None) -> int:
        if column is None:
            return 0
        if column in self.columns:
            return self.columns.index(column)
        raise LabelsError(
            f"{escape_name(self.path)}: there is no column {escape_name(column)}; the columns are "
            f"{escape_name(', '.join(self.columns))}."
        )


@dataclass(frozen=True, eq=False)
class ColumnLabels(LabelTable):
    """The columns of text and numbers in a Parquet or Arrow file.

    The column of names is found by its values; if names are row numbers or absent, the rows are taken in file
    order.
    """

    table: Any = None  # pyarrow's

    def __len__(self) -> int:
        return len(self.table)

    def match(self, names: Sequence[str], column: str | None = None, *, partial: bool = False) -> tuple[str, ...]:
        """Return the label of each name, see :meth:`LabelTable.match`."""
        if column is None and len(self.columns) > 1 and self.columns[0] not in arrow.LABELS:
            raise LabelsError(
                f"{escape_name(self.path)}: none of its columns is called {', '.join(arrow.LABELS)}; choose one of "
                f"{escape_name(', '.join(self.columns))} with --label-column."
            )
        chosen = self.columns[self._position(column)]
        labels = arrow.label_texts(
            self.table.column(chosen).to_pylist(), arrow.class_names(self.table.schema, chosen)
        )
        keys, by_number = self._keys(list(names))
        if keys == list(names):
            return tuple(labels)
        rows: dict[str, tuple[str, ...]] = {}
        for key, label in zip(keys, labels, strict=True):
            if rows.setdefault(key, (label,)) != (label,):
                raise LabelsError(f"{escape_name(self.path)}: two rows named {escape_name(key)} differ; keep one.")
        return LabelTable(self.path, (chosen,), rows, by_number).match(names, chosen, partial=partial)

    def _keys(self, names: list[str]) -> tuple[list[str], bool]:
        """Return each row's key, comparable with ``names``, and whether it is only the row number."""
        numbers = row_names(range(len(self.table)), len(self.table))
        if not any(names) or _are_numbers(names, len(self.table)):
            return list(numbers), True
        wanted, best, most = set(names), list[str](), 0
        for column in (*NAMES, *IDS, *(name for name in self.columns if name not in (*NAMES, *IDS))):
            if column not in self.columns:
                continue
            kind = self.table.column(column).type
            texts = [arrow.id_text(value, kind) or "" for value in self.table.column(column).to_pylist()]
            texts = [arrow.path_or_none(text) or text for text in texts] if column in NAMES else texts
            if (found := len(wanted.intersection(texts))) > most:
                best, most = texts, found
            if most == len(wanted):
                break
        if not best:
            raise LabelsError(
                f"{escape_name(self.path)}: none of its columns ({escape_name(', '.join(self.columns))}) holds the "
                f"names of the rows, such as {_listed(names)}."
            )
        return best, False


def _are_numbers(names: Sequence[str], rows: int) -> bool:
    """Return whether names are row numbers: zero-padded to one length, and ascending."""
    if not all(name.isdecimal() and len(name) == len(names[0]) for name in names):
        return False
    return all(a < b for a, b in pairwise(names)) and int(names[-1]) < rows


def _from_table(path: Path) -> ColumnLabels:
    """Read the columns of a table that are not nested."""
    schema = arrow.schema_of(path)
    import pyarrow as pa
    from pyarrow import types

    plain = [field.name for field in schema if not types.is_nested(arrow.storage_type(field.type))]
    if not plain:
        raise LabelsError(f"{escape_name(path)}: none of its columns holds texts or numbers, so none can be labels.")
    chosen = pa.schema([schema.field(name) for name in plain], schema.metadata)
    with arrow.explained(path):
        batches = [batch.cast(chosen) for batch in arrow.record_batches(path, plain, _READ_ROWS)]
    table = pa.Table.from_batches(batches, chosen)
    first = [name for name in arrow.LABELS if name in plain]
    return ColumnLabels(path, (*first, *(name for name in plain if name not in first)), {}, True, table)


def read_labels(path: PathLike) -> LabelTable:
    """Read labels: a .npy array with one per row, a UTF-8 CSV with header ``name,label[,more columns]``, or a table.

    A Parquet or Arrow file may use any column; one called label, labels or class comes first.

    CSV columns are separated by commas, semicolons or tabs. The column of names may also be called file_name,
    filename, file, path or image, and be at any position. Spaces around values are ignored. A name may occur twice if
    both rows agree. Names match the images' exactly, or else without a leading ``./``, with ``/`` for backslashes and
    with composed accents.
    """
    path = Path(path)
    with reading(path, "the labels", LabelsError):
        with path.open("rb") as file:
            head = file.read(32)
        if head.startswith(MAGIC):
            return _from_array(path)
        if arrow.is_arrow(path, head):
            return _from_table(path)
        refuse_pointer(path, head, "labels", LabelsError)
        if seems_utf16(head):
            raise LabelsError(f"{escape_name(path)}: the labels are UTF-16; save them as UTF-8.")
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                first = file.readline()
                file.seek(0)
                reader = csv.reader(file, strict=True, delimiter=_delimiter(first))
                at, columns = _header(path, next(reader, None))
                return LabelTable(path, columns, _rows(path, reader, at, len(columns)))
        except UnicodeDecodeError as exc:
            raise LabelsError(f"{escape_name(path)}: the labels are not UTF-8 text ({exc.reason}).") from exc
        except csv.Error as exc:
            raise LabelsError(f"{escape_name(path)}: line {reader.line_num} is not CSV ({exc}).") from exc


def _from_array(path: Path) -> LabelTable:
    """Read an array of labels: class numbers, targets or text, one per row."""
    labels = load_array(path, "this array of labels", LabelsError)
    if labels.ndim == 2 and 1 in labels.shape:
        labels = labels.reshape(-1)
    if labels.ndim != 1 or labels.dtype.kind not in "biufUS" or not len(labels):
        raise LabelsError(
            f"{escape_name(path)}: this array is {labels.dtype} of {shape_of(labels)}; labels are numbers or texts, "
            "one a row."
        )
    names = row_names(range(len(labels)), len(labels))
    rows: dict[str, tuple[str, ...]] = {
        name: (label_text(label),) for name, label in zip(names, labels.tolist(), strict=True)
    }
    return LabelTable(path, ("label",), rows, is_array=True)


def _delimiter(header: str) -> str:
    """Return the delimiter of a header: the first of comma, semicolon and tab that finds a column of names."""
    for delimiter in _DELIMITERS:
        cells = header.strip("\ufeff\r\n").split(delimiter)
        if len(cells) > 1 and any(cell.strip(' "').lower() in _NAMES for cell in cells):
            return delimiter
    return ","


def _header(path: Path, header: list[str] | None) -> tuple[int, tuple[str, ...]]:
    """Return the position of the names, and the other columns."""
    if header is None:
        raise LabelsError(f"{escape_name(path)}: the file is empty; its first line must be name,label.")
    columns = [cell.strip() for cell in header]
    at = next((i for i, column in enumerate(columns) if column.lower() in _NAMES), None)
    if len(columns) < 2 or at is None or "" in columns or len(set(columns)) != len(columns):
        raise LabelsError(
            f"{escape_name(path)}: the first line must be name,label (and further columns, each with its own "
            f"name), not {escape_name(','.join(header))[:200]}."
        )
    return at, (*columns[:at], *columns[at + 1 :])


def _rows(path: Path, reader: Any, at: int, columns: int) -> dict[str, tuple[str, ...]]:
    rows: dict[str, tuple[str, ...]] = {}
    shown = escape_name(path)
    for cells in reader:
        if not cells:  # an empty line
            continue
        line = reader.line_num
        if len(cells) != columns + 1:
            raise LabelsError(f"{shown}: line {line} has {len(cells)} cells where the header has {columns + 1}.")
        name, values = cells[at], tuple(cell.strip() for i, cell in enumerate(cells) if i != at)
        if rows.setdefault(name, values) != values:
            raise LabelsError(
                f"{shown}: line {line} gives {escape_name(name)} again, with other values; keep one line a name."
            )
    if not rows:
        raise LabelsError(f"{shown}: it has no row under its header.")
    return rows


def _fold(name: str) -> str:
    """Return the normalised form of a name, for comparing different spellings."""
    text = unicodedata.normalize("NFC", name).strip().replace("\\", "/")
    if text.isdecimal():  # a row number
        return text.lstrip("0") or "0"
    return "/".join(part for part in text.split("/") if part not in ("", "."))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(escape_name(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names) - _SHOWN:,} more)"
