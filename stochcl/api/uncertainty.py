"""Measure how well an archive's uncertainty finds a probe's errors and foreign images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stochcl.api.evaluate import ProbeData, ProbeOptions, ProbeRows, read_data
from stochcl.api.labels import LabelSource, naming, split_warning
from stochcl.compress import open_archive
from stochcl.downstream import uncertainty as of
from stochcl.downstream.metrics import labelled, make_splits
from stochcl.errors import ModelMismatch, UsageError
from stochcl.messages import escape_name, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stochcl.entropy.tables import Where
    from stochcl.files import PathLike


def measure_uncertainty(
    path: PathLike, *, test: PathLike | None = None, labels: PathLike | None = None,
    test_labels: PathLike | None = None, column: str | None = None, level: int | None = None,
    outside: Sequence[PathLike] = (), plot: PathLike | None = None, tables: Where = (), **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate the stored entropy, and other scores, at finding a probe's errors and foreign images.

    Parameters
    ----------
    path : path-like
        The archive; its rows are scored by cross-validation, or trained on if ``test`` is given.
    test : path-like, optional
        An archive of the same model, whose rows are scored.
    labels, test_labels, column, level
        As for :func:`stochcl.api.evaluate.evaluate_targets`.
    outside : sequence of path-like
        Archives of the same model with images of another kind, or degraded images.
    plot : path-like, optional
        Draw accuracy against the share refused: .png, .svg or .pdf.
    tables : iterable of Tables or path-like
        Searched first for decoders that are not in the archives.
    **options
        Fields of :class:`~stochcl.api.evaluate.ProbeOptions`: estimator (it must give probabilities), output,
        latents, folds, seed.

    Returns
    -------
    dict
        JSON types; see docs/explanation/uncertainty.md.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, ModelMismatch, OutputError
    """
    started, asked, tables = time.monotonic(), ProbeOptions(**options), tuple(tables)
    source = LabelSource(labels, () if column is None else (column,), level)
    if plot is not None:
        of.check_plot(plot)
    data = read_data(path, test, source, test_labels, asked, tables, lengths=True)
    answers = Answers(data, asked)
    found = answers.errors()
    found["outside"] = [answers.outside(_other(one, data, tables, asked.latents)) for one in outside]
    facts = {
        "schema": "stochcl.uncertainty/0", "path": escape_name(path), "images": len(answers.wrong),
        "input": data.used, "latents": data.width, "model": escape_name(data.header.model),
    }  # fmt: skip
    if test is not None:
        facts["test"] = escape_name(test)
    if plot is not None:
        title = f"{facts['images']:,} images, {found['estimator']} on {data.used}, model {data.header.model}"
        of.draw_refusal(answers.curves, plot, title=title, chance=found["accuracy"])
        facts["plot"] = escape_name(plot)
    return facts | found | {"seed": asked.seed, "seconds": round(time.monotonic() - started, 3)}


def _other(path: PathLike, data: ProbeData, tables: Where, latents: int | None) -> ProbeRows:
    """Read another archive of the same model and latents."""
    shown, first = escape_name(path), escape_name(data.train.path)
    with open_archive(path, tables=tables) as archive:
        header = archive.header
        if header.model_sha256 != data.header.model_sha256:
            raise ModelMismatch(f"{shown}: it was made by another model than {first}; compress both with one model.")
        cut = latents is None and data.test is None and header.latents != data.width
        if header.selection != data.header.selection or header.latents < data.width or cut:
            raise UsageError(f"{shown}: it holds other latents than {first}; --latents K takes the first K of both.")
        return ProbeRows.of(archive, path, data.used, data.width, lengths=True)


def batch_of(rows: ProbeRows) -> of.CodeBatch:
    """Return rows, read with their lengths, as a batch for scoring."""
    assert rows.lengths is not None
    return of.CodeBatch(rows.x, rows.symbols, rows.lengths, rows.uncertainty)


