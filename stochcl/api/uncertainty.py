"""What an archive's uncertainty is worth: does it find a probe's errors, foreign images and corrupted ones."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.compress import select_latents
from stochcl.api.evaluate import common_width, input_of, rows_of
from stochcl.api.labels import check_label_options, labels_of, labels_of_test, naming, split_warning
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
from stochcl.entropy.fit import code_lengths
from stochcl.errors import ModelMismatch, UsageError
from stochcl.messages import escape_name

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    from stochcl.api.encode import CodecBase
    from stochcl.codes import Codes
    from stochcl.entropy.tables import Tables

    Pixels = NDArray[np.uint8]
    PathLike = str | os.PathLike[str]
    Where = Iterable[Tables | PathLike]
    Progress = Callable[[int, int], None]
    Split = tuple[NDArray[Any], NDArray[Any]]

STRENGTHS = (1, 2, 3, 4, 5)

_BLUR = (0.01, 0.018, 0.028, 0.042, 0.06)  # standard deviation, by the side
_NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)  # standard deviation, by white
_CONTRAST = (0.7, 0.5, 0.35, 0.22, 0.12)  # what is left of it
_JPEG = (40, 25, 15, 10, 5)  # quality
_PIXELATE = (0.6, 0.45, 0.33, 0.25, 0.17)  # pixels that are left, by the side
_OCCLUDE = (0.2, 0.3, 0.4, 0.5, 0.6)  # side of what is covered, by the side


def _blur(image: Pixels, strength: int, rng: Generator) -> Pixels:
    from PIL import Image, ImageFilter

    radius = _BLUR[strength] * image.shape[0]
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _noise(image: Pixels, strength: int, rng: Generator) -> Pixels:
    drawn = rng.standard_normal(image.shape, np.float32) * (255 * _NOISE[strength])
    noisy: Pixels = np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)
    return noisy


def _contrast(image: Pixels, strength: int, rng: Generator) -> Pixels:
    mean = image.mean(axis=(0, 1))
    worse: Pixels = np.clip(np.rint((image - mean) * _CONTRAST[strength] + mean), 0, 255).astype(np.uint8)
    return worse


def _jpeg(image: Pixels, strength: int, rng: Generator) -> Pixels:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG[strength])
    return np.asarray(Image.open(file).convert("RGB"))


def _pixelate(image: Pixels, strength: int, rng: Generator) -> Pixels:
    from PIL import Image

    height, width = image.shape[:2]
    small = max(1, round(width * _PIXELATE[strength])), max(1, round(height * _PIXELATE[strength]))
    coarse = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST), np.uint8)


def _occlude(image: Pixels, strength: int, rng: Generator) -> Pixels:
    height, width = (max(1, round(side * _OCCLUDE[strength])) for side in image.shape[:2])
    top, left = rng.integers(0, image.shape[0] - height + 1), rng.integers(0, image.shape[1] - width + 1)
    out = image.copy()
    out[top : top + height, left : left + width] = 127
    return out


CORRUPTIONS: dict[str, Callable[[Pixels, int, Generator], Pixels]] = {
    "blur": _blur,
    "noise": _noise,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "occlude": _occlude,
}
"""By name; each takes an image, a strength from 0, and where its chance comes from."""


def corrupt(images: Pixels, kind: str, strength: int, *, seed: int = 0) -> Pixels:
    """Return images made worse.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, H, W, 3)
    kind : str
        A key of ``CORRUPTIONS``.
    strength : int
        1 to 5.
    seed : int
        An image is corrupted in the same way whatever stands beside it, and each by its own chance.

    Returns
    -------
    ndarray of uint8, shape (N, H, W, 3)

    Raises
    ------
    UsageError
        If there is no such corruption or strength, or these are no images.

    Examples
    --------
    >>> grey = np.full((1, 8, 8, 3), 100, np.uint8)
    >>> int((corrupt(grey, "occlude", 5) == 127).all(axis=3).sum())  # 60 % of each side
    25
    """
    if kind not in CORRUPTIONS:
        raise UsageError(f"there is no corruption {kind!r}; there are {', '.join(CORRUPTIONS)}.")
    if strength not in STRENGTHS:
        raise UsageError(f"a corruption has the strengths 1 to 5, not {strength}.")
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise UsageError(f"images are uint8 of shape (N, H, W, 3), not {images.dtype} of shape {images.shape}.")
    out = np.empty_like(images)
    for i, image in enumerate(images):
        out[i] = CORRUPTIONS[kind](image, strength - 1, np.random.default_rng([seed, strength, i]))
    return out


_BATCH = 256


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Images that were made worse.

    Parameters
    ----------
    what : str
    strength : int
    rows : CodeBatch
    """

    what: str
    strength: int
    rows: CodeBatch


