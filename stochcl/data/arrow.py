"""Images or vectors in Parquet and Arrow files, as Hugging Face's data sets keep them: read once, in their order."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stochcl.codes import label_text
from stochcl.data.array import MatrixBatch, row_names
from stochcl.data.names import DEFAULTS, SourceOptions, path_name
from stochcl.data.preprocess import identify
from stochcl.data.source import StreamSource
from stochcl.errors import SourceError, SourceNotFound, StochclError, UsageError, require
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


_MAGICS = {b"PAR1": "parquet", b"ARRO": "file", b"\xff\xff\xff\xff": "stream"}
_ENDINGS = (".parquet", ".arrow", ".feather")


def is_arrow(path: Path, head: bytes) -> bool:
    """Tell by its first bytes whether a file is Parquet or Arrow; an Arrow stream has to be called so, too."""
    kind = _MAGICS.get(head[:4])
    return kind in ("parquet", "file") or (kind == "stream" and path.suffix.lower() in _ENDINGS)


@contextmanager
def explained(path: Path | MemoryTable) -> Iterator[None]:
    """Make Arrow's errors ours."""
    import pyarrow as pa

    try:
        yield
    except StochclError:  # of which some are OSErrors or ValueErrors
        raise
    except FileNotFoundError as exc:
        raise SourceNotFound(f"{escape_name(path)}: there is no such file.") from exc
    except (pa.ArrowException, OSError, ValueError, KeyError) as exc:
        reason = escape_name(str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__)
        raise SourceError(f"{escape_name(path)}: it cannot be read as Parquet or Arrow ({reason}).") from exc


class MemoryTable:
    """A table in memory: pandas', polars' or Arrow's (any with Arrow's stream), or Hugging Face's data set."""

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
    """Tell whether something is a table in memory that :class:`MemoryTable` takes."""
    return hasattr(given, "__arrow_c_stream__") or (hasattr(given, "with_format") and hasattr(given, "features"))


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        return _MAGICS.get(file.read(4), "")


def schema_of(path: Path | MemoryTable) -> Any:
    """Return the columns of a file or table; MissingExtraError where pyarrow is not installed."""
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
    """Return how many rows a file or table has, 0 where it does not say."""
    if isinstance(path, MemoryTable):
        return path.rows
    from pyarrow import parquet

    with explained(path):
        return int(parquet.read_metadata(path).num_rows) if _kind(path) == "parquet" else 0


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
    """Return which column holds images or vectors, by its type and by what its first rows hold.

    ``takes`` is what a model wants: vectors of so many numbers, 0 for images, None where that is not known.
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
    """Raise UsageError for a column that is not there."""
    if name not in schema.names:
        raise UsageError(f"{shown}: it has no column {name!r} ({flag}); there are {', '.join(schema.names)}.")


def storage_type(kind: Any) -> Any:
    """Return the type that a column is stored as: of a tensor of fixed shape, a list of fixed size."""
    import pyarrow as pa

    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def holds(kind: Any) -> str | None:
    """Return what a column of this type can hold: images, vectors, or numbers that may be anything, such as words."""
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


def _first_values(path: Path | MemoryTable, column: str) -> list[Any]:
    """Return the first values of a column that are there."""
    with explained(path):
        for batch in islice(record_batches(path, [column], _IMAGES), _LOOKED):
            if found := [value for value in batch.column(column).to_pylist() if value is not None]:
                return found
    return []


def _begins_with_images(path: Path | MemoryTable, column: str) -> bool:
    """Tell whether one of the first values is an image, or the path of one where there are no bytes."""
    values = (value["bytes"] if isinstance(value, dict) else value for value in _first_values(path, column))
    return any(value is None or identify(value) for value in values)


def _width(path: Path | MemoryTable, kind: Any, column: str) -> int:
    return int(getattr(kind, "list_size", 0)) or next((len(value) for value in _first_values(path, column)), 0)


def id_text(value: Any, kind: Any) -> str | None:
    """Return an id of any type as text; bytes that are none in hex."""
    from pyarrow import types

    if not isinstance(value, bytes):
        return None if value is None else str(value)
    with suppress(UnicodeDecodeError):
        if not types.is_fixed_size_binary(kind) and (text := value.decode()).isprintable():
            return text
    return value.hex()


def class_names(schema: Any, label: str | None) -> list[str]:
    """Return the names that Hugging Face's features give the numbers of labels; none where they do not."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (ValueError, KeyError, TypeError):
        return []


