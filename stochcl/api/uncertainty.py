"""What an archive's uncertainty is worth: does it find a probe's errors, foreign images and corrupted ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.codedset import CodedSet
from stochcl.api.corrupting import Corrupter
from stochcl.api.targets import input_of, labels_of, naming
from stochcl.compress import open_archive
from stochcl.data import printable
from stochcl.downstream.refusal_plot import check_plot, draw_refusal
from stochcl.downstream.rows import labelled
from stochcl.downstream.scores import CONFIDENCE, ENTROPY, NEEDS_LABELS, SCORES, Coded, Doubter
from stochcl.downstream.splits import make_splits
from stochcl.downstream.uncertainty import auroc, auroc_of_copies, difference, refuse
from stochcl.errors import ModelMismatch, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.compress import Tables

    PathLike = str | os.PathLike[str]
    Where = Iterable[Tables | PathLike]
    Progress = Callable[[int, int], None]
    Split = tuple[NDArray[Any], NDArray[Any]]

_SAMPLE = 500


def measure_uncertainty(
    path: PathLike,
    *,
    test: PathLike | None = None,
    labels: PathLike | None = None,
    column: str | None = None,
    outside: Sequence[PathLike] = (),
    images: PathLike | None = None,
    codec: Codec | None = None,
    sample: int = _SAMPLE,
    estimator: str = "auto",
    given: str = "auto",
    latents: int | None = None,
    folds: int = 5,
    seed: int = 0,
    plot: PathLike | None = None,
    tables: Where = (),
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Hold the stored entropy, and scores beside it, against a probe's errors and against foreign images.

    Parameters
    ----------
    path : path-like
        The archive; its rows are answered in a cross-validation, or trained on where ``test`` is given.
    test : path-like, optional
        An archive of the same model whose rows are answered.
    labels, column
        A CSV file ``name,label...`` and which of its columns; by default the first folder of each name.
    outside : sequence of path-like
        Archives of the same model of images of another kind.
    images : path-like, optional
        Where the answered images are: a seeded sample of them is corrupted in six ways at five strengths, and
        encoded.
    codec : Codec, optional
        That made the archives; needed for ``images``.
    sample : int
        How many of them.
    estimator, given, latents, folds, seed
        As :func:`stochcl.api.evaluating.evaluate` takes them; the estimator must give probabilities.
    plot : path-like, optional
        Draw accuracy against the share refused: .png, .svg or .pdf.
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archives.
    progress : callable
        Told how many corrupted images of how many have been encoded.

    Returns
    -------
    dict
        As JSON types; see docs/DOWNSTREAM.md.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, ModelMismatch, OutputError
    """
    started = time.monotonic()
    if (images is None) != (codec is None):
        raise UsageError("--images says which images are corrupted, and -m the model that encodes them: give both.")
    if plot is not None:
        check_plot(plot)
    if sample < 1:
        raise UsageError(f"at least 1 image is corrupted, not {sample}.")
    extra = (*tables, *(() if codec is None else (codec.tables,)))
    with open_archive(path, tables=extra) as archive:
        used = input_of(archive, given)
        train = CodedSet.of(archive, path, used, latents)
        other = train if test is None else train.like(test, extra)
        if codec is not None and codec.model.sha256 != archive.header.model_sha256:
            raise ModelMismatch(
                f"{printable(path)}: it was made by the model {printable(archive.header.model)}, not by "
                f"{printable(codec.model.name)}; give its own with -m."
            )
        measured = _Measured(train, other, labels, column, estimator, folds, seed)
        found = measured.errors()
        found["outside"] = [measured.foreign(train.like(one, extra), printable(one)) for one in outside]
        if images is not None and codec is not None:
            corrupter = Corrupter(
                measured.set, measured.places[measured.own], Path(images), codec, sample=sample, seed=seed
            )
            found["outside"] += measured.corrupted(corrupter, progress)
            found["shifted"] = measured.shifted
        header = archive.header
    facts = {
        "schema": "stochcl.uncertainty/0", "path": printable(path), "images": len(measured.wrong),
        "input": used, "latents": latents or header.latents, "model": printable(header.model),
    }  # fmt: skip
    if test is not None:
        facts["test"] = printable(test)
    if plot is not None:
        title = f"{facts['images']:,} images, {measured.doubter.estimator} on {used}, model {header.model}"
        draw_refusal(measured.curves, plot, title=title, chance=found["accuracy"])
        facts["plot"] = printable(plot)
    return facts | found | {"seed": seed, "seconds": round(time.monotonic() - started, 3)}


