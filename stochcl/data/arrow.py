"""Images or vectors in Parquet and Arrow files, as in Hugging Face data sets, streamed in file order."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stochcl.codes import label_text
from stochcl.data.array import MatrixBatch, VectorSource, row_names
from stochcl.data.names import DEFAULTS, IDS, NAMES, SourceOptions, path_name
from stochcl.data.preprocess import identify
from stochcl.data.source import StreamSource, digest
from stochcl.errors import SourceError, SourceNotFound, StochclError, UsageError, require
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


_MAGICS = {b"PAR1": "parquet", b"ARRO": "file", b"\xff\xff\xff\xff": "stream"}
_ENDINGS = (".parquet", ".arrow", ".feather")


def is_arrow(path: Path, head: bytes) -> bool:
    """Return whether a file's first bytes are Parquet or Arrow; an Arrow stream also needs the ending."""
    kind = _MAGICS.get(head[:4])
    return kind in ("parquet", "file") or (kind == "stream" and path.suffix.lower() in _ENDINGS)


@contextmanager
def explained(path: Path | MemoryTable) -> Iterator[None]:
    """Turn Arrow's errors into a SourceError."""
    import pyarrow as pa

    try:
        yield
    except StochclError:  # some are OSErrors or ValueErrors
        raise
    except FileNotFoundError as exc:
        raise SourceNotFound(f"{escape_name(path)}: there is no such file.") from exc
    except (pa.ArrowException, OSError, ValueError, KeyError) as exc:
        reason = escape_name(str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__)
        raise SourceError(f"{escape_name(path)}: it cannot be read as Parquet or Arrow ({reason}).") from exc


class MemoryTable:
    """A table in memory from pandas, polars or Arrow (any with Arrow's stream), or a Hugging Face data set."""

    def __init__(self, given: Any) -> None:
        pa = require("pyarrow", "a table", "arrow")

        self._is_set = hasattr(given, "with_format")
        self._given: Any = given.with_format("arrow") if self._is_set else pa.table(given)
        self.schema = given.features.arrow_schema if self._is_set else self._given.schema
        self.rows = len(self._given)

    def __fspath__(self) -> str:
        return "the table"

    def batches(self, columns: list[str], rows: int) -> Iterator[Any]:
        """Yield record batches of at most ``rows`` rows."""
        parts = self._given.select_columns(columns).iter(rows) if self._is_set else [self._given.select(columns)]
        return (batch for part in parts for batch in part.to_batches(rows))


def is_table(given: Any) -> bool:
    """Return whether a value is a table in memory that :class:`MemoryTable` accepts."""
    return hasattr(given, "__arrow_c_stream__") or (hasattr(given, "with_format") and hasattr(given, "features"))


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        return _MAGICS.get(file.read(4), "")


def schema_of(path: Path | MemoryTable) -> Any:
    """Return the schema of a file or table; raise MissingExtraError without pyarrow."""
    if isinstance(path, MemoryTable):
        return path.schema
    parquet = require("pyarrow.parquet", "a Parquet or Arrow file", "arrow")
    import pyarrow as pa
    from pyarrow import ipc

    with explained(path):
        kind = _kind(path)
        if kind == "parquet":
            return parquet.read_schema(path)
        with pa.OSFile(str(path)) as file:
            return (ipc.open_file if kind == "file" else ipc.open_stream)(file).schema


def rows_in(path: Path | MemoryTable) -> int:
    """Return the number of rows of a file or table, 0 if unknown."""
    if isinstance(path, MemoryTable):
        return path.rows
    from pyarrow import parquet

    with explained(path):
        return int(parquet.read_metadata(path).num_rows) if _kind(path) == "parquet" else 0


def _has_rows(path: Path | MemoryTable) -> bool:
    first = schema_of(path).names[:1]
    with explained(path):
        return rows_in(path) > 0 or any(map(len, record_batches(path, first, 1)))


def record_batches(path: Path | MemoryTable, columns: list[str], rows: int) -> Iterator[Any]:
    """Yield record batches of at most ``rows`` rows."""
    if isinstance(path, MemoryTable):
        yield from path.batches(columns, rows)
        return
    import pyarrow as pa
    from pyarrow import ipc, parquet

    kind = _kind(path)
    if kind == "parquet":
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from file.iter_batches(rows, columns=columns, use_threads=False)
        return
    with pa.OSFile(str(path)) as file:
        reader = ipc.open_file(file) if kind == "file" else ipc.open_stream(file)
        whole = (reader.get_batch(i) for i in range(reader.num_record_batches)) if kind == "file" else reader
        for batch in whole:
            for start in range(0, len(batch), rows):
                yield batch.select(columns).slice(start, rows)


