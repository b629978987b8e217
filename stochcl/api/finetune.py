"""Fine-tune a model on labelled images, and score the result."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.api.codec import Codec
from stochcl.api.labels import check_label_options, labels_of_test, split_warning
from stochcl.api.models import find_model, initial_weights
from stochcl.api.summary import skipped_json
from stochcl.api.train import RunReport, open_images
from stochcl.compress import Archive
from stochcl.data import ImageSource, Preprocess
from stochcl.encoders.modelfile import ModelFile, load_model, save_model
from stochcl.errors import UsageError, require
from stochcl.messages import duration, escape_name
from stochcl.training.images import classes_of, labeller, labels_of, read_images
from stochcl.training.options import FinetuneOptions, finetune_options
from stochcl.training.outputs import RunFiles, run_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.pretrained import Initialisation
    from stochcl.files import PathLike


@dataclass(frozen=True)
class Scores:
    """Scores of a classifier on test images; accuracies in percent.

    ``test_top1`` is from hard codes (from features for a deterministic twin); ``test_top1_mirrored`` averages the
    probabilities of an image and its mirror image. ``codes_top1`` is from a file of codes, read back, decoded in
    numpy, and classified by the stored linear classifier, with all latents and with each prefix. Bits are of codes
    alone.
    """

    source: str
    images: int
    test_top1: float
    test_top1_mirrored: float
    skipped: tuple[tuple[str, str], ...]
    codes_top1: float | None = None
    codes_bits_per_image: float | None = None
    codes_file_bytes: int | None = None
    codes_top1_by_latents: dict[int, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the scores for people."""
        read = "features" if self.codes_top1 is None else "hard codes"
        out = [
            f"top-1 of {self.images:,} test images ({self.source})",
            f"  from {read}: {self.test_top1:.2f} %",
            f"  with mirroring: {self.test_top1_mirrored:.2f} %",
        ]
        if self.codes_top1 is not None:
            out.append(
                f"  from codes.bin: {self.codes_top1:.2f} % at {self.codes_bits_per_image:,.1f} bits per image"
            )
        return out + [f"    first {k:,} latents: {top1:.2f} %" for k, top1 in self.codes_top1_by_latents.items()]

    def figures(self) -> dict[str, str]:
        """Return the scores for a model's record."""
        name = self.source.partition(".")[0]
        out = {
            f"{name}, top-1": f"{self.test_top1:.2f}%",
            f"{name}, top-1, mirrored": f"{self.test_top1_mirrored:.2f}%",
        }
        if self.codes_top1 is not None:
            bits = f"{self.codes_bits_per_image:,.1f} bits per image"
            out[f"{name}, top-1 from codes"] = f"{self.codes_top1:.2f}% at {bits}"
        return out


def score(
    model: PathLike, source: PathLike, *, labels: PathLike | None = None, label_level: int | None = None,
    workers: int = 1, device: str = "auto",
) -> Scores:  # fmt: skip
    """Classify images with a fine-tuned model, from its codes in memory and from a file of codes.

    Raises
    ------
    UsageError
        If the model has no classifier.
    LabelsError
        If images have no label, or one unknown to the classifier.
    SourceError, ModelError
    """
    require("torch", "scoring a classifier", "train")
    from stochcl.encoders.inference import choose_device
    from stochcl.training.finetune import class_indices, class_scores, top1, with_mirrored

    codec, on = Codec(model, device=device), choose_device(device)
    encoder, config = codec.model.encoder.to(on), codec.config
    if codec.classifier is None:
        raise UsageError(f"{escape_name(model)}: this model has no classifier; `stochcl finetune` makes one.")
    images = open_images(source)
    label = labeller([images], labels, label_level)
    data = read_images([images], Preprocess(config.size, config.fit), workers=workers, label=label)
    truth = class_indices(data.train_labels, config.classes)
    plain = class_scores(encoder, data.train, on)
    mirrored = with_mirrored(encoder, data.train, on, plain)
    vectors = config.classifies == "vectors"
    return Scores(
        source=escape_name(Path(source).name),
        images=len(data.train),
        test_top1=100 * top1(plain, truth),
        test_top1_mirrored=100 * top1(mirrored, truth),
        skipped=tuple((failure.name, failure.reason) for failure in data.skipped),
        **(_score_file(codec, codec.classifier, source, label, workers) if vectors else {}),
    )


