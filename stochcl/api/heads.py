"""Models of vectors: trained on rows in memory, held as the bytes of their file, and made a codec of."""

from __future__ import annotations

import platform
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import __version__
from stochcl.atomic import replacing
from stochcl.data import printable
from stochcl.data.files import why
from stochcl.errors import OutputError, TrainingError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.encoders.fitting import Fitting
    from stochcl.encoders.latents import LatentProgress
    from stochcl.encoders.model import Encoder

_NAME = "head.safetensors"
_LOOKED_AT = 4000  # rows whose codes are looked at for signs of collapse


def train_head(
    train: NDArray[np.float32],
    held: NDArray[np.float32],
    *,
    latents: int,
    config: dict[str, Any] | None = None,
    report: Callable[[LatentProgress | Fitting], None] = lambda progress: None,
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
        More fields of :class:`~stochcl.encoders.model.EncoderConfig`.
    report : callable
        Told of the progress.
    **options
        Fields of :class:`~stochcl.encoders.latents.LatentOptions`: rate, objective, steps, max_time, seed...

    Raises
    ------
    TrainingError
        If there are too few rows, or the loss is not finite.
    UsageError
        If an option makes no sense.
    """
    import torch

    from stochcl.encoders.health import code_health
    from stochcl.encoders.inference import encode
    from stochcl.encoders.latents import LatentOptions, LatentStage
    from stochcl.encoders.model import Encoder, EncoderConfig, Standardise

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
        fitted = LatentStage(encoder, features, kept, settings, report=report).run()
    looked_at = (held if len(held) else train)[:_LOOKED_AT]
    record = {
        "health": code_health(encode(encoder, looked_at, torch.device("cpu")).codes, encoder.config.posterior),
        "rows": len(train),
        "held_out": len(held),
        "seconds": round(time.monotonic() - started),
        "latents": fitted.record,
        "entropy": fitted.record.get("entropy", {}),
        "versions": {"stochcl": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "hardware": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
    }
    return encoder, record


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
        raise OutputError(f"{printable(path)}: the model cannot be written: {why(exc)}.") from exc
