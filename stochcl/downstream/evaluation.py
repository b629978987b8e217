"""Training a probe on decoded codes and scoring it on rows that it has not seen."""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream import metrics
from stochcl.downstream.duplicates import find_duplicates
from stochcl.downstream.estimators import Task, make_estimator
from stochcl.downstream.result import Evaluation
from stochcl.downstream.rows import Rows, labelled
from stochcl.downstream.saving import Fitted
from stochcl.downstream.splits import make_splits
from stochcl.errors import LabelsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from stochcl.downstream.duplicates import Duplicates

    Part = tuple[NDArray[np.floating], NDArray[Any], NDArray[np.floating], NDArray[Any]]

_MOST_CLASSES = 1000  # of which a confusion matrix is kept: a million counts


def evaluate(
    x: ArrayLike,
    y: Sequence[object] | ArrayLike,
    *,
    task: Task = "classification",
    estimator: str = "auto",
    seed: int = 0,
    folds: int = 5,
    test_size: float | None = None,
    groups: Sequence[object] | ArrayLike | None = None,
    names: Sequence[str] | None = None,
    symbols: NDArray[np.integer] | None = None,
) -> Evaluation:
    """Score a probe by cross-validation, or on a random part of the rows that is held out.

    Parameters
    ----------
    x : array, shape (N, V)
        Decoded vectors (floats) or symbols (integers). Nearest neighbours go by cosine among vectors and by
        Hamming distance among symbols.
    y : sequence, shape (N,)
        Labels: texts, or numbers for regression. Rows with an empty label, NaN or None are left out and counted.
    task, estimator
        See :func:`~stochcl.downstream.estimators.make_estimator`.
    seed : int
        Of the split and of estimators that draw.
    folds : int
        Of the cross-validation; fewer, with a note, if a class has fewer rows.
    test_size : float, optional
        Hold out this fraction instead.
    groups : sequence, shape (N,), optional
        Rows of one group (a patient, a video) are never both trained and scored on.
    names : sequence of str, shape (N,), optional
        What to call rows in messages.
    symbols : ndarray of int, shape (N, D), optional
        Codes, by which near duplicates across the split are counted.

    Raises
    ------
    LabelsError
        If labels do not match the rows, are not numbers, leave nothing to learn, or a class has a single row.
    UsageError
        If a number is out of range, there is no such estimator, or it cannot be trained on these rows.

    Examples
    --------
    >>> codes = np.array([[0, 1], [0, 1], [1, 1], [1, 0]] * 5, dtype=np.uint8)
    >>> found = evaluate(codes, ["cat", "cat", "dog", "dog"] * 5)
    >>> found.score, found.baseline
    (1.0, 0.5)
    """
    if test_size is not None and not 0 < test_size < 1:
        raise UsageError(f"a held-out part is between 0 and 1 of the rows, not {test_size}.")
    if folds < 2:
        raise UsageError(f"cross-validation takes at least 2 folds, not {folds}.")
    started = time.monotonic()
    rows = labelled(x, y, task, names)
    rows.check_learnable()
    kept_groups = None if groups is None else _groups(groups, len(rows.kept))[rows.kept]
    splits, notes = make_splits(rows.y, task, seed=seed, folds=folds, test_size=test_size, groups=kept_groups)
    parts = ((rows.x[train], rows.y[train], rows.x[test], rows.y[test]) for train, test in splits)
    probe = _Probe(task, estimator, seed, rows.symbols, rows.binary)
    found = None if symbols is None else find_duplicates(symbols[rows.kept], splits, seed)
    return probe.evaluation(parts, _left_out(rows) + notes, started, found)


