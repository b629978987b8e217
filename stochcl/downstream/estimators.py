"""The probes, by name, each as a scikit-learn pipeline that fits what it scales on training rows only."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

Task = Literal["classification", "regression"]

_ROWS_AT_ONE = 500  # rows at which C is 1
_NEIGHBOURS = 20

TASKS: tuple[Task, ...] = ("classification", "regression")


@dataclass(frozen=True)
class _Given:
    """What an estimator is made for: rows to train on, a seed, whether they are symbols, and of two values."""

    rows: int
    seed: int
    symbols: bool
    binary: bool


def _logistic(given: _Given) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn's C weighs the sum over rows, so a constant C regularises less and less as rows grow.
    strength = min(1.0, _ROWS_AT_ONE / given.rows)
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500, tol=1e-3))


def _svm(given: _Given) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    return make_pipeline(StandardScaler(), LinearSVC(C=0.001, dual="auto", random_state=given.seed, max_iter=2000))


def _knn(given: _Given) -> Any:
    if given.symbols and given.binary:
        from stochcl.downstream.hamming import HammingKNeighborsClassifier

        return HammingKNeighborsClassifier(min(_NEIGHBOURS, given.rows))
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(**_neighbours(given))


def _boosting(given: _Given) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=given.seed)


def _ridge(_: _Given) -> Any:
    import numpy as np
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(0, 5, 11)))


def _knn_regression(given: _Given) -> Any:
    if given.symbols and given.binary:
        from stochcl.downstream.hamming import HammingKNeighborsRegressor

        return HammingKNeighborsRegressor(min(_NEIGHBOURS, given.rows))
    from sklearn.neighbors import KNeighborsRegressor

    return KNeighborsRegressor(**_neighbours(given))


def _neighbours(given: _Given) -> dict[str, Any]:
    metric = "hamming" if given.symbols else "cosine"
    return {"n_neighbors": min(_NEIGHBOURS, given.rows), "metric": metric, "algorithm": "brute"}


def _boosting_regression(given: _Given) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(random_state=given.seed)


ESTIMATORS: dict[Task, dict[str, Callable[[_Given], Any]]] = {
    "classification": {"logistic": _logistic, "svm": _svm, "knn": _knn, "boosting": _boosting},
    "regression": {"ridge": _ridge, "knn": _knn_regression, "boosting": _boosting_regression},
}
"""Probes by task and name; the first is the default."""


def make_estimator(
    name: str, task: Task, *, rows: int = 1000, seed: int = 0, symbols: bool = False, binary: bool = False
) -> tuple[str, Any]:
    """Return a probe's name and a fresh estimator.

    Parameters
    ----------
    name : str
        A key of ``ESTIMATORS``, "auto" for the task's default, or the dotted path of a scikit-learn class.
    task : str
        classification or regression.
    rows : int
        How many rows it will be trained on; regularisation depends on it.
    seed : int
        For estimators that draw.
    symbols : bool
        Whether it will be given symbols rather than vectors; nearest neighbours then go by Hamming distance.
    binary : bool
        Whether all symbols are 0 or 1; the same distance is then computed on packed bits.

    Raises
    ------
    UsageError
        If there is no such estimator, or it is of the other kind.
    """
    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(TASKS)}.")
    known = ESTIMATORS[task]
    if name == "auto":
        name = next(iter(known))
    if name in known:
        return name, known[name](_Given(rows, seed, symbols, binary))
    if "." not in name:
        there = ", ".join(known)
        raise UsageError(f"there is no {task} estimator {name!r}; there are {there}, or name a class by its path.")
    return name, _imported(name, task, seed)


def _imported(path: str, task: Task, seed: int) -> Any:
    """Make an estimator of a class with its defaults; it gets the seed if it takes one."""
    from sklearn.base import BaseEstimator, is_classifier, is_regressor

    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as exc:  # importing a module can raise anything
        raise UsageError(f"{path!r}: there is no such class ({exc}); name a scikit-learn class by its path.") from exc
    if not (isinstance(found, type) and issubclass(found, BaseEstimator)):
        raise UsageError(f"{path!r}: this is no scikit-learn estimator; name a class by its path.")
    try:
        estimator = found()
    except TypeError as exc:
        raise UsageError(f"{path!r}: it cannot be made without parameters ({exc}); take another.") from exc
    if not (is_classifier(estimator) if task == "classification" else is_regressor(estimator)):
        raise UsageError(f"{path!r}: this is not an estimator for {task}.")
    if "random_state" in estimator.get_params(deep=False):
        estimator.set_params(random_state=seed)
    return estimator
