"""The images that switch a latent on, and those that switch it off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.downstream.interpretation.sample import Sample

_VALUES = 4  # of a categorical latent that are shown, the most frequent ones


@dataclass(frozen=True, eq=False)
class Side:
    """Rows in which a latent has one value, or is among its low or high ones.

    Parameters
    ----------
    name : str
        on, off, low, high, or "value 7".
    share : float
        Of all rows.
    typical : ndarray of int
        Rows of this side that lie farthest along what tells it from the others: the most typical first.
    random : ndarray of int
        Others of them, drawn evenly.
    classes : tuple of (name, share here, share of all)
        Where there are classes: those that are most above their usual share, the first first.
    means : tuple of (here, of all) or None
        Where labels are numbers: their mean.
    """

    name: str
    share: float
    typical: NDArray[np.intp]
    random: NDArray[np.intp]
    classes: tuple[tuple[str, float, float], ...] = ()
    means: tuple[float, float] | None = None


def sides(
    sample: Sample, column: int, *, typical: int, random: int, y: NDArray[Any] | None = None, seed: int = 0
) -> list[Side]:
    """Return both sides of a bit or a level, or the most frequent values of a category, each with rows to show.

    What tells a side from the others is the difference of the mean vectors; without a decoder, of mean symbols.

    Parameters
    ----------
    sample : Sample
    column : int
    typical, random : int
        How many rows of each at most.
    y : ndarray of str or float64, shape (N,), optional
        Classes, an empty string for none; or numbers, NaN for none.
    seed : int
    """
    rng = np.random.default_rng([seed, column])
    out = []
    for name, members in _members(sample, column):
        rows = np.flatnonzero(members)
        ordered = rows[np.argsort(-_along(sample, members)[rows], kind="stable")]
        others = ordered[typical:]
        drawn = np.sort(rng.choice(others, min(random, len(others)), replace=False)) if len(others) else others
        numbers = y is not None and y.dtype.kind == "f"
        classes = () if y is None or numbers else _classes(y, members)
        means = _means(y, members) if y is not None and numbers else None
        out.append(Side(name, len(rows) / len(sample), ordered[:typical], drawn, classes, means))
    return out


def _members(sample: Sample, column: int) -> list[tuple[str, NDArray[np.bool_]]]:
    values = sample.symbols[:, column]
    low, high = sample.ends(column)
    if sample.kind == "bits":
        return [("on", values == 1), ("off", values == 0)]
    if sample.kind == "levels":
        return [("high", values >= high), ("low", values <= low)] if low < high else [("high", values >= high)]
    found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_VALUES]
    return [(f"value {found[i]}", values == found[i]) for i in order.tolist()]


def _along(sample: Sample, members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how far each row lies in the direction from the other rows to these."""
    if members.all() or not members.any():
        return np.zeros(len(members))
    x = sample.x.astype(np.float32, copy=False)
    direction = x[members].mean(axis=0) - x[~members].mean(axis=0)
    found: NDArray[np.float64] = np.nan_to_num((x @ direction).astype(np.float64))
    return found


def _means(y: NDArray[np.floating], members: NDArray[np.bool_]) -> tuple[float, float] | None:
    known = np.isfinite(y)
    here = y[members & known]
    return (float(here.mean()), float(y[known].mean())) if len(here) else None


def _classes(y: NDArray[Any], members: NDArray[np.bool_], shown: int = 3) -> tuple[tuple[str, float, float], ...]:
    known = y != ""
    here, everywhere = y[members & known], y[known]
    if not len(here):
        return ()
    names, counts = np.unique(everywhere, return_counts=True)
    usual = counts / len(everywhere)
    found = np.bincount(np.searchsorted(names, here), minlength=len(names)) / len(here)
    order = np.argsort(usual - found, kind="stable")[:shown]
    return tuple((str(names[i]), float(found[i]), float(usual[i])) for i in order.tolist() if found[i] > usual[i])
