"""Whether what is uncertain is also wrong, or foreign: AUROC with intervals, and accuracy when images are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream.metrics import wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Z = 1.959964  # 95 % of a normal distribution
_FEW = 2  # of a kind, of which there is no variance
_RESAMPLES = 200

REFUSED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the images, the least certain, that are refused."""


@dataclass(frozen=True)
class Auroc:
    """How often what was to be found has the higher score than what was not, ties by half.

    Parameters
    ----------
    value : float
        0.5 is chance.
    low, high : float
        95 % interval (DeLong et al., Biometrics 44, 1988).
    positives, negatives : int
    """

    value: float
    low: float
    high: float
    positives: int
    negatives: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {"auroc": round(self.value, 4), "interval": [round(self.low, 4), round(self.high, 4)]}


def auroc(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> Auroc | None:
    """Return the area under the curve of a score, shape (N,), that should be high for positives.

    None where there are none, or nothing else.

    Examples
    --------
    >>> found = auroc(np.array([True, True, False, False]), np.array([3.0, 1.0, 2.0, 0.0]))
    >>> found.value
    0.75
    """
    if not positive.any() or positive.all():
        return None
    found, others = _placements(positive, score)
    value = float(found.mean())
    low, high = _interval(value, found, others)
    return Auroc(value, low, high, len(found), len(others))


def auroc_of_copies(
    positive: NDArray[np.bool_], score: NDArray[np.floating], *, seed: int = 0, resamples: int = _RESAMPLES
) -> Auroc | None:
    """Return the AUROC over several copies of each image, both of shape (copies, N).

    What is wrong in one copy is likely wrong in the next, so that the interval is that of a bootstrap over images
    (Efron, 1979, percentiles), each with all its copies.

    Examples
    --------
    >>> found = auroc_of_copies(np.array([[True, False], [True, False]]), np.array([[2.0, 1.0], [3.0, 2.0]]))
    >>> found.value
    0.875
    """
    whole = auroc(positive.ravel(), score.ravel())
    if whole is None:
        return None
    rng, values = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = rng.integers(0, positive.shape[1], positive.shape[1])
        again = auroc(positive[:, drawn].ravel(), score[:, drawn].ravel())
        if again is not None:
            values.append(again.value)
    low, high = np.quantile([whole.value, *values], [0.025, 0.975])
    return Auroc(whole.value, float(low), float(high), whole.positives, whole.negatives)


def difference(
    positive: NDArray[np.bool_], first: NDArray[np.floating], second: NDArray[np.floating]
) -> tuple[float, float, float] | None:
    """Return by how much the first score's AUROC exceeds the second's on the same rows, and its 95 % interval.

    Paired, as DeLong et al. do it; None without two kinds of rows.
    """
    if not positive.any() or positive.all():
        return None
    a, b = _placements(positive, first), _placements(positive, second)
    value, half = float(a[0].mean() - b[0].mean()), _half(a[0] - b[0], a[1] - b[1])
    return value, value - half, value + half


def _placements(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[NDArray[np.float64], ...]:
    """Return for each positive the share of negatives below it, and for each negative that of positives above it."""
    from scipy.stats import rankdata

    inside, outside = score[positive], score[~positive]
    ranks = rankdata(np.concatenate([inside, outside]))
    m, n = len(inside), len(outside)
    below = (ranks[:m] - rankdata(inside)) / n
    above = 1 - (ranks[m:] - rankdata(outside)) / m
    return below, above


def _half(found: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    if min(len(found), len(others)) < _FEW:
        return 1.0
    return float(_Z * np.sqrt(found.var(ddof=1) / len(found) + others.var(ddof=1) / len(others)))


def _interval(value: float, found: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float]:
    half = _half(found, others)
    if half == 0:  # all on one side, which a variance takes for certain
        few = min(len(found), len(others))
        return wilson(round(value * few), few)
    return max(0.0, value - half), min(1.0, value + half)


@dataclass(frozen=True)
class Kept:
    """What is left when the least certain images are refused.

    Parameters
    ----------
    refused : float
        Share of the images.
    images : int
        That are left.
    accuracy, low, high : float
        Of these, and its 95 % interval (Wilson).
    """

    refused: float
    images: int
    accuracy: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "refused": self.refused,
            "images": self.images,
            "accuracy": round(self.accuracy, 4),
            "interval": [round(self.low, 4), round(self.high, 4)],
        }


def refuse(
    wrong: NDArray[np.bool_], score: NDArray[np.floating], *, seed: int = 0, shares: tuple[float, ...] = REFUSED
) -> tuple[Kept, ...]:
    """Refuse the rows of the highest scores and say how accurate the rest is.

    Parameters
    ----------
    wrong : ndarray of bool, shape (N,)
    score : ndarray, shape (N,)
        Higher is less certain; rows of equal scores are refused in a random order.
    seed : int
        Of that.
    shares : tuple of float
        How much is refused, each less than 1.

    Examples
    --------
    >>> [kept.accuracy for kept in refuse(np.array([True, False]), np.array([0.9, 0.1]), shares=(0, 0.5))]
    [0.5, 1.0]
    """
    chance = np.random.default_rng(seed).permutation(len(wrong))
    order = np.lexsort((chance, score))
    right = np.cumsum(~wrong[order])
    found = []
    for share in shares:
        images = max(1, round(len(wrong) * (1 - share)))
        held = int(right[images - 1])
        found.append(Kept(share, images, held / images, *wilson(held, images)))
    return tuple(found)