# Columns


def choose_column(path: Path | MemoryTable, schema: Any, asked: str | None, takes: int | None) -> str:
    """Return the column that holds images or vectors, by its type and its first values.

    ``takes`` is the model's input: the width of vectors, 0 for images, None if unknown.
    """
    shown = escape_name(path)
    kinds = {field.name: storage_type(field.type) for field in schema}
    if asked is not None:
        check_column(shown, schema, asked, "--column")
        if holds(kinds[asked]) is None:
            raise UsageError(
                f"{shown}: its column {asked} holds {kinds[asked]}, not images or vectors; name another."
            )
        return asked
    vectors = [name for name, kind in kinds.items() if holds(kind) == "vectors"]
    binary = [name for name, kind in kinds.items() if holds(kind) == "images"]
    images = [name for name in binary if _begins_with_images(path, name)] or ([] if vectors else binary)
    found = (vectors or images) if takes else (images or vectors)
    if takes and len(found) > 1:
        found = [name for name in found if _width(path, kinds[name], name) == takes] or found
    if len(found) > 1:
        raise UsageError(f"{shown}: several columns may hold the data ({', '.join(found)}); name one with --column.")
    if not found:
        raise SourceError(
            f"{shown}: none of its columns ({', '.join(kinds)}) holds images (binary, or a struct with bytes) or "
            "vectors (lists of floats or int8)."
        )
    return found[0]


def check_column(shown: str, schema: Any, name: str, flag: str) -> None:
    """Raise UsageError if a column does not exist."""
    if name not in schema.names:
        raise UsageError(f"{shown}: it has no column {name!r} ({flag}); there are {', '.join(schema.names)}.")


def storage_type(kind: Any) -> Any:
    """Return the storage type of a column: for a tensor of fixed shape, a list of fixed size."""
    import pyarrow as pa

    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def holds(kind: Any) -> str | None:
    """Return what a column of this type can hold: images, vectors, or numbers of unknown meaning, such as words."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return "images" if index >= 0 and holds(kind.field(index).type) == "images" else None
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "images"
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return None
    if types.is_floating(kind.value_type) or types.is_int8(kind.value_type):
        return "vectors"
    return "numbers" if types.is_integer(kind.value_type) else None


def _contents(kind: Any) -> Any:
    """Return what must be the same in all files: images, or the type of the numbers."""
    return holds(kind) if holds(kind) == "images" else getattr(kind, "value_type", kind)


def _first_values(path: Path | MemoryTable, column: str) -> list[Any]:
    """Return the values that are not null in the first batch with any."""
    with explained(path):
        for batch in islice(record_batches(path, [column], _IMAGES), _LOOKED):
            if found := [value for value in batch.column(column).to_pylist() if value is not None]:
                return found
    return []


def _begins_with_images(path: Path | MemoryTable, column: str) -> bool:
    """Return whether one of the first values is an image, or an image's path without bytes."""
    values = (value["bytes"] if isinstance(value, dict) else value for value in _first_values(path, column))
    return any(value is None or identify(value) for value in values)


def _width(path: Path | MemoryTable, kind: Any, column: str) -> int:
    return int(getattr(kind, "list_size", 0)) or next((len(value) for value in _first_values(path, column)), 0)


def id_text(value: Any, kind: Any) -> str | None:
    """Return an id of any type as text; undecodable bytes in hex."""
    from pyarrow import types

    if not isinstance(value, bytes):
        return None if value is None else str(value)
    with suppress(UnicodeDecodeError):
        if not types.is_fixed_size_binary(kind) and (text := value.decode()).isprintable():
            return text
    return value.hex()


