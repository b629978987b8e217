"""Training a probe on decoded codes and scoring it on rows that it has not seen."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream.estimators import TASKS, Task, make_estimator
from stochcl.errors import LabelsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

_Z = 1.959964  # 95 % of a normal distribution


@dataclass(frozen=True)
class Evaluation:
    """How well a probe does.

    Parameters
    ----------
    task, estimator : str
    n_train, n_test : int
        Rows trained and scored on (with cross-validation: rows a fold trains on, and all rows).
    score : float
        Accuracy, or R2: 1 minus the squared error by the variance.
    interval : (float, float) or None
        95 % confidence interval of an accuracy (Wilson, 1927).
    baseline : float
        The same score of guessing the majority class, or the mean.
    balanced_accuracy : float or None
        Mean over classes of their recall.
    mae, rmse : float or None
        Mean absolute and root mean square error of a regression, in the label's unit.
    folds : tuple of float
        The score of each fold; one for a held-out split.
    classes : tuple of str
    confusion : tuple of tuple of int
        Rows: true class; columns: predicted.
    seconds : float
    notes : tuple of str
        What a reader should know.
    """

    task: Task
    estimator: str
    n_train: int
    n_test: int
    score: float
    interval: tuple[float, float] | None
    baseline: float
    balanced_accuracy: float | None = None
    mae: float | None = None
    rmse: float | None = None
    folds: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types, leaving out those that the task does not have."""
        values = {name: value for name, value in vars(self).items() if value not in (None, ())}
        for name in ("interval", "folds", "classes", "notes"):
            if name in values:
                values[name] = list(values[name])
        if self.confusion:
            values["confusion"] = [list(row) for row in self.confusion]
        return values

    def lines(self) -> list[str]:
        """Return the figures for people."""
        rows = f"{self.n_train:,} images to train on, {self.n_test:,} to score"
        if self.task == "regression":
            out = [
                f"R2 {self.score:.3f} with {self.estimator} ({rows})",
                f"  guessing the mean: R2 {self.baseline:.3f}",
                f"  mean absolute error {self.mae:.4g}, root mean square error {self.rmse:.4g}, in the label's unit",
            ]
        else:
            low, high = self.interval or (math.nan, math.nan)
            balanced = f"mean over {len(self.classes)} classes {self.balanced_accuracy:.2%}"
            out = [
                f"accuracy {self.score:.2%} with {self.estimator} ({rows})",
                f"  95 % interval {low:.2%} to {high:.2%}; {balanced}",
                f"  guessing the largest class: {self.baseline:.2%}",
            ]
        return out + [f"  note: {note}" for note in self.notes]


def evaluate(
    x: ArrayLike,
    y: Sequence[str] | ArrayLike,
    *,
    task: Task = "classification",
    estimator: str = "auto",
    seed: int = 0,
    folds: int = 5,
    test_size: float | None = None,
) -> Evaluation:
    """Score a probe by cross-validation, or on a random part of the rows that is held out.

    Parameters
    ----------
    x : array, shape (N, V)
        Decoded vectors or symbols.
    y : sequence, shape (N,)
        Labels: strings, or numbers for regression. Rows with an empty label, or NaN, are left out.
    task, estimator
        See :func:`~stochcl.downstream.estimators.make_estimator`.
    seed : int
        Of the split and of estimators that draw.
    folds : int
        Of the cross-validation; fewer if a class has fewer rows.
    test_size : float, optional
        Hold out this fraction instead.

    Raises
    ------
    LabelsError
        If labels do not match the rows, are not numbers, or leave nothing to learn.
    UsageError
        If a number is out of range or there is no such estimator.
    """
    if test_size is not None and not 0 < test_size < 1:
        raise UsageError(f"a held-out part is between 0 and 1 of the rows, not {test_size}.")
    if folds < 2:
        raise UsageError(f"cross-validation takes at least 2 folds, not {folds}.")
    features, labels, notes = _prepare(x, y, task)
    splits = list(_splits(labels, task, seed, folds, test_size, notes))
    return _score(features, labels, splits, task, estimator, seed, notes)


def evaluate_split(
    x_train: ArrayLike,
    y_train: Sequence[str] | ArrayLike,
    x_test: ArrayLike,
    y_test: Sequence[str] | ArrayLike,
    *,
    task: Task = "classification",
    estimator: str = "auto",
    seed: int = 0,
) -> Evaluation:
    """Train a probe on some rows and score it on others, see :func:`evaluate`."""
    train, train_labels, notes = _prepare(x_train, y_train, task)
    test, test_labels, more = _prepare(x_test, y_test, task)
    if train.shape[1] != test.shape[1]:
        raise UsageError(f"training rows are {train.shape[1]} wide and test rows {test.shape[1]}.")
    x, y = np.concatenate([train, test]), np.concatenate([train_labels, test_labels])
    rows = np.arange(len(x))
    notes += [note for note in more if note not in notes]
    return _score(x, y, [(rows[: len(train)], rows[len(train) :])], task, estimator, seed, notes)


