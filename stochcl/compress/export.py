"""Decoded codes as files that other programs read: .npz, .npy, .csv, .parquet, .arrow."""

from __future__ import annotations

import csv
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes, symbol_dtype
from stochcl.errors import LabelsError, MissingExtraError, OutputError, UsageError
from stochcl.files import replacing
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.compress.rows import Rows


_ALPHABET = b"stochcl.alphabet"  # in the schema's metadata
_MODEL = b"stochcl.model_sha256"


def schema_of(rows: Decoded) -> Any:
    """Return the columns: name, label, uncertainty where stored, a list column of symbols and one of vectors."""
    pa = _pyarrow()
    header = rows.archive.header
    symbol = pa.uint8() if header.alphabet <= 256 else pa.uint16()
    fields = [pa.field("name", pa.string()), pa.field("label", pa.string())]
    if rows.uncertainty is not None:
        fields.append(pa.field("uncertainty", pa.float32()))
    if rows.symbols:
        fields.append(pa.field("symbols", pa.list_(symbol, rows.latents)))
    if rows.vectors:
        fields.append(pa.field("vector", pa.list_(pa.float32(), rows.dim)))
    return pa.schema(fields, {_ALPHABET: str(header.alphabet), _MODEL: header.model_sha256})


def record_batches(rows: Decoded, schema: Any) -> Iterator[Any]:
    """Yield the rows as record batches, part by part."""
    pa = _pyarrow()
    for where, symbols, vectors in rows.parts():
        columns = [
            pa.array(rows.shown(texts[where]) if texts else [None] * len(symbols), pa.string())
            for texts in (rows.names, rows.labels)
        ]
        if rows.uncertainty is not None:
            columns.append(pa.array(rows.uncertainty[where], pa.float32()))
        if rows.symbols:
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(symbols.reshape(-1)), rows.latents))
        if vectors is not None:
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), rows.dim))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def reader_of(rows: Decoded) -> Any:
    """Return what Arrow reads the rows by, a ``pyarrow.RecordBatchReader``."""
    pa, schema = _pyarrow(), schema_of(rows)
    return pa.RecordBatchReader.from_batches(schema, record_batches(rows, schema))


def from_arrow(table: Any, *, alphabet: int | None = None) -> Codes:
    """Return the codes of a table or record batch that ``to_arrow`` gave, or a Parquet file of codes held."""
    names = list(table.schema.names)
    if "symbols" not in names:
        raise UsageError(f"the table has no column symbols; there are {', '.join(names)}.")
    column = table.column("symbols")
    lists = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    if lists.null_count:
        raise UsageError(f"{lists.null_count:,} rows of the table have no symbols; leave them out.")
    rows, flat = len(lists), lists.flatten().to_numpy(zero_copy_only=False)
    lengths = set(lists.value_lengths().to_pylist()) if rows else {getattr(lists.type, "list_size", 0)}
    if len(lengths) != 1:
        raise UsageError(
            f"rows of the table have {min(lengths):,} to {max(lengths):,} symbols; all codes are of one width."
        )
    if alphabet is None:
        alphabet = int((table.schema.metadata or {}).get(_ALPHABET, b"2"))
    try:
        return Codes.from_symbols(
            flat.reshape(rows, lengths.pop()),
            alphabet=alphabet,
            names=_texts(table, "name"),
            labels=_texts(table, "label"),
            uncertainty=np.asarray(table.column("uncertainty"), np.float32) if "uncertainty" in names else None,
        )
    except ValueError as exc:
        raise UsageError(f"these are not symbols of {alphabet} values: {exc}; give the alphabet.") from exc


def _texts(table: Any, name: str) -> Sequence[str] | None:
    """Return a column's texts; None where it is not there or all of it is null."""
    if name not in table.schema.names or table.column(name).null_count == len(table):
        return None
    return ["" if text is None else str(text) for text in table.column(name).to_pylist()]


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
    except ImportError as exc:
        msg = "Arrow and Parquet need pyarrow, which is not installed; run: pip install 'stochcl[arrow]'."
        raise MissingExtraError(msg) from exc
    return pa


