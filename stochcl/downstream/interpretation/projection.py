"""Rows on a plane: the two directions in which they differ most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Projection:
    """Rows on a plane.

    Parameters
    ----------
    points : ndarray of float64, shape (N, 2)
    shares : tuple of float
        Of all variance, what each of the two directions has.
    """

    points: NDArray[np.float64]
    shares: tuple[float, float]


def project(x: NDArray[Any]) -> Projection:
    """Return rows, shape (N, V), on their first two principal components; each points to its greatest loading.

    Examples
    --------
    >>> found = project(np.array([[0.0, 0, 1], [0, 4, 1], [0, 8, 1]]))
    >>> found.points[:, 0].tolist(), found.shares
    ([-4.0, 0.0, 4.0], (1.0, 0.0))
    """
    centred = np.nan_to_num(x.astype(np.float64), posinf=0, neginf=0)
    centred -= centred.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    if len(values) < 2:
        values, vectors = np.r_[0.0, values], np.c_[np.zeros((len(vectors), 1)), vectors]
    axes = vectors[:, [-1, -2]]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    points: NDArray[np.float64] = centred @ (axes * np.where(signs == 0, 1, signs))
    total = max(float(values.sum()), 0.0)
    first, second = (max(float(value), 0.0) / total if total else 0.0 for value in (values[-1], values[-2]))
    return Projection(points + 0.0, (first, second))
