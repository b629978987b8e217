"""Training a model file from sources of images."""

from __future__ import annotations

import math
import os
import platform
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import __version__
from stochcl.api.models import initial_weights
from stochcl.data import ImageSource, MatrixSource, Preprocess, open_source, open_sources, sample_rows, sample_size
from stochcl.data.array import MAGIC
from stochcl.entropy.residual import MAX_RESIDUAL
from stochcl.errors import OutputError, SourceError, TrainingError, UsageError
from stochcl.files import replacing
from stochcl.messages import escape_name, os_reason, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.encoders.encoder import Encoder
    from stochcl.training.latents import LatentProgress
    from stochcl.training.loop import FitProgress
    from stochcl.training.pretrain import TrainProgress


_NAME = "head.safetensors"
_BITS = 128.0  # of a row, where no rate is asked for
_MOST = {"bernoulli": 12, "gaussian": 8}  # powers of two: as many latents as a row has room for, or is worth
_LOOKED_AT = 4000  # rows whose codes are looked at for signs of collapse


def code_shape(
    latents: int | None = None, rate: float | None = None, posterior: str | None = None, alphabet: int | None = None
) -> dict[str, Any]:
    """Return posterior, latents and alphabet of a code of vectors, those that are None chosen.

    Residual codes are the default; an alphabet of more than two values asks for numbers.

    Examples
    --------
    >>> code_shape(rate=64)
    {'posterior': 'residual', 'latents': 64, 'alphabet': 2}
    >>> code_shape(rate=64, posterior="gaussian")
    {'posterior': 'gaussian', 'latents': 32, 'alphabet': 16}
    """
    if posterior is None:
        posterior = "residual" if alphabet in (None, 2) and (latents or rate or 0) <= MAX_RESIDUAL else "gaussian"
    bits = _BITS if rate is None else max(1.0, min(4096.0, rate))
    if latents is None and posterior == "residual":
        latents = max(1, min(MAX_RESIDUAL, round(bits)))
    elif latents is None:
        share = {"bernoulli": 2.0, "gaussian": 0.5}.get(posterior, 1 / 8)
        latents = 1 << max(0, min(_MOST.get(posterior, 9), math.ceil(math.log2(share * bits))))
    levels = {"bernoulli": 2, "gaussian": 16, "residual": 2}
    return {"posterior": posterior, "latents": latents, "alphabet": alphabet or levels.get(posterior, 256)}


