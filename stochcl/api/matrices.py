"""Training a model file from a matrix of embeddings."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.api.heads import to_bytes, train_head, write_head
from stochcl.data import MatrixSource, open_source, printable, sample_rows, sample_size
from stochcl.data.array import MAGIC
from stochcl.errors import UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from stochcl.encoders.fitting import Fitting
    from stochcl.encoders.latents import LatentProgress

_CONFIG = frozenset({"posterior", "alphabet", "embedding", "head", "decoder", "ladder"})


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
        shown = printable(matrices[0].path)
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
    report: Callable[[LatentProgress | Fitting], None],
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
        ``latents``, ``posterior``, ``alphabet``: what is None of them, :func:`~stochcl.api.heads.code_shape` chooses.
        Other fields of :class:`~stochcl.encoders.model.EncoderConfig`, and of
        :class:`~stochcl.encoders.latents.LatentOptions`; ``latent_steps`` or ``epochs`` in place of ``steps``. Those
        that are None are left to their defaults.

    Raises
    ------
    SourceError, TrainingError, OutputError
    UsageError
        If an option is one of training on images, or makes no sense.
    """
    from stochcl.api.heads import code_shape, codec_of
    from stochcl.encoders.latents import LatentOptions

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
            f"--{name} belongs to training on images, and {printable(source.path)} is a matrix; omit it."
        )
    train, held = sample_rows(source, seed=given.get("seed", 0))
    if "latent_steps" in given:
        given["steps"] = max(1, given.pop("latent_steps"))
    elif epochs is not None:
        batch = min(given.get("batch_size", LatentOptions.batch_size), len(train))
        given["steps"] = max(1, math.ceil(epochs * len(train) / batch))
    encoder, record = train_head(train, held, latents=latents, config=config, report=report, **given)
    record |= {
        "width": latents,
        "sources": [printable(source.path.name)],
        "not_finite": sample_size(len(source), source.dim) - len(train) - len(held),
        "seconds": round(time.monotonic() - started),
    }
    data = to_bytes(encoder, record)
    write_head(data, output)
    return record, codec_of(data).model.sha256
