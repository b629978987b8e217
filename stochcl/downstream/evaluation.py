"""Training a probe on decoded codes and scoring it on rows that it has not seen."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unicodedata import combining, east_asian_width

import numpy as np

from stochcl.codes import label_text, plain_label
from stochcl.downstream import metrics
from stochcl.downstream.metrics import find_duplicates, make_splits
from stochcl.downstream.probes import TASKS, Fitted, Task, make_estimator
from stochcl.errors import LabelsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from stochcl.downstream.metrics import Duplicates

    Part = tuple[NDArray[np.floating], NDArray[Any], NDArray[np.floating], NDArray[Any]]


@dataclass(frozen=True)
class Rows:
    """Labelled rows.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (N, V)
    y : ndarray of str, or of float64 for regression, shape (N,)
    kept : ndarray of bool
        Which of the rows that were given these are.
    symbols : bool
        Whether the rows were given as integers: symbols, whose values are names rather than quantities.
    """

    x: NDArray[np.floating]
    y: NDArray[Any]
    kept: NDArray[np.bool_]
    symbols: bool

    @property
    def binary(self) -> bool:
        """Whether the rows are symbols that are all 0 or 1."""
        return self.symbols and bool(((self.x == 0) | (self.x == 1)).all())

    def check_learnable(self) -> None:
        """Refuse labels that are all the same.

        Raises
        ------
        LabelsError
        """
        if len(np.unique(self.y)) < 2:
            raise LabelsError(
                f"the {len(self.y):,} labels hold fewer than two different ones, so there is nothing to learn; "
                "give others with --labels."
            )

    @property
    def left_out(self) -> int:
        """How many rows had no label."""
        return int((~self.kept).sum())


def labelled(x: ArrayLike, y: Sequence[object] | ArrayLike, task: Task, names: Sequence[str] | None = None) -> Rows:
    """Check rows and labels, and keep the rows that have a label.

    An empty string, NaN, None and a negative class number are no label; -1 beside 1 alone is a class. float32 and
    float64 are kept; other numbers become float32.
    """
    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(TASKS)}.")
    features, symbols = _matrix(x)
    if names is not None and len(names) != len(features):
        raise UsageError(f"there are {len(features):,} images and {len(names):,} names; give one for each.")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise UsageError(f"{_row(int(finite.argmin()), names)}: its code holds numbers that are not finite.")
    # From lists through objects: numpy would make the text "nan" of a NaN among texts.
    given = y if isinstance(y, np.ndarray) else np.asarray(y, dtype=object)
    if given.ndim != 1:
        raise LabelsError(f"labels have shape (N,), one for each image, not {given.shape}.")
    if len(given) != len(features):
        raise LabelsError(f"there are {len(features):,} images and {len(given):,} labels; give one for each.")
    values = [plain_label(label) for label in given.tolist()]
    if set(map(str, values)) == {"-1", "1"}:  # signs
        values = [str(value) for value in values]
    read = _number if task == "regression" else _text
    labels = [read(label, i, names) for i, label in enumerate(values)]
    kept = np.array([label is not None for label in labels], dtype=bool)
    known = np.array([label for label in labels if label is not None], dtype=float if task == "regression" else str)
    return Rows(features if kept.all() else features[kept], known, kept, symbols)


def _matrix(x: ArrayLike) -> tuple[NDArray[np.floating], bool]:
    try:
        features = np.asarray(x)
    except ValueError as exc:
        raise UsageError("codes have shape (N, V); these rows have different lengths.") from exc
    if features.ndim != 2 or features.shape[1] == 0:
        raise UsageError(f"codes have shape (N, V), not {features.shape}.")
    if features.dtype.kind not in "fiub":
        raise UsageError(f"codes are numbers, not {features.dtype}.")
    keep = features.dtype in (np.float32, np.float64)
    return features if keep else features.astype(np.float32), features.dtype.kind != "f"


def _missing(label: object) -> bool:
    if isinstance(label, str | bytes):
        return not label.strip()
    return label is None or (isinstance(label, float | np.floating) and math.isnan(label))


def _text(label: object, i: int, names: Sequence[str] | None) -> str | None:
    return label_text(label) or None


def _number(label: Any, i: int, names: Sequence[str] | None) -> float | None:
    if _missing(label):
        return None
    try:
        value = float(label)
    except (TypeError, ValueError) as exc:
        raise LabelsError(f"{_row(i, names)}: regression needs numbers as labels, not {label!r}.") from exc
    if math.isinf(value):
        raise LabelsError(f"{_row(i, names)}: its label is infinite; regression needs finite numbers.")
    return None if math.isnan(value) else value  # a text may say nan


def _row(i: int, names: Sequence[str] | None) -> str:
    # repr() shows control characters and bytes that are not UTF-8 as escapes.
    return f"row {i:,}" if names is None else f"row {i:,} ({names[i]!r})"


_SHOWN_CLASSES = 20
_LEAST_SHOWN = 20  # letters of a class's name, or as many as tell it from others


@dataclass(frozen=True)
class Evaluation:
    """How well a probe does.

    Parameters
    ----------
    task, estimator : str
    n_train, n_test : int
        Rows trained and scored on (with cross-validation: rows the first fold trains on, and all rows).
    score : float
        Accuracy, or R2: 1 minus the squared error by the variance; over all scored rows together.
    interval : (float, float) or None
        95 % confidence interval of the score: of an accuracy Wilson's, of R2 by bootstrap over the scored rows
        (None for fewer than 10). It covers the choice of rows to score on, not of rows to train on.
    baseline : float
        The same score of guessing the training rows' largest class, or their mean.
    balanced_accuracy, baseline_balanced_accuracy : float or None
        Mean over classes of the fraction of their rows that is found; and of that guess.
    mae, rmse, baseline_mae, baseline_rmse : float or None
        Mean absolute and root mean square error of a regression, in the label's unit; and of that guess.
    folds : tuple of float
        The score of each fold; one for a held-out split. NaN for the R2 of a fold whose labels are all equal.
    classes : tuple of str
        Classes in the rows scored, or predicted, in sorted order; what ``confusion`` counts by.
    confusion : tuple of tuple of int
        Rows: true class; columns: predicted. Left out, with a note, for more than 1,000 classes.
    duplicates : Duplicates or None
        How many scored rows have a near duplicate among those trained on, where symbols were given.
    seconds : float
        Time for training and scoring.
    notes : tuple of str
        What a reader should know: rows left out, fewer folds, a fit that stopped early.

    Examples
    --------
    >>> found = Evaluation(
    ...     "regression", "ridge", 80, 100, 0.9, (0.85, 0.93), -0.02,
    ...     mae=1.5, rmse=2.0, baseline_mae=5, baseline_rmse=6.3,
    ... )
    >>> print(found.summary())
    R2 0.900 with ridge (80 images to train on, 100 to score)
      95 % interval 0.850 to 0.930
      guessing the mean: R2 -0.020
      mean absolute error 1.5, root mean square error 2, in the label's unit (guessing the mean: 5 and 6.3)
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
    baseline_balanced_accuracy: float | None = None
    baseline_mae: float | None = None
    baseline_rmse: float | None = None
    folds: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    duplicates: Duplicates | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types, leaving out those that the task does not have; NaN becomes None."""
        return {name: _plain(value) for name, value in vars(self).items() if value is not None and value != ()}

    def summary(self) -> str:
        """Return the figures for people, with their units, as text of a few lines."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the lines of :meth:`summary`."""
        rows = f"{self.n_train:,} images to train on, {self.n_test:,} to score"
        lines = self._accuracy(rows) if self.task == "classification" else self._errors(rows)
        if self.duplicates is not None and self.duplicates.near:
            lines.append(f"  near duplicates: {self.duplicates.line()}")
        return lines + [f"  note: {note}" for note in self.notes]

    def _accuracy(self, rows: str) -> list[str]:
        lines = [f"accuracy {self.score:.2%} with {self.estimator} ({rows})"]
        if self.interval:
            lines.append("  95 % interval {:.2%} to {:.2%}".format(*self.interval))
        if self.balanced_accuracy is not None:
            lines[-1] += f"; mean over {len(self.classes):,} classes {self.balanced_accuracy:.2%}"
        if len(self.folds) > 1:
            lines.append(f"  {len(self.folds)} folds: {min(self.folds):.2%} to {max(self.folds):.2%}")
        guess = f"  guessing the largest class: {self.baseline:.2%}"
        if self.baseline_balanced_accuracy is not None:
            guess += f"; mean over classes {self.baseline_balanced_accuracy:.2%}"
        return [*lines, guess, *self._matrix()]

    def _matrix(self) -> list[str]:
        """Return the confusion matrix, where it is of a size that a person reads."""
        if not 0 < len(self.confusion) <= _SHOWN_CLASSES:
            return []
        cells = [[str(n) for n in row] for row in self.confusion]
        names = _shown(self.classes)
        wide, width = max(map(_columns, names)), max(len(cell) for row in cells for cell in row)
        rows = [
            f"    {name}{' ' * (wide - _columns(name))}  {' '.join(cell.rjust(width) for cell in row)}"
            for name, row in zip(names, cells, strict=True)
        ]
        return ["  images by true class (rows) and answer (columns, in the same order):", *rows]

    def _errors(self, rows: str) -> list[str]:
        lines = [f"R2 {self.score:.3f} with {self.estimator} ({rows})"]
        if self.interval:
            lines.append("  95 % interval {:.3f} to {:.3f}".format(*self.interval))
        known = [fold for fold in self.folds if not math.isnan(fold)]
        if len(known) > 1:
            lines.append(f"  {len(known)} folds: R2 {min(known):.3f} to {max(known):.3f}")
        return [
            *lines,
            f"  guessing the mean: R2 {self.baseline:.3f}",
            f"  mean absolute error {self.mae:.4g}, root mean square error {self.rmse:.4g}, in the label's unit"
            + (
                f" (guessing the mean: {self.baseline_mae:.4g} and {self.baseline_rmse:.4g})"
                if self.baseline_mae is not None
                else ""
            ),
        ]


def _shown(classes: Sequence[str]) -> list[str]:
    """Return names of classes for a terminal, cut to a length at which no two are alike."""
    names = [
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name)) for name in classes
    ]
    length = _LEAST_SHOWN
    while len({name[:length] for name in names}) < len(set(names)):
        length += 1
    return [name[:length] for name in names]


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes; East Asian letters take two, combining ones none."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _plain(value: Any) -> Any:
    """Return lists for tuples, and None for what JSON has no number for."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        See :func:`~stochcl.downstream.probes.make_estimator`.
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
