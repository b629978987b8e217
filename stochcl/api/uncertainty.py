"""What an archive's uncertainty is worth: does it find a probe's errors, foreign images and corrupted ones."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.compress import select_latents
from stochcl.api.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from stochcl.api.evaluate import common_width, input_of, rare_classes, rare_note, rows_of
from stochcl.api.labels import check_label_options, labels_of, labels_of_test, naming, split_warning
from stochcl.api.options import UncertaintyOptions
from stochcl.api.source import open_inputs
from stochcl.compress import ArchiveBase, open_archive
from stochcl.data import MatrixSource
from stochcl.data.open import SubsetSource
from stochcl.downstream.labelled import labelled
from stochcl.downstream.metrics import make_splits
from stochcl.downstream.uncertainty import (
    CONFIDENCE,
    ENTROPY,
    NEEDS_LABELS,
    SCORES,
    CodeBatch,
    UncertaintyScorer,
    auroc,
    auroc_of_copies,
    check_plot,
    difference,
    draw_refusal,
    refuse,
)
from stochcl.entropy.model import code_lengths
from stochcl.errors import ModelMismatch, UsageError
from stochcl.messages import escape_name

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.api.encode import CodecBase
    from stochcl.codes import Codes
    from stochcl.entropy.tables import Tables

    PathLike = str | os.PathLike[str]
    Where = Iterable[Tables | PathLike]
    Progress = Callable[[int, int], None]
    Split = tuple[NDArray[Any], NDArray[Any]]

_BATCH = 256


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Images that were made worse."""

    what: str
    strength: int
    rows: CodeBatch


class Corrupter:
    """A seeded sample of an archive's images, found in their source by name; ``chosen`` says which of the places.

    UsageError if these are no images, or none is called as a row is.
    """

    def __init__(
        self, given: CodedSet, places: NDArray[Any], path: Path, codec: CodecBase, *, sample: int, seed: int
    ) -> None:
        self._given, self._seed = given, seed
        self._codec = codec.with_precision(given.archive.header.precision)
        source, names = open_inputs(path, codec), given.names
        if isinstance(source, MatrixSource):
            raise UsageError(f"{escape_name(path)}: corruptions are of images; leave out --images for embeddings.")
        if names is None:
            raise UsageError(f"{escape_name(given.path)}: its rows have no names to find their images by.")
        there = {entry.name: row for row, entry in enumerate(source.entries)}
        found = [(i, there[name]) for i, place in enumerate(places) if (name := names[place]) in there]
        if not found:
            first = escape_name(names[places[0]])
            raise UsageError(
                f"{escape_name(path)}: none of its images has the name of one in {escape_name(given.path)}, such as "
                f"{first}."
            )
        picked = [found[i] for i in np.sort(np.random.default_rng(seed).permutation(len(found))[:sample])]
        subset = SubsetSource(source, [row for _, row in picked])
        preprocess = replace(codec.preprocess, fit=given.archive.header.preprocess["fit"])
        kept, parts = [], []
        for batch in subset.batches(preprocess, batch_size=_BATCH, workers=1):
            parts.append(batch.images)
            kept += [picked[i][0] for i in batch.positions]
        self._pixels, self.chosen = np.concatenate(parts), np.array(kept, np.intp)

    def __iter__(self) -> Iterator[Corrupted]:
        """Yield the images in every way and strength."""
        header = self._given.archive.header
        for what in CORRUPTIONS:
            for strength in STRENGTHS:
                pixels = corrupt(self._pixels, what, strength, seed=self._seed)
                codes = select_latents(self._codec.encode_prepared(pixels).codes, header)
                yield Corrupted(what, strength, self._given.coded(codes))

    def __len__(self) -> int:
        return len(CORRUPTIONS) * len(STRENGTHS)


