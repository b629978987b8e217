"""Training a model file from sources of images."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import __version__
from stochcl.api.matrices import matrix_among, train_matrix
from stochcl.api.report import counted
from stochcl.data import ImageSource, Preprocess, open_sources, printable
from stochcl.errors import OutputError, SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.data import MatrixSource
    from stochcl.encoders.latents import LatentProgress
    from stochcl.encoders.training import Fitting, Progress


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
        skipped = [{"name": printable(name), "reason": reason} for name, reason in self.skipped]
        return {"schema": "stochcl.train/0"} | asdict(self) | {"skipped": skipped, "warnings": list(self.warnings)}


def train(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    preset: str | None = None,
    hold_out: int | None = None,
    workers: int = 1,
    init: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    report: Callable[[Progress | Fitting | LatentProgress], None] = lambda progress: None,
    **options: Any,
) -> TrainReport | None:
    """Train an encoder and write its model file.

    Parameters
    ----------
    sources : sequence of path-like
        Folders, archives or arrays of images; none where the preset has a source of its own. Or one .npy matrix of
        embeddings, for a model of vectors: see :func:`stochcl.api.matrices.train_matrix`.
    output : path-like
        The model file; its checkpoint is ``output`` + ``.checkpoint`` while training runs.
    preset : str, optional
        Options to begin with, by the name of a preset or from a .toml file; those that are given here override it.
    hold_out : int, optional
        Images of each class of each source that are kept from training, and measured on; none by default.
    workers : int
        Decoding threads.
    cache : path-like, optional
        A folder where decoded images are kept, to be mapped rather than held in memory, and found by the next run.
    init : path-like, optional
        Weights of the backbone, published ones or those of a model file, see
        :func:`stochcl.encoders.backbones.published.init_backbone`. With ``epochs=0`` the backbone stays as it is
        there, and latents are trained on its features.
    log : path-like, optional
        A file that figures are appended to: a table if its name ends in .csv, one JSON object a line otherwise. By
        default ``output`` + ``.csv``, written anew unless a run is resumed.
    tensorboard : path-like, optional
        A folder for TensorBoard's events.
    resume, force : bool
        Go on from the checkpoint; replace an existing model file or checkpoint.
    report : callable
        Told of the progress.
    **options
        Fields of :class:`stochcl.encoders.model.EncoderConfig` and
        :class:`stochcl.encoders.training.TrainOptions`; those that are None are left to preset and defaults.

    Returns
    -------
    TrainReport or None
        None in every process but the first, where several train together.

    Raises
    ------
    SourceError, TrainingError, UsageError, OutputError
    """
    import torch

    from stochcl.encoders.backbones.published import init_backbone
    from stochcl.encoders.health import said_of_health
    from stochcl.encoders.imageset import read_images
    from stochcl.encoders.inference import choose_device
    from stochcl.encoders.model import Encoder
    from stochcl.encoders.modelfile import save_model
    from stochcl.encoders.rate import said_of_rate
    from stochcl.encoders.training import Trainer, options_from
    from stochcl.encoders.training.logs import TensorBoardLog
    from stochcl.encoders.training.presets import load_preset
    from stochcl.encoders.training.runtime import Runtime

    started = time.monotonic()
    output = Path(output)
    if (matrix := matrix_among(sources)) is not None:
        images = {"preset": preset, "hold_out": hold_out, "init": init, "log": log, "tensorboard": tensorboard}
        images["cache"] = cache
        return _on_matrix(matrix, output, resume=resume, force=force, report=report, **images, **options)
    checkpoint = output.with_name(output.name + ".checkpoint")
    table = output.with_name(output.name + ".csv")
    log = Path(log) if log else None
    _check_output(output, checkpoint, log, resume=resume, force=force)
    given = {"hold_out": hold_out} | options
    given = (load_preset(preset) if preset else {}) | {k: v for k, v in given.items() if v is not None}
    own, hold_out = given.pop("source", None), given.pop("hold_out", 0)
    config, settings = options_from(given)
    choose_device(settings.device)
    # Weights that do not fit are refused before images are read, hence twice.
    begun = init_backbone(Encoder(config), Path(init)) if init else None
    if begun and begun.fresh and settings.epochs == 0 and not resume:
        msg = (
            f"{begun.path}: the kernel of its stem has another size, and without epochs nothing trains a fresh one; "
            f"give --stem {'small' if config.stem == 'imagenet' else 'imagenet'}, or --epochs."
        )
        raise UsageError(msg)
    opened = [_images(path) for path in sources] if sources else _own_source(own)
    runtime = Runtime(settings)
    logs = [TensorBoardLog(Path(tensorboard))] if tensorboard and runtime.first else []
    data = read_images(
        opened, Preprocess(config.size, config.fit), hold_out=hold_out, workers=workers,
        cache=Path(cache) if cache else None,
    )  # fmt: skip
    if runtime.first and not resume:  # only now, when nothing in the request is wrong: somebody trained for it
        checkpoint.unlink(missing_ok=True)
        if log is None:
            table.unlink(missing_ok=True)
    runtime.wait()
    trainer = Trainer(
        config, settings, data, checkpoint=checkpoint, log=log or table, logs=logs, report=report, runtime=runtime,
        initialise=lambda encoder: init_backbone(encoder, Path(init)) if init else None,
    )  # fmt: skip
    encoder = trainer.run()
    if not runtime.first:
        return None
    found = trainer.monitor(encoder, torch.device("cpu"))
    if trainer.latents is not None:  # what the coder's own model makes of hard codes, which a table alone does not
        found["rate"] = trainer.latents.rate
    health = trainer.monitor.health(encoder, torch.device("cpu"))
    record = {
        "sources": [printable(source.path.name) for source in opened],
        "images": len(data.train),
        "held_out": len(data.held),
        "steps": trainer.step,
        "images_seen": trainer.step * trainer.batch,
        "seconds": round(trainer.elapsed),
        "preset": preset,
        "init": begun.to_json() if begun else None,
        "options": asdict(settings),
        "precision": runtime.precision,
        "measured": {name: round(value, 4) for name, value in found.items()},
        "entropy": trainer.entropy_record,
        "latents": trainer.latents.record if trainer.latents else {},
        "health": health,
        "versions": {"stochcl": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "hardware": (
            f"{trainer.device.type}, {trainer.processes} processes of {torch.get_num_threads()} threads, "
            f"{platform.machine()}"
        ),
    }
    sha256 = save_model(encoder, output, record)
    checkpoint.unlink(missing_ok=True)
    return TrainReport(
        model=str(output),
        sha256=sha256,
        images=len(data.train),
        held_out=len(data.held),
        skipped=tuple((failure.name, failure.reason) for failure in data.skipped),
        steps=trainer.step,
        seconds=time.monotonic() - started,
        latents=config.latents,
        rate=found["rate"],
        knn=found.get("knn"),
        initialised=begun.line() if begun else None,
        warnings=said_of_rate(found["rate"], settings.rate) + said_of_health(health),
    )


def _on_matrix(
    matrix: MatrixSource, output: Path, *, resume: bool, force: bool, report: Callable[[Any], None], **options: Any
) -> TrainReport | None:
    """Train a model of vectors."""
    from stochcl.api.heads import rate_warnings
    from stochcl.encoders.health import said_of_health

    if resume:
        raise UsageError("training on a matrix takes minutes and keeps no checkpoint to resume; omit --resume.")
    if options.get("device") in ("auto", "cpu"):  # a head is so small that it is trained on the processor
        del options["device"]
    _check_output(output, output.with_name(output.name + ".checkpoint"), None, resume=False, force=force)
    if not is_first_process():
        return None
    record, sha256 = train_matrix(matrix, output, report=report, **options)
    stage, bad = record["latents"], record["not_finite"]
    left_out = f"{counted(bad, 'row')} of {printable(matrix.path)} left out: the numbers there are not all finite"
    return TrainReport(
        model=str(output),
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
        warnings=((left_out,) if bad else ()) + rate_warnings(record) + said_of_health(record["health"]),
    )


def presets() -> dict[str, str]:
    """Return the presets that come with the package: their names, and the files' text."""
    from stochcl.encoders.training.presets import preset_names, preset_text

    return {name: preset_text(name) for name in preset_names()}