def evaluate_split(
    x_train: ArrayLike,
    y_train: Sequence[object] | ArrayLike,
    x_test: ArrayLike,
    y_test: Sequence[object] | ArrayLike,
    *,
    task: Task = "classification",
    estimator: str = "auto",
    seed: int = 0,
    symbols: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
) -> Evaluation:
    """Train a probe on some rows and score it on others.

    A class that only the rows to score on have cannot be found: it counts as wrong, and is noted. ``symbols`` are
    the codes of both, as :func:`evaluate` takes them.

    Raises
    ------
    LabelsError, UsageError
        As :func:`evaluate` does, and if the two are of different widths.
    """
    started = time.monotonic()
    train, test = labelled(x_train, y_train, task), labelled(x_test, y_test, task)
    if train.x.shape[1] != test.x.shape[1]:
        raise UsageError(
            f"training rows are {train.x.shape[1]:,} wide and test rows {test.x.shape[1]:,}; give codes of one width."
        )
    train.check_learnable()
    if not len(test.y):
        raise LabelsError("none of the images to score on has a label; give labels with --labels.")
    notes = _left_out(train, " to train on") + _left_out(test, " to score on")
    if task == "classification" and (new := sorted(set(test.y.tolist()) - set(train.y.tolist()))):
        notes.append(f"{len(new):,} classes have no image to train on and count as wrong: {_few(new)}")
    probe = _Probe(task, estimator, seed, train.symbols and test.symbols, train.binary and test.binary)
    found = None
    if symbols is not None:
        both = np.concatenate([symbols[0][train.kept], symbols[1][test.kept]])
        first, second = np.split(np.arange(len(both)), [len(train.y)])
        found = find_duplicates(both, [(first, second)], seed)
    return probe.evaluation([(train.x, train.y, test.x, test.y)], notes, started, found)