def label_texts(values: Sequence[Any], classes: Sequence[str]) -> list[str]:
    """Return labels as text: the names of classes where there are some for whole numbers."""
    count = len(classes)
    return [
        classes[value] if isinstance(value, int) and 0 <= value < count else label_text(value) for value in values
    ]


def named_embedder(schema: Any, column: str) -> str | None:
    """Return what the metadata of a table, of its column or of Hugging Face's data set call the vectors' embedder."""
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
_IMAGES = 64  # rows read at a time, of images
_LOOKED = 16  # times as many, in which a first value is looked for
_VECTORS = 4096
NAMES = ("name", "file_name", "filename", "path")
IDS = ("id", "_id", "__key__", "key", "uuid")
LABELS = ("label", "labels", "class")


def open_arrow(
    paths: Sequence[Path | MemoryTable], options: SourceOptions = DEFAULTS, takes: int | None = None
) -> ArrowSource | None:
    """Open Parquet or Arrow files, or a table, as one source, images or vectors; None where the first is neither.

    ``takes`` is what a model wants: vectors of so many numbers, 0 for images, None where that is not known.
    """
    there = [_looks(path) for path in paths]
    if not there or not there[0]:
        return None
    if not all(there):
        other = paths[there.index(False)]
        raise UsageError(f"{escape_name(other)}: this is not a Parquet or Arrow file like the first; give one kind.")
    schema = schema_of(paths[0])
    column = choose_column(paths[0], schema, options.column, takes)
    is_image = holds(storage_type(schema.field(column).type)) == "images"
    kind = ArrowImages if is_image else ArrowVectors
    return kind(paths, column, options)


def _looks(path: Path | MemoryTable) -> bool:
    if isinstance(path, MemoryTable):
        return True
    try:
        with path.open("rb") as file:
            return is_arrow(path, file.read(4))
    except (OSError, ValueError):  # which opening it as another source explains
        return False


class ArrowSource(StreamSource):
    """Rows of Parquet or Arrow files; :func:`open_arrow` makes one.

    A row's name is what a column ``name``, ``file_name`` or ``path`` says, else the image's own path, else an ``id``,
    else the row's number; the id of a column that is asked for is the name to the letter. Its label is what a column
    ``label``, ``labels`` or ``class`` says, in words where Hugging Face's features have words for numbers.
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
        self._rows = sum(rows_in(path) for path in paths)
        self._known: Sequence[str] = ()
        self.known_rows, self.step = 0, 1

    def __len__(self) -> int:
        return self._rows

    @property
    def has_labels(self) -> bool:
        """Whether a column says labels."""
        return self._label is not None

    @property
    def has_names(self) -> bool:
        """Whether rows are named by more than their numbers."""
        return self._name is not None or self._has_paths

    @property
    def ids(self) -> dict[str, str] | None:
        """The column that names are taken from and its type, where it holds whole numbers."""
        from pyarrow import types

        kind = None if self._name is None else self._schema.field(self._name).type
        return {"column": str(self._name), "type": str(kind)} if kind and types.is_integer(kind) else None

    @property
    def embedder(self) -> str | None:
        """What made the vectors, as the table's metadata say: a name, or ``NAME@REVISION``."""
        return named_embedder(self._schema, self.column)

    def leave_out(self, names: Sequence[str]) -> None:
        """Pass over rows of these names; of a name that rows have more often, those beyond its count are read.

        ``known_rows`` counts them, once the rows were read.
        """
        self._known = names

    def count(self) -> int:
        """Return how many rows there are; where a file does not say, all are read for it."""
        return self._rows or sum(len(names) for _, names, _ in self._records(4096))

    def _is_new(self) -> Callable[[int, str], bool]:
        """Return what tells, of one row after the other, whether it is to be read: each ``step``-th that is new."""
        there, self.known_rows = Counter(self._known), 0

        def is_new(row: int, name: str) -> bool:
            if row % self.step:
                return False
            if there[name] <= 0:
                return True
            there[name] -= 1
            self.known_rows += 1
            return False

        return is_new

    def _named(self, row: int, name: str | None, path: str | None = None) -> str:
        """Return a row's name: what its column says, or its image's path, or its number, marked if its id is null."""
        total = max(self._rows, row + 1)
        number = row_names([row], total)[0]
        return name or path_or_none(path) or (number if self._name is None or self._is_path else f"row {number}")

    def _records(self, rows: int) -> Iterator[tuple[Any, list[str | None], list[str] | None]]:
        """Yield some rows at a time: the column, what the names column says, and labels."""
        wanted = [name for name in (self.column, self._name, self._label) if name is not None]
        for path in self.paths:
            with explained(path):
                for batch in record_batches(path, list(dict.fromkeys(wanted)), rows):
                    yield stored(batch.column(self.column)), self._given(batch), self._labels(batch)

    def _given(self, batch: Any) -> list[str | None]:
        """Return what the column of names says of each row: paths as names are, ids as they are."""
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
    """Images whose files are in a column."""

    def _images(self, batch_size: int) -> Iterator[tuple[str, bytes | str, str | None]]:
        row, is_new = 0, self._is_new()
        for column, names, labels in self._records(min(batch_size, _IMAGES)):
            for i, value in enumerate(column.to_pylist()):
                file, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
                name = self._named(row, names[i], path)
                row += 1
                if is_new(row - 1, name):
                    missing = "the row has no bytes of an image, at most the path of one"
                    yield name, missing if file is None else file, None if labels is None else labels[i]
        if not row:
            raise SourceError(
                f"{escape_name(self.path)}: its column {self.column} holds no image; name another with --column."
            )


