"""Scores of predictions, and how far to trust them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Z = 1.959964  # 95 % of a normal distribution
_RESAMPLES = 1000


def accuracy(truth: NDArray[Any], answer: NDArray[Any]) -> float:
    """Return the fraction of answers, shape (N,), that are right."""
    return float((truth == answer).mean())


def r_squared(truth: NDArray[np.float64], answer: NDArray[np.float64]) -> float:
    """Return R2, 1 minus squared error by variance; NaN where all true values are equal.

    Examples
    --------
    >>> r_squared(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0]))
    0.5
    """
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - answer) ** 2).sum() / spread) if spread > 0 else math.nan


def mean_absolute_error(truth: NDArray[np.float64], answer: NDArray[np.float64]) -> float:
    """Return the mean of the errors' sizes, in the label's unit."""
    return float(np.abs(answer - truth).mean())


def root_mean_square_error(truth: NDArray[np.float64], answer: NDArray[np.float64]) -> float:
    """Return the root of the mean of the squared errors, in the label's unit."""
    return float(np.sqrt(((answer - truth) ** 2).mean()))


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson, 1927).

    Examples
    --------
    >>> [round(bound, 3) for bound in wilson(50, 100)]
    [0.404, 0.596]
    """
    p, z = right / total, _Z**2 / total
    centre = (p + z / 2) / (1 + z)
    half = _Z * math.sqrt(p * (1 - p) / total + z / (4 * total)) / (1 + z)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_r_squared(
    truth: NDArray[np.float64], answer: NDArray[np.float64], seed: int
) -> tuple[float, float] | None:
    """Return the 95 % interval of R2 over resampled rows (Efron, 1979, percentiles of 1,000 resamples).

    None below 10 rows, of which a resample too often holds a few only, and where resamples have no variance.
    """
    count = len(truth)
    if count < 10:
        return None
    rng = np.random.default_rng(seed)
    # R2 needs three sums only; centred values keep the variance from cancelling.
    centred = truth - truth.mean()
    terms = np.stack([(truth - answer) ** 2, centred, centred**2], axis=1)
    sums = np.empty((_RESAMPLES, 3))
    for i in range(_RESAMPLES):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        sums[i] = times @ terms
    spread = sums[:, 2] - sums[:, 1] ** 2 / count
    if (spread <= 0).any():
        return None
    low, high = np.quantile(1 - sums[:, 0] / spread, [0.025, 0.975])
    return float(low), float(high)


def balanced_accuracy(truth: NDArray[Any], answer: NDArray[Any]) -> float:
    """Return the mean, over the classes that are there, of the fraction of their rows that is found.

    Examples
    --------
    >>> balanced_accuracy(np.array(["a", "a", "a", "b"]), np.array(["a", "a", "a", "a"]))
    0.5
    """
    _, codes = np.unique(truth, return_inverse=True)
    return float((np.bincount(codes, weights=truth == answer) / np.bincount(codes)).mean())


def confusion(truth: NDArray[Any], answer: NDArray[Any], classes: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
    """Count answers by true class (rows) and predicted class (columns), in the sorted order of ``classes``.

    Examples
    --------
    >>> confusion(np.array(["a", "a", "b"]), np.array(["a", "b", "b"]), np.array(["a", "b"]))
    ((1, 1), (0, 1))
    """
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (np.searchsorted(classes, truth), np.searchsorted(classes, answer)), 1)
    return tuple(tuple(row) for row in counts.tolist())


def average_precision(relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the average precision of each query over what was returned to it, shape (M,).

    Precision at each rank where something relevant stands, averaged over those ranks; 0 where there is none. Over
    the first k returned that is AP@k as papers on hashing have it (mAP@1000 on CIFAR-10): normalised by the relevant
    among the k, not by all there are.

    Parameters
    ----------
    relevant : ndarray of bool, shape (M, k)
        Whether what stands at each rank is relevant, the nearest first.

    Examples
    --------
    >>> average_precision(np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool)).round(4).tolist()
    [0.8333, 0.0]
    """
    found = np.cumsum(relevant, axis=1)
    precision = found / np.arange(1, relevant.shape[1] + 1)
    total = found[:, -1] if relevant.shape[1] else np.zeros(len(relevant))
    averaged: NDArray[np.float64] = (precision * relevant).sum(axis=1) / np.maximum(total, 1)
    return averaged
