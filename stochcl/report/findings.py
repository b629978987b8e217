"""The numbers of a report: read from an archive, or computed from it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.evaluate import kind_of
from stochcl.api.labels import labels_of, naming
from stochcl.api.summary import Report
from stochcl.codes import Codes
from stochcl.data import read_labels
from stochcl.downstream import Evaluation, Task, evaluate, fit
from stochcl.downstream import interpretation as of
from stochcl.downstream.metrics import labelled, make_splits
from stochcl.entropy.model import latent_lengths
from stochcl.errors import LabelsError, StochclError, UsageError
from stochcl.messages import Progress, escape_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stochcl.compress import ArchiveBase
    from stochcl.files import PathLike


RUN = 64  # consecutive rows per run, because rows are decoded in blocks
READ_ROWS = 4096  # decoded at a time
RATED_ROWS = 4096  # rows whose bits per latent are measured

FLIPPED_ROWS = 200
NEIGHBOR_ROWS = 10_000  # rows searched for neighbours
MAPPED_ROWS = 3000
COMPARED_VALUES = 2048  # total categories compared: the association table grows with the square
EXTREMES = 12  # most and least certain rows shown
TYPICAL, RANDOM = 8, 4  # rows shown for each side of a latent

PROBE_ROWS = 10_000  # rows to cross-validate
PROBE_CELLS = 1 << 18  # rows times classes; limits the time of a fit with many classes
PROBE_CLASSES = 100
PROBE_LEAST = 10  # rows
FOLDS, MIN_CLASS = 5, 2  # the defaults of `stochcl evaluate`


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of the sampled rows; an empty string or NaN means none."""

    target: str
    task: Task
    y: NDArray[Any]

    @property
    def called(self) -> str:
        """The label's name in a sentence."""
        return f"the {self.target}" if self.target in ("folder", "label") else self.target

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which rows have a label."""
        found: NDArray[np.bool_] = np.isfinite(self.y) if self.task == "regression" else self.y != ""
        return found

    def of_row(self, row: int) -> str:
        """Return the label of a sampled row as text, or an empty text."""
        if not self.known[row]:
            return ""
        return f"{self.y[row]:g}" if self.task == "regression" else escape_name(str(self.y[row]))


class ReportData:
    """Facts of an open archive and a sample of its rows.

    ``rows`` are the sampled rows, ascending, ``sample`` their codes, and ``numbers`` the latents' numbers in their
    model. ``lengths`` are the bits of each latent given the earlier ones, under the entropy model of most rows.
    ``names`` and ``uncertainty`` cover all rows.
    """

    def __init__(
        self, archive: ArchiveBase, path: PathLike, *, labels: PathLike | None, column: str | None, level: int | None,
        task: Task, most: int, seed: int, progress: Progress,
    ) -> None:  # fmt: skip
        if not len(archive):
            raise UsageError(f"{escape_name(path)}: it holds no rows to report on.")
        header, self.notes = archive.header, list[str]()
        self.rows = rows = sampled_rows(len(archive), most, seed)
        # Labels before the rows, which are slower to read.
        self.labels = _read_labels(archive, path, rows, labels, column, level, task, self.notes)
        packed = []
        for start in range(0, len(rows), READ_ROWS):
            packed.append(archive[rows[start : start + READ_ROWS]].packed)
            progress(min(start + READ_ROWS, len(rows)), len(rows))
        codes = Codes(np.concatenate(packed), header.latents, header.alphabet)
        self.sample = of.Sample(codes.symbols(), kind_of(archive), archive.decoder)
        if self.sample.decoder is not None and not np.isfinite(self.sample.x).all():
            self.notes.append("Some vectors hold numbers that are not finite: the decoder is damaged.")
        rated = codes[np.sort(np.random.default_rng(seed).permutation(len(codes))[:RATED_ROWS])]
        self.facts = Report.of(archive, str(path))
        self.numbers = np.arange(header.latents) if header.selection is None else np.array(header.selection)
        self.lengths = latent_lengths(rated, archive.main_model)
        self.names, self.uncertainty = archive.names, archive.uncertainty

    def name(self, row: int) -> str:
        """Return a row's name, or its number."""
        return f"{self.facts.unit} {row:,}" if self.names is None else escape_name(self.names[row])


