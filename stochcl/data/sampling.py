"""A sample of a matrix that training can hold in memory, and rows that it never sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.data.matrix import MatrixSource
from stochcl.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    _Take = Callable[[NDArray[np.int64]], NDArray[np.float32]]

MOST_ROWS = 200_000
"""Rows that a head is trained on at most: more do not make it better, and need not fit into memory."""

MOST_BYTES = 1 << 30
"""Bytes that they take at most, as float32: of rows of more than 1,342 numbers it is fewer."""

MOST_HELD = 10_000
"""Rows that are held out at most; of a small matrix a tenth."""

_ROUNDS = 8  # draws from a stratum whose rows are not finite
_READ_ROWS = 4096


def sample_rows(
    source: MatrixSource | NDArray[np.floating], most: int = MOST_ROWS, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Take finite rows of a matrix, evenly spread over it, for training and for measuring.

    The matrix is cut into as many runs of consecutive rows as rows are wanted, and one row is drawn of each: a
    matrix that is sorted in some way is represented as a whole, and a mapped file is read from its beginning to
    its end, a few rows at a time. The same seed gives the same rows.

    Parameters
    ----------
    source : MatrixSource or ndarray of float, shape (N, W)
    most : int
        Rows that are taken at most, held out or not, and never more than ``MOST_BYTES`` hold; a matrix with no more
        is taken whole.
    seed : int

    Returns
    -------
    train : ndarray of float32, shape (n, W)
        In the order of the matrix.
    held : ndarray of float32, shape (m, W)
        Others: a tenth of those taken, at most ``MOST_HELD``; none where that is less than one.

    Raises
    ------
    SourceError
        If no row that was drawn is finite.

    Examples
    --------
    >>> import numpy as np
    >>> train, held = sample_rows(np.ones((500, 3), np.float32), most=100)
    >>> train.shape, held.shape
    ((90, 3), (10, 3))
    """
    rng = np.random.default_rng([seed, len(source)])
    take: _Take
    if isinstance(source, MatrixSource):
        take, width = source.take, source.dim
    else:
        take, width = _taker(source), source.shape[1]
    wanted = sample_size(len(source), width, most)
    kept = np.zeros(wanted, bool)
    kept[rng.permutation(wanted)[: min(wanted // 10, MOST_HELD)]] = True
    masks = (~kept, kept)
    parts = [np.empty((int(mask.sum()), width), np.float32) for mask in masks]  # where the rows go at once
    places = [np.cumsum(mask) - 1 for mask in masks]
    found = np.zeros(wanted, bool)
    for strata, rows in _finite_rows(take, len(source), wanted, rng):
        found[strata] = True
        for part, mask, place in zip(parts, masks, places, strict=True):
            mine = mask[strata]
            part[place[strata[mine]]] = rows[mine]
    if not found.any():
        raise SourceError("no row of this matrix holds finite numbers only; there is nothing to train on.")
    train, held = (part if found.all() else part[found[mask]] for part, mask in zip(parts, masks, strict=True))
    return train, held


def sample_size(rows: int, width: int, most: int = MOST_ROWS) -> int:
    """Return how many rows of a matrix are drawn; those whose numbers are not finite are then left out.

    Examples
    --------
    >>> sample_size(50_000, 512), sample_size(1_000_000, 512), sample_size(1_000_000, 4096)
    (50000, 200000, 65536)
    """
    return max(1, min(most, rows, MOST_BYTES // (4 * width)))


def _taker(matrix: NDArray[np.floating]) -> _Take:
    def take(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(matrix[rows], dtype=np.float32)

    return take


def _finite_rows(
    take: _Take, total: int, wanted: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Draw a row of each stratum, again where it is not finite; yield strata and their rows, some at a time."""
    edges = np.arange(wanted + 1) * total // wanted
    strata = np.arange(wanted)
    for _ in range(_ROUNDS if wanted < total else 1):
        drawn = rng.integers(edges[strata], edges[strata + 1])
        missed = []
        for start in range(0, len(drawn), _READ_ROWS):
            part = slice(start, start + _READ_ROWS)
            rows = take(drawn[part])
            finite = np.isfinite(rows).all(axis=1)
            yield strata[part][finite], rows[finite]
            missed.append(strata[part][~finite])
        strata = np.concatenate(missed)
        if not len(strata):
            return
