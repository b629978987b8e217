"""Find the rows of an archive nearest to queries, or nearly equal to each other, from their codes."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.api.compress import select_latents
from stochcl.api.evaluate import OUTPUTS, kind_of
from stochcl.api.source import check_paths_exist, embedder_of
from stochcl.compress import ArchiveBase, open_archive
from stochcl.compress.columns import to_unicode
from stochcl.compress.header import Embedder, check_embedder
from stochcl.data import SourceOptions, VectorSource, open_arrow, open_source
from stochcl.downstream.distances import DISTANCES, OF_KINDS, Nearest
from stochcl.downstream.duplicates import Pairs, find_duplicates
from stochcl.errors import UsageError, require
from stochcl.files import PathLike, check_output, replacing, writing
from stochcl.messages import Progress, escape_name, silent
from stochcl.options import Options, option

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.entropy.tables import Decoder, Where


_ROWS = 1 << 14  # read, decoded and written at a time


@dataclass(frozen=True)
class SearchOptions(Options):
    """What to find."""

    count: int = option(10, "How many to find.", at_least=1, unit="K", flags=("-k",))
    output: str = option("auto", "Compare decoded vectors, or symbols.", choices=OUTPUTS, flags=("--by",))


@dataclass(frozen=True, eq=False)
class _Query:
    """A query: its text for people, and a row of the archive, or row -1 with an image or a vector."""

    name: str
    row: int
    image: Path | None = None
    vector: NDArray[np.float32] | None = None


def search(
    path: PathLike, images: Sequence[PathLike] = (), *, names: Sequence[str] = (), rows: Sequence[int] = (),
    model: str | None = None, device: str = "auto", column: str | None = None, id_column: str | None = None,
    embedder: str | None = None, tables: Where = (), progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Find the rows of an archive nearest to images, or to rows of its own.

    By vectors, the comparison is asymmetric: an image's float features are compared with decoded vectors, by angle.
    By symbols, differing bits are counted (Hamming), or for ordered symbols the distances are added up. The archive
    is read in parts, so memory does not grow with it.

    Parameters
    ----------
    path : path-like
        An archive.
    images : sequence of path-like
        Image files to search for; the archive's model encodes them, in the archive's precision and size. For an
        archive of embeddings, .npy matrices, or Parquet or Arrow files: every row is a query.
    names, rows : sequence of str, sequence of int
        Rows of the archive to search for; a row is not its own neighbour.
    model : str, optional
        The archive's model, by name or file; by default found by the hash in its header.
    device : str
    column, id_column : str, optional
        Columns of a table with the query vectors, and with their names.
    embedder : str, optional
        Embedder of the queries, as NAME or NAME@REVISION; by default from the table's metadata.
    tables : iterable of Tables or path-like
        Searched first for decoders that are not in the archive.
    progress : callable
        Called with the number of rows compared and the total.
    **options
        Fields of :class:`~stochcl.api.search.SearchOptions`: ``count``, how many to find for each, and ``output``,
        what to compare: vectors, symbols, or auto: vectors if there is a decoder.

    Returns
    -------
    dict
        JSON values under the schema ``stochcl.search/0``: ``queries``, each with its ``neighbours``: ``row``,
        ``name``, ``label`` and ``distance``, in units of ``unit``.

    Raises
    ------
    UsageError
        If there is no query, or ``output`` or ``count`` is invalid.
    ModelMismatch
        If the model is not the archive's.
    ImageError, SourceError, FormatError
    """
    asked, columns = SearchOptions(**options), SourceOptions(column=column, id_column=id_column)
    check_paths_exist(list(images))
    with open_archive(path, tables=tables) as archive:
        if not len(archive):
            raise UsageError(f"{escape_name(path)}: it holds no rows to search.")
        queries = list(_own(archive, path, names, rows))
        for image in images:
            queries += _given(Path(image), columns, embedder, archive, path)
        if not queries:
            raise UsageError("name what to search for: a QUERY file, or --name or --row of a row of the archive.")
        decoder = None if asked.output == "symbols" else archive.decoder
        if asked.output == "vectors" and decoder is None:
            raise UsageError(f"{escape_name(path)}: its model has no decoder to vectors; search --by symbols.")
        distance = DISTANCES[OF_KINDS[kind_of(archive)] if decoder is None else "cosine"]
        found = Nearest(_wanted(archive, path, queries, model, device, decoder), distance, asked.count + 1)
        for start in range(0, len(archive), _ROWS):
            part = archive[start : start + _ROWS].symbols()
            found.add(part if decoder is None else decoder.decode(part))
            progress(min(start + _ROWS, len(archive)), len(archive))
        distances, numbers = found.sorted()
        return {
            "schema": "stochcl.search/0",
            "path": escape_name(path),
            "images": len(archive),
            "model": {"name": archive.header.model, "sha256": archive.header.model_sha256},
            "by": "symbols" if decoder is None else "vectors",
            "unit": distance.unit,
            "queries": [
                _answer(archive, query, near, there, asked.count)
                for query, near, there in zip(queries, distances.tolist(), numbers.tolist(), strict=True)
            ],
        }


