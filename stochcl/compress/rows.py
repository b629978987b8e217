"""Base of an archive and a folder of archives: rows of codes, decoded on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stochcl.codes import Codes, folder_label, symbol_dtype
from stochcl.compress.columns import LazyStrings, StringColumn, id_array, id_type, ids_of, to_unicode
from stochcl.compress.header import EMBEDDER_KEY, Embedder
from stochcl.errors import LabelsError, NameNotFound, UsageError, require
from stochcl.lazy import cached_property
from stochcl.messages import Progress, escape_name, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from stochcl.compress.bytes import ArchiveErrors
    from stochcl.compress.header import Header
    from stochcl.compress.segment import Limits
    from stochcl.entropy.model import EntropyModel
    from stochcl.entropy.tables import Decoder, Tables

_ROWS = 8192  # decoded at a time
_VALUES = 1 << 25  # vector values exported at a time
_WINDOW = 64  # blocks shuffled together
ARROW_ALPHABET, _ARROW_MODEL = b"stochcl.alphabet", b"stochcl.model_sha256"  # metadata keys of an Arrow schema


class ArchiveBase(ABC):
    """Codes of one model and width, by row, by range, in order or shuffled, decoded on demand.

    ``_starts`` holds the first row of each segment (of each shard in a folder), then the number of rows;
    ``_first_blocks`` the same for blocks.
    """

    header: Header
    source_bytes: int
    """Total size of the images in their source, in bytes."""
    _shown: str  # the path, as messages name it
    _errors: ArchiveErrors
    _limits: Limits
    _starts: NDArray[np.integer]
    _first_blocks: NDArray[np.integer]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        header = self.header
        return (
            f"<{type(self).__name__} {self._shown}: {len(self):,} rows of {header.latents:,} latents of "
            f"{header.alphabet:,} values, by model {escape_name(header.model)!r}>"
        )

    @property
    @abstractmethod
    def skipped(self) -> list[tuple[str, str]]:
        """Names and reasons of the images that could not be read when the codes were made."""

    @property
    @abstractmethod
    def tables(self) -> Tables:
        """The decoding tables."""

    @property
    @abstractmethod
    def external_bytes(self) -> int:
        """Bytes of the decoder if it is not stored with the codes, else 0."""

    @property
    @abstractmethod
    def own_table_rows(self) -> int:
        """Rows in segments with a table of their own, which beat the shared models there."""

    @property
    @abstractmethod
    def main_model(self) -> EntropyModel:
        """The entropy model that codes most rows; in a folder, most rows of the largest shard."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Size on disk in bytes."""

    @abstractmethod
    def parts(self) -> dict[str, int]:
        """Return the bytes on disk by purpose; they sum to ``size``."""

    @abstractmethod
    def verify(self, progress: Progress = silent) -> None:
        """Read and check everything; raise FormatError if anything is damaged."""

    @abstractmethod
    def close(self) -> None:
        """Close all open files."""

    @abstractmethod
    def _packed(self, index: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Decode rows by number; each block is decoded once."""

    @abstractmethod
    def _uncertainty(self, rows: NDArray[np.integer]) -> NDArray[np.float32] | None:
        """Return the uncertainty of rows, or None if it is not stored."""

    @abstractmethod
    def _stored(self, which: str) -> bool:
        """Return whether ``names``, ``labels`` or ``entropy`` are stored."""

    @abstractmethod
    def _texts_of(self, which: str) -> Callable[[int], Sequence[str]]:
        """Return a function that reads the names or labels of a segment or shard, even after this is closed."""

    @abstractmethod
    def _rows_of_blocks(self, numbers: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return the row numbers of blocks; block numbers count through the whole archive."""

    @cached_property
    def _columns(self) -> dict[str, StringColumn]:
        """Columns of names and labels; without stored labels they are the first folders of the names."""
        stored = [which for which in ("names", "labels") if self._stored(which)]
        columns = {which: StringColumn(self._starts, self._texts_of(which)) for which in stored}
        if "names" in columns and "labels" not in columns:
            columns["labels"] = columns["names"].changed(folder_label)
        return columns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Contents

    @property
    def names(self) -> Sequence[str] | None:
        """The rows' names, read on demand, or None if they are not stored."""
        return self._texts("names", range(len(self)))

    @property
    def labels(self) -> Sequence[str] | None:
        """The rows' labels: stored ones, else the first folder of each name; None without either."""
        return self._texts("labels", range(len(self))) if self._has_labels else None

    @property
    def uncertainty(self) -> NDArray[np.float32] | None:
        """Each row's posterior entropy in bits, float32, shape (N,), or None if it is not stored."""
        return self._uncertainty(np.arange(len(self)))

    @cached_property
    def _has_labels(self) -> bool:
        labels = self._texts("labels", range(len(self)))
        return labels is not None and any(labels)

    @property
    def has_decoder(self) -> bool:
        """Whether codes can be decoded to vectors."""
        return self.decoder is not None

    @cached_property
    def decoder(self) -> Decoder | None:
        """The decoder from this archive's latents to vectors, or None; the tables' own takes all latents."""
        decoder, selection = self.tables.decoder, self.header.selection
        return decoder if decoder is None or selection is None else decoder.select(selection)

    # Rows

    def __getitem__(self, rows: int | str | slice | ArrayLike) -> Codes:
        """Return rows as codes, with their names and labels; an integer or a name gives one row."""
        index = indices(self.row(rows) if isinstance(rows, str) else rows, len(self))
        return self._codes(self._packed(index), index)

    def row(self, name: str) -> int:
        """Return the number of the first row of this name.

        Raises
        ------
        NameNotFound
            If there is none; it is also a KeyError.
        UsageError
            If the archive has no names.
        """
        if "names" not in self._columns:
            raise UsageError(f"{self._shown}: its rows have no names (--no-names?); choose them by number.")
        row = self._places.get(name)
        if row is None:
            raise NameNotFound(f"{self._shown}: it has no row named {escape_name(name)}.")
        return row

    @cached_property
    def _places(self) -> dict[str, int]:
        """The first row of each name."""
        return {name: row for row, name in reversed(list(enumerate(self.names or ())))}

    def iter_codes(self, rows: int = _ROWS) -> Iterator[Codes]:
        """Yield all rows in order, ``rows`` at a time; memory does not grow with the archive."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def iter_shuffled(self, seed: int, rows: int = _ROWS, *, blocks: int = _WINDOW) -> Iterator[Codes]:
        """Yield all rows once, in an order set by ``seed``, ``rows`` at a time; each block is decoded once.

        Blocks are visited in random order, and rows are shuffled within a window of ``blocks`` blocks. An archive
        with no more blocks than that is shuffled uniformly; in a larger one, rows of one window stay together.
        Memory does not grow with the archive. Use another seed for every epoch.

        Parameters
        ----------
        seed : int
        rows : int
            Rows at a time; the last part may be smaller.
        blocks : int
            Blocks per window, about 64 kbit each.

        Examples
        --------
        >>> for codes in archive.iter_shuffled(seed=epoch, rows=256):  # doctest: +SKIP
        ...     fit(codes.symbols(), codes.labels)
        """
        if rows < 1 or blocks < 1:
            raise UsageError(f"rows and blocks must be at least 1, got {rows} and {blocks}.")
        rng = np.random.default_rng(seed)
        order = rng.permutation(int(self._first_blocks[-1]))
        packed, index = self._packed(np.arange(0)), np.arange(0)
        for start in range(0, len(order), blocks):
            window = rng.permutation(self._rows_of_blocks(order[start : start + blocks]))
            packed, index = np.concatenate([packed, self._packed(window)]), np.concatenate([index, window])
            whole = len(index) - len(index) % rows if start + blocks < len(order) else len(index)
            for first in range(0, whole, rows):
                part = slice(first, min(first + rows, whole))
                yield self._codes(packed[part], index[part])
            packed, index = packed[whole:], index[whole:]

    def to_numpy(self, latents: int | None = None) -> NDArray[np.uint8 | np.uint16]:
        """Return symbols, uint8 (uint16 beyond 256 values), shape (N, D), or the first ``latents`` of them.

        Raises
        ------
        UsageError
            If the archive has fewer latents.
        """
        k = self._check_latents(latents)
        out = np.empty((len(self), k), symbol_dtype(self.header.alphabet))
        for rows, symbols in self._symbols(k):
            out[rows] = symbols
        return out

    def to_vectors(self, latents: int | None = None) -> NDArray[np.float32]:
        """Return decoded vectors, float32, shape (N, V), from all or the first ``latents`` latents.

        Raises
        ------
        UsageError
            If the archive has fewer latents, or its model no vector decoder.
        """
        k = self._check_latents(latents)
        decoder = self.decoder
        if decoder is None:
            raise UsageError(f"{self._shown}: its model has no vector decoder; use the symbols.")
        with self._errors:
            self._limits.check_memory(len(self), decoder)
            self._limits.check_vectors(len(self), decoder)
        out = np.empty((len(self), decoder.dim), np.float32)
        for rows, symbols in self._symbols(k):
            out[rows] = decoder.decode(symbols)
        return out

    def to_arrow(self, *, symbols: bool = True, vectors: bool = True, rows: int = 4096) -> Any:
        """Return a ``pyarrow.RecordBatchReader`` of all rows, decoded ``rows`` at a time while it is read.

        Its columns are name, label, uncertainty if stored, ``symbols`` and ``vector`` (fixed-size lists), as in a
        Parquet file that :func:`~stochcl.compress.export.export` writes. If the names were whole numbers in a table,
        their column follows the names. ``read_all()`` makes a table.

        Parameters
        ----------
        symbols, vectors : bool
            Which columns to return; vectors only if the model has a decoder.
        rows : int

        Raises
        ------
        MissingExtraError
            If pyarrow is not installed.
        UsageError
            If no column of codes is left.

        Examples
        --------
        >>> table = archive.to_arrow(vectors=False).read_all()  # doctest: +SKIP
        >>> datasets.Dataset(table)  # doctest: +SKIP
        """
        decoded = DecodedRows(self, symbols=symbols, vectors=vectors, rows=rows)
        schema = decoded.schema()
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(schema, decoded.record_batches(schema))

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Export the rows of :meth:`to_arrow` to a library that reads Arrow streams, as ``polars.DataFrame`` does."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def to_pandas(self, *, symbols: bool = True, vectors: bool = True) -> Any:
        """Return a ``pandas.DataFrame`` of all rows, with the columns of :meth:`to_arrow`."""
        return self.to_arrow(symbols=symbols, vectors=vectors).read_pandas()

    def _symbols(self, latents: int) -> Iterator[tuple[slice, NDArray[np.uint8 | np.uint16]]]:
        """Yield the first latents of all rows, part by part, without names."""
        for start in range(0, len(self), _ROWS):
            rows = slice(start, min(start + _ROWS, len(self)))
            codes = self.header.codes(self._packed(indices(rows, len(self))))
            yield rows, codes.prefix(latents).symbols()

    def _check_latents(self, latents: int | None) -> int:
        if latents is None:
            return self.header.latents
        if not 1 <= latents <= self.header.latents:
            most = self.header.latents
            raise UsageError(f"{self._shown}: it has {most} latents; ask for 1 to {most}, not {latents}.")
        return latents

    def _codes(self, packed: NDArray[np.uint8], index: NDArray[np.integer]) -> Codes:
        names, labels = self._texts("names", index), self._texts("labels", index)
        return self.header.codes(packed, names, labels, self._uncertainty(index))

    def _texts(self, which: str, rows: range | NDArray[np.integer]) -> LazyStrings | None:
        """Return names or labels of rows, or None if there are none."""
        column = self._columns.get(which)
        return None if column is None else LazyStrings(column, rows)


def indices(rows: int | slice | ArrayLike, count: int) -> NDArray[np.integer]:
    """Return non-negative row numbers; the cost does not depend on ``count``."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(count))
    index = np.asarray([rows] if isinstance(rows, int | np.integer) else rows)
    if index.dtype == bool and index.shape == (count,):
        return np.flatnonzero(index)
    if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
        raise IndexError("rows are chosen by an integer, a slice, a list of integers, or a mask of all rows")
    index = index.astype(np.int64)
    outside = index[(index < -count) | (index >= count)]
    if len(outside):
        raise IndexError(f"there is no row {outside[0]:,} in an archive of {count:,}")
    return np.where(index < 0, index + count, index)


class DecodedRows:
    """The columns of an archive for export, decoded ``rows`` rows at a time."""

    def __init__(
        self, archive: ArchiveBase, *, symbols: bool, vectors: bool, rows: int, labels: Sequence[str] | None = None,
        progress: Progress = silent,
    ) -> None:  # fmt: skip
        if rows < 1:
            raise UsageError(f"rows decoded at a time must be at least 1, got {rows}.")
        self.archive, self.symbols, self.rows, self._progress = archive, symbols, rows, progress
        self.decoder = archive.decoder if vectors else None
        if not symbols and self.decoder is None:
            raise UsageError(f"{archive._shown}: its model has no vector decoder, so symbols cannot be left out.")
        self.names, self.uncertainty = archive.names, archive.uncertainty
        self.labels = archive.labels if labels is None else labels
        if self.labels is not None and len(self.labels) != len(archive):
            raise LabelsError(f"{len(archive):,} rows and {len(self.labels):,} labels; give one for each.")
        self.ids = None if self.names is None else ids_of(archive.header)
        self.latents = archive.header.latents
        self.dim = 0 if self.decoder is None else self.decoder.dim
        if self.decoder is not None:
            with archive._errors:
                archive._limits.check_vectors(len(archive), self.decoder)
            self.rows = min(rows, max(1, _VALUES // self.dim))

    def __len__(self) -> int:
        return len(self.archive)

    def symbol_parts(self) -> Iterator[NDArray[np.uint8 | np.uint16]]:
        """Yield symbols, part by part."""
        done = 0
        for codes in self.archive.iter_codes(self.rows):
            yield codes.symbols()
            done += len(codes)
            self._progress(done, len(self))

    def vector_parts(self) -> Iterator[NDArray[np.float32]]:
        """Yield vectors, part by part."""
        return (vectors for _, _, vectors in self.parts() if vectors is not None)

    def parts(self) -> Iterator[tuple[slice, NDArray[np.uint8 | np.uint16], NDArray[np.float32] | None]]:
        """Yield slices of rows with their symbols, and their vectors if wanted."""
        start = 0
        for symbols in self.symbol_parts():
            vectors = None if self.decoder is None else self.decoder.decode(symbols)
            yield slice(start, start + len(symbols)), symbols, vectors
            start += len(symbols)

    def schema(self) -> Any:
        """Return the Arrow schema: name, label, uncertainty if stored, lists of symbols and of vectors."""
        pa, header = require("pyarrow", "an export to Arrow or Parquet", "arrow"), self.archive.header
        symbol = pa.uint8() if header.alphabet <= 256 else pa.uint16()
        alphabet = {ARROW_ALPHABET: str(header.alphabet)}
        fields = [pa.field("name", pa.string()), pa.field("label", pa.string())]
        if self.ids is not None:
            fields.insert(1, pa.field(self.ids[0], id_type(self.ids[1])))
        if self.uncertainty is not None:
            fields.append(pa.field("uncertainty", pa.float32()))
        if self.symbols:
            fields.append(pa.field("symbols", pa.list_(symbol, self.latents), metadata=alphabet))
        if self.decoder is not None:
            fields.append(pa.field("vector", pa.list_(pa.float32(), self.dim)))
        embedder = Embedder.of(header.embedder)
        made = {} if embedder is None else {EMBEDDER_KEY: str(embedder)}
        return pa.schema(fields, alphabet | {_ARROW_MODEL: header.model_sha256} | made)

    def record_batches(self, schema: Any) -> Iterator[Any]:
        """Yield Arrow record batches."""
        import pyarrow as pa

        for where, symbols, vectors in self.parts():
            columns = [
                pa.array([to_unicode(t) for t in texts[where]] if texts else [None] * len(symbols), pa.string())
                for texts in (self.names, self.labels)
            ]
            if self.ids is not None and self.names is not None:
                columns.insert(1, id_array(self.names[where], self.ids[1]))
            if self.uncertainty is not None:
                columns.append(pa.array(self.uncertainty[where], pa.float32()))
            if self.symbols:
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(symbols.reshape(-1)), self.latents))
            if vectors is not None:
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.dim))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