def class_names(schema: Any, label: str | None) -> list[str]:
    """Return the class names from Hugging Face's features, empty if there are none."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (ValueError, KeyError, TypeError):
        return []


def label_texts(values: Sequence[Any], classes: Sequence[str]) -> list[str]:
    """Return labels as text; whole numbers as class names if there are any."""
    count = len(classes)
    return [
        classes[value] if isinstance(value, int) and 0 <= value < count else label_text(value) for value in values
    ]


def named_embedder(schema: Any, column: str) -> str | None:
    """Return the embedder named by the metadata of a column, a table or a Hugging Face data set."""
    whole, own = (dict(found.metadata or {}) for found in (schema, schema.field(column)))
    with suppress(ValueError, KeyError, TypeError):
        info = json.loads(whole[b"huggingface"])["info"]
        whole = {key.encode(): str(value).encode() for key, value in info.items() if isinstance(value, str)} | whole
    for place, keys in ((own, (*_EMBEDDERS, b"model", b"model_name")), (whole, _EMBEDDERS)):
        for key in keys:
            if name := place.get(key, b"").decode("utf-8", "replace").strip():
                revision = place.get(key + b"_revision", b"").decode("utf-8", "replace").strip()
                return f"{name}@{revision}" if revision and "@" not in name else name
    return None


_EMBEDDERS = (b"embedder", b"embedding_model")
_IMAGES = 64  # rows of images read at a time
_LOOKED = 16  # batches searched for a first value
_VECTORS = 4096
LABELS = ("label", "labels", "class")


def open_arrow(
    paths: Sequence[Path | MemoryTable], options: SourceOptions = DEFAULTS, takes: int | None = None
) -> ArrowSource | None:
    """Open Parquet or Arrow files or tables as one source of images or vectors; None if the first is neither.

    ``takes`` is the model's input: the width of vectors, 0 for images, None if unknown.
    """
    there = [is_arrow_file(path) for path in paths]
    if not there or not there[0]:
        return None
    if not all(there):
        other = paths[there.index(False)]
        raise UsageError(f"{escape_name(other)}: this is not a Parquet or Arrow file like the first; give one kind.")
    if not any(map(_has_rows, paths)):
        shown = escape_name(paths[0])
        raise SourceError(f"{shown}: it is empty." if len(paths) == 1 else f"{shown}: it and the others are empty.")
    schema = schema_of(paths[0])
    column = choose_column(paths[0], schema, options.column, takes)
    is_image = holds(storage_type(schema.field(column).type)) == "images"
    kind = ArrowImages if is_image else ArrowVectors
    return kind(paths, column, options)


def is_arrow_file(path: Path | MemoryTable) -> bool:
    """Return whether a path is a Parquet or Arrow file, or a table in memory."""
    if isinstance(path, MemoryTable):
        return True
    try:
        with path.open("rb") as file:
            return is_arrow(path, file.read(4))
    except (OSError, ValueError):  # opening it as another source reports the error
        return False


class ArrowSource(StreamSource):
    """Rows of Parquet or Arrow files, made by :func:`open_arrow`.

    A row is named by a column of ``NAMES``, else by the image's own path, else by a column of ``IDS``, else by its
    number; an id column that was asked for is used verbatim. It is labelled by a column ``label``, ``labels`` or
    ``class``, with class names if Hugging Face's features have them.
    """

    kind: ClassVar[str] = "arrow"

    def __init__(self, paths: Sequence[Path | MemoryTable], column: str, options: SourceOptions = DEFAULTS) -> None:
        first = os.fspath(paths[0])
        super().__init__(first if len(paths) == 1 else f"{first} and {len(paths) - 1:,} more")
        self.paths, self.column = list(paths), column
        self._schema = schema_of(paths[0])
        for flag, asked in (("--id-column", options.id_column), ("--label-column", options.label_column)):
            if asked is not None:
                check_column(escape_name(paths[0]), self._schema, asked, flag)
        names = [name for name in self._schema.names if name != column]
        named = None if options.id_column else next((name for name in NAMES if name in names), None)
        kind = self._schema.field(column).type
        self._has_paths = hasattr(kind, "get_field_index") and kind.get_field_index("path") >= 0
        ids = () if named or self._has_paths else IDS
        self._is_path = bool(named)
        self._name = options.id_column or named or next((name for name in ids if name in names), None)
        self._label = options.label_column or next((name for name in LABELS if name in names), None)
        self._classes = class_names(self._schema, self._label)
        for path in paths[1:]:
            self._check_like_first(path)
        self._rows = sum(rows_in(path) for path in paths)
        self.read_once = any(isinstance(path, MemoryTable) for path in paths)
        found = [] if self.read_once else list(map(os.stat, paths))
        self.files = [[status.st_size, status.st_mtime_ns] for status in found]
        self._known: Sequence[str] = ()
        self.known_rows, self.unnamed, self.step = 0, 0, 1

    def _check_like_first(self, path: Path | MemoryTable) -> None:
        """Raise SourceError if a file lacks a column of the first file, or has another type there."""
        from pyarrow import types

        schema, shown, first = schema_of(path), escape_name(path), escape_name(self.paths[0])
        for name in filter(None, self.columns):
            if name not in schema.names:
                raise SourceError(f"{shown}: it has no column {name!r}, and {first} has; give files of one kind.")
            there, here = (storage_type(found.field(name).type) for found in (self._schema, schema))
            if name == self.column:
                same = _contents(there) == _contents(here)
                same = same and len({getattr(kind, "list_size", None) for kind in (there, here)} - {None}) < 2
            else:
                same = types.is_integer(there) == types.is_integer(here)
            if not same:
                raise SourceError(
                    f"{shown}: its column {name!r} holds {here}, and that of {first} {there}; give files of one kind."
                )

    def __len__(self) -> int:
        return self._rows

    def listing(self) -> str:
        """Return a digest of the columns, sizes and times; empty for a table in memory."""
        return "" if self.read_once else digest(self.kind, [[self.columns, self.files]])

    @property
    def columns(self) -> tuple[str, str | None, str | None]:
        """The columns of the data, the names and the labels."""
        return self.column, self._name, self._label

    @property
    def has_labels(self) -> bool:
        """Whether there is a column of labels."""
        return self._label is not None

    @property
    def has_names(self) -> bool:  # type: ignore[override]
        """Whether rows have names other than their numbers."""
        return self._name is not None or self._has_paths

    @property
    def mtime_ns(self) -> int:  # noqa: D102
        return max((mtime_ns for _, mtime_ns in self.files), default=0)

    @property
    def ids(self) -> dict[str, str] | None:
        """The column of names and its Arrow type, if there is one."""
        if self._name is None:
            return None
        return {"column": self._name, "type": str(self._schema.field(self._name).type)}

    def name_by(self, column: str, reason: str) -> None:
        """Take the names verbatim from this column; ``reason`` says why, if there is none."""
        if column not in self._schema.names:
            raise UsageError(
                f"{escape_name(self.path)}: it has no column {escape_name(column)}, {reason}; name its column of ids "
                "with --id-column."
            )
        if column != self._name:
            self._name, self._is_path = column, False
            for path in self.paths[1:]:
                self._check_like_first(path)

    def leave_out(self, names: Sequence[str]) -> None:
        """Skip rows of these names, once per occurrence in ``names``; further rows of a name are read.

        Once all rows are read, ``known_rows`` counts the skipped ones, and ``unnamed`` those that were read because
        they have no name to be known by.
        """
        self._known = names

    def count(self) -> int:
        """Return the number of rows; if the files do not state it, all rows are read."""
        return self._rows or sum(len(names) for _, names, _ in self._records(4096))

    def _new_names(self) -> Callable[[int, str | None, str | None], str | None]:
        """Return a function, to call for each row in order: the row's name, or None if it is left out.

        A row is named by its column, its image's path, or its number, marked if its id is null. A row without a name
        in a table with names is never one that is known: its number goes on from the known ones.
        """
        there, self.known_rows, self.unnamed = Counter(self._known), 0, 0
        read = free = 0  # rows that are not left out, and the least number to invent

        def new_name(row: int, given: str | None, path: str | None) -> str | None:
            nonlocal read, free
            if row % self.step:
                return None
            name = given or path_or_none(path)
            if name is None and self.has_names and self._known:
                free = max(free, len(self._known) + read)
                while (name := self._numbered(free)) in there:
                    free += 1
                self.unnamed, free = self.unnamed + 1, free + 1
            elif there[name := name or self._numbered(row)] > 0:
                there[name] -= 1
                self.known_rows += 1
                return None
            read += 1
            return name

        return new_name

    def _numbered(self, row: int) -> str:
        """Return the name of a row without one."""
        number = row_names([row], max(self._rows, row + 1))[0]
        return number if self._name is None or self._is_path else f"row {number}"

    def _records(self, rows: int, start: int = 0) -> Iterator[tuple[Any, list[str | None], list[str] | None]]:
        """Yield, some rows at a time from row ``start`` on, the column, the names and the labels."""
        wanted = [name for name in self.columns if name is not None]
        for path in self.paths:
            if start and start >= (known := rows_in(path)) > 0:
                start -= known
                continue
            with explained(path):
                for whole in record_batches(path, list(dict.fromkeys(wanted)), rows):
                    batch, start = whole.slice(min(start, len(whole))), max(0, start - len(whole))
                    if len(batch):
                        yield stored(batch.column(self.column)), self._given(batch), self._labels(batch)

    def _given(self, batch: Any) -> list[str | None]:
        """Return each row's value in the column of names: normalised paths, or ids verbatim."""
        if self._name is None:
            return [None] * len(batch)
        column = batch.column(self._name)
        texts = [id_text(value, column.type) for value in column.to_pylist()]
        return [path_or_none(text) for text in texts] if self._is_path else [text or None for text in texts]

    def _labels(self, batch: Any) -> list[str] | None:
        if self._label is None:
            return None
        return label_texts(batch.column(self._label).to_pylist(), self._classes)