@dataclass(frozen=True)
class Exported:
    """What was written.

    Parameters
    ----------
    path : str
    rows, bytes : int
    holds : tuple of str
        symbols, vectors, names, labels, uncertainty: what of them is in the file.
    """

    path: str
    rows: int
    bytes: int
    holds: tuple[str, ...]


def export(
    archive: Rows,
    path: str | os.PathLike[str],
    *,
    symbols: bool = True,
    vectors: bool = True,
    labels: Sequence[str] | None = None,
    force: bool = False,
    chunk: int = 4096,
) -> Exported:
    r"""Decode an archive to a file, whose ending says how; memory does not grow with the archive.

    Names and labels are written as Unicode: bytes that are not UTF-8 as ``\xNN``, so that any program reads
    them. (Two names that differ only in such a byte and in the same four characters written out become equal.)
    """
    path = Path(path)
    shown = escape_name(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(
            f"{shown}: codes are decoded to {', '.join(_WRITERS)}; give the output one of these endings."
        )
    if os.path.lexists(path) and not force:
        raise UsageError(f"{shown}: this file exists already; pass --force to replace it.")
    if chunk < 1:
        raise UsageError(f"at least 1 row is decoded at a time, not {chunk}.")
    rows = Decoded(archive, symbols, vectors, labels, chunk)
    if not (rows.symbols or rows.vectors):
        raise UsageError(f"{shown}: without symbols nothing is left, for the model has no vector decoder.")
    try:
        with replacing(path) as file:
            holds = writer(rows, file)
        return Exported(str(path), len(archive), path.stat().st_size, holds)
    except OSError as exc:
        raise OutputError(f"{shown}: it cannot be written: {(exc.strerror or str(exc)).lower()}.") from exc


class Decoded:
    """The rows of an archive, decoded part by part, and what of them is wanted."""

    def __init__(self, archive: Rows, symbols: bool, vectors: bool, labels: Sequence[str] | None, chunk: int) -> None:
        self.archive = archive
        self.names = archive.names
        self.labels = archive.labels if labels is None else labels
        if self.labels is not None and len(self.labels) != len(archive):
            raise LabelsError(
                f"there are {len(archive):,} images and {len(self.labels):,} labels; give one for each."
            )
        self.uncertainty = archive.uncertainty
        self.symbols = symbols
        self.decoder = archive.decoder if vectors else None
        self.vectors = self.decoder is not None
        self.latents = archive.header.latents
        self.dim = 0 if self.decoder is None else self.decoder.dim
        self.chunk = chunk

    def __len__(self) -> int:
        return len(self.archive)

    @property
    def holds(self) -> tuple[str, ...]:
        """What of symbols, vectors, names, labels and uncertainty there is."""
        there: dict[str, object] = {
            "symbols": self.symbols,
            "vectors": self.vectors,
            "names": self.names,
            "labels": self.labels,
        }
        there["uncertainty"] = self.uncertainty is not None
        return tuple(name for name, present in there.items() if present)

    @staticmethod
    def shown(texts: Sequence[str]) -> list[str]:
        """Return names or labels as any program reads them."""
        return [_unicode(text) for text in texts]

    def symbol_parts(self) -> Iterator[NDArray[np.uint8 | np.uint16]]:
        """Yield symbols, part by part."""
        for codes in self.archive.iter_codes(self.chunk):
            yield codes.symbols()

    def vector_parts(self) -> Iterator[NDArray[np.float32]]:
        """Yield vectors, part by part; nothing where they are not wanted."""
        if self.decoder is not None:
            for symbols in self.symbol_parts():
                yield self.decoder.decode(symbols)

    def parts(self) -> Iterator[tuple[slice, NDArray[np.uint8 | np.uint16], NDArray[np.float32] | None]]:
        """Yield which rows, their symbols, and their vectors where they are wanted."""
        start = 0
        for symbols in self.symbol_parts():
            vectors = None if self.decoder is None else self.decoder.decode(symbols)
            yield slice(start, start + len(symbols)), symbols, vectors
            start += len(symbols)


def _npz(rows: Decoded, file: IO[bytes]) -> tuple[str, ...]:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as arrays:
        for name in rows.holds:
            # numpy's own layout; zip64 from the start, because the size is not known when a member begins
            with arrays.open(f"{name}.npy", "w", force_zip64=True) as member:
                if name == "symbols":
                    _write_symbols(rows, member)
                elif name == "vectors":
                    _write_vectors(rows, member)
                elif name == "uncertainty" and rows.uncertainty is not None:
                    _write_array(member, (len(rows),), np.dtype("<f4"), [rows.uncertainty])
                else:
                    _write_texts(getattr(rows, name), rows.chunk, member)
    return rows.holds


def _npy(rows: Decoded, file: IO[bytes]) -> tuple[str, ...]:
    if rows.vectors:
        _write_vectors(rows, file)
        return ("vectors",)
    _write_symbols(rows, file)
    return ("symbols",)


def _write_symbols(rows: Decoded, file: IO[bytes]) -> None:
    dtype = np.dtype(symbol_dtype(rows.archive.header.alphabet)).newbyteorder("<")
    _write_array(file, (len(rows), rows.latents), dtype, rows.symbol_parts())


def _write_vectors(rows: Decoded, file: IO[bytes]) -> None:
    _write_array(file, (len(rows), rows.dim), np.dtype("<f4"), rows.vector_parts())


def _write_texts(texts: Sequence[str], chunk: int, file: IO[bytes]) -> None:
    # numpy's texts all take the room of the longest; part by part only the file does, where zeros deflate well
    width = max(1, max((len(_unicode(text)) for text in texts), default=0))
    dtype = np.dtype(f"<U{width}")
    parts = (
        np.array([_unicode(text) for text in texts[start : start + chunk]], dtype)
        for start in range(0, len(texts), chunk)
    )
    _write_array(file, (len(texts),), dtype, parts)


def _write_array(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[NDArray[Any]]
) -> None:
    """Write an array as ``.npy``, row after row."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        file.write(np.ascontiguousarray(part, dtype).tobytes())


class _Utf8:
    """What ``csv`` writes text to; it needs no more than this, and nothing to flush or to close."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, text: str) -> int:
        return self.file.write(text.encode("utf-8"))


def _csv(rows: Decoded, file: IO[bytes]) -> tuple[str, ...]:
    out = csv.writer(_Utf8(file))
    out.writerow(
        ["name", "label"]
        + ([] if rows.uncertainty is None else ["uncertainty"])
        + [f"s{i}" for i in range(rows.latents if rows.symbols else 0)]
        + [f"v{i}" for i in range(rows.dim)]
    )
    for where, symbols, vectors in rows.parts():
        names = rows.names[where] if rows.names else [""] * len(symbols)
        labels = rows.labels[where] if rows.labels else [""] * len(symbols)
        sure = None if rows.uncertainty is None else [f"{value:.9g}" for value in rows.uncertainty[where].tolist()]
        for i, (name, label) in enumerate(zip(names, labels, strict=True)):
            whole = symbols[i].tolist() if rows.symbols else []
            # nine digits bring every float32 back
            real = [] if vectors is None else [f"{value:.9g}" for value in vectors[i].tolist()]
            out.writerow([_unicode(name), _unicode(label), *([] if sure is None else [sure[i]]), *whole, *real])
    return rows.holds


def _parquet(rows: Decoded, file: IO[bytes]) -> tuple[str, ...]:
    schema = schema_of(rows)
    from pyarrow import parquet

    with parquet.ParquetWriter(file, schema, compression="zstd") as out:
        for batch in record_batches(rows, schema):
            out.write_batch(batch)
    return rows.holds


def _arrow(rows: Decoded, file: IO[bytes]) -> tuple[str, ...]:
    schema = schema_of(rows)
    from pyarrow import ipc

    with ipc.new_file(file, schema) as out:
        for batch in record_batches(rows, schema):
            out.write_batch(batch)
    return rows.holds


def _unicode(text: str) -> str:
    r"""Return text that any program reads: bytes that are not UTF-8 as ``\xNN``.

    Examples
    --------
    >>> _unicode("caf\udce9")
    'caf\\xe9'
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, from labels that a program made
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


_WRITERS: dict[str, Callable[[Decoded, IO[bytes]], tuple[str, ...]]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