def _own(archive: ArchiveBase, path: PathLike, names: Sequence[str], rows: Sequence[int]) -> Iterator[_Query]:
    for name in names:
        yield _Query(escape_name(name), archive.row(name))
    stored = archive.names
    for row in rows:
        if not 0 <= row < len(archive):
            raise UsageError(f"{escape_name(path)}: there is no row {row:,}; its rows are 0 to {len(archive) - 1:,}.")
        yield _Query(escape_name(stored[row]) if stored else f"row {row:,}", row)


def _given(
    path: Path, columns: SourceOptions, embedder: str | None, archive: ArchiveBase, shown: PathLike
) -> Iterator[_Query]:
    """Yield the queries in a file: an image, or the rows of a matrix or table."""
    table = open_arrow([path], columns, takes=1)
    if table is None and (columns.column or columns.id_column):
        raise UsageError(f"{escape_name(path)}: this is not a table; omit --column and --id-column.")
    if table is None and path.suffix.lower() != ".npy":
        yield _Query(escape_name(path), -1, path)
        return
    source = open_source(path) if table is None else table
    if not isinstance(source, VectorSource):
        raise UsageError(f"{escape_name(path)}: this holds many images; name single image files, or embeddings.")
    made, asked = Embedder.of(archive.header.embedder), embedder_of(source, embedder)
    check_embedder(escape_name(path), asked, made, escape_name(shown))
    # Rows of a matrix are named by zero-padded numbers.
    named = (lambda name: str(int(name))) if table is None else escape_name
    for batch in source.batches():
        for failure in batch.failures:
            raise UsageError(f"{escape_name(path)}: row {named(failure.name)}: {failure.reason}; leave it out.")
        for name, vector in zip(batch.names, batch.vectors, strict=True):
            yield _Query(f"{escape_name(path)} row {named(name)}", -1, vector=vector)


def _wanted(
    archive: ArchiveBase, path: PathLike, asked: list[_Query], model: str | None, device: str,
    decoder: Decoder | None,
) -> NDArray[Any]:  # fmt: skip
    """Return the vectors or symbols of the queries, one row each."""
    header = archive.header
    files = [query.image for query in asked if query.image is not None]
    matrix = [query.vector for query in asked if query.vector is not None]
    own = archive[[query.row for query in asked if query.row >= 0]].symbols()
    parts: list[NDArray[Any]] = [own if decoder is None else decoder.decode(own)] if len(own) else []
    if matrix if header.preprocess else files:  # only images are preprocessed
        held, other = ("images", "a matrix") if header.preprocess else ("embeddings", "an image")
        raise UsageError(f"{escape_name(path)}: it holds codes of {held}; {other} cannot be its QUERY.")
    if matrix and any(4 * len(vector) != header.input_bytes for vector in matrix):
        wide = next(len(vector) for vector in matrix if 4 * len(vector) != header.input_bytes)
        raise UsageError(
            f"{escape_name(path)}: its rows have {header.input_bytes // 4:,} numbers, and the query {wide:,}."
        )
    if matrix and decoder is not None:
        parts.append(np.stack(matrix))
    elif files or matrix:
        from stochcl.api.codec import codec_of

        codec = codec_of(path, model, device=device)
        codec.check_made(header, path)
        codec = codec.for_archive(header)
        if files:
            found = codec.encode_prepared(codec.prepare(files, codec.preprocess_of(header)))
        else:
            found = codec.encode_vectors(np.stack(matrix))
        symbols = select_latents(found.codes, header).symbols()
        parts.append(symbols if decoder is None else codec.vectors_of(found))
    return np.concatenate(parts)


def _answer(
    archive: ArchiveBase, query: _Query, distances: list[float], numbers: list[int], count: int
) -> dict[str, Any]:
    """Return a query with its neighbours, without the query's own row."""
    names, labels = archive.names, archive.labels
    near = [
        {
            "row": number,
            "name": None if names is None else escape_name(names[number]),
            "label": None if labels is None else escape_name(labels[number]),
            "distance": round(distance, 6),
        }
        for distance, number in zip(distances, numbers, strict=True)
        # A foreign decoder may give vectors that are not finite; skip them.
        if math.isfinite(distance) and number != query.row
    ]
    return {"query": query.name, "row": None if query.row < 0 else query.row, "neighbours": near[:count]}


# Duplicates

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
        "schema": "stochcl.dedup/0",
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
