"""Decoded codes as files that other programs read: .npz, .npy, .csv, .parquet."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.atomic import replacing
from stochcl.data import printable
from stochcl.errors import MissingExtraError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stochcl.codes import Codes
    from stochcl.compress.archive import Archive

_ROWS = 4096  # rows decoded at a time


@dataclass(frozen=True)
class Exported:
    """What was written.

    Parameters
    ----------
    path : str
    rows, bytes : int
    holds : tuple of str
        symbols, vectors, names, labels: what of them is in the file.
    """

    path: str
    rows: int
    bytes: int
    holds: tuple[str, ...]


def export(
    archive: Archive, path: str | os.PathLike[str], *, labels: Sequence[str] | None = None, force: bool = False
) -> Exported:
    """Decode an archive to a file, whose ending says how.

    Parameters
    ----------
    archive : Archive
    path : path-like
        - ``.npz``: arrays ``symbols`` (N, D), ``vectors`` (N, V) float32, ``names`` and ``labels`` as unicode;
          numpy reads it without pickle.
        - ``.npy``: the vectors, or the symbols if the model has no vector decoder.
        - ``.csv``: name, label, then ``s0...`` symbols and ``v0...`` vectors, one row an image.
        - ``.parquet``: name, label, and a list column each of symbols and vectors.
    labels : sequence of str, optional
        In place of the archive's.
    force : bool
        Replace an existing file.

    Raises
    ------
    UsageError
        If the ending is none of these or the file exists.
    MissingExtraError
        If pyarrow is needed and not installed.
    OutputError
        If it cannot be written; nothing is left then.
    """
    path = Path(path)
    shown = printable(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(
            f"{shown}: codes are decoded to {', '.join(_WRITERS)}; give the output one of these endings."
        )
    if os.path.lexists(path) and not force:
        raise UsageError(f"{shown}: this file exists already; pass --force to replace it.")
    rows = _Rows(archive, labels)
    if writer is _npy:
        holds: tuple[str, ...] = ("vectors",) if rows.vectors else ("symbols",)
    else:
        there = {"symbols": True, "vectors": rows.vectors, "names": rows.names, "labels": rows.labels}
        holds = tuple(name for name, present in there.items() if present)
    try:
        with replacing(path) as file:
            writer(rows, file)
        return Exported(str(path), len(archive), path.stat().st_size, holds)
    except OSError as exc:
        raise OutputError(f"{shown}: it cannot be written: {(exc.strerror or str(exc)).lower()}.") from exc


class _Rows:
    """The rows of an archive, decoded part by part."""

    def __init__(self, archive: Archive, labels: Sequence[str] | None) -> None:
        self.archive = archive
        self.names = archive.names
        self.labels = archive.labels if labels is None else labels
        self.vectors = archive.has_decoder

    def parts(self) -> Iterator[tuple[slice, Codes, Any]]:
        """Yield the rows, their codes, and their vectors or None."""
        decoder = self.archive.tables.decoder
        start = 0
        for codes in self.archive.iter_codes(_ROWS):
            yield (
                slice(start, start + len(codes)),
                codes,
                None if decoder is None else decoder.decode(codes.symbols()),
            )
            start += len(codes)


def _npz(rows: _Rows, file: IO[bytes]) -> None:
    arrays: dict[str, Any] = {"symbols": rows.archive.to_numpy()}
    if rows.vectors:
        arrays["vectors"] = rows.archive.to_vectors()
    for name, texts in (("names", rows.names), ("labels", rows.labels)):
        if texts:
            arrays[name] = np.array([_unicode(text) for text in texts])
    # Without allow_pickle, which older numpy takes for an array: strings and numbers are never pickled.
    np.savez_compressed(file, **arrays)


def _npy(rows: _Rows, file: IO[bytes]) -> None:
    array = rows.archive.to_vectors() if rows.vectors else rows.archive.to_numpy()
    np.save(file, array, allow_pickle=False)


def _csv(rows: _Rows, file: IO[bytes]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    out = csv.writer(text)
    decoder = rows.archive.tables.decoder
    out.writerow(
        ["name", "label"]
        + [f"s{i}" for i in range(rows.archive.header.latents)]
        + [f"v{i}" for i in range(decoder.dim if decoder else 0)]
    )
    for where, codes, vectors in rows.parts():
        names = [_unicode(name) for name in rows.names[where]] if rows.names else [""] * len(codes)
        labels = [_unicode(label) for label in rows.labels[where]] if rows.labels else [""] * len(codes)
        symbols = codes.symbols().tolist()
        for i, symbol_row in enumerate(symbols):
            # nine digits bring every float32 back
            values = [] if vectors is None else [f"{value:.9g}" for value in vectors[i].tolist()]
            out.writerow([names[i], labels[i], *symbol_row, *values])
    text.flush()
    text.detach()


def _parquet(rows: _Rows, file: IO[bytes]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as exc:
        msg = "a .parquet file needs pyarrow, which is not installed; run: pip install 'stochcl[arrow]'."
        raise MissingExtraError(msg) from exc
    symbol = pa.uint8() if rows.archive.header.alphabet <= 256 else pa.uint16()
    latents = rows.archive.header.latents
    fields = [
        pa.field("name", pa.string()),
        pa.field("label", pa.string()),
        pa.field("symbols", pa.list_(symbol, latents)),
    ]
    decoder = rows.archive.tables.decoder
    if decoder is not None:
        fields.append(pa.field("vector", pa.list_(pa.float32(), decoder.dim)))
    schema = pa.schema(fields)
    with parquet.ParquetWriter(file, schema, compression="zstd") as out:
        for where, codes, vectors in rows.parts():
            columns = [
                pa.array([_unicode(t) for t in texts[where]] if texts else [None] * len(codes), pa.string())
                for texts in (rows.names, rows.labels)
            ]
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(codes.symbols().reshape(-1)), latents))
            if vectors is not None:
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]))
            out.write_table(pa.Table.from_arrays(columns, schema=schema))


def _unicode(text: str) -> str:
    r"""Return text that any program reads: bytes that are not UTF-8 as ``\xNN``.

    Examples
    --------
    >>> _unicode("caf\udce9")
    'caf\\xe9'
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


_WRITERS: dict[str, Callable[[_Rows, IO[bytes]], None]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _csv,
    ".parquet": _parquet,
}
