"""Labels of an archive's rows: from a file, from a folder of their names, or as stored."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stochcl.codes import folder_label
from stochcl.data import read_labels
from stochcl.errors import LabelsError, LabelsNotFound, UsageError, option_name
from stochcl.files import PathLike, is_file, is_same_file
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stochcl.compress import ArchiveBase


_COLUMN, _LEVEL = ("--label-column", "column"), ("--label-level", "level")
_SPLITS = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "holdout"])


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Prefix the path of the labels' file to a LabelsError."""
    try:
        yield
    except LabelsError as exc:
        raise type(exc)(f"{escape_name(path)}: {exc}") from exc


def labels_of(
    archive: ArchiveBase, path: PathLike, labels: PathLike | None, column: str | None = None,
    level: int | None = None, *, partial: bool = False,
) -> tuple[str, ...]:  # fmt: skip
    """Return a label for every row: from a CSV or .npy file, from a folder of its name, or as stored.

    Raises
    ------
    LabelsError
        If there are none, or the file has none for some row (with ``partial``, for most rows).
    """
    shown = escape_name(path)
    names, table = archive.names, None if labels is None else read_labels(labels)
    if table is not None and (names is not None or table.is_array):
        return table.match([""] * len(archive) if names is None else names, column, partial=partial)
    if names is None and (labels is not None or level is not None or archive.labels is None):
        raise LabelsError(f"{shown}: its rows have no names to find labels by (--no-names?); compress with names.")
    if level is not None and names is not None:
        found = tuple(folder_label(name, level) for name in names)
        if not any(found):
            asked = f"{option_name(*_LEVEL)} {level}"
            raise LabelsError(f"{shown}: no name has a folder at {asked}; give a level nearer to 0.")
        return found
    if archive.labels is None:
        raise LabelsError(f"{shown}: it has no labels, and its names have no folders; give labels with --labels.")
    return tuple(archive.labels)


def check_label_options(
    labels: PathLike | None, columns: Iterable[str | None], level: int | None, *, argument: str = "level"
) -> None:
    """Refuse contradicting label options; ``argument`` is the name of a level in Python.

    Raises
    ------
    UsageError
    """
    if labels is None and any(column is not None for column in columns):
        raise UsageError(f"{option_name(*_COLUMN)} names a column of a file; give that file with --labels.")
    flag = option_name("--label-level", argument)
    if labels is not None and level is not None:
        raise UsageError(f"--labels and {flag} both set the labels; give one of them.")
    if level == 0:
        raise UsageError(f"{flag} counts folders from 1, the outermost, or from -1, the innermost; not 0.")


@dataclass(frozen=True)
class LabelSource:
    """The source of labels: a file and some of its columns, a folder of the names, or the archive."""

    path: PathLike | None = None
    columns: tuple[str, ...] = ()
    level: int | None = None

    def __post_init__(self) -> None:
        check_label_options(self.path, self.columns, self.level)

    def read(self, archive: ArchiveBase, path: PathLike) -> dict[str, tuple[str, ...]]:
        """Return labels for every row by target, one per column; some may be empty."""
        return {
            column or "label": labels_of(archive, path, self.path, column, self.level, partial=True)
            for column in self.columns or (None,)
        }

    def origin(self, archive: ArchiveBase) -> str:
        """Describe the source of the labels."""
        if self.path is not None:
            columns = self.columns or read_labels(self.path).columns[:1]
            return ", ".join(f"column {escape_name(column)} of {escape_name(self.path)}" for column in columns)
        if self.level is None and archive._stored("labels"):
            return "stored in the archive"
        return f"folder {self.level or 1} of each name"


def split_warning(classes: Iterable[object]) -> str | None:
    """Return a warning if classes are names of splits, as in ``train/cat``, ``val/cat``."""
    found = sorted({str(c) for c in classes if c is not None and str(c)})
    if len(found) < 2 or not all(name.lower() in _SPLITS for name in found):
        return None
    return (
        f"the classes are {', '.join(found)}, which are names of splits; if the class is the next folder, "
        f"pass {option_name('--label-level 2', 'level=2')}"
    )


def labels_of_test(
    train: Iterable[str] | None, test: Iterable[str] | None, labels: PathLike | None, test_labels: PathLike | None
) -> PathLike | None:
    """Return the CSV of the test rows: their own, else the common one if it distinguishes the rows.

    Raises
    ------
    UsageError
        If one CSV is for both, and a training row and a test row share a name.
    """
    if labels is None or (test_labels is not None and not is_same_file(labels, test_labels)):
        return test_labels or labels
    both = sorted(set(train or ()) & set(test or ()))
    if both:
        raise UsageError(
            f"{escape_name(labels)}: {len(both):,} names, such as {escape_name(both[0])}, are in both archives, so "
            "one file cannot label both; give another file with --test-labels."
        )
    return labels


def groups_of(archive: ArchiveBase, path: PathLike, groups: str, labels: PathLike | None) -> tuple[str, ...]:
    """Return a group for every row, from a CSV file ``name,group``, or else from a column of the labels' file.

    Raises
    ------
    LabelsError
        If there is neither such a file nor such a column, or a row is missing there or has an empty group.
    """
    if is_file(groups):
        table, found = groups, labels_of(archive, path, groups)
    elif labels is not None:
        table, found = str(labels), labels_of(archive, path, labels, groups)
    else:
        raise LabelsNotFound(
            f"{escape_name(groups)}: there is no such file of groups; give a CSV file name,group, "
            "or a column of --labels."
        )
    empty = [i for i, group in enumerate(found) if not group.strip()]
    if empty:
        first = escape_name((archive.names or ())[empty[0]])
        raise LabelsError(
            f"{escape_name(table)}: {len(empty):,} of {len(found):,} rows have an empty group, the first {first}; "
            "give every row one."
        )
    return found
