"""Rows to learn from: checked, with a label each, and without those that have none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream.estimators import TASKS, Task
from stochcl.errors import LabelsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


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

    An empty string, NaN and None are no label. float32 and float64 are kept; other numbers become float32.

    Raises
    ------
    LabelsError
        If labels do not match the rows, or are not the numbers that a regression needs.
    UsageError
        If the rows are not a matrix of finite numbers, or there is no such task.
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
    read = _number if task == "regression" else _text
    labels = [read(label, i, names) for i, label in enumerate(given.tolist())]
    kept = np.array([label is not None for label in labels], dtype=bool)
    values = np.array([label for label in labels if label is not None], dtype=float if task == "regression" else str)
    return Rows(features if kept.all() else features[kept], values, kept, symbols)


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
    if _missing(label):
        return None
    return label.decode("utf-8", "surrogateescape") if isinstance(label, bytes) else str(label)


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