class ArrowVectors(ArrowSource):
    """Vectors in a column of lists or tensors of numbers, all of one length, which is ``dim``."""

    def __init__(self, paths: Sequence[Path | MemoryTable], column: str, options: SourceOptions = DEFAULTS) -> None:
        super().__init__(paths, column, options)
        kind = storage_type(self._schema.field(column).type)
        self._row_bytes = kind.value_type.bit_width // 8
        self.dim = int(getattr(kind, "list_size", 0)) or self._first()
        self._row_bytes *= self.dim

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
        """Return up to so many rows, evenly spread, float32, shape (N, dim); rows without a vector are of NaN."""
        total = len(self) or sum(len(column) for column, _, _ in self._records(_VECTORS))
        wanted = np.arange(min(most, total)) * total // max(1, min(most, total))
        out = np.full((len(wanted), self.dim), np.nan, np.float32)
        for batch in self.vectors():
            positions = np.asarray(batch.positions, np.int64)
            places = np.searchsorted(wanted, positions)
            chosen = (places < len(wanted)) & (wanted[np.minimum(places, len(wanted) - 1)] == positions)
            out[places[chosen]] = batch.vectors[chosen]
        return out

    def vectors(self, batch_size: int = _VECTORS) -> Iterator[MatrixBatch]:
        """Iterate over the rows; those that are null, of another length or not finite are failures."""
        row, start, is_new = 0, 0, self._is_new()
        for record in self._records(batch_size):
            column, given, labels = record
            names = [self._named(row + i, name) for i, name in enumerate(given)]
            if self._known or self.step > 1:
                new = [i for i, name in enumerate(names) if is_new(row + i, name)]
                column, names = column.take(np.array(new, np.int64)), [names[i] for i in new]
                labels = None if labels is None else [labels[i] for i in new]
            row += len(given)
            values, reasons = self._values(column)
            yield MatrixBatch.of(start, names, values, self._row_bytes, reasons, labels)
            start += len(names)

    def _values(self, column: Any) -> tuple[NDArray[np.float32], dict[int, str]]:
        """Return the rows, and why some are none."""
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
    """Return a column as it is stored, without the type that an extension gives it."""
    import pyarrow as pa

    return column.storage if isinstance(column, pa.ExtensionArray) else column


def path_or_none(text: str | None) -> str | None:
    """Return the name that a path makes, None where it makes none."""
    try:
        return path_name(text or "")
    except ValueError:
        return None
