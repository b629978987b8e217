"""Train a model file from sources of images or a matrix of embeddings."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from stochcl.api.embedding_model import rate_warnings, row_warnings, train_matrix, vectors_among
from stochcl.api.models import DEFAULT, find_model, initial_weights
from stochcl.api.source import embedder_of
from stochcl.api.summary import skipped_json
from stochcl.data import ArrowVectors, ImageSource, MatrixSource, Preprocess, open_sources
from stochcl.encoders.engine import check_int8, precision_of
from stochcl.errors import SourceError, UsageError, for_caller, require
from stochcl.messages import duration, escape_name, plural
from stochcl.training.options import TrainOptions, load_preset, options_from
from stochcl.training.outputs import RunFiles, run_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.pretrained import Initialisation
    from stochcl.files import PathLike
    from stochcl.training.loop import FitProgress
    from stochcl.training.pretrain import Trainer, TrainProgress


@dataclass(frozen=True)
class RunReport:
    """The result of a training run."""

    model: str
    sha256: str
    images: int
    held_out: int
    latents: int
    skipped: tuple[tuple[str, str], ...]
    steps: int
    seconds: float
    initialised: str | None

    @classmethod
    def of(
        cls, loop: Any, path: Path, sha256: str, start: Initialisation | None, started: float, **others: Any
    ) -> Self:
        """Make a report from a Trainer or Finetuner whose model was written."""
        skipped = tuple((failure.name, failure.reason) for failure in loop.data.skipped)
        return cls(
            str(path), sha256, len(loop.data.train), len(loop.data.held), loop.result.config.latents, skipped,
            loop.step, time.monotonic() - started, start.line() if start else None, **others,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainReport(RunReport):
    """The result of training; ``rate`` in bits per image or row, measured on held-out ones if there are any."""

    rate: float = 0.0
    knn: float | None = None
    warnings: tuple[str, ...] = ()
    unit: str = "image"
    asked_rate: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", tuple(map(for_caller, self.warnings)))

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        lists = {"skipped": skipped_json(self.skipped), "warnings": list(self.warnings)}
        return {"schema": "stochcl.train/0"} | asdict(self) | lists

    def lines(self) -> list[str]:
        """Return the report for people."""
        knn = "" if self.knn is None else f", kNN accuracy {self.knn:.1%}"
        which = f"{'held-out' if self.held_out else 'the training'} {self.unit}s"
        asked = "" if self.asked_rate is None else f" (asked for {self.asked_rate:,g})"
        steps = f"{self.steps:,} steps, " if self.steps else ""  # of the backbone
        work = f"{self.images:,} {self.unit}s, {steps}{duration(self.seconds)}"
        return [
            f"{escape_name(self.model)}: {self.latents:,} latents; {work}",
            f"  rate of {which} {self.rate:,.1f} bits per {self.unit}{asked}{knn}",
            *([f"  begun from {self.initialised}"] if self.initialised else []),
            f"  hash {self.sha256}",
        ]


def train(
    sources: Sequence[PathLike], output: PathLike, *, preset: str | None = None, hold_out: int | None = None,
    workers: int = 1, init: PathLike | None = None, log: PathLike | None = None, tensorboard: PathLike | None = None,
    cache: PathLike | None = None, resume: bool = False, force: bool = False, most_images: int | None = None,
    column: str | None = None, embedder: str | None = None, share_backbone: bool = False,
    report: Callable[[TrainProgress | FitProgress], None] = lambda progress: None,
    **options: Any,
) -> TrainReport | None:  # fmt: skip
    """Train an encoder and write its model file.

    Parameters
    ----------
    sources : sequence of path-like
        Folders, archives or arrays of images; empty if the preset has its own source. Or, for a model of vectors,
        .npy matrices or Parquet or Arrow files of embeddings: see
        :func:`stochcl.api.embedding_model.train_matrix`.
    output : path-like
        The model file; its checkpoint is ``output`` + ``.checkpoint`` while training runs.
    preset : str, optional
        Options to start from, by the name of a preset or from a .toml file; options given here override it.
    hold_out : int, optional
        Images of each class of each source to hold out and measure on; none by default.
    init : path-like, optional
        Weights of the backbone: a file of published ones, a model file, the name of an embedded model, or the name of
        a backbone whose published weights are installed. The file's own network sets the defaults of these options.
        With ``epochs=0`` the backbone stays unchanged, and latents are trained on its features.
    log : path-like, optional
        File for figures: a table if its name ends in .csv, otherwise one JSON object per line. By default
        ``output`` + ``.csv``, replaced unless a run is resumed.
    tensorboard, cache : path-like, optional
        Folders for TensorBoard's events, and for decoded images, to be mapped rather than held in memory.
    resume, force : bool
        Continue from the checkpoint; replace an existing model file or checkpoint.
    workers, most_images : int, optional
        Decoding threads; maximum number of training images, chosen with the seed.
    column : str, optional
        Column of a Parquet or Arrow file with the vectors; the only one by default.
    embedder : str, optional
        Embedder of the vectors, as NAME or NAME@REVISION; by default from a table's metadata.
    share_backbone : bool
        Leave the backbone out of the file if a packaged model has it.
    report : callable
        Called with the progress.
    **options
        Fields of :class:`stochcl.encoders.config.EncoderConfig` and
        :class:`stochcl.training.options.TrainOptions`; None means the preset's or the default value.

    Returns
    -------
    TrainReport or None
        None in every process but the first, if several train together.

    Raises
    ------
    SourceError, TrainingError, UsageError, OutputError
    """
    for module in ("torch", "lightning_fabric"):
        require(module, "training", "train")
    from stochcl.encoders.pretrained import init_backbone
    from stochcl.training.images import read_images
    from stochcl.training.outputs import TensorBoardLog
    from stochcl.training.pretrain import Trainer
    from stochcl.training.runtime import Runtime

    started, files = time.monotonic(), RunFiles.of(output, log)
    if (matrix := vectors_among(sources, column)) is not None:
        options |= {"preset": preset, "hold_out": hold_out, "init": init, "log": log, "tensorboard": tensorboard}
        made = embedder_of(matrix, embedder)
        options |= {"cache": cache}
        return _train_on_matrix(matrix, files, resume=resume, force=force, report=report, embedder=made, **options)
    if embedder is not None:
        raise UsageError("--embedder names what made embeddings, and these are images; omit it.")
    files.check(resume=resume, force=force)
    asked = _asked(preset, init, options, resume=resume)
    opened = [open_images(path) for path in sources] if sources else _source_of_preset(asked.source)
    runtime = Runtime(asked.settings)
    logs = [TensorBoardLog(Path(tensorboard))] if tensorboard and runtime.first else []
    data = read_images(
        opened, Preprocess(asked.config.size, asked.config.fit), seed=asked.settings.seed, workers=workers,
        hold_out=asked.held if hold_out is None else hold_out, cache=Path(cache) if cache else None, most=most_images,
    )  # fmt: skip
    if runtime.first:  # delete only after all checks: the checkpoint cost somebody training time
        files.clear(resume=resume)
    runtime.wait()
    trainer = Trainer(
        asked.config, asked.settings, data, checkpoint=files.checkpoint, log=files.log or files.table,
        logs=logs, report=report, runtime=runtime,
        initialise=lambda encoder: init_backbone(encoder, asked.weights) if asked.weights else None,
    )  # fmt: skip
    encoder = trainer.run()
    if not runtime.first:
        return None
    return _write_model(trainer, encoder, files, opened, preset, asked.start, started, share_backbone=share_backbone)


class _Asked(NamedTuple):
    """A request to train on images; a preset may name its source, and how many images to hold out."""

    config: EncoderConfig
    settings: TrainOptions
    weights: Path | None
    start: Initialisation | None
    source: str | None
    held: int


def _asked(preset: str | None, init: PathLike | None, options: dict[str, Any], *, resume: bool) -> _Asked:
    """Combine preset, options and the network of initial weights, and check them."""
    from stochcl.encoders.inference import choose_device
    from stochcl.encoders.pretrained import backbone_options

    given = (load_preset(preset) if preset else {}) | {k: v for k, v in options.items() if v is not None}
    source, held = given.pop("source", None), given.pop("hold_out", 0)
    weights = None if init is None else initial_weights(init)
    config, settings = options_from((backbone_options(weights) if weights else {}) | given)
    settings = replace(settings, precision=_precision(config, settings, choose_device(settings.device).type))
    start = None if weights is None else _check_weights(config, settings, weights, resume=resume)
    return _Asked(config, settings, weights, start, source, held)


def _precision(config: EncoderConfig, settings: TrainOptions, device: str) -> str:
    """Return the precision to train in: by default, that of compress for a network that stays as it is."""
    if settings.precision == "auto" and not settings.epochs:
        return precision_of(config, device)
    if settings.precision == "int8":
        if settings.epochs:
            raise UsageError("--precision int8 is for a network that stays as it is, --epochs 0; use bf16 or fp32.")
        check_int8(config, device)
    return settings.precision


def _check_weights(config: EncoderConfig, settings: TrainOptions, weights: Path, *, resume: bool) -> Initialisation:
    """Refuse weights that do not fit, before images are read; the trainer loads them again."""
    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.pretrained import init_backbone

    start = init_backbone(Encoder(config), weights)
    if start.fresh and settings.epochs == 0 and not resume:
        other = "small" if config.stem == "imagenet" else "imagenet"
        raise UsageError(
            f"{start.path}: the kernel of its stem has another size, and 0 epochs would not train a fresh stem; "
            f"give --stem {other}, or more --epochs."
        )
    return start


def _write_model(
    trainer: Trainer, encoder: Encoder, files: RunFiles, sources: list[ImageSource], preset: str | None,
    start: Initialisation | None, started: float, *, share_backbone: bool,
) -> TrainReport:  # fmt: skip
    """Measure the trained encoder, write it with its record, and report."""
    import torch

    from stochcl.encoders.modelfile import save_model
    from stochcl.training import latents
    from stochcl.training.monitor import health_warnings

    cpu = torch.device("cpu")
    found, health = trainer.monitor(encoder, cpu), trainer.monitor.health(encoder, cpu)
    if trainer.latents is not None:  # the rate of hard codes with the coder's own model, not only a table
        found["rate"] = trainer.latents.rate
    record = run_record(trainer, start, found) | {
        "sources": [escape_name(Path(source.path).name) for source in sources],
        "preset": preset,
        "latents": trainer.latents.record if trainer.latents else {},
        "health": health,
    }
    sha256 = save_model(encoder, files.output, record, share_backbone=share_backbone)
    files.checkpoint.unlink(missing_ok=True)
    warnings = latents.rate_warnings(found["rate"], trainer.options.rate) + health_warnings(health)
    if not trainer.step and start is None:
        warnings += ("warning: the network is untrained; give --init with weights, or more --epochs",)
    elif trainer.options.epochs == 0 and len(trainer.data.train) < _FEW:
        text = f"{plural(len(trainer.data.train), 'image')} are few to fit latents to, and may give worse codes"
        warnings += (f"warning: {text} than the model's own; compare the two with `stochcl evaluate`",)
    return TrainReport.of(
        trainer, files.output, sha256, start, started, rate=found["rate"], knn=found.get("knn"), warnings=warnings,
        asked_rate=trainer.options.rate,
    )  # fmt: skip


def _train_on_matrix(
    matrix: MatrixSource | ArrowVectors,
    files: RunFiles,
    *,
    resume: bool,
    force: bool,
    report: Callable[[Any], None],
    **options: Any,
) -> TrainReport | None:
    from stochcl.training.monitor import health_warnings

    if resume:
        raise UsageError("training on embeddings takes minutes and keeps no checkpoint to resume; omit --resume.")
    if options.get("device") in ("auto", "cpu"):  # such a small model is trained on the CPU
        del options["device"]
    RunFiles.of(files.output, None).check(resume=False, force=force)
    if not is_first_process():
        return None
    record, sha256 = train_matrix(matrix, files.output, report=report, **options)
    stage, bad = record["latents"], record["not_finite"]
    left_out = f"{plural(bad, 'row')} of {escape_name(matrix.path)} left out: the numbers there are not all finite"
    warnings = (
        ((left_out,) if bad else ())
        + row_warnings(record)
        + rate_warnings(record)
        + health_warnings(record["health"])
    )
    return TrainReport(
        str(files.output), sha256, record["rows"], record["held_out"], record["width"], (), stage["steps"],
        record["seconds"], None, stage["rate"], warnings=warnings, unit="row",
        asked_rate=stage["options"]["rate"],
    )  # fmt: skip


def is_first_process() -> bool:
    """Return whether this process is the only one, or the first that torchrun started."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def _source_of_preset(name: str | None) -> list[ImageSource]:
    if name is None:
        raise UsageError("training needs at least one source of images; `--preset digits` brings its own.")
    from stochcl.data.builtin import DigitsSource

    return [DigitsSource()]