def train_head(
    train: NDArray[np.float32],
    held: NDArray[np.float32],
    *,
    latents: int,
    config: dict[str, Any] | None = None,
    report: Callable[[LatentProgress | FitProgress], None] = lambda progress: None,
    **options: Any,
) -> tuple[Encoder, dict[str, Any]]:
    """Train a model of vectors, and return it with its training record.

    Parameters
    ----------
    train : ndarray of float32, shape (N, W)
        Finite rows, as :func:`stochcl.data.sample_rows` takes them from a matrix of any size.
    held : ndarray of float32, shape (M, W)
        Others, which the rate is measured on; there may be none.
    latents : int
        D, the full width of a code.
    config : dict, optional
        More fields of :class:`~stochcl.encoders.config.EncoderConfig`.
    report : callable
        Told of the progress.
    **options
        Fields of :class:`~stochcl.training.options.LatentOptions`: rate, objective, steps, max_time, seed...

    Raises
    ------
    TrainingError
        If there are too few rows, or the loss is not finite.
    UsageError
        If an option makes no sense.
    """
    import torch

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.encoder import Encoder, Standardise
    from stochcl.encoders.inference import encode
    from stochcl.training.latents import LatentStage
    from stochcl.training.monitor import code_health
    from stochcl.training.options import LatentOptions
    from stochcl.training.quantiser import start_latents
    from stochcl.training.residual import fit_residual

    if len(train) < 2:
        raise TrainingError(
            f"a model of vectors is trained on two rows or more, and here are {len(train)} to train on."
        )
    started = time.monotonic()
    settings = LatentOptions(**options)
    shape: dict[str, Any] = {"backbone": f"features:{train.shape[1]}", "latents": latents} | (config or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        encoder = Encoder(EncoderConfig(**shape)).eval()
        if isinstance(encoder.norm, Standardise):
            encoder.norm.fit(train)
        features, kept = (encode(encoder, rows, torch.device("cpu")).features for rows in (train, held))
        if encoder.config.posterior == "residual":
            started_from = "residual quantisation"
            fitted = fit_residual(encoder, features, kept, settings, report=report)
        else:
            stage = LatentStage(encoder, features, kept, settings, report=report)
            started_from = start_latents(encoder, features, stage.metric, seed=settings.seed)
            fitted = stage.run()
    looked_at = (held if len(held) else train)[:_LOOKED_AT]
    record = {
        "health": code_health(encode(encoder, looked_at, torch.device("cpu")).codes, encoder.config.posterior),
        "rows": len(train),
        "held_out": len(held),
        "seconds": round(time.monotonic() - started),
        "start": started_from,
        "latents": fitted.record,
        "entropy": fitted.record.get("entropy", {}),
        "versions": {"stochcl": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "hardware": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
    }
    return encoder, record


def rate_warnings(record: dict[str, Any]) -> tuple[str, ...]:
    """Return a warning, as a sentence, where a training record says that the rate asked for was missed."""
    from stochcl.training import latents

    stage = record["latents"]
    return latents.rate_warnings(stage["rate"], stage["options"]["rate"], "row")


def to_bytes(encoder: Encoder, record: dict[str, Any]) -> bytes:
    """Return the bytes of a model's file.

    Raises
    ------
    ModelError
        If a weight is not finite, or too large for float16.
    """
    from stochcl.encoders.modelfile import save_model

    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, _NAME)
        save_model(encoder, path, record)
        return path.read_bytes()


def codec_of(data: bytes) -> Codec:
    """Return the codec of a model whose file has these bytes.

    Raises
    ------
    ModelError
        If it is damaged or foreign.
    """
    import torch

    from stochcl.api.codec import Codec

    # A network draws its weights before it is given those of a file, and somebody's own random numbers are not ours.
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, _NAME)
        path.write_bytes(data)
        return Codec(path, device="cpu")


