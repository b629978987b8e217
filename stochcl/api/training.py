"""Training a model file from sources of images."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import __version__
from stochcl.data import ImageSource, Preprocess, open_source, printable
from stochcl.errors import OutputError, SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.encoders.train import Fitting, Progress


@dataclass(frozen=True)
class TrainReport:
    """What a training run made; ``rate`` in bits per image, of held-out images where some are held out."""

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

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        skipped = [{"name": printable(name), "reason": reason} for name, reason in self.skipped]
        return {"schema": "stochcl.train/0"} | asdict(self) | {"skipped": skipped}


def train(
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    hold_out: int = 0,
    workers: int = 1,
    log: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    report: Callable[[Progress | Fitting], None] = lambda progress: None,
    **options: Any,
) -> TrainReport:
    """Train an encoder and write its model file.

    Parameters
    ----------
    sources : sequence of path-like
        Folders, archives or arrays of images.
    output : path-like
        The model file; its checkpoint is ``output`` + ``.checkpoint`` while training runs.
    hold_out : int
        Images of each class of each source that are kept from training, and measured on.
    workers : int
        Decoding threads.
    log : path-like, optional
        A file that figures are appended to, one JSON object a line.
    resume, force : bool
        Go on from the checkpoint; replace an existing model file or checkpoint.
    report : callable
        Told of the progress.
    **options
        Fields of :class:`stochcl.encoders.model.EncoderConfig` and
        :class:`stochcl.encoders.train.TrainOptions`.

    Raises
    ------
    SourceError, TrainingError, UsageError, OutputError
    """
    import torch

    from stochcl.encoders.imageset import read_images
    from stochcl.encoders.inference import choose_device
    from stochcl.encoders.modelfile import save_model
    from stochcl.encoders.train import Trainer, options_from

    started = time.monotonic()
    output = Path(output)
    checkpoint = output.with_name(output.name + ".checkpoint")
    log = Path(log) if log else None
    _check_output(output, checkpoint, log, resume=resume, force=force)
    if not sources:
        raise UsageError("training needs at least one source of images.")
    config, settings = options_from(options)
    choose_device(settings.device)
    data = read_images(
        [_images(path) for path in sources],
        Preprocess(config.size, config.fit),
        hold_out=hold_out,
        workers=workers,
    )
    if not resume:  # only now, when nothing in the request is wrong: somebody trained for it
        checkpoint.unlink(missing_ok=True)
    trainer = Trainer(config, settings, data, checkpoint=checkpoint, log=log, report=report)
    encoder = trainer.run()
    found = trainer.monitor(encoder, torch.device("cpu"))
    record = {
        "sources": [printable(Path(path).name) for path in sources],
        "images": len(data.train),
        "held_out": len(data.held),
        "steps": trainer.step,
        "images_seen": trainer.step * trainer.batch,
        "seconds": round(trainer.elapsed),
        "options": asdict(settings),
        "measured": {name: round(value, 4) for name, value in found.items()},
        "entropy": trainer.entropy_record,
        "versions": {"stochcl": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "hardware": f"{trainer.device.type}, {torch.get_num_threads()} threads, {platform.machine()}",
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
    )


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


def _images(path: str | os.PathLike[str]) -> ImageSource:
    source = open_source(path)
    if not isinstance(source, ImageSource):
        raise SourceError(f"{printable(path)}: training takes images, and this is a matrix of embeddings.")
    return source