class ArrowImages(ArrowSource):
    """Image files stored in a column."""

    def _images(self, batch_size: int) -> Iterator[tuple[str, bytes | str, str | None]]:
        row, new_name = 0, self._new_names()
        for column, names, labels in self._records(min(batch_size, _IMAGES)):
            for i, value in enumerate(column.to_pylist()):
                file, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
                name = new_name(row, names[i], path)
                row += 1
                if name is not None:
                    missing = "the row has no bytes of an image, at most the path of one"
                    yield name, missing if file is None else file, None if labels is None else labels[i]


class ArrowVectors(ArrowSource, VectorSource):
    """Vectors in a column of lists or tensors of numbers, all of length ``dim``."""

    unit: ClassVar[str] = "row"

    def __init__(self, paths: Sequence[Path | MemoryTable], column: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(paths, column, options)
        kind = storage_type(self._schema.field(column).type)
        self._row_bytes = kind.value_type.bit_width // 8
        self.dim = int(getattr(kind, "list_size", 0)) or self._first()
        self._row_bytes *= self.dim
        self.embedder = named_embedder(self._schema, column)
        for path in paths[1:]:
            lengths = set(map(len, _first_values(path, column)))
            if lengths and self.dim not in lengths:
                raise SourceError(
                    f"{escape_name(path)}: its column {column!r} has rows of {min(lengths):,} numbers, and that of "
                    f"{escape_name(paths[0])} of {self.dim:,}; give files of one kind."
                )

    def _first(self) -> int:
        for column, _, _ in self._records(_IMAGES):
            if value := next(filter(None, column.to_pylist()), None):
                return len(value)
        raise SourceError(
            f"{escape_name(self.path)}: its column {self.column} holds no vector; name another with --column."
        )

    def _images(self, batch_size: int) -> Iterator[tuple[str, bytes | str, str | None]]:
        raise UsageError(f"{escape_name(self.path)}: these are vectors, not images.")

    def sample(self, most: int) -> NDArray[np.float32]:
        """Return up to ``most`` rows, evenly spread, float32, shape (N, dim); NaN for rows without a vector."""
        total = len(self) or sum(len(column) for column, _, _ in self._records(_VECTORS))
        wanted = np.arange(min(most, total)) * total // max(1, min(most, total))
        out = np.full((len(wanted), self.dim), np.nan, np.float32)
        for batch in self.batches():
            positions = np.asarray(batch.positions, np.int64)
            places = np.searchsorted(wanted, positions)
            chosen = (places < len(wanted)) & (wanted[np.minimum(places, len(wanted) - 1)] == positions)
            out[places[chosen]] = batch.vectors[chosen]
        return out

    def batches(self, batch_size: int = _VECTORS, start: int = 0) -> Iterator[MatrixBatch]:  # type: ignore[override]
        """Iterate over the rows; null ones, and ones of another length or not finite, are failures."""
        row, new_name = start, self._new_names()
        for record in self._records(batch_size, start):
            column, given, labels = record
            found = [new_name(row + i, name, None) for i, name in enumerate(given)]
            names = [name for name in found if name is not None]
            if len(names) < len(found):
                new = [i for i, name in enumerate(found) if name is not None]
                column = column.take(np.array(new, np.int64))
                labels = None if labels is None else [labels[i] for i in new]
            row += len(given)
            values, reasons = self._values(column)
            yield MatrixBatch.of(start, names, values, self._row_bytes, reasons, labels)
            start += len(names)

    def _values(self, column: Any) -> tuple[NDArray[np.float32], dict[int, str]]:
        """Return the rows, and the reasons why some have no vector."""
        reasons: dict[int, str] = {}
        values = np.zeros((len(column), self.dim), np.float32)
        lengths = column.value_lengths().to_pylist() if hasattr(column, "value_lengths") else [self.dim] * len(column)
        with np.errstate(over="ignore", invalid="ignore"):
            if not column.null_count and lengths == [self.dim] * len(column):
                values[:] = column.flatten().to_numpy(zero_copy_only=False).reshape(values.shape)
                return values, reasons
            for i, value in enumerate(column.to_pylist()):
                if value is None:
                    reasons[i] = "there is no vector"
                elif len(value) != self.dim:
                    reasons[i] = f"it has {len(value):,} numbers, not {self.dim:,}"
                else:
                    values[i] = np.asarray(value, np.float64)
        return values, reasons


def stored(column: Any) -> Any:
    """Return a column's storage, without an extension type."""
    import pyarrow as pa

    return column.storage if isinstance(column, pa.ExtensionArray) else column


def path_or_none(text: str | None) -> str | None:
    """Return the name that a path gives, or None if it gives none."""
    try:
        return path_name(text or "")
    except ValueError:
        return None
