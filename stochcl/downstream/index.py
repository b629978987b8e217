"""An index of codes or vectors, with scikit-learn's shape of a neighbours' search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from stochcl.downstream.nearest import DISTANCES, Nearest, without_own

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["CodeIndex"]


class CodeIndex(BaseEstimator):  # type: ignore[misc]
    """Finds the nearest rows of codes, or of decoded vectors, exactly; memory is bounded.

    Bits are kept packed, D / 8 bytes a row. Ties go to the earlier row.

    Parameters
    ----------
    n_neighbors : int
        k, how many are found where nothing else is said.
    metric : str
        - ``hamming``: bits that differ; rows hold 0 and 1;
        - ``levels``: how far symbols are apart, summed: for symbols that are in order, as quantised numbers are;
        - ``symbols``: symbols that differ: for those that are in none, as of categories;
        - ``cosine`` (one minus it) or ``euclidean``: of vectors;
        - ``auto``: of integers ``hamming``, or ``levels`` where others than 0 and 1 are among them; of floats
          ``cosine``.
    working_memory : float
        MiB that distances may take at a time.

    Attributes
    ----------
    metric_ : str
        The one that was taken.
    n_samples_fit_ : int
    n_features_in_ : int
        D.
    feature_names_in_ : ndarray of str
        Where the input has column names, all of them text.

    Examples
    --------
    >>> codes = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]])
    >>> distances, rows = CodeIndex(n_neighbors=2).fit(codes).kneighbors([[1, 1, 1]])
    >>> distances.tolist(), rows.tolist()
    ([[0.0, 1.0]], [[3, 2]])
    """

    def __init__(self, n_neighbors: int = 10, *, metric: str = "auto", working_memory: float = 64) -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.working_memory = working_memory

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Remember rows, shape (N, D): symbols as integers, or vectors as floats.

        Raises
        ------
        ValueError
            If rows are not finite, or a parameter makes no sense.
        """
        if self.metric not in ("auto", *DISTANCES):
            msg = f"metric is auto, {', '.join(DISTANCES)}, not {self.metric!r}"
            raise ValueError(msg)
        if not self.working_memory > 0:
            msg = f"working_memory is more than 0 MiB, not {self.working_memory}"
            raise ValueError(msg)
        rows = validate_data(self, X)
        self.metric_ = self._metric_of(rows) if self.metric == "auto" else self.metric
        self._check_bits(rows)
        self._rows = DISTANCES[self.metric_].prepare(rows)
        self.n_samples_fit_ = len(rows)
        return self

    def kneighbors(
        self, X: ArrayLike | None = None, n_neighbors: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return distances, ascending, and numbers of the nearest rows, both of shape (M, k).

        Parameters
        ----------
        X : array-like, shape (M, D), optional
            Queries; by default the rows themselves, none of which is then its own neighbour.
        n_neighbors : int, optional

        Raises
        ------
        ValueError
            If more are asked for than there are rows, or queries do not fit them.
        """
        check_is_fitted(self)
        count = self.n_neighbors if n_neighbors is None else n_neighbors
        own = X is None
        if not 1 <= count <= self.n_samples_fit_ - own:
            msg = f"n_neighbors is 1 to the number of rows, not {count}: n_samples_fit = {self.n_samples_fit_}"
            raise ValueError(msg)
        distance = DISTANCES[self.metric_]
        if own:
            queries = self._rows
        else:
            rows = validate_data(self, X, reset=False)
            self._check_bits(rows)
            queries = distance.prepare(rows)
        memory = int(self.working_memory * (1 << 20))
        found = Nearest(queries, distance, int(count) + own, memory=memory, prepared=True)
        found.add_prepared(self._rows)
        distances, numbers = found.sorted()
        return without_own(distances, numbers, np.arange(len(queries))) if own else (distances, numbers)

    def _metric_of(self, rows: NDArray[Any]) -> str:
        if rows.dtype.kind == "f":
            return "cosine"
        return "hamming" if _are_bits(rows) else "levels"

    def _check_bits(self, rows: NDArray[Any]) -> None:
        if self.metric_ == "hamming" and not _are_bits(rows):
            msg = "hamming compares bits: rows hold 0 and 1; take the metric levels or symbols for others"
            raise ValueError(msg)


def _are_bits(rows: NDArray[Any]) -> bool:
    return bool(((rows == 0) | (rows == 1)).all())