class Answers:
    """A probe's answers for rows that it was not trained on, and their uncertainty scores.

    ``scorer`` is the probe of the first fold, which answered the rows ``own``; foreign rows are compared with those.
    """

    def __init__(self, data: ProbeData, asked: ProbeOptions) -> None:
        self.seed, self.notes = asked.seed, list(data.notes)
        train, test = data.train, data.test or data.train
        ((y,), (truth,)) = train.labels.values(), test.labels.values()
        with naming(data.labels.path or train.path):
            rows = scored = labelled(train.x, y, "classification")
            rows.check_learnable()
            if data.test is None:
                splits, notes = make_splits(rows.y, "classification", seed=asked.seed, folds=asked.folds)
                self.notes += notes
            else:
                scored = labelled(test.x, truth, "classification")
                splits = [(np.arange(len(rows.y)), np.arange(len(scored.y)))]
        self.rows, self.truth, self.kept = batch_of(test).take(scored.kept), scored.y, np.flatnonzero(scored.kept)
        for part, it in {id(part): (part, it) for part, it in ((train, rows), (test, scored))}.values():
            if it.left_out:
                self.notes.append(f"{escape_name(part.path)}: left out {plural(it.left_out, 'row')} without a label")
        if data.labels.path is None and (warning := split_warning(rows.y)):
            self.notes.append(warning)
        if self.rows.entropy is None:
            missing = f"{escape_name(test.path)}: it has no uncertainty stored (stochcl compress --uncertainty)"
            self.notes.append(f"{missing}; the entropy is left out")
        self.wrong, self.scores = np.zeros(len(self.truth), bool), dict[str, NDArray[np.float64]]()
        known, binary = batch_of(train).take(rows.kept), data.header.alphabet == 2
        for first, second in reversed(splits):
            self.trained, self.own = len(first), second
            self.scorer = of.UncertaintyScorer(
                known.take(first), rows.y[first], estimator=asked.estimator, binary=binary, seed=self.seed
            )
            answers, self.own_scores = self.scorer.answers(self.rows.take(second))
            self.wrong[second] = answers != self.truth[second]
            for name, values in self.own_scores.items():
                self.scores.setdefault(name, np.zeros(len(self.truth)))[second] = values

    def errors(self) -> dict[str, Any]:
        """Return accuracy, and for each score its error AUROC and the accuracy after refusing by it."""
        scores, refused, self.curves = {}, {}, {}
        sure = self.scores[of.CONFIDENCE]
        for name, values in self.scores.items():
            labelled_only, found = name in of.NEEDS_LABELS, of.auroc(self.wrong, values)
            entry = {"is": of.SCORES[name], "needs_labels": labelled_only}
            entry |= {"auroc": None, "interval": None} if found is None else found.to_json()
            if name != of.CONFIDENCE and (less := of.difference(self.wrong, values, sure)) is not None:
                entry["minus_confidence"] = {"value": round(less[0], 4), "interval": [round(v, 4) for v in less[1:]]}
            curve = of.refuse(self.wrong, values, seed=self.seed)
            scores[name], refused[name] = entry, [kept.to_json() for kept in curve]
            self.curves[f"{name} (needs labels)" if labelled_only else name] = curve
        if not self.wrong.any() or self.wrong.all():
            said = "none" if not self.wrong.any() else "all"
            self.notes.append(f"{said} of the answers are wrong: an AUROC of errors needs some right and some wrong")
        return {
            "trained_on": self.trained, "estimator": self.scorer.estimator,
            "accuracy": round(float(1 - self.wrong.mean()), 4), "scores": scores, "refused": refused,
            "notes": self.notes,
        }  # fmt: skip

    def outside(self, other: ProbeRows) -> dict[str, Any]:
        """Return how well the scores separate another archive's images from the answered ones."""
        rows, name = batch_of(other), escape_name(other.path)
        if rows.entropy is None and of.ENTROPY in self.scores:
            self.notes.append(f"{name}: it has no uncertainty stored; the entropy is left out there")
        _, scores = self.scorer.answers(rows)
        return {"what": name, "images": len(rows), "scores": told_apart(scores, self.own_scores)}


def told_apart(scores: dict[str, NDArray[np.float64]], inside: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return, for each score, the AUROC of separating ``scores`` from ``inside``."""
    told = {}
    for name in [name for name in inside if name in scores]:
        both = np.concatenate([scores[name], inside[name]])
        found = of.auroc(np.arange(len(both)) < len(scores[name]), both)
        if found is not None:
            told[name] = found.to_json()
    return told
