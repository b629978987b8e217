"""Train a probe on decoded codes and score it on unseen rows."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream import metrics
from stochcl.downstream.metrics import Duplicates, LabelledRows, count_duplicates, labelled, make_splits
from stochcl.downstream.probes import Fitted, Task, make_estimator
from stochcl.errors import LabelsError, UsageError
from stochcl.messages import escape_name, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Part = tuple[NDArray[np.floating], NDArray[Any], NDArray[np.floating], NDArray[Any]]


_SHOWN_CLASSES = 20
_LEAST_SHOWN = 20  # characters of a class name, more if needed to tell names apart
_MOST_CLASSES = 1000  # the most classes with a confusion matrix


@dataclass(frozen=True)
class Evaluation:
    """How well a probe does.

    Parameters
    ----------
    task, estimator : str
    n_train, n_test : int
        Rows to train on (in the first fold of a cross-validation) and to score.
    score, baseline : float
        Accuracy or R2 over all scored rows, and that of guessing the training rows' largest class or mean.
    interval : (float, float) or None
        95 % confidence interval of the score: Wilson's, or a bootstrap (from 10 rows).
    balanced_accuracy, mae, rmse, baseline_balanced_accuracy, baseline_mae, baseline_rmse : float or None
        Mean recall over classes, or errors in the label's unit; and those of that guess.
    folds : tuple of float
        The score of each fold; one for a held-out split. NaN for the R2 of a fold whose labels are all equal.
    classes, confusion : tuple
        Sorted classes, and counts by true (rows) and predicted class; empty for more than 1,000 classes.
    duplicates : Duplicates or None
    seconds : float
    notes : tuple of str
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
        """Return the task's figures as JSON types; NaN becomes None."""
        return {name: _plain(value) for name, value in asdict(self).items() if value is not None and value != ()}

    def summary(self) -> str:
        """Return the figures with units as text."""
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the lines of the summary."""
        rows = f"{self.n_train:,} rows to train on, {self.n_test:,} to score"
        if len(self.folds) > 1:
            rows = f"{self.n_test:,} rows, cross-validated in {len(self.folds)} folds"
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
            lines.append(f"  from fold to fold {min(self.folds):.2%} to {max(self.folds):.2%}")
        guess = f"  guessing the largest class: {self.baseline:.2%}"
        if self.baseline_balanced_accuracy is not None:
            guess += f"; mean over classes {self.baseline_balanced_accuracy:.2%}"
        return [*lines, guess, *self._matrix()]

    def _matrix(self) -> list[str]:
        """Return the confusion matrix if it is small enough to read."""
        if not 0 < len(self.confusion) <= _SHOWN_CLASSES:
            return []
        cells = [[str(n) for n in row] for row in self.confusion]
        from rich.cells import cell_len, set_cell_size

        names = _shown(self.classes)
        wide, width = max(map(cell_len, names)), max(len(cell) for row in cells for cell in row)
        rows = [
            f"    {set_cell_size(name, wide)}  {' '.join(cell.rjust(width) for cell in row)}"
            for name, row in zip(names, cells, strict=True)
        ]
        return ["  confusion, true class down and answer across, in the same order:", *rows]

    def _errors(self, rows: str) -> list[str]:
        lines = [f"R2 {self.score:.3f} with {self.estimator} ({rows})"]
        if self.interval:
            lines.append("  95 % interval {:.3f} to {:.3f}".format(*self.interval))
        known = [fold for fold in self.folds if not math.isnan(fold)]
        if len(known) > 1:
            lines.append(f"  from fold to fold R2 {min(known):.3f} to {max(known):.3f}")
        errors = f"  mean absolute error {self.mae:.4g}, root mean square error {self.rmse:.4g}, in the label's unit"
        if self.baseline_mae is not None:
            errors += f" (guessing the mean: {self.baseline_mae:.4g} and {self.baseline_rmse:.4g})"
        return [*lines, f"  guessing the mean: R2 {self.baseline:.3f}", errors]


def _shown(classes: Sequence[str]) -> list[str]:
    """Return class names for a terminal, cut to a length that keeps them distinct."""
    names = [escape_name(str(name)) for name in classes]
    length = _LEAST_SHOWN
    while len({name[:length] for name in names}) < len(set(names)):
        length += 1
    return [name[:length] for name in names]


def _plain(value: Any) -> Any:
    """Return tuples as lists, and non-finite numbers as None, for JSON."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    x: ArrayLike, y: Sequence[object] | ArrayLike, *, task: Task = "classification", estimator: str = "auto",
    seed: int = 0, folds: int = 5, test_size: float | None = None, groups: Sequence[object] | ArrayLike | None = None,
    names: Sequence[str] | None = None, symbols: NDArray[np.integer] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:  # fmt: skip
    """Score a probe by cross-validation, or on a random held-out part of the rows.

    Parameters
    ----------
    x : array, shape (N, V)
        Decoded vectors (floats), which neighbours compare by cosine, or symbols (integers), by Hamming distance.
    y : sequence, shape (N,)
        Texts, or numbers for regression. Rows labelled empty, NaN or None are left out and counted.
    task, estimator : str
    seed : int
    folds : int
        Fewer, with a note, if a class has fewer rows.
    test_size : float, optional
        Hold out this fraction instead.
    groups : sequence, shape (N,), optional
        Rows of one group (a patient, a video) are never both trained and scored on.
    names : sequence of str, shape (N,), optional
        For messages.
    symbols : ndarray of int, shape (N, D), optional
        Codes, to count near duplicates across the split.
    progress : callable
        Called with the number of folds done and the total.

    Raises
    ------
    LabelsError, UsageError

    Examples
    --------
    >>> codes = np.array([[0, 1], [0, 1], [1, 1], [1, 0]] * 5, dtype=np.uint8)
    >>> evaluate(codes, ["cat", "cat", "dog", "dog"] * 5).score
    1.0
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
    probe = _Probe(task, estimator, seed, rows.symbols, rows.binary)

    def parts() -> Iterator[Part]:
        for done, (train, test) in enumerate(splits):
            progress(done, len(splits))
            yield rows.x[train], rows.y[train], rows.x[test], rows.y[test]
        progress(len(splits), len(splits))

    found = None if symbols is None else count_duplicates(symbols[rows.kept], splits, seed)
    return probe.evaluation(parts(), _left_out(rows) + notes, started, found)


def evaluate_split(
    x_train: ArrayLike, y_train: Sequence[object] | ArrayLike, x_test: ArrayLike,
    y_test: Sequence[object] | ArrayLike, *, task: Task = "classification", estimator: str = "auto", seed: int = 0,
    symbols: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
) -> Evaluation:  # fmt: skip
    """Train a probe on some rows and score it on others, as :func:`evaluate`; ``symbols`` are the codes of both."""
    started = time.monotonic()
    train, test = labelled(x_train, y_train, task), labelled(x_test, y_test, task)
    if train.x.shape[1] != test.x.shape[1]:
        raise UsageError(
            f"training rows are {train.x.shape[1]:,} wide and test rows {test.x.shape[1]:,}; give codes of one width."
        )
    train.check_learnable()
    if not len(test.y):
        raise LabelsError("none of the rows to score on has a label; give labels with --labels.")
    notes = _left_out(train, " to train on") + _left_out(test, " to score on")
    if task == "classification" and (new := sorted(set(test.y.tolist()) - set(train.y.tolist()))):
        few = ", ".join(map(repr, new[:3])) + (", ..." if len(new) > 3 else "")
        notes.append(f"{len(new):,} classes have no row to train on and count as wrong: {few}")
    probe = _Probe(task, estimator, seed, train.symbols and test.symbols, train.binary and test.binary)
    found = None
    if symbols is not None:
        both = np.concatenate([symbols[0][train.kept], symbols[1][test.kept]])
        first, second = np.split(np.arange(len(both)), [len(train.y)])
        found = count_duplicates(both, [(first, second)], seed)
    return probe.evaluation([(train.x, train.y, test.x, test.y)], notes, started, found)


def fit(
    x: ArrayLike, y: Sequence[object] | ArrayLike, *, target: str = "label", task: Task = "classification",
    estimator: str = "auto", seed: int = 0, names: Sequence[str] | None = None,
) -> Fitted:  # fmt: skip
    """Train a probe on all labelled rows, to be saved."""
    rows = labelled(x, y, task, names)
    rows.check_learnable()
    probe = _Probe(task, estimator, seed, rows.symbols, rows.binary)
    fitted = probe.fitted(rows.x, rows.y)
    return Fitted(target, task, probe.name, fitted, len(rows.y))


class _Probe:
    def __init__(self, task: Task, estimator: str, seed: int, symbols: bool, binary: bool) -> None:
        self.task, self.name, self.seed, self.symbols, self.binary = task, estimator, seed, symbols, binary
        self.notes: list[str] = []

    def evaluation(
        self, parts: Iterable[Part], notes: list[str], started: float, duplicates: Duplicates | None
    ) -> Evaluation:
        """Train and score on every part, and summarise."""
        score = _accuracy if self.task == "classification" else metrics.r_squared
        found, trained = [], 0
        for x_train, y_train, x_test, y_test in parts:
            answer = self._answer(x_train, y_train, x_test)
            found.append((y_test, answer, np.full(len(y_test), _guess(self.task, y_train))))
            trained = trained or len(y_train)
        truth, answer, guess = map(np.concatenate, zip(*found, strict=True))
        overall = score(truth, answer)
        if np.isnan(overall):
            raise LabelsError("the rows to score on all have the same label, so R2 is undefined; score on more rows.")
        return Evaluation(
            task=self.task, estimator=self.name, n_train=trained, n_test=len(truth), score=overall,
            baseline=score(truth, guess), folds=tuple(score(part[0], part[1]) for part in found),
            **self._details(truth, answer, guess), duplicates=duplicates,
            seconds=round(time.monotonic() - started, 3), notes=(*notes, *self.notes),
        )  # fmt: skip

    def _answer(self, x: NDArray[np.floating], y: NDArray[Any], x_test: NDArray[np.floating]) -> NDArray[Any]:
        """Train on rows and predict others; warnings become notes."""
        probe = self.fitted(x, y)
        with self._noting():
            answer = np.asarray(probe.predict(x_test))
        if answer.shape != (len(x_test),) or (answer.dtype.kind == "f" and not np.isfinite(answer).all()):
            raise UsageError(f"{self.name} does not predict one finite value for each row; choose another estimator.")
        return answer

    def fitted(self, x: NDArray[np.floating], y: NDArray[Any]) -> Any:
        """Return an estimator trained on rows; warnings become notes."""
        if self.task == "classification" and len(np.unique(y)) < 2:
            raise LabelsError("the training rows are all of one class; split them in another way.")
        self.name, probe = make_estimator(
            self.name, self.task, rows=len(x), seed=self.seed, symbols=self.symbols, binary=self.binary
        )
        with self._noting():
            return probe.fit(x, y)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Turn an estimator's errors into one sentence, and its warnings into notes."""
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            except (ValueError, TypeError, ArithmeticError) as exc:
                raise UsageError(f"{self.name} cannot be trained on these codes: {_first_line(exc)}.") from exc
        for warning in caught:
            note = f"{self.name} warned: {_first_line(warning.message)}"
            if issubclass(warning.category, ConvergenceWarning):
                note = f"{self.name} stopped before it had converged; with more iterations its score may change"
            if note not in self.notes:
                self.notes.append(note)

    def _details(self, truth: NDArray[Any], answer: NDArray[Any], guess: NDArray[Any]) -> dict[str, Any]:
        from scipy.stats.contingency import crosstab
        from sklearn.metrics import mean_absolute_error, recall_score, root_mean_squared_error

        if self.task == "regression":
            return {
                "interval": metrics.bootstrap_r_squared(truth, answer, self.seed),
                "mae": float(mean_absolute_error(truth, answer)),
                "rmse": float(root_mean_squared_error(truth, answer)),
                "baseline_mae": float(mean_absolute_error(truth, guess)),
                "baseline_rmse": float(root_mean_squared_error(truth, guess)),
            }
        there, classes = np.unique(truth), np.unique(np.concatenate([truth, answer]))
        recall = partial(recall_score, truth, labels=there, average="macro")
        details = {
            "interval": metrics.wilson(int((truth == answer).sum()), len(truth)),
            "balanced_accuracy": float(recall(answer)),
            "baseline_balanced_accuracy": float(recall(guess)),
            "classes": tuple(classes.tolist()),
        }
        if len(classes) <= _MOST_CLASSES:
            counts = crosstab(truth, answer, levels=(classes, classes)).count
            return details | {"confusion": tuple(map(tuple, counts.tolist()))}
        self.notes.append(f"the confusion matrix of {len(classes):,} classes was left out")
        return details


def _accuracy(truth: NDArray[Any], answer: NDArray[Any]) -> float:
    return float((truth == answer).mean())


def _guess(task: Task, y: NDArray[Any]) -> Any:
    """Return the answer without looking: the largest class or the mean."""
    if task == "regression":
        return y.mean()
    classes, counts = np.unique(y, return_counts=True)
    return classes[counts.argmax()]


def _groups(groups: Sequence[object] | ArrayLike, count: int) -> NDArray[np.intp]:
    values = np.asarray(groups, dtype=object)
    if values.shape != (count,):
        raise UsageError(f"there are {count:,} rows, but groups have shape {values.shape}; give one for each.")
    numbers = {value: i for i, value in enumerate(dict.fromkeys(values.tolist()))}
    return np.array([numbers[value] for value in values.tolist()], dtype=np.intp)


def _left_out(rows: LabelledRows, which: str = "") -> list[str]:
    return [f"left out {plural(rows.left_out, 'row')}{which} without a label"] if rows.left_out else []


def _first_line(message: object) -> str:
    return (str(message).strip() or type(message).__name__).splitlines()[0].rstrip(".:")
