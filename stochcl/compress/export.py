"""Export decoded codes to .npz, .npy, .csv, .parquet and .arrow files."""

from __future__ import annotations

import codecs
import csv
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes, symbol_dtype
from stochcl.compress.columns import to_unicode
from stochcl.compress.rows import ARROW_ALPHABET, ArchiveBase, DecodedRows
from stochcl.errors import UsageError
from stochcl.files import PathLike, check_output, replacing, writing
from stochcl.messages import Progress, escape_name, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray


def from_arrow(table: Any, *, alphabet: int | None = None) -> Codes:
    """Return the codes in a table or record batch that ``to_arrow`` made, or that came from a Parquet file of codes.

    Parameters
    ----------
    table : pyarrow.Table or RecordBatch
    alphabet : int, optional
        Number of values of a symbol, ``archive.header.alphabet``. Needed if a program dropped the metadata of the
        table's schema, as filters of ``datasets`` do.

    Raises
    ------
    UsageError
        If there is no column of symbols, or their alphabet is unknown.
    """
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
        raise UsageError(f"rows have {min(lengths):,} to {max(lengths):,} symbols; all codes are of one width.")
    if alphabet is None:
        said = (table.schema.metadata or {}).get(ARROW_ALPHABET) or (
            table.schema.field("symbols").metadata or {}
        ).get(ARROW_ALPHABET)
        if said is None:
            raise UsageError(
                "the table does not say how many values a symbol has; give alphabet=archive.header.alphabet, which "
                "is 2 for bits."
            )
        alphabet = int(said)
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
    """Return a column's texts, or None if it is missing or all null."""
    if name not in table.schema.names or table.column(name).null_count == len(table):
        return None
    return ["" if text is None else str(text) for text in table.column(name).to_pylist()]


@dataclass(frozen=True)
class Exported:
    """The file that was written, its rows and bytes, and what it ``holds``: symbols, vectors, names and so on."""

    path: str
    rows: int
    bytes: int
    holds: tuple[str, ...]


def export(
    archive: ArchiveBase, path: PathLike, *, symbols: bool = True, vectors: bool = True,
    labels: Sequence[str] | None = None, force: bool = False, chunk: int = 4096, progress: Progress = silent,
) -> Exported:  # fmt: skip
    r"""Decode an archive to a file in the format of its ending; memory does not grow with the archive.

    Names and labels are written as Unicode: bytes that are not UTF-8 as ``\xNN``, so that any program reads them.
    (Two names that differ only in such a byte and its four characters written out become equal.)
    """
    path = Path(path)
    shown = escape_name(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(f"{shown}: codes are decoded to {', '.join(_WRITERS)}; give one of these endings.")
    check_output(path, None, force=force)
    rows = DecodedRows(archive, symbols=symbols, vectors=vectors, labels=labels, rows=chunk, progress=progress)
    with writing(path):
        with replacing(path) as file:
            writer(rows, file)
        holds = (("vectors",) if rows.decoder else ("symbols",)) if writer is _npy else _holds(rows)
        return Exported(str(path), len(archive), path.stat().st_size, holds)


def _holds(rows: DecodedRows) -> tuple[str, ...]:
    """Return which of symbols, vectors, names, labels and uncertainty are present."""
    there = {"symbols": rows.symbols, "vectors": rows.decoder, "names": rows.names, "labels": rows.labels}
    return tuple(name for name, present in there.items() if present) + ("uncertainty",) * (
        rows.uncertainty is not None
    )


def _npz(rows: DecodedRows, file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as arrays:
        for name in _holds(rows):
            # numpy's own layout; zip64 from the start, because a member's size is not known when it begins
            with arrays.open(f"{name}.npy", "w", force_zip64=True) as member:
                if name in ("symbols", "vectors"):
                    _npy(rows, member, vectors=name == "vectors")
                elif name == "uncertainty" and rows.uncertainty is not None:
                    _write_array(member, (len(rows),), np.dtype("<f4"), [rows.uncertainty])
                else:
                    _write_texts(getattr(rows, name), rows.rows, member)


def _npy(rows: DecodedRows, file: IO[bytes], *, vectors: bool | None = None) -> None:
    """Write symbols or vectors; by default vectors if there is a decoder."""
    if vectors or (vectors is None and rows.decoder is not None):
        _write_array(file, (len(rows), rows.dim), np.dtype("<f4"), rows.vector_parts())
    else:
        dtype = np.dtype(symbol_dtype(rows.archive.header.alphabet)).newbyteorder("<")
        _write_array(file, (len(rows), rows.latents), dtype, rows.symbol_parts())


def _write_texts(texts: Sequence[str], chunk: int, file: IO[bytes]) -> None:
    # numpy pads all texts to the longest; written in parts, only the file does, where the zeros deflate well
    width = max(1, max((len(to_unicode(text)) for text in texts), default=0))
    dtype = np.dtype(f"<U{width}")
    parts = (
        np.array([to_unicode(text) for text in texts[start : start + chunk]], dtype)
        for start in range(0, len(texts), chunk)
    )
    _write_array(file, (len(texts),), dtype, parts)


def _write_array(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[NDArray[Any]]
) -> None:
    """Write an array as ``.npy``, part by part."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        file.write(np.ascontiguousarray(part, dtype).tobytes())


def _csv(rows: DecodedRows, file: IO[bytes]) -> None:
    out = csv.writer(codecs.getwriter("utf-8")(file))
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
            # nine digits restore every float32
            real = [] if vectors is None else [f"{value:.9g}" for value in vectors[i].tolist()]
            out.writerow([to_unicode(name), to_unicode(label), *([] if sure is None else [sure[i]]), *whole, *real])


def _arrow(rows: DecodedRows, file: IO[bytes], *, parquet: bool = False) -> None:
    schema = rows.schema()
    from pyarrow import ipc
    from pyarrow.parquet import ParquetWriter

    with ParquetWriter(file, schema, compression="zstd") if parquet else ipc.new_file(file, schema) as out:
        for batch in rows.record_batches(schema):
            out.write_batch(batch)


_WRITERS: dict[str, Callable[[DecodedRows, IO[bytes]], None]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _csv,
    ".parquet": partial(_arrow, parquet=True),
    ".arrow": _arrow,
}
