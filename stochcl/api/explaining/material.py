"""What the page is made from: facts of the whole archive, and a sample of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.evaluate import kind_of, labels_of, naming
from stochcl.api.summary import Report
from stochcl.codes import Codes
from stochcl.data import read_labels
from stochcl.downstream.evaluation import labelled
from stochcl.downstream.interpretation import Sample
from stochcl.entropy.fit import latent_lengths
from stochcl.errors import LabelsError, UsageError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stochcl.compress import Rows
    from stochcl.downstream import Task

    PathLike = str | os.PathLike[str]
    Progress = Callable[[int, int], None]

_RUN = 64  # rows that are taken together: of an archive of any size some hundred blocks are decoded
_READ = 4096  # rows decoded at a time
_RATED = 4096  # rows whose bits are measured, latent by latent


@dataclass(frozen=True, eq=False)
class Labels:
    """What rows are labelled with.

    Parameters
    ----------
    target : str
        The label's name.
    task : str
        classification or regression.
    y : ndarray of str or float64, shape (N,)
        Of the sampled rows; an empty string or NaN is none.
    """

    target: str
    task: Task
    y: NDArray[Any]

    @property
    def called(self) -> str:
        """Return what to call the label in a sentence."""
        return f"the {self.target}" if self.target in ("folder", "label") else self.target

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which rows have one."""
        known: NDArray[np.bool_] = np.isfinite(self.y) if self.task == "regression" else self.y != ""
        return known


@dataclass(frozen=True, eq=False)
class Material:
    """An archive, as far as its page needs it.

    Parameters
    ----------
    facts : Report
    rows : ndarray of int
        Which rows were sampled, ascending.
    sample : Sample
        They.
    numbers : ndarray of int, shape (D,)
        The latents' numbers in their model.
    lengths : ndarray of float64, shape (D,)
        Bits that each takes given those before it, under the entropy model that most rows are coded with.
    names : sequence of str or None
        Of all rows.
    labels : Labels or None
    uncertainty : ndarray of float32, shape (N,), or None
        Of all rows.
    notes : tuple of str
        What else a reader should know.
    """

    facts: Report
    rows: NDArray[np.integer]
    sample: Sample
    numbers: NDArray[np.integer]
    lengths: NDArray[np.float64]
    names: Sequence[str] | None
    labels: Labels | None
    uncertainty: NDArray[np.float32] | None
    notes: tuple[str, ...]

    def called(self, row: int) -> str:
        """Return what to call a row of the archive."""
        return f"{self.facts.unit} {row:,}" if self.names is None else printable(self.names[row])


def sampled_rows(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Return which rows to look at: all, or runs of 64 spread evenly, from a random place on.

    Runs, as rows are decoded in blocks; spread, as rows of a class usually stand together.

    Examples
    --------
    >>> rows = sampled_rows(1_000_000, 1280, seed=0)
    >>> len(rows), len(set((rows // 50_000).tolist()))
    (1280, 20)
    """
    if count <= most:
        return np.arange(count)
    runs = max(1, most // _RUN)
    width = min(_RUN, most)
    starts = (np.arange(runs) + np.random.default_rng(seed).random()) * (count / runs)
    starts = np.minimum(starts.astype(np.int64), count - width)
    return np.unique((starts[:, None] + np.arange(width)).reshape(-1))


def read_material(
    archive: Rows,
    path: PathLike,
    *,
    labels: PathLike | None,
    column: str | None,
    task: Task,
    most: int,
    seed: int,
    progress: Progress,
) -> Material:
    """Read what the page needs of an open archive.

    Raises
    ------
    UsageError, LabelsError, FormatError
    """
    if not len(archive):
        raise UsageError(f"{printable(path)}: it holds no images to report on.")
    header, notes = archive.header, list[str]()
    facts = Report.of(archive, str(path))
    rows = sampled_rows(len(archive), most, seed)
    given = _labels(archive, path, rows, labels, column, task, notes)  # what is wrong is said before rows are read
    packed = []
    for start in range(0, len(rows), _READ):
        packed.append(archive[rows[start : start + _READ]].packed)
        progress(min(start + _READ, len(rows)), len(rows))
    codes = Codes(np.concatenate(packed), header.latents, header.alphabet)
    sample = Sample(codes.symbols(), kind_of(archive), archive.decoder)
    if sample.decoder is not None and not np.isfinite(sample.x).all():
        notes.append("Some vectors hold numbers that are not finite: the decoding tables are not sound.")
    rated = codes[np.sort(np.random.default_rng(seed).permutation(len(codes))[:_RATED])]
    return Material(
        facts=facts,
        rows=rows,
        sample=sample,
        numbers=np.arange(header.latents) if header.selection is None else np.array(header.selection),
        lengths=latent_lengths(rated, archive.main_model),
        names=archive.names,
        labels=given,
        uncertainty=archive.uncertainty,
        notes=tuple(notes),
    )


def _labels(
    archive: Rows,
    path: PathLike,
    rows: NDArray[np.integer],
    labels: PathLike | None,
    column: str | None,
    task: Task,
    notes: list[str],
) -> Labels | None:
    """Return labels of the sampled rows; those that nobody asked for are left out where they are of no use."""
    if labels is None and archive.labels is None:
        return None
    try:
        texts = labels_of(archive, path, labels, column)
        with naming(labels or path):
            some = [texts[row] for row in rows.tolist()]
            there = labelled(np.zeros((len(some), 1), np.float32), some, task)
            there.check_learnable()
    except LabelsError:
        if labels is not None or task == "regression":
            raise
        notes.append("The folders that images lie in are not labels that differ, so that nothing is said of labels.")
        return None
    if task == "classification" and labels is None and len(np.unique(there.y)) > len(there.y) / 2:
        notes.append("Nearly every image lies in a folder of its own, so that nothing is said of labels.")
        return None
    if there.left_out:
        notes.append(f"{there.left_out:,} of {len(some):,} rows have no label and are left out where labels count.")
    y = np.full(len(some), np.nan) if task == "regression" else np.full(len(some), "", object)
    y[there.kept] = there.y
    target = column or ("folder" if labels is None else read_labels(labels).columns[0])
    return Labels(printable(target), task, y if task == "regression" else y.astype(str))
