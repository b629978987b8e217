"""Distances between rows of codes or vectors, and the nearest rows by them, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_ROWS = 1 << 14  # compared at a time
_PAIR = 40  # bytes that a distance takes: in its own type, as float32, as a key, and copies of these
_DIGITS = 6  # of a cosine: the seventh depends on the order in which a processor sums


@dataclass(frozen=True)
class Distance:
    """A distance of rows: its name and unit, how rows are prepared once, and prepared queries held against rows."""

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
    # What is added up is a byte a word; in narrow sums it takes two thirds of the time that 64 bits take.
    sums = np.zeros((len(queries), len(rows)), np.uint16 if 64 * rows.shape[1] < 1 << 16 else np.uint32)
    columns = np.ascontiguousarray(rows.T)
    for word, column in enumerate(columns):
        sums += np.bitwise_count(queries[:, word, None] ^ column)
    return sums


def _pairwise(metric: str) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
    def between(queries: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
        from scipy.spatial.distance import cdist

        found: NDArray[Any] = cdist(queries, rows, metric)
        # scipy gives the share of the columns that differ; what is counted is how many
        return np.rint(found * rows.shape[1]) if metric == "hamming" else found

    return between


# What is not finite is last, and no one's warning.
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
    # In float64: the squares cancel where rows are near.
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
"""By name: of bits, of symbols in order and of symbols without one, and two of vectors."""

OF_KINDS = {"bits": "hamming", "levels": "levels", "categories": "symbols"}
"""Which of them compares symbols that are bits, numbers in order, or names."""


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
        """Look at more rows, shape (n, D), which are numbered on."""
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
        """Return distances, ascending, and numbers of rows, both of shape (M, k), or fewer columns for fewer rows.

        Among equal distances the earlier row comes first; a distance that is no number comes last.
        """
        best = np.sort(self._best, axis=1)
        distances = (best >> np.uint64(32)).astype(np.uint32).view(np.float32)
        return distances, (best & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _keys(distances: NDArray[Any], numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers that order by distance, then by row: the bits of a positive float32 order as it does."""
    single = np.abs(np.ascontiguousarray(distances, np.float32))  # of minus zero, too
    return single.view(np.uint32).astype(np.uint64) << np.uint64(32) | numbers


def nearest(
    queries: NDArray[np.uint64], rows: NDArray[np.uint64], count: int, *, memory: int = 64 << 20
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the rows that differ from each query in the fewest bits; both are packed."""
    found = Nearest(queries, DISTANCES["hamming"], count, memory=memory, prepared=True)
    found.add(rows, prepared=True)
    distances, numbers = found.sorted()
    return distances.astype(np.int64), numbers


def without_own(
    distances: NDArray[np.float32], numbers: NDArray[np.int64], own: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Leave out, of the k + 1 nearest of each query, the row that it is itself, or else the last; both (M, k)."""
    kept = numbers != own[:, None]
    kept[kept.all(axis=1), -1] = False
    shape = len(numbers), numbers.shape[1] - 1
    return distances[kept].reshape(shape), numbers[kept].reshape(shape)
