"""Labelled rows, their splits, and scores of predictions with confidence intervals."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import label_text, plain_label
from stochcl.downstream.probes import TASKS, Task
from stochcl.errors import LabelsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Split = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class LabelledRows:
    """Labelled rows: floats, shape (N, V), and labels, shape (N,), as texts, or float64 for regression.

    ``kept`` marks these among the given rows; ``symbols`` tells whether they were integers, whose values are
    categories.
    """

    x: NDArray[np.floating]
    y: NDArray[Any]
    kept: NDArray[np.bool_]
    symbols: bool

    @property
    def binary(self) -> bool:
        """Whether the rows are symbols of 0 and 1."""
        return self.symbols and bool(((self.x == 0) | (self.x == 1)).all())

    def check_learnable(self) -> None:
        """Raise LabelsError if all labels are the same."""
        if len(np.unique(self.y)) < 2:
            raise LabelsError(
                f"the {len(self.y):,} labels hold fewer than two different ones, so there is nothing to learn; "
                "give others with --labels."
            )

    @property
    def left_out(self) -> int:
        """The number of rows without a label."""
        return int((~self.kept).sum())


def labelled(
    x: ArrayLike, y: Sequence[object] | ArrayLike, task: Task, names: Sequence[str] | None = None
) -> LabelledRows:
    """Check rows and labels, and keep the rows that have a label.

    An empty string, NaN, None or a negative class number is no label, but labels of only -1 and 1 are classes.
    """
    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}; there are {', '.join(TASKS)}.")
    features, symbols = _matrix(x)
    if names is not None and len(names) != len(features):
        raise UsageError(f"there are {len(features):,} rows and {len(names):,} names; give one for each.")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise UsageError(f"{_row(int(finite.argmin()), names)}: its code holds numbers that are not finite.")
    # Lists go through objects, because numpy would turn NaN among texts into "nan".
    given = y if isinstance(y, np.ndarray) else np.asarray(y, dtype=object)
    if given.ndim != 1:
        raise LabelsError(f"labels have shape (N,), one for each row, not {given.shape}.")
    if len(given) != len(features):
        raise LabelsError(f"there are {len(features):,} rows and {len(given):,} labels; give one for each.")
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
    # repr() escapes control characters and bytes that are not UTF-8.
    return f"row {i:,}" if names is None else f"row {i:,} ({names[i]!r})"


_ROWS = 2000  # rows looked up: 3 s of a core among 50,000 rows of 1,024 bits
_SHARE = 64  # near: at most a 64th of the latents differ


@dataclass(frozen=True)
class Duplicates:
    """Counts of sampled test rows whose code equals or nearly equals that of a training row.

    ``near`` counts rows whose code differs in at most ``differ`` latents (1/64 of them), identical ones included.
    """

    checked: int
    identical: int
    near: int
    differ: int

    def line(self) -> str:
        """Return the counts as a sentence."""
        line = f"{self.identical:,} of {self.checked:,} scored rows have the same code as a training row"
        if self.differ:
            line += f", and {self.near:,} one that differs in at most {self.differ:,} latents"
        return line


def count_duplicates(symbols: NDArray[np.integer], splits: Sequence[Split], seed: int) -> Duplicates:
    """Look up test rows, a seeded sample of at most 2,000, among their split's training rows."""
    from stochcl.downstream.distances import DISTANCES, Nearest

    distance = DISTANCES["hamming" if symbols.max(initial=1) == 1 else "symbols"]
    differ = symbols.shape[1] // _SHARE
    total = sum(len(test) for _, test in splits)
    rng = np.random.default_rng(seed)
    checked = identical = near = 0
    for train, test in splits:
        share = len(test) if total <= _ROWS else max(1, _ROWS * len(test) // total)
        sample = rng.choice(test, share, replace=False)
        found = Nearest(symbols[sample], distance, 1)
        found.add(symbols[train])
        distances = found.sorted()[0][:, 0]
        checked += len(sample)
        identical += int((distances == 0).sum())
        near += int((distances <= differ).sum())
    return Duplicates(checked, identical, near, differ)


Z95 = 1.959964  # 95 % of a normal distribution
_RESAMPLES = 1000


def r_squared(truth: NDArray[np.float64], answer: NDArray[np.float64]) -> float:
    """Return R2, 1 - squared error / variance; NaN if all true values are equal."""
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - answer) ** 2).sum() / spread) if spread > 0 else math.nan


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion (Wilson, 1927).

    Examples
    --------
    >>> [round(bound, 3) for bound in wilson(50, 100)]
    [0.404, 0.596]
    """
    p, z = right / total, Z95**2 / total
    centre = (p + z / 2) / (1 + z)
    half = Z95 * math.sqrt(p * (1 - p) / total + z / (4 * total)) / (1 + z)
    return max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))  # p is within, past rounding


def bootstrap_r_squared(
    truth: NDArray[np.float64], answer: NDArray[np.float64], seed: int
) -> tuple[float, float] | None:
    """Return the 95 % interval of R2 over resampled rows (Efron, 1979, percentiles of 1,000 resamples).

    Return None below 10 rows, where resamples are too often degenerate, or if a resample has no variance.
    """
    count = len(truth)
    if count < 10:
        return None
    rng = np.random.default_rng(seed)
    # R2 needs only three sums; centring avoids cancellation in the variance.
    centred = truth - truth.mean()
    terms = np.stack([(truth - answer) ** 2, centred, centred**2], axis=1)
    sums = np.empty((_RESAMPLES, 3))
    for i in range(_RESAMPLES):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        sums[i] = times @ terms
    spread = sums[:, 2] - sums[:, 1] ** 2 / count
    if (spread <= 0).any():
        return None
    low, high = np.quantile(1 - sums[:, 0] / spread, [0.025, 0.975])
    return float(low), float(high)


def make_splits(
    y: NDArray[Any], task: Task, *, seed: int, folds: int, test_size: float | None = None,
    groups: NDArray[Any] | None = None,
) -> tuple[list[Split], list[str]]:  # fmt: skip
    """Split rows by shuffled cross-validation or a held-out part; classes keep their shares."""
    count = len(y)
    if task == "classification":
        classes, sizes = np.unique(y, return_counts=True)
        if sizes.min() < 2:
            name = str(classes[sizes.argmin()])
            raise LabelsError(
                f"class {name!r} has a single row, which cannot be both trained and scored on; "
                "add rows of it or leave it out."
            )
        limits = {"the smallest class has {} rows": int(sizes.min())}
    else:
        limits = {"there are {} rows with a label": count}
    if groups is not None:
        total = len(np.unique(groups))
        if total < 2:
            raise UsageError("all rows are in one group, so none can be held out; give at least two groups.")
        limits["there are {} groups"] = total
    reason, limit = min(limits.items(), key=lambda item: item[1])
    used = min(folds, limit)
    notes = []
    if test_size is None and used < folds:
        notes.append(f"{used} folds instead of {folds}, because {reason.format(f'{limit:,}')}")
    splitter = _splitter(task, used, test_size, groups, seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notes mention small classes
            found = list(splitter.split(np.zeros(count), y, groups))
    except ValueError as exc:
        raise LabelsError(f"{count:,} labelled rows cannot be split: {str(exc).rstrip('.')}.") from exc
    splits = [(train, test) for train, test in found if len(train) and len(test)]
    return splits, notes


def _splitter(task: Task, folds: int, test_size: float | None, groups: NDArray[Any] | None, seed: int) -> Any:
    from sklearn import model_selection as ms

    by_class = task == "classification"
    if test_size is not None:
        kind: Any = ms.StratifiedShuffleSplit if by_class else ms.ShuffleSplit
        return (kind if groups is None else ms.GroupShuffleSplit)(1, test_size=test_size, random_state=seed)
    if groups is None:
        kind = ms.StratifiedKFold if by_class else ms.KFold
    else:
        kind = ms.StratifiedGroupKFold if by_class else ms.GroupKFold
    return kind(folds, shuffle=True, random_state=seed)
