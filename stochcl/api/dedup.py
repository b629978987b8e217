"""Find nearly equal rows of an archive from codes alone."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.compress import open_archive
from stochcl.compress.columns import to_unicode
from stochcl.downstream.duplicates import Pairs, find_duplicates
from stochcl.errors import UsageError, require
from stochcl.files import check_output, replacing, writing
from stochcl.messages import Progress, escape_name, silent
from stochcl.options import Options, option

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.entropy.tables import Where
    from stochcl.files import PathLike

SCHEMA = "stochcl.dedup/0"

_ROWS = 1 << 14  # read and written at a time
_COLUMNS = ("first", "second", "similarity")


@dataclass(frozen=True)
class DedupOptions(Options):
    """Which rows are duplicates."""

    threshold: float = option(
        0.95, "Least cosine of the decoded vectors of a pair; 1: equal codes.", more_than=0, at_most=1, unit="T"
    )
    seed: int = option(0, "Random seed.", at_least=0)


def dedup(
    path: PathLike, output: PathLike, *, tables: Where = (), force: bool = False, progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write a table of the pairs of rows whose codes are equal or decode to nearly the same vector.

    Memory grows by about 500 bytes a row. For the method see :func:`~stochcl.downstream.duplicates.find_duplicates`.

    Parameters
    ----------
    path : path-like
        An archive.
    output : path-like
        A .csv or .parquet file: ``first`` and ``second``, names (or numbers without names) of two rows, the earlier
        row first, and their ``similarity``. Rows with equal codes are each paired only with the first of them.
    tables : iterable of Tables or path-like
        Searched first for decoders that are not in the archive.
    force : bool
        Replace an existing output.
    progress : callable
        Called with the amount done and the total.
    **options
        Fields of :class:`DedupOptions`: ``threshold``, the least cosine of decoded vectors, and ``seed``.

    Returns
    -------
    dict
        JSON values under the schema ``stochcl.dedup/0``: ``pairs``, ``equal`` (pairs with equal codes), and
        ``duplicates``, the number of rows near an earlier one.

    Raises
    ------
    UsageError, OutputError, SourceError, FormatError
    """
    asked, output = DedupOptions(**options), Path(output)
    writer = {".csv": _write_csv, ".parquet": _write_parquet}.get(output.suffix.lower())
    if writer is None:
        raise UsageError(f"{escape_name(output)}: pairs are written to .csv or .parquet; give one of these endings.")
    if writer is _write_parquet:
        require("pyarrow", "a Parquet file", "arrow")
    check_output(output, Path(path), force=force)
    with open_archive(path, tables=tables) as archive:
        decoder, header = archive.decoder, archive.header
        if decoder is None and asked.threshold < 1:
            raise UsageError(
                f"{escape_name(path)}: its model has no decoder to vectors; --threshold 1 finds equal codes."
            )
        packed = np.concatenate([archive[:0].packed, *(codes.packed for codes in archive.iter_codes(_ROWS))])
        decode = None if decoder is None else lambda rows: decoder.decode(header.codes(rows).symbols())
        pairs = find_duplicates(packed, decode, asked.threshold, seed=asked.seed, progress=progress)
        with writing(output), replacing(output) as file:
            writer(file, pairs, archive.names)
    return {
        "schema": SCHEMA,
        "path": escape_name(path),
        "output": escape_name(output),
        "images": len(packed),
        "threshold": asked.threshold,
        "seed": asked.seed,
        "pairs": len(pairs.first),
        "equal": int((packed[pairs.first] == packed[pairs.second]).all(axis=1).sum()),
        "duplicates": len(np.unique(pairs.second)),
    }


def _named(rows: NDArray[np.int64], names: Sequence[str] | None) -> list[str]:
    """Return the names of rows, each looked up once."""
    if names is None:
        return list(map(str, rows.tolist()))
    numbers, places = np.unique(rows, return_inverse=True)
    found = [to_unicode(names[number]) for number in numbers.tolist()]
    return [found[place] for place in places.tolist()]


def _parts(pairs: Pairs, names: Sequence[str] | None) -> Iterator[tuple[list[str], list[str], NDArray[np.float32]]]:
    for start in range(0, len(pairs.first), _ROWS):
        part = slice(start, start + _ROWS)
        yield _named(pairs.first[part], names), _named(pairs.second[part], names), pairs.similarity[part]


def _write_csv(file: IO[bytes], pairs: Pairs, names: Sequence[str] | None) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    out = csv.writer(text)
    out.writerow(_COLUMNS)
    for first, second, similarity in _parts(pairs, names):
        out.writerows(zip(first, second, [f"{value:.6g}" for value in similarity.tolist()], strict=True))
    text.detach()


def _write_parquet(file: IO[bytes], pairs: Pairs, names: Sequence[str] | None) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = pa.schema(zip(_COLUMNS, (pa.string(), pa.string(), pa.float32()), strict=True))
    with ParquetWriter(file, schema, compression="zstd") as out:
        for first, second, similarity in _parts(pairs, names):
            columns = [pa.array(first, pa.string()), pa.array(second, pa.string()), pa.array(similarity)]
            out.write_batch(pa.record_batch(columns, schema=schema))