def write_head(data: bytes, path: str | os.PathLike[str]) -> None:
    """Write the bytes of a model's file, complete or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as exc:
        raise OutputError(f"{escape_name(path)}: the model cannot be written: {os_reason(exc)}.") from exc


_CONFIG = frozenset({"posterior", "alphabet", "embedding", "head", "decoder", "ladder", "reduced", "transform"})


def matrix_among(sources: Sequence[str | os.PathLike[str]]) -> MatrixSource | None:
    """Return the matrix that training was given, None where it was given images.

    Raises
    ------
    SourceError
        If a source cannot be read.
    UsageError
        If there is a matrix and something else.
    """
    arrays = [open_source(path) for path in sources if _is_array(path)]  # to list a folder or a tar twice takes long
    matrices = [source for source in arrays if isinstance(source, MatrixSource)]
    if matrices and len(sources) > 1:
        shown = escape_name(matrices[0].path)
        raise UsageError(
            f"{shown}: a model of vectors is trained on one matrix; give it alone, all rows in one file."
        )
    return matrices[0] if matrices else None


def _is_array(path: str | os.PathLike[str]) -> bool:
    with suppress(OSError, ValueError):
        if Path(path).is_file():
            with Path(path).open("rb") as file:
                return file.read(len(MAGIC)) == MAGIC
    return False


def train_matrix(
    source: MatrixSource,
    output: Path,
    *,
    report: Callable[[LatentProgress | FitProgress], None],
    **options: Any,
) -> tuple[dict[str, Any], str]:
    """Train a model of vectors on a sample of a matrix's rows and write its file; return its record and hash.

    Parameters
    ----------
    source : MatrixSource
        Of any size: at most 200,000 rows are read.
    output : Path
        The model file.
    report : callable
        Told of the progress.
    **options
        ``latents``, ``posterior``, ``alphabet``: what is None of them, :func:`~stochcl.api.train.code_shape` chooses.
        Other fields of :class:`~stochcl.encoders.config.EncoderConfig`, and of
        :class:`~stochcl.training.options.LatentOptions`; ``latent_steps`` or ``epochs`` in place of ``steps``. Those
        that are None are left to their defaults.

    Raises
    ------
    SourceError, TrainingError, OutputError
    UsageError
        If an option is one of training on images, or makes no sense.
    """
    from stochcl.training.options import LatentOptions

    started = time.monotonic()
    given = {name: value for name, value in options.items() if value is not None}
    latents, epochs = given.pop("latents", None), given.pop("epochs", None)
    config = {name: given.pop(name) for name in _CONFIG & set(given)}
    config |= code_shape(latents, given.get("rate"), config.get("posterior"), config.get("alphabet"))
    latents = config.pop("latents")
    known = {field.name for field in fields(LatentOptions)} | {"latent_steps"}
    if foreign := sorted(set(given) - known):
        name = foreign[0].replace("_", "-")
        raise UsageError(
            f"--{name} belongs to training on images, and {escape_name(source.path)} is a matrix; omit it."
        )
    train, held = sample_rows(source, seed=given.get("seed", 0))
    if "latent_steps" in given:
        given["steps"] = max(1, given.pop("latent_steps"))
    elif epochs is not None:
        batch = min(given.get("batch_size", LatentOptions.batch_size), len(train))
        given["steps"] = max(1, math.ceil(epochs * len(train) / batch))
    encoder, record = train_head(train, held, latents=latents, config=config, report=report, **given)
    record |= {
        "width": encoder.config.latents,
        "sources": [escape_name(source.path.name)],
        "not_finite": sample_size(len(source), source.dim) - len(train) - len(held),
        "seconds": round(time.monotonic() - started),
    }
    data = to_bytes(encoder, record)
    write_head(data, output)
    return record, codec_of(data).model.sha256


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
        skipped = [{"name": escape_name(name), "reason": reason} for name, reason in self.skipped]
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
    report: Callable[[TrainProgress | FitProgress | LatentProgress], None] = lambda progress: None,
    **options: Any,
) -> TrainReport | None:
    """Train an encoder and write its model file.

    Parameters
    ----------
    sources : sequence of path-like
        Folders, archives or arrays of images; none where the preset has a source of its own. Or one .npy matrix of
        embeddings, for a model of vectors: see :func:`stochcl.api.train.train_matrix`.
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
    resume, force : bool
        Go on from the checkpoint; replace an existing model file or checkpoint.
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
    import torch

    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.inference import choose_device
    from stochcl.encoders.modelfile import save_model
    from stochcl.encoders.pretrained import backbone_options, init_backbone
    from stochcl.training import latents
    from stochcl.training.images import read_images
    from stochcl.training.logs import TensorBoardLog
    from stochcl.training.monitor import health_warnings
    from stochcl.training.options import load_preset, options_from
    from stochcl.training.pretrain import Trainer
    from stochcl.training.runtime import Runtime

    started = time.monotonic()
    output = Path(output)
    if (matrix := matrix_among(sources)) is not None:
        options |= {"preset": preset, "hold_out": hold_out, "init": init, "log": log, "tensorboard": tensorboard}
        return _on_matrix(matrix, output, resume=resume, force=force, report=report, cache=cache, **options)
    checkpoint = output.with_name(output.name + ".checkpoint")
    table = output.with_name(output.name + ".csv")
    log = Path(log) if log else None
    _check_output(output, checkpoint, log, resume=resume, force=force)
    given = {k: v for k, v in ({"hold_out": hold_out} | options).items() if v is not None}
    given = (load_preset(preset) if preset else {}) | given
    own, hold_out = given.pop("source", None), given.pop("hold_out", 0)
    weights = initial_weights(init) if init else None
    config, settings = options_from((backbone_options(weights) if weights else {}) | given)
    choose_device(settings.device)
    # Weights that do not fit are refused before images are read, hence twice.
    begun = init_backbone(Encoder(config), weights) if weights else None
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
        initialise=lambda encoder: init_backbone(encoder, weights) if weights else None,
    )  # fmt: skip
    encoder = trainer.run()
    if not runtime.first:
        return None
    found = trainer.monitor(encoder, torch.device("cpu"))
    if trainer.latents is not None:  # what the coder's own model makes of hard codes, which a table alone does not
        found["rate"] = trainer.latents.rate
    health = trainer.monitor.health(encoder, torch.device("cpu"))
    record = {
        "sources": [escape_name(source.path.name) for source in opened],
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
            f"{trainer.device.type}, {trainer.world_size} processes of {torch.get_num_threads()} threads, "
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
        latents=encoder.config.latents,
        rate=found["rate"],
        knn=found.get("knn"),
        initialised=begun.line() if begun else None,
        warnings=latents.rate_warnings(found["rate"], settings.rate) + health_warnings(health),
    )