def _score_file(
    codec: Codec, classifier: tuple[NDArray[Any], NDArray[Any]], source: PathLike, label: Callable[[str], str],
    workers: int,
) -> dict[str, Any]:  # fmt: skip
    """Compress images to a file, read it back, and classify the decoded vectors."""
    from stochcl.training.finetune import class_indices, top1

    config, (weight, bias) = codec.config, classifier
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "codes.bin")
        codec.compress(source, path, workers=workers)
        with Archive(path, tables=[codec.tables]) as archive:
            truth = class_indices([label(name) for name in archive.names or ()], config.classes)
            found = {rung: 100 * top1(archive.to_vectors(rung) @ weight.T + bias, truth) for rung in config.ladder}
            return {
                "codes_top1": found[config.latents],
                "codes_bits_per_image": archive.parts()["codes"] * 8 / len(archive),
                "codes_file_bytes": archive.size,
                "codes_top1_by_latents": found,
            }


@dataclass(frozen=True)
class FinetuneReport(RunReport):
    """The result of fine-tuning; ``held_top1`` in percent, None if nothing is held out."""

    classes: int = 0
    held_top1: float | None = None
    test: Scores | None = None
    warning: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types, with the test's figures at the top level."""
        out = {"schema": "stochcl.finetune/0"} | asdict(self) | {"skipped": skipped_json(self.skipped)}
        if self.test is None:
            return out
        found = asdict(self.test) | {"skipped": skipped_json(self.test.skipped)}
        figures = {name: found.pop(name) for name in list(found) if "top1" in name or "bits" in name}
        return out | {"test": found} | figures

    def lines(self) -> list[str]:
        """Return the report for people."""
        work = f"{self.images:,} images, {self.steps:,} steps, {duration(self.seconds)}"
        out = [f"{escape_name(self.model)}: {self.classes:,} classes, {self.latents:,} latents; {work}"]
        if self.initialised:
            out.append(f"  begun from {self.initialised}")
        if self.held_top1 is not None:
            out.append(f"  top-1 of {self.held_out:,} held-out images {self.held_top1:.2f} %")
        if self.test is not None:
            out += [f"  {line}" for line in self.test.lines()]
        if self.warning is not None:
            out.append(f"  note: {self.warning}")
        return [*out, f"  hash {self.sha256}"]


