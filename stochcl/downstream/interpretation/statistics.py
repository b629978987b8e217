"""Figures of latents: how often they take their values, what that costs, how they go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream.selection import indicator_products

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stochcl.downstream.interpretation.sample import Sample

_ROWS = 4096  # made floats at a time
_SAME = 0.7  # association from which two latents count as saying the same


def value_counts(symbols: NDArray[np.integer], alphabet: int) -> NDArray[np.int64]:
    """Count how often each latent takes each value, shape (D, K).

    Examples
    --------
    >>> value_counts(np.array([[0, 1], [1, 1]]), 2).tolist()
    [[1, 1], [0, 2]]
    """
    return np.stack([np.bincount(column, minlength=alphabet) for column in symbols.T.astype(np.intp)])


def entropies(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the entropy of each latent by itself, in bits, shape (D,), of counts of its values, shape (D, K).

    Examples
    --------
    >>> entropies(np.array([[2, 2], [4, 0]])).tolist()
    [1.0, 0.0]
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    bits: NDArray[np.float64] = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)
    return np.abs(bits)  # of a constant not minus zero


def weights(sample: Sample) -> NDArray[np.float64]:
    """Return which share of the vectors' variance goes with each latent, shape (D,).

    That is the R2 of a regression of all numbers of the vectors on one latent: on its value, or for categories on
    which it is. Latents that go together share it, so that these do not add up to 1. Where there is no decoder it
    is all zeros.
    """
    if sample.decoder is None:
        return np.zeros(sample.latents)
    centred = sample.x - sample.x.mean(axis=0, dtype=np.float64).astype(np.float32)
    total = float(np.square(centred, dtype=np.float64).sum())
    if not total > 0 or not np.isfinite(total):  # one row, or a foreign decoder that overflows
        return np.zeros(sample.latents)
    if sample.kind == "categories":
        return np.array([_between(column, centred) for column in sample.symbols.T]) / total
    products = np.zeros((sample.latents, centred.shape[1]), np.float32)
    for rows, part in _scaled(sample.symbols):
        products += part.T @ centred[rows]
    shares: NDArray[np.float64] = np.square(products, dtype=np.float64).sum(axis=1) / len(sample) / total
    return shares


def _between(values: NDArray[np.integer], centred: NDArray[np.floating]) -> float:
    """Return the sum of squares between groups of rows."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    sums = np.add.reduceat(centred[order], starts, axis=0, dtype=np.float64)
    sizes = np.diff(np.r_[starts, len(values)])
    return float((np.square(sums).sum(axis=1) / sizes).sum())


def _scaled(symbols: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield rows, so many at a time, in columns of mean 0 and variance 1; zeros where a latent never changes."""
    parts = [slice(start, start + _ROWS) for start in range(0, len(symbols), _ROWS)]
    mean = symbols.mean(axis=0, dtype=np.float64)
    squares = sum(np.square(symbols[rows] - mean).sum(axis=0) for rows in parts)
    spread = np.where(symbols.min(axis=0) < symbols.max(axis=0), np.sqrt(squares / len(symbols)), np.inf)
    for rows in parts:
        yield rows, ((symbols[rows] - mean) / spread).astype(np.float32)


def associations(sample: Sample, columns: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
    """Return how latents go together, shape (D, D), or of some of them.

    Of bits and levels Pearson's correlation, -1 to 1; of categories Cramer's V, 0 to 1. A latent that never changes
    goes with nothing, itself included.
    """
    symbols = sample.symbols if columns is None else sample.symbols[:, columns]
    if sample.kind == "categories":
        return _cramer(symbols)
    gram = np.zeros((symbols.shape[1],) * 2)
    for _, part in _scaled(symbols):
        gram += part.T @ part
    return np.clip(gram / len(symbols), -1, 1)


def _cramer(symbols: NDArray[np.integer]) -> NDArray[np.float64]:
    gram, _, groups = indicator_products(symbols, np.zeros((len(symbols), 1)))
    starts = [group.start for group in groups]
    values = np.array([group.stop - group.start for group in groups])
    squares = np.add.reduceat(np.add.reduceat(np.square(gram), starts, axis=0), starts, axis=1)
    degrees = np.minimum(values[:, None], values[None, :]) - 1
    found: NDArray[np.float64] = np.sqrt(np.clip(squares / np.maximum(degrees, 1), 0, 1))
    return np.where(degrees > 0, found, 0)


def strongest(scores: NDArray[np.floating], associated: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Return the latents with the greatest scores, the first first, but none that says what one before it says.

    Latents whose association with one chosen is 0.7 or more come last.

    Parameters
    ----------
    scores : ndarray, shape (D,)
    associated : ndarray, shape (D, D)
        As :func:`associations` gives it.
    count : int

    Examples
    --------
    >>> strongest(np.array([3.0, 2, 1]), np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]), 2).tolist()
    [0, 2]
    """
    order = np.argsort(-scores, kind="stable")
    chosen: list[int] = []
    for column in order.tolist():
        if len(chosen) == count:
            break
        if not chosen or np.abs(associated[column, chosen]).max() < _SAME:
            chosen.append(column)
    chosen += [column for column in order.tolist() if column not in chosen][: max(0, count - len(chosen))]
    return np.array(chosen[:count], np.intp)
