"""Models of embeddings: the shape of the code, training on a matrix, and model files as bytes."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.api.codec import Codec
from stochcl.data import ArrowVectors, MatrixSource, SourceOptions, open_arrow, open_source, open_sources, sample_rows
from stochcl.data.array import MAGIC, MOST_ROWS, sample_size
from stochcl.data.open import expand
from stochcl.encoders.modelfile import save_model
from stochcl.entropy.vectors import MAX_RESIDUAL
from stochcl.errors import TrainingError, UsageError, require
from stochcl.files import PathLike, begins_with
from stochcl.messages import escape_name, plural
from stochcl.options import declared
from stochcl.training.options import LatentOptions
from stochcl.training.outputs import circumstances

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from stochcl.compress.header import Embedder
    from stochcl.encoders.encoder import Encoder
    from stochcl.training.loop import FitProgress


_NAME = "head.safetensors"
_BITS = 128.0  # per row, if no rate is given
_MOST = {"bernoulli": 12, "gaussian": 8}  # log2 of the most latents that are possible or useful
_LOOKED_AT = 4000  # rows whose codes are checked for collapse


def code_shape(
    latents: int | None = None, rate: float | None = None, posterior: str | None = None, alphabet: int | None = None
) -> dict[str, Any]:
    """Return posterior, latents and alphabet of a code of vectors, choosing each that is None.

    Residual codes are the default; an alphabet of more than two values implies gaussian latents.

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
    train: NDArray[np.float32], held: NDArray[np.float32], *, latents: int, config: dict[str, Any] | None = None,
    report: Callable[[FitProgress], None] = lambda progress: None, **options: Any,
) -> tuple[Encoder, dict[str, Any]]:  # fmt: skip
    """Train a model of vectors, and return it with its training record.

    Parameters
    ----------
    train : ndarray of float32, shape (N, W)
        Finite rows, such as :func:`stochcl.data.sample_rows` takes from a matrix of any size.
    held : ndarray of float32, shape (M, W)
        Held-out rows for measuring the rate; may be empty.
    latents : int
        D, the number of latents.
    config : dict, optional
        More fields of :class:`~stochcl.encoders.config.EncoderConfig`.
    report : callable
        Called with the progress.
    **options
        Fields of :class:`~stochcl.training.options.LatentOptions`: rate, objective, steps, max_time, seed...

    Raises
    ------
    TrainingError
        If there are too few rows, or the loss is not finite.
    UsageError
        If an option makes no sense.
    """
    torch = require("torch", "training", "train")

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.encoder import Encoder, Standardise
    from stochcl.encoders.inference import encode
    from stochcl.training.latents import LatentStage
    from stochcl.training.monitor import code_health
    from stochcl.training.quantiser import start_latents
    from stochcl.training.residual import fit_residual

    if len(train) < 2:
        raise TrainingError(f"a model of vectors needs at least two rows to train on, got {len(train)}; give more.")
    if (train == train[0]).all():
        raise TrainingError("all training rows are equal; give rows that differ.")
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
        "rows": len(train), "held_out": len(held), "seconds": round(time.monotonic() - started),
        "start": started_from, "latents": fitted.record, "entropy": fitted.record.get("entropy", {}),
    } | circumstances("cpu, 1 processes")  # fmt: skip
    return encoder, record


_FEW_ROWS = 256


def row_warnings(record: dict[str, Any]) -> tuple[str, ...]:
    """Return warnings about too few training rows and constant columns."""
    rows, constant = int(record.get("rows", _FEW_ROWS)), int(record.get("constant_columns", 0))
    found = []
    if rows < _FEW_ROWS:
        found.append(f"{plural(rows, 'row')} to train on: codes of others may be poor; give {_FEW_ROWS:,} or more")
    if constant:
        have = "has" if constant == 1 else "have"
        found.append(f"{plural(constant, 'column')} {have} one value in all rows to train on: codes cannot tell it")
    return tuple(found)


def rate_warnings(record: dict[str, Any]) -> tuple[str, ...]:
    """Return a warning if the training record missed its target rate."""
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
    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, _NAME)
        save_model(encoder, path, record)
        return path.read_bytes()