class _Measured:
    """A probe's answers for the rows of a set, and their scores."""

    def __init__(
        self,
        train: CodedSet,
        test: CodedSet,
        labels: PathLike | None,
        column: str | None,
        estimator: str,
        folds: int,
        seed: int,
    ) -> None:
        self.set, self.seed, self.notes = test, seed, list[str]()
        with naming(labels or train.path):
            rows = labelled(train.rows.x, labels_of(train.archive, train.path, labels, column), "classification")
            rows.check_learnable()
        known = train.rows.take(rows.kept)
        if test is train:
            self.rows, truth, self.places = known, rows.y, np.flatnonzero(rows.kept)
            with naming(labels or train.path):
                splits, notes = make_splits(rows.y, "classification", seed=seed, folds=folds)
            self.notes += notes
        else:
            with open_archive(test.path) as archive:
                scored = labelled(test.rows.x, labels_of(archive, test.path, labels, column), "classification")
            self.rows, truth, self.places = test.rows.take(scored.kept), scored.y, np.flatnonzero(scored.kept)
            splits = [(np.arange(len(known)), np.arange(len(self.rows)))]
        for part, which in ((train, rows.left_out), *(() if test is train else ((test, scored.left_out),))):
            if which:
                self.notes.append(f"{printable(part.path)}: {which:,} images have no label and were left out")
        if self.rows.entropy is None:
            missing = f"{printable(test.path)}: it has no uncertainty stored (stochcl compress --uncertainty)"
            self.notes.append(f"{missing}; the entropy is left out")
        self._answer(known, rows.y, truth, splits, estimator, binary=train.binary)

    def _answer(
        self,
        known: Coded,
        y: NDArray[Any],
        truth: NDArray[Any],
        splits: Sequence[Split],
        estimator: str,
        *,
        binary: bool,
    ) -> None:
        self.wrong = np.zeros(len(truth), bool)
        self.scores: dict[str, NDArray[np.float64]] = {}
        for first, second in splits:
            doubter = Doubter(known.take(first), y[first], estimator=estimator, binary=binary, seed=self.seed)
            answers, scores = doubter.answers(self.rows.take(second))
            self.wrong[second] = answers != truth[second]
            for name, values in scores.items():
                self.scores.setdefault(name, np.zeros(len(truth)))[second] = values
            if second is splits[0][1]:  # what is foreign is held against the rows that this one has not seen
                self.doubter, self.own, self.own_scores, self.trained = doubter, second, scores, len(first)
        self.truth = truth

    def errors(self) -> dict[str, Any]:
        """Return accuracy, and for each score its error AUROC, and what refusing by it keeps."""
        scores, refused = {}, {}
        self.curves = {
            f"{name}{' (needs labels)' if name in NEEDS_LABELS else ''}": refuse(self.wrong, values, seed=self.seed)
            for name, values in self.scores.items()
        }
        for (name, values), curve in zip(self.scores.items(), self.curves.values(), strict=True):
            found = auroc(self.wrong, values)
            entry = {"is": SCORES[name], "needs_labels": name in NEEDS_LABELS}
            entry |= {"auroc": None, "interval": None} if found is None else found.to_json()
            if name != CONFIDENCE and (less := difference(self.wrong, values, self.scores[CONFIDENCE])) is not None:
                entry["minus_confidence"] = {"value": round(less[0], 4), "interval": [round(v, 4) for v in less[1:]]}
            scores[name] = entry
            refused[name] = [kept.to_json() for kept in curve]
        if not self.wrong.any() or self.wrong.all():
            said = "none" if not self.wrong.any() else "all"
            self.notes.append(f"{said} of the answers are wrong, so that there is no AUROC of errors")
        return {
            "trained_on": self.trained,
            "estimator": self.doubter.estimator,
            "accuracy": round(float(1 - self.wrong.mean()), 4),
            "scores": scores,
            "refused": refused,
            "notes": self.notes,
        }

    def foreign(self, other: CodedSet, name: str) -> dict[str, Any]:
        """Tell the images of another archive from those answered."""
        if other.rows.entropy is None and ENTROPY in self.scores:
            self.notes.append(f"{name}: it has no uncertainty stored; the entropy is left out there")
        _, scores = self.doubter.answers(other.rows)
        return {"what": name, "images": len(other.rows), "scores": self._told(scores, self.own_scores)}

    @staticmethod
    def _told(scores: dict[str, NDArray[np.float64]], inside: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
        """Return for each score the AUROC of rows that have these against rows that have those."""
        told = {}
        for name in [name for name in inside if name in scores]:
            both = np.concatenate([scores[name], inside[name]])
            found = auroc(np.arange(len(both)) < len(scores[name]), both)
            if found is not None:
                told[name] = found.to_json()
        return told

    def corrupted(self, corrupter: Corrupter, progress: Progress) -> Iterator[dict[str, Any]]:
        """Tell a sample of the answered images, made worse, from what they were."""
        own = corrupter.chosen
        inside = {name: values[own] for name, values in self.own_scores.items()}
        truth, clean = self.truth[self.own][own], 1 - self.wrong[self.own][own].mean()
        yield {"what": "clean", "images": len(own), "accuracy": round(float(clean), 4), "scores": {}}
        wrong, copies = [self.wrong[self.own][own]], {name: [values] for name, values in inside.items()}
        for number, worse in enumerate(corrupter):
            answers, scores = self.doubter.answers(worse.rows)
            wrong.append(answers != truth)
            for name, values in copies.items():
                values.append(scores[name])
            yield {
                "what": worse.what, "strength": worse.strength, "images": len(own),
                "accuracy": round(float((answers == truth).mean()), 4), "scores": self._told(scores, inside),
            }  # fmt: skip
            progress((number + 1) * len(own), len(corrupter) * len(own))
        self.shifted = self._shifted(np.stack(wrong), {name: np.stack(values) for name, values in copies.items()})

    def _shifted(self, wrong: NDArray[np.bool_], scores: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
        """Return how errors are found among images as they were and all their corrupted copies together."""
        told = {name: auroc_of_copies(wrong, values, seed=self.seed) for name, values in scores.items()}
        return {
            "images": wrong.size,
            "accuracy": round(float(1 - wrong.mean()), 4),
            "scores": {name: found.to_json() for name, found in told.items() if found is not None},
        }
