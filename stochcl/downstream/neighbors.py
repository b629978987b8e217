"""Nearest neighbours by the Hamming distance of packed bits, as scikit-learn estimators of bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from stochcl.downstream.distances import DISTANCES, Nearest, nearest, pack_bits, without_own

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


__all__ = ["CodeIndex", "HammingKNeighborsClassifier", "HammingKNeighborsRegressor"]


def _checked(count: int, rows: int, memory: float) -> int:
    """Return the number of neighbours; raise ValueError if there are too few rows or memory is not positive."""
    if not memory > 0:
        raise ValueError(f"working_memory must be more than 0 MiB, got {memory}")
    if not 1 <= count <= rows:
        raise ValueError(f"n_neighbors must be between 1 and the number of rows, got {count}: n_samples = {rows}")
    return int(count)


class _HammingNeighbors(BaseEstimator):  # type: ignore[misc]
    """Shared by classifier and regressor: the bits learnt in fit, and the search."""

    def __init__(self, n_neighbors: int = 5, *, weights: str = "uniform", working_memory: float = 64) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.working_memory = working_memory

    def kneighbors(self, X: ArrayLike, n_neighbors: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return ascending bit differences to the nearest training rows, and their row numbers, both (N, k)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False)
        asked = self.n_neighbors if n_neighbors is None else n_neighbors
        count = _checked(asked, len(self.packed_), self.working_memory)
        memory = int(self.working_memory * (1 << 20))
        return nearest(pack_bits(rows > self.thresholds_), self.packed_, count, memory=memory)

    def _remember(self, rows: NDArray[Any]) -> None:
        """Learn the thresholds and keep the rows as bits."""
        if self.weights not in ("uniform", "distance"):
            raise ValueError(f"weights must be uniform or distance, got {self.weights!r}")
        _checked(self.n_neighbors, len(rows), self.working_memory)
        self.thresholds_ = _thresholds(rows)
        self.packed_ = pack_bits(rows > self.thresholds_)

    def _weighed(self, X: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the weights of each row's neighbours, which sum to 1, and their row numbers."""
        distances, numbers = self.kneighbors(X)
        shares = 1 / (1.0 + distances) if self.weights == "distance" else np.ones(distances.shape)
        return shares / shares.sum(axis=1, keepdims=True), numbers


def _thresholds(rows: NDArray[Any]) -> NDArray[Any]:
    """Return medians; if nothing exceeds a median, the next lower value, so that rows stay distinguishable."""
    medians: NDArray[Any] = np.median(rows, axis=0)
    top = rows.max(axis=0)
    for column in np.flatnonzero((medians >= top) & (rows.min(axis=0) < top)):
        values = rows[:, column]
        medians[column] = values[values < top[column]].max()
    return medians


class HammingKNeighborsClassifier(ClassifierMixin, _HammingNeighbors):  # type: ignore[misc]
    """Predicts the most frequent class of the k training rows that differ in the fewest bits.

    A feature becomes a bit: 1 above its median over the training rows (bits stay as they are). Ties among neighbours
    go to the earlier row, ties among classes to the first. Memory: D / 8 bytes per training row, and
    ``working_memory``.

    Parameters
    ----------
    n_neighbors : int
        k, at most the number of training rows.
    weights : str
        ``uniform``, or ``distance``: a neighbour's vote weighs 1 / (1 + bits that differ).
    working_memory : float
        Maximum MiB of distances held at a time.

    Attributes
    ----------
    classes_ : ndarray
    thresholds_ : ndarray, shape (D,)
        Values above it become 1.
    packed_ : ndarray of uint64, shape (N, ceil(D / 64))
    n_features_in_ : int
        D.
    feature_names_in_ : ndarray of str
        Set if all column names of the input are strings.

    Examples
    --------
    >>> codes = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]])
    >>> found = HammingKNeighborsClassifier(n_neighbors=1).fit(codes, ["cat", "cat", "dog", "dog"])
    >>> found.predict([[0, 1, 1], [1, 1, 1]]).tolist()
    ['cat', 'dog']
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from rows, shape (N, D), and their classes, shape (N,).

        Raises
        ------
        ValueError
            If rows are not finite, classes do not match them, or a parameter is invalid.
        """
        rows, y = validate_data(self, X, y)
        check_classification_targets(y)
        self.classes_, self.y_ = np.unique(y, return_inverse=True)
        self._remember(rows)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return each class's share of the neighbours, shape (N, C), in the order of ``classes_``."""
        shares, numbers = self._weighed(X)
        votes = np.zeros((len(numbers), len(self.classes_)))
        np.add.at(votes, (np.arange(len(numbers))[:, None], self.y_[numbers]), shares)
        return votes

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return a class for each row, shape (N,)."""
        # Rounded, so that the order of summation cannot break ties.
        votes = self.predict_proba(X).round(12)
        found: NDArray[Any] = self.classes_[votes.argmax(axis=1)]
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # scikit-learn's checks use two features, which are only two bits here
        return tags


class HammingKNeighborsRegressor(RegressorMixin, _HammingNeighbors):  # type: ignore[misc]
    """Predicts the mean target of the k training rows that differ in the fewest bits.

    Parameters and bits are those of :class:`HammingKNeighborsClassifier`; targets may be several, shape (N, T).

    Parameters
    ----------
    n_neighbors : int
    weights : str
    working_memory : float

    Attributes
    ----------
    thresholds_, packed_, n_features_in_, feature_names_in_
        As in the classifier.

    Examples
    --------
    >>> codes = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]])
    >>> HammingKNeighborsRegressor(n_neighbors=2).fit(codes, [1.0, 2.0, 5.0, 6.0]).predict([[0, 0, 1]]).tolist()
    [1.5]
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from rows, shape (N, D), and their targets, shape (N,) or (N, T).

        Raises
        ------
        ValueError
            If rows or targets are not finite, do not match, or a parameter is invalid.
        """
        rows, y = validate_data(self, X, y, multi_output=True, y_numeric=True)
        self.y_ = np.asarray(y, np.float64)
        self._remember(rows)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return a target for each row, shape (N,), or several, shape (N, T)."""
        shares, numbers = self._weighed(X)
        found: NDArray[np.float64] = np.einsum("nk,nk...->n...", shares, self.y_[numbers])
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        tags.regressor_tags.poor_score = True  # as in the classifier
        return tags


