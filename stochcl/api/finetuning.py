"""Fine-tuning a model on labelled images, and scoring what it made."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import __version__
from stochcl.api.classifying import read_labelled, score
from stochcl.api.labelling import classes_of, labeller, labels_of
from stochcl.api.models import find_model
from stochcl.api.training import _check_output, _images
from stochcl.data import printable
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.api.classifying import Scores
    from stochcl.encoders.backbones.published import Initialisation
    from stochcl.encoders.finetuning.finetuner import Finetuner
    from stochcl.encoders.finetuning.options import FinetuneOptions
    from stochcl.encoders.modelfile import ModelFile


@dataclass(frozen=True)
class FinetuneReport:
    """What fine-tuning made; ``held_top1`` in percent, None where nothing is held out."""

    model: str
    sha256: str
    images: int
    held_out: int
    classes: int
    latents: int
    skipped: tuple[tuple[str, str], ...]
    steps: int
    seconds: float
    initialised: str | None
    held_top1: float | None
    test: Scores | None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types; the test's figures stand beside the run's."""
        out = {"schema": "stochcl.finetune/0"} | asdict(self) | {"skipped": _named(self.skipped)}
        if self.test is None:
            return out
        found = asdict(self.test) | {"skipped": _named(self.test.skipped)}
        figures = {name: found.pop(name) for name in list(found) if "top1" in name or "bits" in name}
        return out | {"test": found} | figures

    def lines(self) -> list[str]:
        """Return the report for people, less its first line."""
        out = (
            [] if self.held_top1 is None else [f"  top-1 of {self.held_out:,} held-out images {self.held_top1:.2f} %"]
        )
        if self.initialised:
            out.insert(0, f"  begun from {self.initialised}")
        if self.test is not None:
            out += [f"  {line}" for line in self.test.lines()]
        return [*out, f"  hash {self.sha256}"]


def _named(skipped: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"name": printable(name), "reason": reason} for name, reason in skipped]


