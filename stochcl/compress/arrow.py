"""Codes as Arrow tables, which Parquet files, pandas, Polars, DuckDB and Hugging Face's data sets take, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes
from stochcl.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stochcl.compress.export import Decoded

_ALPHABET = b"stochcl.alphabet"  # in the schema's metadata
_MODEL = b"stochcl.model_sha256"


def schema_of(rows: Decoded) -> Any:
    """Return the columns: name, label, uncertainty where it is stored, a list column of symbols and one of vectors.

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    """
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
    """Return the codes of a table or record batch that :meth:`Rows.to_arrow` gave, or a Parquet file of codes held.

    Parameters
    ----------
    table : pyarrow.Table or RecordBatch
        With a column ``symbols``; ``name``, ``label`` and ``uncertainty`` are taken where they are there.
    alphabet : int, optional
        Values of a symbol; by default what the table's metadata says, or 2 where that has been lost.

    Raises
    ------
    UsageError
        If there is no such column, a row has none or not as many as the others, or they are not of the alphabet.
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
