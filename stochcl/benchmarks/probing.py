"""What decoded vectors are still good for: a linear classifier, distances, and the error itself."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Weights of half the squared norm beside the mean loss of a row, of which the best on held-out rows is taken."""

NEAREST = (1, 5, 10, 20, 50)
"""Numbers of neighbours, of which the best on held-out rows is taken."""

NEIGHBOURS = 10

_CHOOSING = 15_000  # training rows that the penalty is chosen on
_BLOCK = 1024  # queries whose distances to all rows are in memory


def linear_accuracy(
    train: NDArray[np.float32],
    labels: NDArray[np.generic],
    test: NDArray[np.float32],
    test_labels: NDArray[np.generic],
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the accuracy of logistic regression on standardised columns, and the penalty that it was fitted with.

    The penalty is chosen on a fifth of (at most 15,000) training rows, kept from those that it is fitted to; the
    test rows have no say in it.
    """
    right, chosen = answers("logistic", train, labels, test, test_labels, seed=seed)
    return float(right.mean()), chosen


def answers(
    probe: str,
    train: NDArray[np.float32],
    labels: NDArray[np.generic],
    test: NDArray[np.float32],
    test_labels: NDArray[np.generic],
    *,
    seed: int = 0,
) -> tuple[NDArray[np.bool_], float]:
    """Return which test rows a probe gets right, and the setting that was chosen for it inside the training rows."""
    from sklearn.preprocessing import StandardScaler

    fit, settings = _PROBES[probe]
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    rows = np.random.default_rng([seed, 17]).permutation(len(train))[:_CHOOSING]
    fitted, kept = rows[len(rows) // 5 :], rows[: len(rows) // 5]
    scores = {s: fit(train[fitted], labels[fitted], s).score(train[kept], labels[kept]) for s in settings}
    best = max(scores, key=scores.__getitem__)
    right: NDArray[np.bool_] = fit(train, labels, best).predict(test) == test_labels
    return right, best


def _logistic(x: NDArray[np.float32], y: NDArray[np.generic], penalty: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # A hundred steps fix the accuracy long before they fix the weights.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=1 / (penalty * len(x)), max_iter=100, tol=1e-3).fit(x, y)


def _svm(x: NDArray[np.float32], y: NDArray[np.generic], penalty: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LinearSVC(C=1 / (penalty * len(x)), dual=len(x) < x.shape[1], tol=1e-3, max_iter=200).fit(x, y)


def _nearest(x: NDArray[np.float32], y: NDArray[np.generic], count: float) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(min(int(count), len(x)), algorithm="brute").fit(x, y)


_PROBES: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "logistic": (_logistic, PENALTIES),
    "svm": (_svm, PENALTIES),
    "knn": (_nearest, NEAREST),
}


def relative_error(vectors: NDArray[np.float32], decoded: NDArray[np.float32], mean: NDArray[np.float32]) -> float:
    """Return the squared error of decoded vectors by that of the training rows' mean, which knows nothing."""
    lost = np.square(vectors - decoded, dtype=np.float64).sum()
    return float(lost / np.square(vectors - mean, dtype=np.float64).sum())


def neighbours(queries: NDArray[np.float32], base: NDArray[np.float32], own: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the ``NEIGHBOURS`` nearest rows of ``base`` of each query, in no order, shape (n, 10)."""
    norms = np.square(base).sum(axis=1)
    found = []
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        distances = norms - 2 * (queries[part] @ base.T)
        distances[np.arange(len(distances)), own[part]] = np.inf
        found.append(np.argpartition(distances, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])
    return np.concatenate(found)


def recall(true: NDArray[np.intp], found: NDArray[np.intp]) -> float:
    """Return the fraction of true neighbours, shape (n, 10), that are among those found, in whatever order."""
    return float((true[:, :, None] == found[:, None, :]).any(axis=2).mean())