class CodeIndex(BaseEstimator):  # type: ignore[misc]
    """Finds the nearest rows of codes or decoded vectors exactly, in bounded memory.

    Bits are packed, D / 8 bytes per row. Ties go to the earlier row.

    Parameters
    ----------
    n_neighbors : int
        k, the default number of neighbours.
    metric : str
        - ``hamming``: number of differing bits; rows hold 0 and 1;
        - ``levels``: sum of absolute differences, for ordered symbols such as quantised numbers;
        - ``symbols``: number of differing symbols, for categories;
        - ``cosine`` (1 - cosine) or ``euclidean``, for vectors;
        - ``auto``: ``cosine`` for floats, ``hamming`` for integers of only 0 and 1, ``levels`` for others.
    working_memory : float
        Maximum MiB of distances held at a time.

    Attributes
    ----------
    metric_ : str
        The metric in use.
    n_samples_fit_ : int
    n_features_in_ : int
        D.
    feature_names_in_ : ndarray of str
        Set if all column names of the input are strings.

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
        """Store rows, shape (N, D): symbols as integers, or vectors as floats.

        Raises
        ------
        ValueError
            If rows are not finite, or a parameter is invalid.
        """
        if self.metric not in ("auto", *DISTANCES):
            raise ValueError(f"metric must be auto or one of {', '.join(DISTANCES)}, got {self.metric!r}")
        _checked(1, 1, self.working_memory)
        rows = validate_data(self, X)
        self.metric_ = self.metric
        if self.metric == "auto":
            self.metric_ = "cosine" if rows.dtype.kind == "f" else "hamming" if _are_bits(rows) else "levels"
        self._check_bits(rows)
        self._rows = DISTANCES[self.metric_].prepare(rows)
        self.n_samples_fit_ = len(rows)
        return self

    def kneighbors(
        self, X: ArrayLike | None = None, n_neighbors: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return ascending distances and the numbers of the nearest rows, both of shape (M, k).

        Parameters
        ----------
        X : array-like, shape (M, D), optional
            Queries; by default the rows themselves, excluding each as its own neighbour.
        n_neighbors : int, optional

        Raises
        ------
        ValueError
            If n_neighbors exceeds the number of rows, or queries do not match them.
        """
        check_is_fitted(self)
        own = X is None
        asked = self.n_neighbors if n_neighbors is None else n_neighbors
        count = _checked(asked, self.n_samples_fit_ - own, self.working_memory)
        distance = DISTANCES[self.metric_]
        if own:
            queries = self._rows
        else:
            rows = validate_data(self, X, reset=False)
            self._check_bits(rows)
            queries = distance.prepare(rows)
        memory = int(self.working_memory * (1 << 20))
        found = Nearest(queries, distance, count + own, memory=memory, prepared=True)
        found.add(self._rows, prepared=True)
        distances, numbers = found.sorted()
        return without_own(distances, numbers, np.arange(len(queries))) if own else (distances, numbers)

    def _check_bits(self, rows: NDArray[Any]) -> None:
        if self.metric_ == "hamming" and not _are_bits(rows):
            raise ValueError("hamming compares bits, 0 and 1; take the metric levels or symbols for other rows")


def _are_bits(rows: NDArray[Any]) -> bool:
    return bool(((rows == 0) | (rows == 1)).all())