@dataclass(frozen=True, eq=False)
class CodedSet:
    """An archive's rows as a probe is given them, with their names, and how others are made like them."""

    path: PathLike
    archive: ArchiveBase
    rows: CodeBatch
    names: Sequence[str] | None
    used: str
    latents: int | None

    @classmethod
    def of(cls, archive: ArchiveBase, path: PathLike, used: str, latents: int | None) -> CodedSet:
        """Take the rows of an open archive."""
        x = rows_of(archive, used, latents)
        symbols = x if used == "symbols" else archive.to_numpy(latents)
        parts = [_lengths(archive, codes, latents) for codes in archive.iter_codes()]
        lengths = np.concatenate([np.zeros(0, np.float32), *parts])
        return cls(path, archive, CodeBatch(x, symbols, lengths, archive.uncertainty), archive.names, used, latents)

    def like(self, path: PathLike, tables: Where) -> CodedSet:
        """Read another archive, of the same model and latents; ModelMismatch or UsageError if it is of others."""
        with open_archive(path, tables=tables) as archive:
            a, b = archive.header, self.archive.header
            shown, first = escape_name(path), escape_name(self.path)
            if a.model_sha256 != b.model_sha256:
                raise ModelMismatch(f"{shown}: this archive was made by another model than {first}.")
            width = self.latents or b.latents
            if a.selection != b.selection or a.latents < width or (self.latents is None and a.latents != width):
                msg = f"{shown}: it holds other latents than {first}; --latents K takes the first K of both."
                raise UsageError(msg)
            return CodedSet.of(archive, path, self.used, self.latents)

    def coded(self, codes: Codes) -> CodeBatch:
        """Return codes of the archive's latents as rows like these."""
        lengths = _lengths(self.archive, codes, self.latents)
        if self.latents is not None:
            codes = codes.prefix(self.latents)
        symbols, decoder = codes.symbols(), self.archive.decoder
        x: NDArray[Any] = symbols if self.used == "symbols" or decoder is None else decoder.decode(symbols)
        return CodeBatch(x, symbols, lengths, codes.uncertainty)

    @property
    def binary(self) -> bool:
        """Whether latents are bits."""
        return self.archive.header.alphabet == 2


def _lengths(archive: ArchiveBase, codes: Codes, latents: int | None) -> NDArray[np.float32]:
    selection = archive.header.selection
    if latents is not None:
        codes, selection = codes.prefix(latents), None if selection is None else selection[:latents]
    # Always the tables' model, whatever segments are coded with: so rows of different archives compare.
    return code_lengths(codes, archive.tables.candidates(codes.latents, selection)[-1].model)