def fit(
    x: ArrayLike,
    y: Sequence[object] | ArrayLike,
    *,
    target: str = "label",
    task: Task = "classification",
    estimator: str = "auto",
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Fitted:
    """Train a probe on all rows that have a label, to be saved.

    Parameters
    ----------
    target : str
        What it answers.
    x, y, task, estimator, seed, names
        As :func:`evaluate` takes them.

    Raises
    ------
    LabelsError, UsageError
        As :func:`evaluate`.

    Examples
    --------
    >>> codes = np.array([[0, 1], [0, 1], [1, 1], [1, 0]], dtype=np.uint8)
    >>> found = fit(codes, ["cat", "cat", "dog", "dog"])
    >>> found.classes, found.predict(codes).tolist()
    (('cat', 'dog'), ['cat', 'cat', 'dog', 'dog'])
    """
    rows = labelled(x, y, task, names)
    rows.check_learnable()
    probe = _Probe(task, estimator, seed, rows.symbols, rows.binary)
    fitted = probe.fitted(rows.x, rows.y)
    return Fitted(target, task, probe.name, fitted, len(rows.y))


class _Probe:
    """One kind of probe, trained afresh on each part."""

    def __init__(self, task: Task, estimator: str, seed: int, symbols: bool, binary: bool) -> None:
        self.task = task
        self.name = estimator
        self.seed = seed
        self.symbols = symbols
        self.binary = binary
        self.notes: list[str] = []

    def evaluation(
        self, parts: Iterable[Part], notes: list[str], started: float, duplicates: Duplicates | None
    ) -> Evaluation:
        """Train and score on every part, and sum up."""
        score = metrics.accuracy if self.task == "classification" else metrics.r_squared
        truths, answers, guesses, scores, trained = [], [], [], [], 0
        for x_train, y_train, x_test, y_test in parts:
            answer = self._answer(x_train, y_train, x_test)
            truths.append(y_test)
            answers.append(answer)
            guesses.append(np.full(len(y_test), self._guess(y_train)))
            scores.append(score(y_test, answer))
            trained = trained or len(y_train)
        truth, answer = np.concatenate(truths), np.concatenate(answers)
        overall = score(truth, answer)
        if np.isnan(overall):
            raise LabelsError(
                "the images to score on all have the same label, of which no R2 can be computed; score on more."
            )
        return Evaluation(
            task=self.task,
            estimator=self.name,
            n_train=trained,
            n_test=len(truth),
            score=overall,
            baseline=score(truth, np.concatenate(guesses)),
            folds=tuple(scores),
            **self._details(truth, answer, np.concatenate(guesses)),
            duplicates=duplicates,
            seconds=round(time.monotonic() - started, 3),
            notes=(*notes, *self.notes),
        )

    def _answer(self, x: NDArray[np.floating], y: NDArray[Any], x_test: NDArray[np.floating]) -> NDArray[Any]:
        """Train on rows and answer for others; warnings become notes."""
        probe = self.fitted(x, y)
        with self._noting():
            answer = np.asarray(probe.predict(x_test))
        if answer.shape != (len(x_test),) or (answer.dtype.kind == "f" and not np.isfinite(answer).all()):
            raise UsageError(f"{self.name} does not answer with one finite value for each image; take another.")
        return answer

    def fitted(self, x: NDArray[np.floating], y: NDArray[Any]) -> Any:
        """Return an estimator trained on rows; warnings become notes."""
        if self.task == "classification" and len(np.unique(y)) < 2:
            raise LabelsError("the images to train on are all of one class; split them in another way.")
        self.name, probe = make_estimator(
            self.name, self.task, rows=len(x), seed=self.seed, symbols=self.symbols, binary=self.binary
        )
        with self._noting():
            return probe.fit(x, y)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Make one sentence of what an estimator raises, and notes of its warnings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            except (ValueError, TypeError, ArithmeticError) as exc:
                raise UsageError(f"{self.name} cannot be trained on these codes: {_first_line(exc)}.") from exc
        for warning in caught:
            self._note(warning)

    def _note(self, warning: warnings.WarningMessage) -> None:
        from sklearn.exceptions import ConvergenceWarning

        if issubclass(warning.category, ConvergenceWarning):
            note = f"{self.name} stopped before it had converged; with more iterations its score may change"
        else:
            note = f"{self.name} warned: {_first_line(warning.message)}"
        if note not in self.notes:
            self.notes.append(note)

    def _guess(self, y: NDArray[Any]) -> Any:
        """Return what one would answer without looking: the largest class, or the mean."""
        if self.task == "regression":
            return y.mean()
        classes, counts = np.unique(y, return_counts=True)
        return classes[counts.argmax()]

    def _details(self, truth: NDArray[Any], answer: NDArray[Any], guess: NDArray[Any]) -> dict[str, Any]:
        if self.task == "regression":
            return {
                "interval": metrics.bootstrap_r_squared(truth, answer, self.seed),
                "mae": metrics.mean_absolute_error(truth, answer),
                "rmse": metrics.root_mean_square_error(truth, answer),
                "baseline_mae": metrics.mean_absolute_error(truth, guess),
                "baseline_rmse": metrics.root_mean_square_error(truth, guess),
            }
        classes = np.unique(np.concatenate([truth, answer]))
        details = {
            "interval": metrics.wilson(int((truth == answer).sum()), len(truth)),
            "balanced_accuracy": metrics.balanced_accuracy(truth, answer),
            "baseline_balanced_accuracy": metrics.balanced_accuracy(truth, guess),
            "classes": tuple(classes.tolist()),
        }
        if len(classes) <= _MOST_CLASSES:
            return details | {"confusion": metrics.confusion(truth, answer, classes)}
        self.notes.append(f"the confusion matrix of {len(classes):,} classes was left out")
        return details


def _groups(groups: Sequence[object] | ArrayLike, count: int) -> NDArray[np.intp]:
    """Give each group a number, whatever it is called."""
    values = np.asarray(groups, dtype=object)
    if values.shape != (count,):
        raise UsageError(f"there are {count:,} images, but groups have shape {values.shape}; give one for each.")
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values.tolist()], dtype=np.intp)


def _left_out(rows: Rows, which: str = "") -> list[str]:
    return [f"{rows.left_out:,} images{which} have no label and were left out"] if rows.left_out else []


def _few(classes: list[str], shown: int = 3) -> str:
    return ", ".join(repr(name) for name in classes[:shown]) + (", ..." if len(classes) > shown else "")


def _first_line(message: object) -> str:
    return (str(message).strip() or type(message).__name__).splitlines()[0].rstrip(".:")
