"""Rows of codes with labels to learn from: checked, and without those that have none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import label_text, plain_label
from stochcl.downstream.probes import TASKS
from stochcl.errors import LabelsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from stochcl.downstream.probes import Task


@dataclass(frozen=True)
class LabelledRows:
    """Rows that have a label, floats of shape (N, V) with labels (N,): texts, or float64 for regression.

    ``kept`` says which of the given rows these are, ``symbols`` whether they were integers, whose values are names.
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
        """Raise LabelsError where labels are all the same."""
        if len(np.unique(self.y)) < 2:
            raise LabelsError(
                f"the {len(self.y):,} labels hold fewer than two different ones, so there is nothing to learn; "
                "give others with --labels."
            )

    @property
    def left_out(self) -> int:
        """How many rows had no label."""
        return int((~self.kept).sum())


def labelled(
    x: ArrayLike, y: Sequence[object] | ArrayLike, task: Task, names: Sequence[str] | None = None
) -> LabelledRows:
    """Check rows and labels, and keep the rows that have a label.

    An empty string, NaN, None and a negative class number are no label; -1 beside 1 alone is a class.
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
    labels: list[Any] = [label_text(label) or None for label in values]
    if task == "regression":
        labels = [_number(label, i, names) for i, label in enumerate(values)]
    kind = float if task == "regression" else str
    kept = np.array([label is not None for label in labels], dtype=bool)
    known = np.array([label for label in labels if label is not None], dtype=kind)
    return LabelledRows(features if kept.all() else features[kept], known, kept, symbols)


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


def _number(label: Any, i: int, names: Sequence[str] | None) -> float | None:
    if label is None or (isinstance(label, str | bytes) and not label.strip()):
        return None
    try:
        value = float(label)
    except (TypeError, ValueError) as exc:
        raise LabelsError(f"{_row(i, names)}: regression needs numbers as labels, not {label!r}.") from exc
    if math.isinf(value):
        raise LabelsError(f"{_row(i, names)}: its label is infinite; regression needs finite numbers.")
    return None if math.isnan(value) else value


def _row(i: int, names: Sequence[str] | None) -> str:
    # repr() shows control characters and bytes that are not UTF-8 as escapes.
    return f"row {i:,}" if names is None else f"row {i:,} ({names[i]!r})"
