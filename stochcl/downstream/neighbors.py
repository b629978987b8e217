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
    """Return the number of neighbours; ValueError where there are not so many rows, or memory is not positive."""
    if not memory > 0:
        raise ValueError(f"working_memory must be more than 0 MiB, got {memory}")
    if not 1 <= count <= rows:
        raise ValueError(f"n_neighbors must be between 1 and the number of rows, got {count}: n_samples = {rows}")
    return int(count)


class _HammingNeighbors(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: bits learnt in fit, and the search."""

    def __init__(self, n_neighbors: int = 5, *, weights: str = "uniform", working_memory: float = 64) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.working_memory = working_memory

    def kneighbors(self, X: ArrayLike, n_neighbors: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return how many bits the nearest training rows differ in, ascending, and their numbers, both (N, k)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False)
        asked = self.n_neighbors if n_neighbors is None else n_neighbors
        count = _checked(asked, len(self.packed_), self.working_memory)
        memory = int(self.working_memory * (1 << 20))
        return nearest(pack_bits(rows > self.thresholds_), self.packed_, count, memory=memory)

    def _remember(self, rows: NDArray[Any]) -> None:
        """Learn the thresholds, and keep the rows as bits."""
        if self.weights not in ("uniform", "distance"):
            raise ValueError(f"weights must be uniform or distance, got {self.weights!r}")
        _checked(self.n_neighbors, len(rows), self.working_memory)
        self.thresholds_ = _thresholds(rows)
        self.packed_ = pack_bits(rows > self.thresholds_)

    def _weighed(self, X: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the weights of each row's neighbours, which sum to 1, and their numbers."""
        distances, numbers = self.kneighbors(X)
        shares = 1 / (1.0 + distances) if self.weights == "distance" else np.ones(distances.shape)
        return shares / shares.sum(axis=1, keepdims=True), numbers


def _thresholds(rows: NDArray[Any]) -> NDArray[Any]:
    """Return medians; where nothing is above one, the next value below it, which tells rows apart as well."""
    medians: NDArray[Any] = np.median(rows, axis=0)
    top = rows.max(axis=0)
    for column in np.flatnonzero((medians >= top) & (rows.min(axis=0) < top)):
        values = rows[:, column]
        medians[column] = values[values < top[column]].max()
    return medians


class HammingKNeighborsClassifier(ClassifierMixin, _HammingNeighbors):  # type: ignore[misc]
    """Answers with the class of most of the k training rows whose bits differ least.

    A feature's bit says whether it is above its median over the training rows (bits stay as they are). Ties among
    neighbours go to the earlier row, ties among classes to the first. Memory: D / 8 bytes a training row, and
    ``working_memory``, whatever the number of rows.

    Parameters
    ----------
    n_neighbors : int
        k, at most the number of training rows.
    weights : str
        ``uniform``, or ``distance``: a neighbour's vote weighs 1 / (1 + bits that differ).
    working_memory : float
        Most MiB of distances at a time.

    Attributes
    ----------
    classes_ : ndarray
    thresholds_ : ndarray, shape (D,)
        A value above it is a 1.
    packed_ : ndarray of uint64, shape (N, ceil(D / 64))
    n_features_in_ : int
        D.
    feature_names_in_ : ndarray of str
        Where the input has column names, all of them text.

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
            If rows are not finite, classes do not match them, or a parameter makes no sense.
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
        # Rounded, so that equal votes are equal in whatever order they were summed.
        votes = self.predict_proba(X).round(12)
        found: NDArray[Any] = self.classes_[votes.argmax(axis=1)]
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # two features, as in scikit-learn's checks, are two bits
        return tags


class HammingKNeighborsRegressor(RegressorMixin, _HammingNeighbors):  # type: ignore[misc]
    """Answers with the mean target of the k training rows whose bits differ least.

    Parameters and bits are those of :class:`HammingKNeighborsClassifier`; targets may be several, shape (N, T).

    Parameters
    ----------
    n_neighbors : int
    weights : str
    working_memory : float

    Attributes
    ----------
    thresholds_, packed_, n_features_in_, feature_names_in_
        As of the classifier.

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
            If rows or targets are not finite, do not match, or a parameter makes no sense.
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
        tags.regressor_tags.poor_score = True  # as of the classifier
        return tags


class CodeIndex(BaseEstimator):  # type: ignore[misc]
    """Finds the nearest rows of codes, or of decoded vectors, exactly; memory is bounded.

    Bits are kept packed, D / 8 bytes a row. Ties go to the earlier row.

    Parameters
    ----------
    n_neighbors : int
        k, how many are found by default.
    metric : str
        - ``hamming``: bits that differ; rows hold 0 and 1;
        - ``levels``: how far symbols are apart, summed: for symbols that are in order, as quantised numbers are;
        - ``symbols``: symbols that differ: for those that are in none, as of categories;
        - ``cosine`` (one minus it) or ``euclidean``: of vectors;
        - ``auto``: of integers ``hamming``, or ``levels`` where others than 0 and 1 are among them; of floats
          ``cosine``.
    working_memory : float
        Most MiB of distances at a time.

    Attributes
    ----------
    metric_ : str
        The metric in use.
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
