"""Find the images of an archive nearest to given images or to its own rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.compress import select_latents
from stochcl.api.evaluate import SearchOptions, kind_of
from stochcl.api.source import check_paths_exist, embedder_of
from stochcl.compress import ArchiveBase, open_archive
from stochcl.compress.header import Embedder, check_embedder
from stochcl.data import ArrowVectors, MatrixSource, SourceOptions, open_arrow, open_source
from stochcl.downstream.distances import DISTANCES, OF_KINDS, Nearest
from stochcl.errors import UsageError
from stochcl.messages import Progress, escape_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.entropy.tables import Decoder, Where
    from stochcl.files import PathLike


SCHEMA = "stochcl.search/0"

_ROWS = 1 << 14  # decoded at a time


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
    embedder: str | None = None, tables: Where = (), progress: Progress = lambda done, total: None,
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
        Fields of :class:`~stochcl.api.evaluate.SearchOptions`: ``count``, how many to find for each, and ``output``,
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
        made = _Made(escape_name(path), Embedder.of(archive.header.embedder), embedder)
        queries = [
            *_own(archive, path, names, rows),
            *(query for p in images for query in _given(Path(p), columns, made)),
        ]
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
            "schema": SCHEMA,
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


@dataclass(frozen=True)
class _Made:
    """The embedder of an archive's vectors, and the embedder named for the queries."""

    shown: str
    embedder: Embedder | None
    named: str | None


def _given(path: Path, columns: SourceOptions, made: _Made) -> Iterator[_Query]:
    """Yield the queries in a file: an image, or the rows of a matrix or table."""
    table = open_arrow([path], columns, takes=1)
    if table is None and (columns.column or columns.id_column):
        raise UsageError(f"{escape_name(path)}: this is not a table; omit --column and --id-column.")
    if table is None and path.suffix.lower() != ".npy":
        yield _Query(escape_name(path), -1, path)
        return
    source = open_source(path) if table is None else table
    if not isinstance(source, MatrixSource | ArrowVectors):
        raise UsageError(f"{escape_name(path)}: this holds many images; name single image files, or embeddings.")
    check_embedder(escape_name(path), embedder_of(source, made.named), made.embedder, made.shown)
    # Rows of a matrix are named by zero-padded numbers.
    shown = (lambda name: str(int(name))) if table is None else escape_name
    for batch in source.batches(_ROWS) if isinstance(source, MatrixSource) else source.vectors():
        for failure in batch.failures:
            raise UsageError(f"{escape_name(path)}: row {shown(failure.name)}: {failure.reason}; leave it out.")
        for name, vector in zip(batch.names, batch.vectors, strict=True):
            yield _Query(f"{escape_name(path)} row {shown(name)}", -1, vector=vector)


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
            found = codec.encode_pixels(codec.prepare(files, codec.preprocess_of(header)))
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