def measure_uncertainty(
    path: PathLike,
    *,
    test: PathLike | None = None,
    labels: PathLike | None = None,
    test_labels: PathLike | None = None,
    column: str | None = None,
    level: int | None = None,
    outside: Sequence[PathLike] = (),
    images: PathLike | None = None,
    codec: CodecBase | None = None,
    plot: PathLike | None = None,
    tables: Where = (),
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> dict[str, Any]:
    """Hold the stored entropy, and scores beside it, against a probe's errors and against foreign images.

    Parameters
    ----------
    path : path-like
        The archive; its rows are answered in a cross-validation, or trained on where ``test`` is given.
    test : path-like, optional
        An archive of the same model whose rows are answered.
    labels, test_labels, column, level
        As :func:`stochcl.api.evaluate.evaluate_targets` takes them.
    outside : sequence of path-like
        Archives of the same model of images of another kind.
    images : path-like, optional
        Where the answered images are: a seeded sample of them is corrupted in six ways at five strengths, and
        encoded.
    codec : CodecBase, optional
        That made the archives; needed for ``images``.
    plot : path-like, optional
        Draw accuracy against the share refused: .png, .svg or .pdf.
    tables : iterable of Tables or path-like
        Where to look first for decoders that are not in the archives.
    progress : callable
        Told how many corrupted images of how many have been encoded.
    **options
        Fields of :class:`~stochcl.api.options.UncertaintyOptions`: estimator (it must give probabilities), output,
        latents, folds, seed, and sample, how many images to corrupt.

    Returns
    -------
    dict
        As JSON types; see docs/explanation/uncertainty.md.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, ModelMismatch, OutputError
    """
    started, asked = time.monotonic(), UncertaintyOptions(**options)
    if (images is None) != (codec is None):
        raise UsageError("--images says which images are corrupted, and -m the model that encodes them: give both.")
    check_label_options(labels, [column], level)
    if plot is not None:
        check_plot(plot)
    extra = (*tables, *(() if codec is None else (codec.tables,)))
    with open_archive(path, tables=extra) as archive:
        header, latents = archive.header, asked.latents
        if test is not None and latents is None:
            with open_archive(test, tables=extra) as unseen:
                latents = common_width(header, unseen.header, (escape_name(path), escape_name(test)), None)
        train = CodedSet.of(archive, path, input_of(archive, asked.output), latents)
        other = train if test is None else train.like(test, extra)
        if codec is not None:
            codec.check_made(header, path)
        measured = _Measured(train, other, _Labels(labels, test_labels, column, level), asked)
        found = measured.errors()
        found["outside"] = [measured.foreign(train.like(one, extra), escape_name(one)) for one in outside]
        if images is not None and codec is not None:
            places = measured.places[measured.own]
            corrupter = Corrupter(measured.set, places, Path(images), codec, sample=asked.sample, seed=asked.seed)
            found["outside"] += measured.corrupted(corrupter, progress)
            found["shifted"] = measured.shifted
    facts = {
        "schema": "stochcl.uncertainty/0", "path": escape_name(path), "images": len(measured.wrong),
        "input": train.used, "latents": latents or header.latents, "model": escape_name(header.model),
    }  # fmt: skip
    if test is not None:
        facts["test"] = escape_name(test)
    if plot is not None:
        title = f"{facts['images']:,} images, {measured.doubter.estimator} on {train.used}, model {header.model}"
        draw_refusal(measured.curves, plot, title=title, chance=found["accuracy"])
        facts["plot"] = escape_name(plot)
    return facts | found | {"seed": asked.seed, "seconds": round(time.monotonic() - started, 3)}


@dataclass(frozen=True)
class _Labels:
    """Where labels come from."""

    train: PathLike | None
    test: PathLike | None
    column: str | None
    level: int | None


class _Measured:
    """A probe's answers for the rows of a set, and their scores."""

    def __init__(self, train: CodedSet, test: CodedSet, labels: _Labels, asked: UncertaintyOptions) -> None:
        self.set, self.seed, self.notes = test, asked.seed, list[str]()
        column, level = labels.column, labels.level
        with naming(labels.train or train.path):
            given = labels_of(train.archive, train.path, labels.train, column, level, partial=True)
            if test is train and (rare := rare_classes(given, 2)):  # which a cross-validation can do nothing with
                given = tuple("" if label in rare else label for label in given)
                self.notes.append(rare_note(rare, 2))
            rows = labelled(train.rows.x, given, "classification")
            rows.check_learnable()
        known = train.rows.take(rows.kept)
        if test is train:
            self.rows, truth, self.places = known, rows.y, np.flatnonzero(rows.kept)
            with naming(labels.train or train.path):
                splits, notes = make_splits(rows.y, "classification", seed=asked.seed, folds=asked.folds)
            self.notes += notes
        else:
            with open_archive(test.path) as archive:
                of_test = labels_of_test(train.names, archive.names, labels.train, labels.test)
                given = labels_of(archive, test.path, of_test, column, level, partial=True)
                scored = labelled(test.rows.x, given, "classification")
            self.rows, truth, self.places = test.rows.take(scored.kept), scored.y, np.flatnonzero(scored.kept)
            splits = [(np.arange(len(known)), np.arange(len(self.rows)))]
        for part, which in ((train, rows.left_out), *(() if test is train else ((test, scored.left_out),))):
            if which:
                self.notes.append(f"{escape_name(part.path)}: {which:,} images have no label and were left out")
        if labels.train is None and (warning := split_warning(rows.y)):
            self.notes.append(warning)
        if self.rows.entropy is None:
            missing = f"{escape_name(test.path)}: it has no uncertainty stored (stochcl compress --uncertainty)"
            self.notes.append(f"{missing}; the entropy is left out")
        self._answer(known, rows.y, truth, splits, asked.estimator, binary=train.binary)

    def _answer(
        self,
        known: CodeBatch,
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
            doubter = UncertaintyScorer(
                known.take(first), y[first], estimator=estimator, binary=binary, seed=self.seed
            )
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
            self.notes.append(f"{said} of the answers are wrong: an AUROC of errors needs both right and wrong ones")
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