def finetune(
    model: PathLike, sources: Sequence[PathLike], output: PathLike, *, labels: PathLike | None = None,
    test: PathLike | None = None, test_labels: PathLike | None = None, label_level: int | None = None,
    init: PathLike | None = None, preset: str | None = None, hold_out: int = 0, workers: int = 1,
    cache: PathLike | None = None, log: PathLike | None = None, resume: bool = False, force: bool = False,
    report: Callable[[Any], None] = lambda progress: None, **options: Any,
) -> FinetuneReport:  # fmt: skip
    """Train a model on labels, through its stochastic layer, and write it with its classifier.

    Parameters
    ----------
    model : str or path-like
        The model to start from, by name or file.
    sources : sequence of path-like
        Folders, archives or arrays of images.
    output : path-like
        The model file; its checkpoint is ``output`` + ``.checkpoint`` while training runs.
    labels, test_labels : path-like, optional
        CSVs of ``name,label``; without them the label is an image's first folder. ``labels`` is also used for test
        images if ``test_labels`` is not given and no name is in both sources.
    label_level : int, optional
        Folder of an image to use as its label: 2 the second, -1 the innermost.
    test : path-like, optional
        A source of images to score the result on, from memory and from a file of codes.
    init : path-like, optional
        Weights for the backbone, in place of the model's.
    preset : str, optional
        A recipe, by name or as a .toml file; options given here override it.
    hold_out, workers, cache, log, resume, force, report
        As in :func:`stochcl.api.train.train`; there is no log by default.
    **options
        Fields of :class:`stochcl.training.options.FinetuneOptions`; None for defaults.

    Raises
    ------
    SourceError, LabelsError, ModelError, TrainingError, UsageError, OutputError
    """
    require("torch", "fine-tuning", "train")
    from stochcl.training.finetune import Finetuner, class_indices

    started = time.monotonic()
    check_label_options(labels, (), label_level, argument="label_level")
    files = RunFiles.of(output, log)
    files.check(resume=resume, force=force)
    settings = _settings(sources, preset, options)
    base, encoder, weights = _start(model, settings, init)
    opened = [open_images(path) for path in sources]
    label = labeller(opened, labels, label_level)
    test_labels, truth = (None, []) if test is None else _of_test(opened, test, labels, test_labels, label_level)
    data = read_images(
        opened, Preprocess(encoder.config.size, encoder.config.fit), hold_out=hold_out, workers=workers, label=label,
        cache=None if cache is None else Path(cache),
    )  # fmt: skip
    classes = classes_of(data)
    class_indices(truth, classes)  # refuse an unknown class before hours of training
    if not resume:  # delete only after all checks: the checkpoint cost somebody training time
        files.checkpoint.unlink(missing_ok=True)
    tuner = Finetuner(
        encoder, base.sha256 + (weights.sha256 if weights else ""), settings, data, classes,
        checkpoint=files.checkpoint, log=files.log, report=report,
    )  # fmt: skip
    encoder = tuner.run().cpu()
    held = 100 * tuner.held_top1() if len(data.held) else None
    record = run_record(tuner, weights, {} if held is None else {"held_top1": held}) | {
        "finetuned_from": {"name": escape_name(base.name), "sha256": base.sha256},
        "sources": [escape_name(Path(path).name) for path in sources],
    }
    sha256, scores = _write(
        encoder, files, record, test, labels=test_labels, label_level=label_level, workers=workers,
        device=settings.device,
    )  # fmt: skip
    return FinetuneReport.of(
        tuner, files.output, sha256, weights, started, classes=len(classes), held_top1=held, test=scores,
        warning=split_warning(classes) if labels is None else None,
    )  # fmt: skip


def _settings(sources: Sequence[PathLike], preset: str | None, options: dict[str, Any]) -> FinetuneOptions:
    from stochcl.encoders.inference import choose_device

    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UsageError("fine-tuning runs in one process; start it without torchrun, on one device.")
    if not sources:
        raise UsageError("fine-tuning needs at least one source of images.")
    settings = finetune_options(preset, options)
    choose_device(settings.device)
    return settings


def _start(
    model: PathLike, settings: FinetuneOptions, init: PathLike | None
) -> tuple[ModelFile, Encoder, Initialisation | None]:
    """Return the model, the encoder to start from, and the origin of its weights if not the model's."""
    from stochcl.encoders.pretrained import init_backbone
    from stochcl.training.finetune import starting_point

    base = load_model(find_model(model))
    if base.config.columns is not None:
        raise UsageError(f"{escape_name(model)}: this model takes vectors, and fine-tuning needs a model of images.")
    encoder = starting_point(base.encoder, settings)
    return base, encoder, None if init is None else init_backbone(encoder, initial_weights(init))


def _of_test(
    sources: Sequence[ImageSource], test: PathLike, labels: PathLike | None, test_labels: PathLike | None,
    level: int | None,
) -> tuple[PathLike | None, list[str]]:  # fmt: skip
    """Return the CSV of the test images' labels (None for folder names), and the labels."""
    source = open_images(test)
    trained = (name for one in sources for name in one.names)
    table = labels_of_test(trained, source.names, labels, test_labels)
    return table, labels_of(source, table, level)


def _write(
    encoder: Encoder, files: RunFiles, record: dict[str, Any], test: PathLike | None, **how: Any
) -> tuple[str, Scores | None]:  # fmt: skip
    """Write the model, score the file, and add the scores to its record, which is not hashed."""
    sha256, scores = save_model(encoder, files.output, record), None
    files.checkpoint.unlink(missing_ok=True)
    if test is not None:
        scores = score(files.output, test, **how)
        save_model(encoder, files.output, record | {"figures": scores.figures()})
    return sha256, scores