class Corrupter:
    """A sample of an archive's images, found in their source by name.

    Parameters
    ----------
    given : CodedSet
    places : ndarray of int
        Which rows of it to choose from.
    path : Path
        Their source.
    codec : CodecBase
        That made the archive.
    sample : int
        How many.
    seed : int
        Of the choice, and of what is random about corruptions.

    Attributes
    ----------
    chosen : ndarray of int
        Which of the places the images are.

    Raises
    ------
    SourceError
    UsageError
        If these are no images, or none is called as a row is.
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
    """An archive's rows, with their names, and how others are made like them.

    Parameters
    ----------
    path : path-like
    archive : Archive
        May be closed.
    rows : CodeBatch
    names : sequence of str or None
    used : str
        What a probe is given: vectors or symbols.
    latents : int or None
        Of which prefix.
    """

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
        """Read another archive, of the same model and latents.

        Raises
        ------
        SourceError, FormatError
        ModelMismatch, UsageError
            If it is of others.
        """
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
    return code_lengths(codes, archive.tables, selection)


_SAMPLE = 500


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
    sample: int = _SAMPLE,
    estimator: str = "auto",
    output: str = "auto",
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
    labels, test_labels, column, level
        As :func:`stochcl.api.evaluate.evaluate_targets` takes them.
    outside : sequence of path-like
        Archives of the same model of images of another kind.
    images : path-like, optional
        Where the answered images are: a seeded sample of them is corrupted in six ways at five strengths, and
        encoded.
    codec : CodecBase, optional
        That made the archives; needed for ``images``.
    sample : int
        How many of them.
    estimator, output, latents, folds, seed
        As :func:`stochcl.api.evaluate.evaluate` takes them; the estimator must give probabilities.
    plot : path-like, optional
        Draw accuracy against the share refused: .png, .svg or .pdf.
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archives.
    progress : callable
        Told how many corrupted images of how many have been encoded.

    Returns
    -------
    dict
        As JSON types; see docs/explanation/uncertainty.md.

    Raises
    ------
    SourceError, FormatError, LabelsError, UsageError, ModelMismatch, OutputError
    """
    started = time.monotonic()
    if (images is None) != (codec is None):
        raise UsageError("--images says which images are corrupted, and -m the model that encodes them: give both.")
    check_label_options(labels, [column], level)
    if plot is not None:
        check_plot(plot)
    if sample < 1:
        raise UsageError(f"--sample must be at least 1, got {sample}.")
    extra = (*tables, *(() if codec is None else (codec.tables,)))
    with open_archive(path, tables=extra) as archive:
        used = input_of(archive, output)
        if test is not None and latents is None:
            with open_archive(test, tables=extra) as unseen:
                latents = common_width(archive.header, unseen.header, (escape_name(path), escape_name(test)), None)
        train = CodedSet.of(archive, path, used, latents)
        other = train if test is None else train.like(test, extra)
        if codec is not None:
            codec.check_made(archive.header, path)
        measured = _Measured(train, other, _Labels(labels, test_labels, column, level), estimator, folds, seed)
        found = measured.errors()
        found["outside"] = [measured.foreign(train.like(one, extra), escape_name(one)) for one in outside]
        if images is not None and codec is not None:
            corrupter = Corrupter(
                measured.set, measured.places[measured.own], Path(images), codec, sample=sample, seed=seed
            )
            found["outside"] += measured.corrupted(corrupter, progress)
            found["shifted"] = measured.shifted
        header = archive.header
    facts = {
        "schema": "stochcl.uncertainty/0", "path": escape_name(path), "images": len(measured.wrong),
        "input": used, "latents": latents or header.latents, "model": escape_name(header.model),
    }  # fmt: skip
    if test is not None:
        facts["test"] = escape_name(test)
    if plot is not None:
        title = f"{facts['images']:,} images, {measured.doubter.estimator} on {used}, model {header.model}"
        draw_refusal(measured.curves, plot, title=title, chance=found["accuracy"])
        facts["plot"] = escape_name(plot)
    return facts | found | {"seed": seed, "seconds": round(time.monotonic() - started, 3)}


@dataclass(frozen=True)
class _Labels:
    """Where labels come from."""

    train: PathLike | None
    test: PathLike | None
    column: str | None
    level: int | None


class _Measured:
    """A probe's answers for the rows of a set, and their scores."""

    def __init__(
        self,
        train: CodedSet,
        test: CodedSet,
        labels: _Labels,
        estimator: str,
        folds: int,
        seed: int,
    ) -> None:
        self.set, self.seed, self.notes = test, seed, list[str]()
        column, level = labels.column, labels.level
        with naming(labels.train or train.path):
            given = labels_of(train.archive, train.path, labels.train, column, level, partial=True)
            rows = labelled(train.rows.x, given, "classification")
            rows.check_learnable()
        known = train.rows.take(rows.kept)
        if test is train:
            self.rows, truth, self.places = known, rows.y, np.flatnonzero(rows.kept)
            with naming(labels.train or train.path):
                splits, notes = make_splits(rows.y, "classification", seed=seed, folds=folds)
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
        self._answer(known, rows.y, truth, splits, estimator, binary=train.binary)

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
