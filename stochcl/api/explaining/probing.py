"""A linear probe of the sampled rows: how well it answers, and what it answers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream import make_estimator, metrics
from stochcl.downstream.metrics import make_splits
from stochcl.errors import LabelsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.api.explaining.material import Labels
    from stochcl.downstream.interpretation import Sample

_MOST = 10_000  # rows, of which a fifth is held out
_CELLS = 1 << 18  # rows by classes: of many classes the fit takes long
_CLASSES = 100  # that it knows at most, the largest
_LEAST = 5  # rows of a class
_HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class Probe:
    """A probe that was trained on most of the rows and scored on the others.

    Parameters
    ----------
    estimator : str
    fitted : object
        The scikit-learn estimator.
    classes : tuple of str
        Empty for numbers.
    score, baseline : float
        Accuracy, or R2, of it and of guessing the largest class, or the mean.
    interval : tuple of float
        95 %.
    trained : int
    held : ndarray of int
        The rows that it was scored on.
    right : ndarray of bool or None
        Which of them it answered rightly; None for numbers.
    """

    estimator: str
    fitted: Any
    classes: tuple[str, ...]
    score: float
    baseline: float
    interval: tuple[float, float]
    trained: int
    held: NDArray[np.integer]
    right: NDArray[np.bool_] | None
    symbols: bool = field(default=False)

    def answers(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities of the classes, shape (n, C), or a number for each row, shape (n, 1)."""
        given = x.astype(np.float32) if self.symbols else x
        if self.classes:
            found: NDArray[np.float64] = self.fitted.predict_proba(given)
            return found
        return np.asarray(self.fitted.predict(given), np.float64).reshape(-1, 1)


def train_probe(sample: Sample, labels: Labels, seed: int) -> tuple[Probe | None, list[str]]:
    """Train a probe on labelled rows; return it, or None, and what is to be said of it."""
    rows, notes = _rows(labels, seed)
    y = labels.y[rows]
    if len(np.unique(y)) < 2 or len(y) < 2 * _LEAST:
        return None, [*notes, "There are too few rows with labels for a probe."]
    try:
        splits, _ = make_splits(y, labels.task, seed=seed, folds=5, test_size=_HELD_OUT)
        (train, test), *_ = splits
        return _trained(sample, labels, rows[train], rows[test], seed), notes
    except (LabelsError, ValueError) as exc:
        return None, [*notes, f"There is no probe: {str(exc).splitlines()[0].rstrip('.')}."]


def _rows(labels: Labels, seed: int) -> tuple[NDArray[np.integer], list[str]]:
    """Return rows to train and score on: of classes with enough of them, and of these the largest."""
    rows, notes, most = np.random.default_rng(seed).permutation(np.flatnonzero(labels.known)), list[str](), _MOST
    if labels.task == "classification":
        classes, numbers, sizes = np.unique(labels.y[rows], return_inverse=True, return_counts=True)
        large = np.argsort(-sizes, kind="stable")[:_CLASSES]
        large = large[sizes[large] >= _LEAST]
        if len(large) < len(classes):
            notes.append(
                f"The probe knows {len(large):,} of {len(classes):,} classes: the largest, of 5 rows at least."
            )
        rows = rows[np.isin(numbers, large)]
        most = min(_MOST, _CELLS // max(1, len(large)))
    return np.sort(rows[:most]), notes


def _trained(
    sample: Sample, labels: Labels, train: NDArray[np.integer], test: NDArray[np.integer], seed: int
) -> Probe:
    symbols = sample.decoder is None
    x = sample.x.astype(np.float32) if symbols else sample.x
    name, estimator = make_estimator("auto", labels.task, rows=len(train), seed=seed, symbols=symbols)
    y, truth = labels.y[train], labels.y[test]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not quite converged
        fitted = estimator.fit(x[train], y)
        answers = np.asarray(fitted.predict(x[test]))
    if labels.task == "regression":
        score = metrics.r_squared(truth, answers)
        found: dict[str, Any] = {
            "classes": (), "score": score, "baseline": 0.0, "right": None,
            "interval": metrics.bootstrap_r_squared(truth, answers, seed),
        }  # fmt: skip
    else:
        names, counts = np.unique(y, return_counts=True)
        right = answers == truth
        found = {
            "classes": tuple(map(str, fitted.classes_)), "score": float(right.mean()), "right": right,
            "baseline": float((truth == names[counts.argmax()]).mean()),
            "interval": metrics.wilson(int(right.sum()), len(right)),
        }  # fmt: skip
    return Probe(name, fitted, trained=len(train), held=test, symbols=symbols, **found)
