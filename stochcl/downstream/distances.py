"""Distances between rows of codes or vectors, and a search for the nearest rows in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.entropy.vectors import ResidualDecoder
from stochcl.errors import UsageError
from stochcl.messages import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from stochcl.compress import ArchiveBase

_ROWS = 1 << 14  # compared or scored at a time
_PAIR = 40  # bytes per distance: in its own type, as float32, as a key, and copies
_DIGITS = 6  # decimals of a distance: the seventh depends on the processor's order of summation


@dataclass(frozen=True)
class Distance:
    """A distance: name, unit, a one-time preparation of rows, and the comparison of prepared rows."""

    name: str
    unit: str
    prepare: Callable[[NDArray[Any]], NDArray[Any]]
    between: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


def pack_bits(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Pack bits, shape (N, D), into words, shape (N, ceil(D / 64)); unused bits are 0."""
    packed = np.packbits(bits, axis=1)
    missing = -packed.shape[1] % 8
    return np.ascontiguousarray(np.pad(packed, ((0, 0), (0, missing)))).view(np.uint64)


def _differing(queries: NDArray[np.uint64], rows: NDArray[np.uint64]) -> NDArray[Any]:
    # Each word adds at most 64, so narrow sums suffice; they take two thirds of the time of 64-bit sums.
    sums = np.zeros((len(queries), len(rows)), np.uint16 if 64 * rows.shape[1] < 1 << 16 else np.uint32)
    columns = np.ascontiguousarray(rows.T)
    for word, column in enumerate(columns):
        sums += np.bitwise_count(queries[:, word, None] ^ column)
    return sums