def sampled_rows(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Return rows to sample: all, or evenly spread runs of 64, because rows of a class are usually adjacent.

    >>> rows = sampled_rows(1_000_000, 1280, seed=0)
    >>> len(rows), len(set((rows // 50_000).tolist()))
    (1280, 20)
    """
    if count <= most:
        return np.arange(count)
    runs = max(1, most // RUN)
    width = min(RUN, most)
    starts = (np.arange(runs) + np.random.default_rng(seed).random()) * (count / runs)
    starts = np.minimum(starts.astype(np.int64), count - width)
    return np.unique((starts[:, None] + np.arange(width)).reshape(-1))


def _read_labels(
    archive: ArchiveBase, path: PathLike, rows: NDArray[np.integer], labels: PathLike | None, column: str | None,
    level: int | None, task: Task, notes: list[str],
) -> Labels | None:  # fmt: skip
    """Return the sampled rows' labels; folder names that cannot be labels are left out with a note."""
    if labels is None and archive.labels is None:
        return None
    try:
        texts = labels_of(archive, path, labels, column, level)
        with naming(labels or path):
            some = [texts[row] for row in rows.tolist()]
            found = labelled(np.zeros((len(some), 1), np.float32), some, task)
            found.check_learnable()
    except LabelsError:
        if labels is not None or level is not None or task == "regression":
            raise
        notes.append("All rows have one label (one folder?), so this page has no section about labels.")
        return None
    if task == "classification" and labels is None and len(np.unique(found.y)) > len(found.y) / 2:
        notes.append("Nearly every row has a label of its own, so this page has no section about labels.")
        return None
    if found.left_out:
        notes.append(f"{found.left_out:,} of {len(some):,} rows have no label; figures about labels leave them out.")
    y = np.full(len(some), np.nan) if task == "regression" else np.full(len(some), "", object)
    y[found.kept] = found.y
    if labels is not None:
        target = column or read_labels(labels).columns[0]
    else:
        target = "label" if level is None and archive._stored("labels") else "folder"
    return Labels(escape_name(target), task, y if task == "regression" else y.astype(str))


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe of the sampled rows, scored like ``stochcl evaluate``.

    ``scores`` come from a cross-validation. ``fitted`` is the probe of its first fold, ``held`` the rows it has not
    seen, and ``right`` marks those it gets right. For regression ``classes`` is empty and ``right`` None.
    """

    scores: Evaluation
    fitted: Any
    classes: tuple[str, ...]
    held: NDArray[np.integer]
    right: NDArray[np.bool_] | None
    symbols: bool

    def answers(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities of the classes, shape (n, C), or a number for each row, shape (n, 1)."""
        given = x.astype(np.float32) if self.symbols else x
        if self.classes:
            found: NDArray[np.float64] = self.fitted.predict_proba(given)
            return found
        return np.asarray(self.fitted.predict(given), np.float64).reshape(-1, 1)


def train_probe(sample: of.Sample, labels: Labels, seed: int) -> tuple[Probe | None, list[str]]:
    """Train a probe on labelled rows; return it, or None, with notes."""
    rows, notes = _probe_rows(labels, seed)
    x, y = sample.x[rows], labels.y[rows]
    if len(np.unique(y)) < 2 or len(y) < PROBE_LEAST:
        return None, [*notes, "There are too few rows with labels for a probe."]
    try:
        scores = evaluate(x, y, task=labels.task, seed=seed, folds=FOLDS)
        train, held = make_splits(y, labels.task, seed=seed, folds=FOLDS)[0][0]
        symbols = sample.decoder is None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the scores note them
            fitted = fit(x[train], y[train], task=labels.task, seed=seed).probe
            right = fitted.predict(x[held].astype(np.float32)) == y[held] if labels.task == "classification" else None
    except (StochclError, ValueError) as exc:
        return None, [*notes, f"There is no probe: {str(exc).splitlines()[0].rstrip('.')}."]
    classes = () if right is None else tuple(map(str, fitted.classes_))
    notes += [f"Of the probe: {note}." for note in scores.notes]
    return Probe(scores, fitted, classes, rows[held], right, symbols), notes


def _probe_rows(labels: Labels, seed: int) -> tuple[NDArray[np.integer], list[str]]:
    """Return rows of the largest classes with enough rows, to train and score on."""
    rows, notes, most = np.random.default_rng(seed).permutation(np.flatnonzero(labels.known)), list[str](), PROBE_ROWS
    if labels.task == "classification":
        classes, numbers, sizes = np.unique(labels.y[rows], return_inverse=True, return_counts=True)
        large = np.argsort(-sizes, kind="stable")[:PROBE_CLASSES]
        large = large[sizes[large] >= MIN_CLASS]
        if len(large) < len(classes):
            notes.append(
                f"The probe knows {len(large):,} of {len(classes):,} classes: the largest, with at least 2 rows each."
            )
        rows = rows[np.isin(numbers, large)]
        most = min(PROBE_ROWS, PROBE_CELLS // max(1, len(large)))
    return np.sort(rows[:most]), notes


class Findings:
    """The figures of a report, with details of the ``shown`` strongest latents; rows are the sampled rows.

    Columns are the archive's latents. ``counts`` (D, K) are their value counts, ``alone`` their entropies in bits,
    ``weights`` their shares of the vectors' variance. ``associated`` covers the columns ``compared``. ``strongest``
    are columns, strongest first, by ``strength``: information, weight or entropy; ``scores`` are those of all.
    ``certain`` and ``uncertain`` are rows of the archive, empty without stored uncertainty.
    """

    def __init__(
        self, data: ReportData, *, shown: int, seed: int, tell: Callable[[str], None] = lambda what: None
    ) -> None:
        sample, labels = data.sample, data.labels
        rng = np.random.default_rng(seed)
        tell("counting")
        self.counts = of.value_counts(sample.symbols, max(2, int(sample.symbols.max()) + 1))
        self.alone, self.weights = of.entropies(self.counts), of.weights(sample)
        self.information: of.Information | None = None
        self.scores, self.strength = self.alone, "entropy"
        if labels is not None:
            known, ordered = labels.known, sample.kind != "categories"
            self.information = of.mutual_information(sample.symbols[known], labels.y[known], ordered=ordered)
            self.scores, self.strength = self.information.bits, "information"
        elif self.weights.any():
            self.scores, self.strength = self.weights, "weight"
        tell("comparing latents")
        self.compared = compared = _compared(self.counts, self.scores, sample.kind)
        self.associated = of.associations(sample, compared)
        changing = (self.counts[compared] > 0).sum(axis=1) > 1
        best = of.strongest(np.where(changing, self.scores[compared], -np.inf), self.associated, shown)
        self.strongest = compared[best[changing[best]]]
        tell("choosing images")
        y = None if labels is None else labels.y
        self.sides = {
            column: of.activation_examples(sample, column, typical=TYPICAL, random=RANDOM, y=y, seed=seed)
            for column in self.strongest.tolist()
        }
        tell("training a probe")
        self.probe, notes = (None, list[str]()) if labels is None else train_probe(sample, labels, seed)
        self.notes = [*data.notes, *notes]
        tell("flipping latents")
        flipped = np.arange(len(sample)) if self.probe is None else self.probe.held
        flips = of.Flips(
            sample, np.sort(rng.permutation(flipped)[:FLIPPED_ROWS]),
            np.sort(rng.permutation(len(sample))[:NEIGHBOR_ROWS]),
            None if self.probe is None else self.probe.answers,
            classes=labels is not None and labels.task == "classification",
        )  # fmt: skip
        self.interventions = [flips.of(column) for column in self.strongest.tolist()]
        tell("drawing the map")
        self.projection = of.project(sample.x)
        self.mapped = np.sort(rng.permutation(len(sample))[:MAPPED_ROWS])
        order = np.argsort([] if data.uncertainty is None else data.uncertainty, kind="stable")
        half = min(EXTREMES, len(order) // 2)
        self.certain, self.uncertain = order[:half], order[::-1][:half]


def _compared(counts: NDArray[np.int64], scores: NDArray[np.float64], kind: str) -> NDArray[np.integer]:
    """Return the latents to compare: all, or the strongest categories that fit."""
    if kind != "categories":
        return np.arange(len(counts))
    order = np.argsort(-scores, kind="stable")
    values = (counts[order] > 0).sum(axis=1).cumsum()
    return np.sort(order[: max(1, int((values <= COMPARED_VALUES).sum()))])
