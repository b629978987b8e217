"""Training a model file from sources of images, or from a matrix of embeddings."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import __version__
from stochcl.api.embedding_model import matrix_among, rate_warnings, row_warnings, train_matrix
from stochcl.api.models import initial_weights
from stochcl.api.summary import skipped_json
from stochcl.data import ImageSource, MatrixSource, Preprocess, open_sources
from stochcl.errors import OutputError, OutputExists, SourceError, UsageError, require_extra
from stochcl.files import writing
from stochcl.messages import duration, escape_name, plural
from stochcl.training.options import load_preset, options_from

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.pretrained import Initialisation
    from stochcl.training.images import ImageSet
    from stochcl.training.loop import FitProgress
    from stochcl.training.options import TrainOptions
    from stochcl.training.pretrain import Trainer, TrainProgress

    PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TrainReport:
    """What a training run made; ``rate`` in bits per image or row, of held-out ones where some are held out."""

    model: str
    sha256: str
    images: int
    held_out: int
    skipped: tuple[tuple[str, str], ...]
    steps: int
    seconds: float
    latents: int
    rate: float
    knn: float | None
    initialised: str | None = None
    warnings: tuple[str, ...] = ()
    unit: str = "image"

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        lists = {"skipped": skipped_json(self.skipped), "warnings": list(self.warnings)}
        return {"schema": "stochcl.train/0"} | asdict(self) | lists

    def lines(self) -> list[str]:
        """Return the report for people."""
        knn = "" if self.knn is None else f", kNN accuracy {self.knn:.1%}"
        which = f"{'held-out' if self.held_out else 'the training'} {self.unit}s"
        work = f"{self.images:,} {self.unit}s, {self.steps:,} steps, {duration(self.seconds)}"
        return [
            f"{escape_name(self.model)}: {self.latents:,} latents; {work}",
            f"  rate of {which} {self.rate:,.1f} bits per {self.unit}{knn}",
            *([f"  begun from {self.initialised}"] if self.initialised else []),
            f"  hash {self.sha256}",
        ]


def train(
    sources: Sequence[PathLike],
    output: PathLike,
    *,
    preset: str | None = None,
    hold_out: int | None = None,
    workers: int = 1,
    init: PathLike | None = None,
    log: PathLike | None = None,
    tensorboard: PathLike | None = None,
    cache: PathLike | None = None,
    resume: bool = False,
    force: bool = False,
    most_images: int | None = None,
    share_backbone: bool = False,
    report: Callable[[TrainProgress | FitProgress], None] = lambda progress: None,
    **options: Any,
) -> TrainReport | None:
    """Train an encoder and write its model file.

    Parameters
    ----------
    sources : sequence of path-like
        Folders, archives or arrays of images; none where the preset has a source of its own. Or one .npy matrix of
        embeddings, for a model of vectors: see :func:`stochcl.api.embedding_model.train_matrix`.
    output : path-like
        The model file; its checkpoint is ``output`` + ``.checkpoint`` while training runs.
    preset : str, optional
        Options to begin with, by the name of a preset or from a .toml file; those that are given here override it.
    hold_out : int, optional
        Images of each class of each source that are kept from training, and measured on; none by default.
    workers : int
        Decoding threads.
    init : path-like, optional
        Weights of the backbone: a file of published ones, a model file, the name of an embedded model, or the name of
        a backbone whose published weights are installed, see
        :func:`stochcl.encoders.pretrained.init_backbone`. What the file says of its network (which it is,
        pooling, size and colours of images) is the default of these options. With ``epochs=0`` the backbone stays as
        it is there, and latents are trained on its features.
    log : path-like, optional
        A file that figures are appended to: a table if its name ends in .csv, one JSON object a line otherwise. By
        default ``output`` + ``.csv``, written anew unless a run is resumed.
    tensorboard : path-like, optional
        A folder for TensorBoard's events.
    cache : path-like, optional
        A folder where decoded images are kept, to be mapped rather than held in memory, and found by the next run.
    resume, force : bool
        Go on from the checkpoint; replace an existing model file or checkpoint.
    most_images : int, optional
        Train on a seeded choice of so many images at most.
    share_backbone : bool
        Leave a backbone that a packaged model has out of the file.
    report : callable
        Told of the progress.
    **options
        Fields of :class:`stochcl.encoders.config.EncoderConfig` and
        :class:`stochcl.training.options.TrainOptions`; those that are None are left to preset and defaults.

    Returns
    -------
    TrainReport or None
        None in every process but the first, where several train together.

    Raises
    ------
    SourceError, TrainingError, UsageError, OutputError
    """
    require_extra("training", "torch", "lightning_fabric")
    from stochcl.encoders.inference import choose_device
    from stochcl.encoders.pretrained import backbone_options
    from stochcl.training.images import read_images
    from stochcl.training.logs import TensorBoardLog
    from stochcl.training.runtime import Runtime

    started = time.monotonic()
    files = RunFiles.of(output, log)
    if (matrix := matrix_among(sources)) is not None:
        options |= {"preset": preset, "hold_out": hold_out, "init": init, "log": log, "tensorboard": tensorboard}
        return _train_on_matrix(matrix, files, resume=resume, force=force, report=report, cache=cache, **options)
    files.check(resume=resume, force=force)
    given = (load_preset(preset) if preset else {}) | {k: v for k, v in options.items() if v is not None}
    preset_source, preset_hold_out = given.pop("source", None), given.pop("hold_out", 0)
    weights = None if init is None else initial_weights(init)
    config, settings = options_from((backbone_options(weights) if weights else {}) | given)
    choose_device(settings.device)
    start = None if weights is None else _check_weights(config, settings, weights, resume=resume)
    opened = [open_images(path) for path in sources] if sources else _source_of_preset(preset_source)
    runtime = Runtime(settings)
    logs = [TensorBoardLog(Path(tensorboard))] if tensorboard and runtime.first else []
    data = read_images(
        opened, Preprocess(config.size, config.fit), hold_out=preset_hold_out if hold_out is None else hold_out,
        workers=workers, cache=None if cache is None else Path(cache), most=most_images, seed=settings.seed,
    )  # fmt: skip
    if runtime.first:  # only now, when nothing in the request is wrong: somebody trained for it
        files.clear(resume=resume)
    runtime.wait()
    trainer = _trainer(config, settings, data, files, runtime, weights, logs, report)
    encoder = trainer.run()
    if not runtime.first:
        return None
    return _write_model(trainer, encoder, files, opened, preset, start, started, share_backbone=share_backbone)


def _check_weights(config: EncoderConfig, settings: TrainOptions, weights: Path, *, resume: bool) -> Initialisation:
    """Refuse weights that do not fit, before images are read; the trainer loads them once more."""
    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.pretrained import init_backbone

    start = init_backbone(Encoder(config), weights)
    if start.fresh and settings.epochs == 0 and not resume:
        other = "small" if config.stem == "imagenet" else "imagenet"
        raise UsageError(
            f"{start.path}: the kernel of its stem has another size, and without epochs nothing trains a fresh one; "
            f"give --stem {other}, or --epochs."
        )
    return start


def _trainer(
    config: EncoderConfig, settings: TrainOptions, data: ImageSet, files: RunFiles, runtime: Any,
    weights: Path | None, logs: Sequence[Any], report: Callable[[Any], None],
) -> Trainer:  # fmt: skip
    from stochcl.encoders.pretrained import init_backbone
    from stochcl.training.pretrain import Trainer

    return Trainer(
        config, settings, data, checkpoint=files.checkpoint, log=files.log or files.table,
        logs=logs, report=report, runtime=runtime,
        initialise=lambda encoder: None if weights is None else init_backbone(encoder, weights),
    )  # fmt: skip


def _write_model(
    trainer: Trainer, encoder: Encoder, files: RunFiles, sources: list[ImageSource], preset: str | None,
    start: Initialisation | None, started: float, *, share_backbone: bool,
) -> TrainReport:  # fmt: skip
    """Measure what was trained, write it with its record, and report."""
    import torch

    from stochcl.encoders.modelfile import save_model
    from stochcl.training import latents
    from stochcl.training.monitor import health_warnings

    cpu, data = torch.device("cpu"), trainer.data
    found = trainer.monitor(encoder, cpu)
    if trainer.latents is not None:  # what the coder's own model makes of hard codes, which a table alone does not
        found["rate"] = trainer.latents.rate
    health = trainer.monitor.health(encoder, cpu)
    record = {
        "sources": [escape_name(Path(source.path).name) for source in sources],
        "images": len(data.train),
        "held_out": len(data.held),
        "steps": trainer.step,
        "images_seen": trainer.step * trainer.batch,
        "seconds": round(trainer.elapsed),
        "preset": preset,
        "init": start.to_json() if start else None,
        "options": asdict(trainer.options),
        "precision": trainer.runtime.precision,
        "measured": {name: round(value, 4) for name, value in found.items()},
        "entropy": trainer.entropy_record,
        "latents": trainer.latents.record if trainer.latents else {},
        "health": health,
    } | circumstances(f"{trainer.device.type}, {trainer.world_size} processes of {torch.get_num_threads()} threads")
    sha256 = save_model(encoder, files.output, record, share_backbone=share_backbone)
    files.checkpoint.unlink(missing_ok=True)
    return TrainReport(
        model=str(files.output),
        sha256=sha256,
        images=len(data.train),
        held_out=len(data.held),
        skipped=tuple((failure.name, failure.reason) for failure in data.skipped),
        steps=trainer.step,
        seconds=time.monotonic() - started,
        latents=encoder.config.latents,
        rate=found["rate"],
        knn=found.get("knn"),
        initialised=start.line() if start else None,
        warnings=latents.rate_warnings(found["rate"], trainer.options.rate) + health_warnings(health),
    )


def circumstances(hardware: str) -> dict[str, Any]:
    """Return what a record says of the versions and the machine that made a model."""
    import torch

    return {
        "versions": {"stochcl": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "hardware": f"{hardware}, {platform.machine()}",
    }


def _train_on_matrix(
    matrix: MatrixSource, files: RunFiles, *, resume: bool, force: bool, report: Callable[[Any], None], **options: Any
) -> TrainReport | None:
    """Train a model of vectors."""
    from stochcl.training.monitor import health_warnings

    if resume:
        raise UsageError("training on a matrix takes minutes and keeps no checkpoint to resume; omit --resume.")
    if options.get("device") in ("auto", "cpu"):  # such a model is so small that it is trained on the processor
        del options["device"]
    RunFiles.of(files.output, None).check(resume=False, force=force)
    if not is_first_process():
        return None
    record, sha256 = train_matrix(matrix, files.output, report=report, **options)
    stage, bad = record["latents"], record["not_finite"]
    left_out = f"{plural(bad, 'row')} of {escape_name(matrix.path)} left out: the numbers there are not all finite"
    return TrainReport(
        model=str(files.output),
        sha256=sha256,
        images=record["rows"],
        held_out=record["held_out"],
        skipped=(),
        steps=stage["steps"],
        seconds=record["seconds"],
        latents=record["width"],
        rate=stage["rate"],
        knn=None,
        unit="row",
        warnings=((left_out,) if bad else ())
        + row_warnings(record)
        + rate_warnings(record)
        + health_warnings(record["health"]),
    )


def is_first_process() -> bool:
    """Tell whether this process is to print: it trains alone, or is the first of those that torchrun started."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