def _prepare(x: ArrayLike, y: Sequence[str] | ArrayLike, task: Task) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Check rows and labels, and leave out rows without a label."""
    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(TASKS)}.")
    features = np.asarray(x)
    if features.ndim != 2:
        raise UsageError(f"codes have shape (N, V), not {features.shape}.")
    labels = np.asarray(y)
    if len(labels) != len(features):
        raise LabelsError(f"there are {len(features):,} images and {len(labels):,} labels; give one for each.")
    if features.dtype.kind == "f" and not np.isfinite(features).all():
        raise UsageError("codes hold numbers that are not finite.")
    if task == "regression":
        try:
            labels = np.array([math.nan if str(v).strip() == "" else float(v) for v in labels.tolist()])
        except ValueError as exc:
            raise LabelsError(f"regression needs numbers as labels ({exc}).") from exc
        if np.isinf(labels).any():
            raise LabelsError("a label is infinite.")
        there = ~np.isnan(labels)
    else:
        labels = labels.astype(str)
        there = labels != ""
    notes = [] if there.all() else [f"{(~there).sum():,} images have no label and were left out"]
    features, labels = features[there], labels[there]
    if len(labels) < 2 or len(np.unique(labels)) < 2:
        raise LabelsError(
            f"the {len(labels):,} labels hold fewer than two different ones, so there is nothing to learn; "
            "give others with --labels."
        )
    return features, labels, notes


def _splits(
    y: NDArray[Any], task: Task, seed: int, folds: int, test_size: float | None, notes: list[str]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield training and test rows, stratified by class where there are classes."""
    from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit

    smallest = np.unique(y, return_counts=True)[1].min() if task == "classification" else len(y)
    if test_size is not None:
        splitter: Any = ShuffleSplit(1, test_size=test_size, random_state=seed)
        if task == "classification" and smallest >= 2:
            splitter = StratifiedShuffleSplit(1, test_size=test_size, random_state=seed)
    else:
        used = max(2, min(folds, int(smallest)))
        if used < folds:
            notes.append(f"{used} folds instead of {folds}, because the smallest class has {smallest} images")
        splitter = KFold(used, shuffle=True, random_state=seed)
        if task == "classification" and smallest >= 2:
            splitter = StratifiedKFold(used, shuffle=True, random_state=seed)
    if task == "classification" and smallest < 2:
        notes.append("a class has a single image, so folds are not stratified")
    try:
        yield from splitter.split(np.zeros(len(y)), y)
    except ValueError as exc:
        raise LabelsError(f"{len(y):,} labelled images cannot be split ({exc}).") from exc


def _score(
    x: NDArray[Any],
    y: NDArray[Any],
    splits: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    task: Task,
    estimator: str,
    seed: int,
    notes: list[str],
) -> Evaluation:
    from sklearn.exceptions import ConvergenceWarning

    started = time.monotonic()
    x = x if x.dtype.kind == "f" else x.astype(np.float32)
    symbols = bool(len(x)) and float(x.max()) == np.floor(x.max()) and bool((x[:1000] == np.floor(x[:1000])).all())
    predicted, truth, guesses, scores = [], [], [], []
    name = estimator
    for train, test in splits:
        name, probe = make_estimator(estimator, task, rows=len(train), seed=seed, symbols=symbols)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            probe.fit(x[train], y[train])
            answer = probe.predict(x[test])
        if any(issubclass(w.category, ConvergenceWarning) for w in caught):
            note = f"{name} stopped before it had converged; its score is a lower bound"
            notes += [] if note in notes else [note]
        predicted.append(answer)
        truth.append(y[test])
        guesses.append(np.full(len(test), _guess(y[train], task)))
        scores.append(_goodness(y[test], answer, task))
    y_true, y_pred, y_guess = np.concatenate(truth), np.concatenate(predicted), np.concatenate(guesses)
    common: dict[str, Any] = {
        "task": task,
        "estimator": name,
        "n_train": len(splits[0][0]),
        "n_test": len(y_true),
        "score": _goodness(y_true, y_pred, task),
        "baseline": _goodness(y_true, y_guess, task),
        "folds": tuple(round(score, 6) for score in scores),
        "seconds": round(time.monotonic() - started, 3),
        "notes": tuple(notes),
    }
    if task == "regression":
        error = y_pred - y_true
        return Evaluation(
            **common, interval=None, mae=float(np.abs(error).mean()), rmse=float(np.sqrt((error**2).mean()))
        )
    classes, confusion = _confusion(y_true, y_pred)
    recall = [row[i] / sum(row) for i, row in enumerate(confusion) if sum(row)]
    return Evaluation(
        **common,
        interval=wilson(int((y_true == y_pred).sum()), len(y_true)),
        balanced_accuracy=float(np.mean(recall)),
        classes=classes,
        confusion=confusion,
    )


def _guess(y: NDArray[Any], task: Task) -> Any:
    """Return what one would answer without looking: the largest class, or the mean."""
    if task == "regression":
        return y.mean()
    classes, counts = np.unique(y, return_counts=True)
    return classes[counts.argmax()]


def _goodness(truth: NDArray[Any], answer: NDArray[Any], task: Task) -> float:
    if task == "classification":
        return float((truth == answer).mean())
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - answer) ** 2).sum() / spread) if spread else math.nan


def _confusion(truth: NDArray[Any], answer: NDArray[Any]) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    classes, codes = np.unique(np.concatenate([truth, answer]), return_inverse=True)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (codes[: len(truth)], codes[len(truth) :]), 1)
    return tuple(classes.tolist()), tuple(tuple(row) for row in counts.tolist())


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson, 1927).

    Examples
    --------
    >>> [round(bound, 3) for bound in wilson(50, 100)]
    [0.404, 0.596]
    """
    p, z = right / total, _Z**2 / total
    centre = (p + z / 2) / (1 + z)
    half = _Z * math.sqrt(p * (1 - p) / total + z / (4 * total)) / (1 + z)
    return max(0.0, centre - half), min(1.0, centre + half)