def _pairwise(metric: str) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
    def between(queries: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
        from scipy.spatial.distance import cdist

        found: NDArray[Any] = cdist(queries, rows, metric)
        # scipy returns the fraction of columns that differ, not their number
        return np.rint(found * rows.shape[1]) if metric == "hamming" else found

    return between


# Values that are not finite sort last, without a warning.
_quiet = np.errstate(over="ignore", invalid="ignore")


@_quiet
def _unit_length(rows: NDArray[Any]) -> NDArray[np.float32]:
    rows = rows.astype(np.float32, copy=False)
    length = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
    return (rows / np.where(length > 0, length, 1)).astype(np.float32)


@_quiet
def _angle(queries: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.maximum(1 - queries @ rows.T, 0).round(_DIGITS)
    return found


@_quiet
def _length(queries: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    # float64, because the squares cancel for near rows
    squares = np.square(queries).sum(axis=1)[:, None] + np.square(rows).sum(axis=1) - 2 * (queries @ rows.T)
    found: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0)).round(_DIGITS)
    return found


def _float64(rows: NDArray[Any]) -> NDArray[np.float64]:
    return rows.astype(np.float64, copy=False)


DISTANCES = {
    distance.name: distance
    for distance in (
        Distance("hamming", "bits that differ", lambda rows: pack_bits(rows != 0), _differing),
        Distance("levels", "levels apart, summed over latents", _float64, _pairwise("cityblock")),
        Distance("symbols", "latents that differ", _float64, _pairwise("hamming")),
        Distance("cosine", "1 - cosine", _unit_length, _angle),
        Distance("euclidean", "length of the difference", _float64, _length),
    )
}
"""By name: of bits, of ordered symbols, of unordered symbols, and two of vectors."""

OF_KINDS = {"bits": "hamming", "levels": "levels", "categories": "symbols"}
"""The distance for each kind of symbols: bits, ordered numbers, or categories."""


class Nearest:
    """The ``count`` nearest of the rows seen so far, for each query; distances take at most ``memory`` bytes."""

    def __init__(
        self, queries: NDArray[Any], distance: Distance, count: int, *, memory: int = 64 << 20, prepared: bool = False
    ) -> None:
        self._queries = queries if prepared else distance.prepare(queries)
        self._distance, self._count, self._memory = distance, count, memory
        self._best = np.empty((len(queries), 0), np.uint64)
        self.seen = 0

    def add(self, rows: NDArray[Any], *, prepared: bool = False) -> None:
        """Compare more rows, shape (n, D), numbered consecutively."""
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            self._add(part if prepared else self._distance.prepare(part))

    def _add(self, rows: NDArray[Any]) -> None:
        if self.seen + len(rows) > 1 << 32:
            raise ValueError("a search goes through at most 4,294,967,296 rows")
        numbers = np.arange(self.seen, self.seen + len(rows), dtype=np.uint64)
        kept = min(self._count, self.seen + len(rows))
        best = np.empty((len(self._best), kept), np.uint64)
        step = max(1, self._memory // (_PAIR * (len(rows) + self._count)))
        for first in range(0, len(best), step):
            part = slice(first, first + step)
            keys = _keys(self._distance.between(self._queries[part], rows), numbers)
            keys = np.concatenate([self._best[part], keys], axis=1)
            best[part] = keys if keys.shape[1] <= kept else np.partition(keys, kept - 1, axis=1)[:, :kept]
        self._best = best
        self.seen += len(rows)

    def sorted(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return ascending distances and row numbers, both (M, k), with fewer columns if fewer rows were seen.

        Equal distances are ordered by row; NaN comes last.
        """
        best = np.sort(self._best, axis=1)
        distances = (best >> np.uint64(32)).astype(np.uint32).view(np.float32)
        return distances, (best & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _keys(distances: NDArray[Any], numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return integers that sort by distance, then row; the bits of positive float32 sort like their values."""
    single = np.abs(np.ascontiguousarray(distances, np.float32))  # also turns -0 into 0
    return single.view(np.uint32).astype(np.uint64) << np.uint64(32) | numbers


def nearest(
    queries: NDArray[np.uint64], rows: NDArray[np.uint64], count: int, *, memory: int = 64 << 20
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that differ from each query in the fewest bits; both are packed."""
    found = Nearest(queries, DISTANCES["hamming"], count, memory=memory, prepared=True)
    found.add(rows, prepared=True)
    distances, numbers = found.sorted()
    return distances.astype(np.int64), numbers


def without_own(
    distances: NDArray[np.float32], numbers: NDArray[np.int64], own: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Drop each query itself, or else the last, from its k + 1 nearest rows; both (M, k)."""
    kept = numbers != own[:, None]
    kept[kept.all(axis=1), -1] = False
    shape = len(numbers), numbers.shape[1] - 1
    return distances[kept].reshape(shape), numbers[kept].reshape(shape)


_GROUP_BITS = 16  # name bits per table, so that its float32 sums fit in a core's cache

_BLOCKS = 1 << 10  # blocks whose maxima bound the best scores


class ArchiveIndex:
    """Finds the rows of an archive whose decoded vectors have the smallest angle to a query's floats, exactly.

    A residual code's vector is a sum of words, so a query's products with all words make a few small tables, and a
    row's score is a lookup in each. Vectors are decoded only once, to store their lengths. Memory per row: 2 bytes
    for each 16 bits of code, plus 4 bytes.

    Parameters
    ----------
    archive : Archive or FolderArchive
        It may be closed afterwards.
    progress : callable
        Called with the number of rows read and the total.

    Raises
    ------
    UsageError
        If the archive's model has no residual decoder.

    Examples
    --------
    >>> index = ArchiveIndex(stochcl.open("codes.bin"))            # doctest: +SKIP
    >>> distances, rows = index.kneighbors(query, n_neighbors=10)  # doctest: +SKIP
    """

    def __init__(self, archive: ArchiveBase, progress: Progress = silent) -> None:
        decoder = archive.decoder
        if not isinstance(decoder, ResidualDecoder):
            raise UsageError(
                "ArchiveIndex needs residual codes, and these are not; use stochcl.downstream.CodeIndex on "
                "archive.to_vectors()."
            )
        if archive.header.latents < decoder.latents:
            decoder = decoder.select(range(archive.header.latents))
        self._decoder = decoder
        self._words = [words.astype(np.float32) * s for words, s in zip(decoder.words, decoder.scale, strict=True)]
        self._groups = _groups(decoder.stages)
        self._names = np.empty((len(self._groups), len(archive)), np.uint16)
        self._inverse = np.empty(len(archive), np.float32)
        start = 0
        for codes in archive.iter_codes(_ROWS):
            symbols, part = codes.symbols(), slice(start, start + len(codes))
            for names, group in zip(self._names, self._groups, strict=True):
                columns = np.concatenate([decoder.columns[stage] for stage in group])
                names[part] = symbols[:, columns] @ (1 << np.arange(len(columns) - 1, -1, -1))
            length = np.sqrt(np.square(decoder.decode(symbols), dtype=np.float64).sum(axis=1))
            self._inverse[part] = np.where(length > 0, 1 / np.where(length > 0, length, 1), 0)
            start += len(codes)
            progress(start, len(archive))

    def __len__(self) -> int:
        return len(self._inverse)

    def kneighbors(self, X: ArrayLike, n_neighbors: int = 10) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return ascending distances (1 - cosine) and row numbers, both of shape (M, k).

        Parameters
        ----------
        X : array-like of float, shape (M, V)
        n_neighbors : int

        Raises
        ------
        UsageError
            If queries have another width or are not finite, or n_neighbors exceeds the number of rows.
        """
        queries = np.atleast_2d(np.asarray(X, np.float32))
        if queries.ndim != 2 or queries.shape[1] != self._decoder.dim or not np.isfinite(queries).all():
            raise UsageError(f"queries are finite vectors of {self._decoder.dim} numbers, not {queries.shape}.")
        if not 1 <= n_neighbors <= len(self):
            raise UsageError(f"n_neighbors must be between 1 and {len(self):,}, got {n_neighbors}.")
        distances = np.empty((len(queries), n_neighbors), np.float32)
        rows = np.empty(distances.shape, np.int64)
        for i, query in enumerate(queries):
            scores = self._scores(query / (np.linalg.norm(query) or 1))
            near = _best(scores, n_neighbors)
            distance = np.maximum(1 - scores[near], 0).round(6)
            order = np.lexsort((near, distance))[:n_neighbors]
            distances[i], rows[i] = distance[order], near[order]
        return distances, rows

    def _scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of each row with a query of length 1."""
        decoder, constant = self._decoder, 0.0
        if decoder.output is not None and decoder.output_scale is not None and decoder.centre is not None:
            constant = float(query @ decoder.centre)
            query = decoder.output.astype(np.float32) @ (decoder.output_scale * query)
        products = [words @ query for words in self._words]
        products[0] += np.float32(constant)
        tables = []
        for group in self._groups:
            table = products[group[0]]
            for stage in group[1:]:
                table = (table[:, None] + products[stage]).reshape(-1)
            tables.append(table.astype(np.float32))
        scores = np.empty(len(self), np.float32)
        for start in range(0, len(self), _ROWS):
            part = slice(start, start + _ROWS)
            sums = tables[0][self._names[0, part]]
            for table, names in zip(tables[1:], self._names[1:, part], strict=True):
                sums += table[names]
            np.multiply(sums, self._inverse[part], out=scores[part])
        return scores


def _groups(stages: tuple[int, ...]) -> list[list[int]]:
    """Group consecutive stages so that each group's names take at most 16 bits."""
    groups, room = [[0]], _GROUP_BITS - stages[0]
    for stage, bits in enumerate(stages[1:], 1):
        if bits > room:
            groups.append([])
            room = _GROUP_BITS
        groups[-1].append(stage)
        room -= bits
    return groups


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the rows of at least the ``count`` best scores without a full sort."""
    width = len(scores) // _BLOCKS
    if width < 2 or count > _BLOCKS:
        return np.arange(len(scores))
    best = scores[: width * _BLOCKS].reshape(_BLOCKS, width).max(axis=1)
    return np.flatnonzero(scores >= np.partition(best, _BLOCKS - count)[_BLOCKS - count] - 1e-6)