@dataclass(frozen=True)
class RunFiles:
    """What a training run writes: the model, its checkpoint, and its log."""

    output: Path
    log: Path | None

    @classmethod
    def of(cls, output: PathLike, log: PathLike | None) -> RunFiles:
        """Take them from paths."""
        return cls(Path(output), None if log is None else Path(log))

    @property
    def checkpoint(self) -> Path:
        """The checkpoint, while training runs."""
        return self.output.with_name(self.output.name + ".checkpoint")

    @property
    def table(self) -> Path:
        """The log that is written where none is named."""
        return self.output.with_name(self.output.name + ".csv")

    def check(self, *, resume: bool, force: bool) -> None:
        """Refuse to train for hours before an output that could not be written, or that somebody wants to keep."""
        for path, what in ((self.output, "model"), (self.checkpoint, "checkpoint"), (self.log, "log")):
            if path is None:
                continue
            with writing(path, f"the {what}", "; give another name"):
                there = path.parent.is_dir() and os.access(path.parent, os.W_OK)
                if not there or path.is_dir():
                    raise OutputError(
                        f"{escape_name(path)}: no {what} can be written there; name a file in a folder that exists "
                        "and is writable."
                    )
        if self.output.exists() and not (force or resume):
            raise OutputExists(f"{escape_name(self.output)}: this file exists already; pass --force to replace it.")
        if self.checkpoint.exists() and not (force or resume):
            raise UsageError(
                f"{escape_name(self.checkpoint)}: this is the checkpoint of an interrupted run; pass --resume to "
                "continue it, or --force to start anew."
            )
        if resume and not self.checkpoint.exists():
            raise UsageError(f"{escape_name(self.checkpoint)}: there is no such checkpoint to resume; omit --resume.")

    def clear(self, *, resume: bool) -> None:
        """Remove what an earlier run left, unless it is resumed."""
        if not resume:
            self.checkpoint.unlink(missing_ok=True)
            if self.log is None:
                self.table.unlink(missing_ok=True)


def _source_of_preset(name: str | None) -> list[ImageSource]:
    if name is None:
        raise UsageError("training needs at least one source of images; `--preset digits` brings its own.")
    from stochcl.data.builtin import DigitsSource

    return [DigitsSource()]


def open_images(path: PathLike) -> ImageSource:
    """Open a source of images to train on, also by a pattern of shards."""
    source = open_sources([path])
    if not isinstance(source, ImageSource):
        raise SourceError(f"{escape_name(path)}: training takes images, and this is a matrix of embeddings.")
    return source