def _on_matrix(
    matrix: MatrixSource, output: Path, *, resume: bool, force: bool, report: Callable[[Any], None], **options: Any
) -> TrainReport | None:
    """Train a model of vectors."""
    from stochcl.training.monitor import health_warnings

    if resume:
        raise UsageError("training on a matrix takes minutes and keeps no checkpoint to resume; omit --resume.")
    if options.get("device") in ("auto", "cpu"):  # a head is so small that it is trained on the processor
        del options["device"]
    _check_output(output, output.with_name(output.name + ".checkpoint"), None, resume=False, force=force)
    if not is_first_process():
        return None
    record, sha256 = train_matrix(matrix, output, report=report, **options)
    stage, bad = record["latents"], record["not_finite"]
    left_out = f"{plural(bad, 'row')} of {escape_name(matrix.path)} left out: the numbers there are not all finite"
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
        warnings=((left_out,) if bad else ()) + rate_warnings(record) + health_warnings(record["health"]),
    )


def presets() -> dict[str, str]:
    """Return the presets that come with the package: their names, and the files' text."""
    from stochcl.training.options import preset_names, preset_text

    return {name: preset_text(name) for name in preset_names()}


def preset_text(name: str) -> str:
    """Return the text of a preset, by its name or from a .toml file.

    Raises
    ------
    UsageError
        If there is none, or the file cannot be read.
    """
    from stochcl.training import options as presets

    return presets.preset_text(name)


def is_first_process() -> bool:
    """Tell whether this process is to print: it trains alone, or is the first of those that torchrun started."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def _check_output(output: Path, checkpoint: Path, log: Path | None, *, resume: bool, force: bool) -> None:
    """Refuse to train for hours before an output that could not be written, or that somebody wants to keep."""
    for path, what in [(output, "model")] + ([(log, "log")] if log else []):
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            msg = f"{escape_name(path)}: no {what} can be written there"
            raise OutputError(f"{msg}; name a file in a folder that exists and is writable.")
    if output.exists() and not (force or resume):
        raise UsageError(f"{escape_name(output)}: this file exists already; pass --force to replace it.")
    if checkpoint.exists() and not (force or resume):
        msg = (
            f"{escape_name(checkpoint)}: this is the checkpoint of an interrupted run; pass --resume to go on from "
            "it, or --force to start anew."
        )
        raise UsageError(msg)
    if resume and not checkpoint.exists():
        raise UsageError(f"{escape_name(checkpoint)}: there is no such checkpoint to resume; omit --resume.")


def _own_source(name: str | None) -> list[ImageSource]:
    if name is None:
        msg = "training needs at least one source of images; `--preset digits` brings its own."
        raise UsageError(msg)
    from stochcl.data.builtin import DigitsSource

    return [DigitsSource()]


def _images(path: str | os.PathLike[str]) -> ImageSource:
    source = open_sources([path])  # a pattern of shards is one source
    if not isinstance(source, ImageSource):
        raise SourceError(f"{escape_name(path)}: training takes images, and this is a matrix of embeddings.")
    return source