def open_images(path: PathLike) -> ImageSource:
    """Open a source of training images, or a pattern of shards."""
    source = open_sources([path])
    if not isinstance(source, ImageSource):
        raise SourceError(f"{escape_name(path)}: this is a matrix of embeddings; give images.")
    return source


_FEW = 1000  # images; 130 examples had 62 % from fitted codes of 256 bits, and 92 % from the default model's

MOST_IMAGES = 5000
"""Most images that latents are fitted to; more cost time and gain little."""

_MOST_WORKERS = 8


def adapt(
    sources: Sequence[PathLike], output: PathLike, *, model: PathLike = DEFAULT, rate: float | None = None,
    hold_out: int = 0, seed: int = 0, device: str = "auto", force: bool = False,
    report: Callable[[Any], None] = lambda progress: None,
) -> TrainReport:  # fmt: skip
    """Fit residual latents to images, on the features of an existing model, and write a model file.

    The network stays the model's, bit for bit; if the model comes with the package, the file only refers to it. No
    labels are needed.

    Parameters
    ----------
    sources : sequence of path-like
        Folders, archives or arrays of images; a seeded choice of at most 5,000 of them is used.
    output : path-like
        The model file.
    model : path-like
        A model file of images, or the name of a model.
    rate : float, optional
        Bits per image; 256 by default. An archive may keep fewer: every rung of the ladder is a code.
    hold_out : int
        Images of each class of each source, the last ones, to hold out and measure on.
    seed : int
    device : str
    force : bool
        Replace an existing file.
    report : callable
        Called with the progress.

    Raises
    ------
    SourceError, TrainingError, UsageError, ModelError, OutputError
    """
    for module in ("torch", "lightning_fabric"):
        require(module, "adapting a model", "train")
    from stochcl.encoders.config import feature_width
    from stochcl.encoders.pretrained import backbone_options

    if (matrix := vectors_among(sources)) is not None:
        raise UsageError(
            f"{escape_name(matrix.path)}: adapt takes images, and these are embeddings; fit a model to them with "
            "`stochcl train`, in a minute."
        )
    path = find_model(model)
    if feature_width(backbone_options(path).get("backbone", "")) is not None:
        raise UsageError(f"{escape_name(path)}: this model takes vectors, not images; name a model of images.")
    adapted = train(
        sources, output, init=path, epochs=0, posterior="residual", rate=rate, hold_out=hold_out,
        seed=seed, device=device, force=force, report=report, most_images=MOST_IMAGES, share_backbone=True,
        workers=min(_MOST_WORKERS, os.cpu_count() or 1),
    )  # fmt: skip
    assert adapted is not None  # one process
    return adapted