def finetune(
    model: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    test_labels: str | os.PathLike[str] | None = None,
    init: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    hold_out: int = 0,
    workers: int = 1,
    cache: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    report: Callable[[Any], None] = lambda progress: None,
    **options: Any,
) -> FinetuneReport:
    """Train a model on labels, through its stochastic layer, and write it with its classifier.

    Parameters
    ----------
    model : str or path-like
        What to begin with: the name of a model or a model file.
    sources : sequence of path-like
        Folders, archives or arrays of images.
    output : path-like
        The model file; its checkpoint is ``output`` + ``.checkpoint`` while training runs.
    labels, test_labels : path-like, optional
        CSVs of ``name,label``; without them the label is an image's first folder. ``labels`` is asked for test
        images too, where ``test_labels`` is not given.
    test : path-like, optional
        A source of images to score the result on, and its file of codes.
    init : path-like, optional
        A safetensors file of weights for the backbone, in place of the model's, see
        :func:`stochcl.encoders.backbones.published.init_backbone`.
    preset : str, optional
        A recipe, by its name or as a .toml file; options that are given stand before it.
    hold_out : int
        Images of each class of each source that are kept from training, and measured on.
    workers : int
        Decoding threads.
    cache : path-like, optional
        A folder where decoded training images are kept, to be mapped rather than held in memory.
    log : path-like, optional
        A file that figures are appended to: a table if its name ends in .csv, one JSON object a line otherwise.
    resume, force : bool
        Go on from the checkpoint; replace an existing model file or checkpoint.
    report : callable
        Told of the progress: objects with ``fraction`` and ``line()``.
    **options
        Fields of :class:`stochcl.encoders.finetuning.options.FinetuneOptions`; None for those left out.

    Raises
    ------
    SourceError, LabelsError, ModelError, TrainingError, UsageError, OutputError
    """
    from stochcl.encoders.backbones.published import init_backbone
    from stochcl.encoders.finetuning.finetuner import Finetuner, starting_point
    from stochcl.encoders.finetuning.scoring import class_indices
    from stochcl.encoders.inference import choose_device
    from stochcl.encoders.modelfile import load_model, save_model

    started = time.monotonic()
    output = Path(output)
    checkpoint = output.with_name(output.name + ".checkpoint")
    log = Path(log) if log else None
    _check_output(output, checkpoint, log, resume=resume, force=force)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UsageError("fine-tuning runs in one process; start it without torchrun, on one device.")
    if not sources:
        raise UsageError("fine-tuning needs at least one source of images.")
    settings = _settings(preset, options)
    choose_device(settings.device)
    base = load_model(find_model(model))
    if base.encoder.config.columns is not None:
        raise UsageError(f"{printable(model)}: this model takes vectors, and fine-tuning trains on images.")
    begin = starting_point(base.encoder, settings)
    begun = None if init is None else init_backbone(begin, Path(init))
    opened = [_images(path) for path in sources]
    label = labeller(opened, labels)
    unseen = [] if test is None else labels_of(_images(test), test_labels or labels)
    data = read_labelled(
        base.encoder.config, opened, label, hold_out=hold_out, workers=workers, cache=Path(cache) if cache else None
    )
    classes = classes_of(data)
    class_indices(unseen, classes)  # what is wrong with test images is said before hours of training
    if not resume:  # only now, when nothing in the request is wrong: somebody trained for it
        checkpoint.unlink(missing_ok=True)
    tuner = Finetuner(
        begin, base.sha256 + (begun.sha256 if begun else ""), settings, data, classes, checkpoint=checkpoint,
        log=log, report=report,
    )  # fmt: skip
    encoder = tuner.run()
    held = 100 * tuner.held_top1() if len(data.held) else None
    record = _record(base, begun, tuner, sources, held)
    sha256 = save_model(encoder.cpu(), output, record)
    checkpoint.unlink(missing_ok=True)
    scores = None
    if test is not None:  # of what was written; the record is no part of the hash
        scores = score(output, test, labels=test_labels or labels, workers=workers, device=settings.device)
        save_model(encoder, output, record | {"figures": scores.figures()})
    return FinetuneReport(
        model=str(output),
        sha256=sha256,
        images=len(data.train),
        held_out=len(data.held),
        classes=len(classes),
        latents=encoder.config.latents,
        skipped=tuple((failure.name, failure.reason) for failure in data.skipped),
        steps=tuner.step,
        seconds=time.monotonic() - started,
        initialised=None if begun is None else begun.line(),
        held_top1=held,
        test=scores,
    )


def _settings(preset: str | None, options: dict[str, Any]) -> FinetuneOptions:
    """Return the options of a recipe, with those that are given before them."""
    from stochcl.encoders.finetuning.options import FinetuneOptions
    from stochcl.encoders.finetuning.presets import load_preset

    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(set(given) - {f.name for f in fields(FinetuneOptions)}):
        raise UsageError(f"fine-tuning has no option {', '.join(unknown)}.")
    return FinetuneOptions(**(load_preset(preset) if preset else {}) | given)


def _record(
    base: ModelFile, begun: Initialisation | None, tuner: Finetuner, sources: Sequence[str | os.PathLike[str]],
    held: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Return what the model file says of how it was made."""
    import torch

    return {
        "finetuned_from": {"name": printable(base.name), "sha256": base.sha256},
        "init": None if begun is None else begun.to_json(),
        "sources": [printable(Path(path).name) for path in sources],
        "images": len(tuner.data.train),
        "held_out": len(tuner.data.held),
        "steps": tuner.step,
        "images_seen": tuner.step * tuner.batch,
        "seconds": round(tuner.elapsed),
        "options": asdict(tuner.options),
        "precision": tuner.precision,
        "measured": {} if held is None else {"held_top1": round(held, 3)},
        "entropy": tuner.entropy_record,
        "versions": {"stochcl": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "hardware": f"{tuner.device.type}, {torch.get_num_threads()} threads, {platform.machine()}",
    }