def codec_of(data: bytes) -> Codec:
    """Return the codec of a model file with these bytes.

    Raises
    ------
    ModelError
        If it is damaged or foreign.
    """
    import torch

    # A network draws initial weights before it loads a file's; the caller's random state must not change.
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, _NAME)
        path.write_bytes(data)
        return Codec(path, device="cpu")


_CONFIG = frozenset({"posterior", "alphabet", "embedding", "head", "decoder", "ladder", "reduced", "transform"})


def vectors_among(sources: Sequence[PathLike], column: str | None = None) -> MatrixSource | ArrowVectors | None:
    """Return the embeddings among the sources of training, from matrices or tables, or None for images.

    Raises
    ------
    SourceError
        If a source cannot be read.
    UsageError
        If embeddings are mixed with something else, or a column is given without a table.
    """
    sources = [path for given in sources for path in expand(given)]
    table = open_arrow([Path(path) for path in sources], SourceOptions(column=column), takes=1)
    if isinstance(table, ArrowVectors):
        return table
    if table is not None:
        raise UsageError(
            f"{escape_name(table.path)}: training reads no images from tables; give a folder, .zip or .tar."
        )
    if column is not None:
        raise UsageError("--column is for .parquet and .arrow files, and none is given; omit it.")
    # Only arrays are opened, because listing a folder or a tar twice takes long.
    arrays = any(isinstance(open_source(path), MatrixSource) for path in sources if begins_with(path, MAGIC))
    found = open_sources(sources) if arrays else None
    return found if isinstance(found, MatrixSource) else None


def train_matrix(
    source: MatrixSource | ArrowVectors, output: Path, *, report: Callable[[FitProgress], None],
    embedder: Embedder | None = None, **options: Any,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Train a model of vectors on a sample of rows and write its file; return its record and hash.

    Parameters
    ----------
    source : MatrixSource or ArrowVectors
        Of any size: at most 200,000 rows are held in memory.
    output : Path
        The model file.
    report : callable
        Called with the progress.
    embedder : Embedder, optional
        The embedder of the rows, for the record.
    **options
        ``latents``, ``posterior``, ``alphabet``: :func:`code_shape` chooses each that is None.
        Other fields of :class:`~stochcl.encoders.config.EncoderConfig`, and of
        :class:`~stochcl.training.options.LatentOptions`; ``latent_steps`` or ``epochs`` in place of ``steps``. None
        means the default.

    Raises
    ------
    SourceError, TrainingError, OutputError
    UsageError
        If an option applies only to images, or makes no sense.
    """
    started = time.monotonic()
    given = {name: value for name, value in options.items() if value is not None}
    latents, epochs = given.pop("latents", None), given.pop("epochs", None)
    config = {name: given.pop(name) for name in _CONFIG & set(given)}
    config |= code_shape(latents, given.get("rate"), config.get("posterior"), config.get("alphabet"))
    latents = config.pop("latents")
    known = set(declared(LatentOptions)) | {"latent_steps"}
    if foreign := sorted(set(given) - known):
        name = foreign[0].replace("_", "-")
        raise UsageError(
            f"--{name} is for training on images, and {escape_name(source.path)} holds embeddings; omit it."
        )
    rows = source if isinstance(source, MatrixSource) else source.sample(MOST_ROWS)
    train, held = sample_rows(rows, seed=given.get("seed", 0))
    if "latent_steps" in given:
        given["steps"] = max(1, given.pop("latent_steps"))
    elif epochs is not None:
        batch = min(given.get("batch_size", LatentOptions.batch_size), len(train))
        given["steps"] = max(1, math.ceil(epochs * len(train) / batch))
    encoder, record = train_head(train, held, latents=latents, config=config, report=report, **given)
    record |= {
        "width": encoder.config.latents,
        "sources": [escape_name(Path(source.path).name)],
        "constant_columns": int((train == train[0]).all(axis=0).sum()),
        "not_finite": sample_size(len(rows), source.dim) - len(train) - len(held),
        "seconds": round(time.monotonic() - started),
    }
    if embedder is not None:
        record["embedder"] = embedder.to_json()
    return record, save_model(encoder, output, record)
