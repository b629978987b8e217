"""How much each latent says about a label, in bits, and how much chance alone would say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BINS = 10  # of a label that is a number: deciles
_LEVELS = 16  # of latents with more values than this, that are numbers: their quantiles
_RISK = 0.05  # that any latent of all seems to say something, and none does


@dataclass(frozen=True, eq=False)
class Information:
    """Mutual information of latents with a label.

    Parameters
    ----------
    bits : ndarray of float64, shape (D,)
        Corrected for what small samples seem to say; none below 0.
    label_bits : float
        Entropy of the label: the most that could be said.
    chance : float
        What no latent of all would exceed, with 95 %, if none had anything to do with the label.
    """

    bits: NDArray[np.float64]
    label_bits: float
    chance: float


def mutual_information(symbols: NDArray[np.integer], y: NDArray[Any], *, ordered: bool) -> Information:
    """Return what each latent says about a label.

    From counts, less their bias (Miller, 1955): (values - 1) (classes - 1) / (2 N ln 2). Numbers are cut at their
    deciles; latents with more than 16 levels at 16 quantiles. What chance gives is by the G test with Bonferroni's
    correction.

    Parameters
    ----------
    symbols : ndarray of int, shape (N, D)
    y : ndarray, shape (N,)
        Classes of any type; floats are numbers.
    ordered : bool
        Whether symbols are numbers rather than names.

    Examples
    --------
    >>> codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 100)
    >>> found = mutual_information(codes, codes[:, 0], ordered=True)
    >>> found.bits.round(2).tolist(), found.label_bits
    ([1.0, 0.0], 1.0)
    """
    from scipy.stats import chi2

    numbers = _binned(y, _BINS) if y.dtype.kind == "f" else np.unique(y, return_inverse=True)[1]
    numbers, classes = np.unique(numbers, return_inverse=True)[1], len(np.unique(numbers))
    bits, degrees = np.zeros(symbols.shape[1]), np.zeros(symbols.shape[1])
    for column, values in enumerate(symbols.T):
        cut = _binned(values, _LEVELS) if ordered else values
        found, places = np.unique(cut, return_inverse=True)
        counts = np.bincount(numbers * len(found) + places, minlength=classes * len(found))
        bits[column] = _information(counts.reshape(classes, len(found)))
        degrees[column] = (len(found) - 1) * (classes - 1)
    unit = 2 * len(y) * np.log(2)
    most = chi2.isf(_RISK / symbols.shape[1], np.maximum(degrees, 1)) - degrees
    shares = np.bincount(numbers) / len(y)
    chance = float(np.median(most)) / unit if classes > 1 else 0.0
    return Information(np.maximum(bits - degrees / unit, 0), float(-(shares * np.log2(shares)).sum() or 0.0), chance)


def _information(counts: NDArray[np.integer]) -> float:
    joint = counts / counts.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
    there = joint > 0
    return float((joint[there] * np.log2(joint[there] / apart[there])).sum())


def _binned(values: NDArray[Any], bins: int) -> NDArray[np.integer]:
    """Return the number of each value's quantile, or of the value where they are few."""
    found = np.unique(values)
    if len(found) <= bins:
        return np.searchsorted(found, values)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")
