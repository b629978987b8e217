"""Which rows to train on and which to score on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.errors import LabelsError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.downstream.estimators import Task

    Split = tuple[NDArray[np.intp], NDArray[np.intp]]


def make_splits(
    y: NDArray[Any],
    task: Task,
    *,
    seed: int,
    folds: int,
    test_size: float | None = None,
    groups: NDArray[Any] | None = None,
) -> tuple[list[Split], list[str]]:
    """Split rows by shuffled cross-validation, or hold some out; classes keep their shares on both sides.

    Parameters
    ----------
    y : ndarray, shape (N,)
        Labels.
    task : str
    seed : int
    folds : int
        Fewer are made, with a note, where the smallest class has fewer rows, or there are fewer groups.
    test_size : float, optional
        Hold out this fraction (of the groups, if there are any) instead.
    groups : ndarray of int, shape (N,), optional
        Rows of one group never stand on both sides.

    Returns
    -------
    splits : list of (train, test)
        Row numbers; no split has an empty side.
    notes : list of str

    Raises
    ------
    LabelsError
        If a class has a single row, or the rows are too few to be split so.
    UsageError
        If all rows are in one group.
    """
    count = len(y)
    if task == "classification":
        classes, sizes = np.unique(y, return_counts=True)
        if sizes.min() < 2:
            name = str(classes[sizes.argmin()])
            raise LabelsError(
                f"class {name!r} has a single image, which cannot be both trained and scored on; "
                "add images of it or leave it out."
            )
        limits = {"the smallest class has {} images": int(sizes.min())}
    else:
        limits = {"there are {} images with a label": count}
    if groups is not None:
        total = len(np.unique(groups))
        if total < 2:
            raise UsageError("all images are in one group, so none can be held out; give at least two groups.")
        limits["there are {} groups"] = total
    reason, limit = min(limits.items(), key=lambda item: item[1])
    used = min(folds, limit)
    notes = []
    if test_size is None and used < folds:
        notes.append(f"{used} folds instead of {folds}, because {reason.format(f'{limit:,}')}")
    splitter = _splitter(task, used, test_size, groups, seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # small classes are in the notes
            found = list(splitter.split(np.zeros(count), y, groups))
    except ValueError as exc:
        raise LabelsError(f"{count:,} labelled images cannot be split so: {str(exc).rstrip('.')}.") from exc
    splits = [(train, test) for train, test in found if len(train) and len(test)]
    return splits, notes


def _splitter(task: Task, folds: int, test_size: float | None, groups: NDArray[Any] | None, seed: int) -> Any:
    from sklearn import model_selection as ms

    by_class = task == "classification"
    if test_size is not None:
        kind = ms.StratifiedShuffleSplit if by_class else ms.ShuffleSplit
        if groups is not None:
            kind = ms.GroupShuffleSplit
        return kind(1, test_size=test_size, random_state=seed)
    if groups is None:
        return (ms.StratifiedKFold if by_class else ms.KFold)(folds, shuffle=True, random_state=seed)
    return ms.StratifiedGroupKFold(folds, shuffle=True, random_state=seed) if by_class else _GroupFolds(folds, seed)


class _GroupFolds:
    """Cross-validation over shuffled groups: scikit-learn's own shuffles them only from version 1.6 on."""

    def __init__(self, folds: int, seed: int) -> None:
        self.folds = folds
        self.seed = seed

    def split(self, x: NDArray[Any], y: NDArray[Any], groups: NDArray[Any]) -> list[Split]:
        order = np.random.default_rng(self.seed).permutation(np.unique(groups))
        inside = [np.isin(groups, part) for part in np.array_split(order, self.folds)]
        return [(np.flatnonzero(~test), np.flatnonzero(test)) for test in inside]
