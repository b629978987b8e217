"""Two curves of bits against accuracy, summed up: the mean saving in bits at equal accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stochcl.benchmarks.errors import BenchmarkError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LEAST = 4
"""Points that a curve needs."""

_DRAWS = 1000
_LEAST_DRAWS = 0.5  # of the draws that must give a figure, for an interval to be given


class NoSavingError(BenchmarkError):
    """Two curves that cannot be summed up in one figure: too few points, or no accuracy that both reach."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of a method on the same test rows.

    Parameters
    ----------
    bits : ndarray of float, shape (P,)
        Per image.
    right : ndarray of bool, shape (P, N)
        Which of the N test rows the probe of each point got right.
    """

    bits: NDArray[np.float64]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Saving:
    """Bits of one method by those of another at equal accuracy.

    Parameters
    ----------
    saving : float
        Mean over the shared range of accuracy, of the logarithm of bits: 0.5 is half of the other's bits saved, 0
        none, and -1 means twice as many.
    low, high : float or None
        Ends of the 95 % interval; None where too few of the draws give a figure.
    accuracies : tuple of float
        The range of accuracy that it is the mean over.
    draws : int
        Bootstrap draws that gave a figure.
    """

    saving: float
    low: float | None
    high: float | None
    accuracies: tuple[float, float]
    draws: int


def pareto(bits: ArrayLike, accuracy: ArrayLike) -> NDArray[np.intp]:
    """Return the points that are better than every one of fewer (or as many) bits, in the order of their bits.

    Examples
    --------
    >>> pareto([8, 32, 16, 16], [0.3, 0.4, 0.5, 0.2]).tolist()
    [0, 2]
    """
    costs, scores = np.asarray(bits, float), np.asarray(accuracy, float)
    order = np.lexsort((-scores, costs))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], scores[order][:-1]]))
    return order[scores[order] > best]


def mean_saving(
    bits: ArrayLike, accuracy: ArrayLike, other_bits: ArrayLike, other_accuracy: ArrayLike
) -> tuple[float, tuple[float, float]]:
    """Return the mean saving in bits of the first curve against the second, and the range of accuracy it is over.

    Log bits are interpolated as a function of accuracy through each curve's Pareto-optimal points by monotone cubics
    (PCHIP), and their difference averaged over the accuracies that both curves reach (Bjontegaard, VCEG-M33, with
    PCHIP in place of one polynomial, as in JVET-H0030). Nothing is extrapolated.

    Examples
    --------
    >>> accuracy = [0.2, 0.3, 0.4, 0.45, 0.5]
    >>> saving, _ = mean_saving([8, 16, 32, 64, 128], accuracy, [16, 32, 64, 128, 256], accuracy)
    >>> round(saving, 6)
    0.5
    """
    from scipy.interpolate import PchipInterpolator

    curves = []
    for given in ((bits, accuracy), (other_bits, other_accuracy)):
        costs, scores = (np.asarray(values, float) for values in given)
        if not (costs > 0).all() or not np.isfinite(costs).all():
            raise NoSavingError("bits per image are more than 0.")
        kept = pareto(costs, scores)
        if len(kept) < LEAST:
            raise NoSavingError(
                f"a curve of {len(kept)} points that are each better than the cheaper ones is too little to compare "
                f"curves by; measure {LEAST} or more."
            )
        curves.append((scores[kept], np.log(costs[kept])))
    low, high = max(scores[0] for scores, _ in curves), min(scores[-1] for scores, _ in curves)
    if not low < high:
        raise NoSavingError("there is no range of accuracy that both curves reach, so that nothing can be compared.")
    areas = [float(PchipInterpolator(*curve).integrate(low, high)) for curve in curves]
    return float(1 - np.exp((areas[0] - areas[1]) / (high - low))), (float(low), float(high))


def saving(ours: Curve, other: Curve, *, seed: int = 0, draws: int = _DRAWS) -> Saving:
    """Return the mean saving with a 95 % bootstrap interval over the test rows, the same draw for all points."""
    if ours.right.shape[1] != other.right.shape[1]:
        raise NoSavingError(
            f"curves are compared on the same test rows, and these have {ours.right.shape[1]:,} and "
            f"{other.right.shape[1]:,}."
        )
    found, accuracies = mean_saving(ours.bits, ours.right.mean(axis=1), other.bits, other.right.mean(axis=1))
    n = ours.right.shape[1]
    rng = np.random.default_rng([seed, 23])
    a, b = (curve.right.astype(np.float32) for curve in (ours, other))
    values = []
    for _ in range(draws):
        # How often each row is drawn, n times with replacement.
        times = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float32) / n
        try:
            values.append(mean_saving(ours.bits, a @ times, other.bits, b @ times)[0])
        except NoSavingError:
            continue
    if len(values) < max(2, _LEAST_DRAWS * draws):
        return Saving(found, None, None, accuracies, len(values))
    low, high = np.quantile(values, [0.025, 0.975])
    return Saving(found, float(low), float(high), accuracies, len(values))
