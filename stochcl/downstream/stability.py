"""Whether models that were trained from other seeds have latents for the same factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIMILAR = 0.8
"""Least ratio of the smallest to the largest of seeds' best latents for them to be called alike."""


@dataclass(frozen=True, eq=False)
class Matching:
    """Latents of one model, each with one of another's.

    Parameters
    ----------
    pairs : ndarray of int, shape (D, 2)
        Rows of the first model and of the second.
    same : float
        The part of these pairs whose two latents say most of the same factor.
    chance : float
        The same of pairs that are drawn: the sum over factors of the two parts of latents that say most of it.
    correlation : float
        Mean size of the correlation of the two latents' symbols over the same images.
    chance_correlation : float
        The same over all pairs that there are.
    """

    pairs: NDArray[np.intp]
    same: float
    chance: float
    correlation: float
    chance_correlation: float

    def to_json(self) -> dict[str, Any]:
        """Return the scores."""
        names = ("same", "chance", "correlation", "chance_correlation")
        return {name: round(float(getattr(self, name)), 4) for name in names}


def correlations(first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the size of the correlation of each latent of one code with each of another's, shape (D, E).

    Examples
    --------
    >>> a = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> correlations(a, 1 - a).round(6).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    scaled = []
    for symbols in (first, second):
        centred = symbols - symbols.mean(axis=0)
        length = np.sqrt((centred**2).sum(axis=0))
        scaled.append(centred / np.where(length > 0, length, 1))
    found: NDArray[np.float64] = np.abs(scaled[0].T @ scaled[1]).clip(0, 1)
    return found


def match(
    told: tuple[NDArray[np.float64], NDArray[np.float64]], correlation: NDArray[np.float64], *,
    by: str = "information",
) -> Matching:  # fmt: skip
    """Pair the latents of two models one to one, at the least total cost (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    if by not in ("information", "correlation"):
        raise UsageError(f"latents are matched by information or correlation, not {by!r}.")
    first, second = told
    cost = np.abs(first[:, None] - second[None]).sum(axis=2) if by == "information" else 1 - correlation
    rows, columns = linear_sum_assignment(cost)
    best = first.argmax(axis=1), second.argmax(axis=1)
    parts = [np.bincount(b, minlength=first.shape[1]) / len(b) for b in best]
    return Matching(
        np.stack([rows, columns], axis=1), float((best[0][rows] == best[1][columns]).mean()),
        float(parts[0] @ parts[1]), float(correlation[rows, columns].mean()), float(correlation.mean()),
    )  # fmt: skip


def best_latents(told: list[NDArray[np.float64]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return, for each factor, its best latent of each model, what that says of it, and whether these are alike.

    Alike are they if the smallest is at least :data:`SIMILAR` of the largest.

    Examples
    --------
    >>> best_latents([np.array([[0.2], [0.5]]), np.array([[0.4], [0.1]])], ("x",))
    [{'factor': 'x', 'latents': [1, 0], 'information': [0.5, 0.4], 'ratio': 0.8, 'alike': True}]
    """
    found = []
    for k, name in enumerate(names):
        best = [int(one[:, k].argmax()) for one in told]
        says = [round(float(one[j, k]), 4) for one, j in zip(told, best, strict=True)]
        ratio = round(min(says) / max(says), 4) if max(says) > 0 else 0.0
        found.append(
            {"factor": name, "latents": best, "information": says, "ratio": ratio, "alike": ratio >= SIMILAR}
        )
    return found
