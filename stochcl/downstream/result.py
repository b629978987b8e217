"""What a probe achieved, for programs and for people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stochcl.downstream.duplicates import Duplicates
    from stochcl.downstream.estimators import Task

_SHOWN_CLASSES = 20


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
        names = [name.encode("unicode_escape").decode("ascii")[:20] for name in self.classes]
        wide, width = max(map(len, names)), max(len(cell) for row in cells for cell in row)
        rows = [
            f"    {name:<{wide}}  {' '.join(cell.rjust(width) for cell in row)}"
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


def _plain(value: Any) -> Any:
    """Return lists for tuples, and None for what JSON has no number for."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