def preset_text(name: str) -> str:
    """Return the text of a preset, by its name or from a .toml file.

    Raises
    ------
    UsageError
        If there is none, or the file cannot be read.
    """
    from stochcl.encoders.training import presets

    return presets.preset_text(name)


def is_first_process() -> bool:
    """Tell whether this process is to print: it trains alone, or is the first of those that torchrun started."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def _check_output(output: Path, checkpoint: Path, log: Path | None, *, resume: bool, force: bool) -> None:
    """Refuse to train for hours before an output that could not be written, or that somebody wants to keep."""
    for path, what in [(output, "model")] + ([(log, "log")] if log else []):
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            msg = f"{printable(path)}: no {what} can be written there"
            raise OutputError(f"{msg}; name a file in a folder that exists and is writable.")
    if output.exists() and not (force or resume):
        raise UsageError(f"{printable(output)}: this file exists already; pass --force to replace it.")
    if checkpoint.exists() and not (force or resume):
        msg = (
            f"{printable(checkpoint)}: this is the checkpoint of an interrupted run; pass --resume to go on from "
            "it, or --force to start anew."
        )
        raise UsageError(msg)
    if resume and not checkpoint.exists():
        raise UsageError(f"{printable(checkpoint)}: there is no such checkpoint to resume; omit --resume.")


def _own_source(name: str | None) -> list[ImageSource]:
    if name is None:
        msg = "training needs at least one source of images; `--preset digits` brings its own."
        raise UsageError(msg)
    from stochcl.data.digits import DigitsSource

    return [DigitsSource()]


def _images(path: str | os.PathLike[str]) -> ImageSource:
    source = open_sources([path])  # a pattern of shards is one source
    if not isinstance(source, ImageSource):
        raise SourceError(f"{printable(path)}: training takes images, and this is a matrix of embeddings.")
    return source
