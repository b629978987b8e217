"""Adapting a model's code to one's own images: the same network, latents fitted to what it sees in them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stochcl.api.embedding_model import matrix_among
from stochcl.api.models import DEFAULT, find_model
from stochcl.api.train import train
from stochcl.errors import UsageError, require_extra
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.api.train import TrainReport

    PathLike = str | os.PathLike[str]

MOST_IMAGES = 5000
"""Images that latents are fitted to: more take longer than they are worth."""

_MOST_WORKERS = 8


def adapt(
    sources: Sequence[PathLike],
    output: PathLike,
    *,
    model: PathLike = DEFAULT,
    rate: float | None = None,
    hold_out: int = 0,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    report: Callable[[Any], None] = lambda progress: None,
) -> TrainReport:
    """Fit residual latents to images, on the features of a finished model, and write a model file.

    The network is the model's, bit for bit; if the model comes with the package, the file leaves the network out and
    names it. No labels are needed.

    Parameters
    ----------
    sources : sequence of path-like
        Folders, archives or arrays of images; a seeded choice of at most 5,000 of them is fitted to.
    output : path-like
        The model file.
    model : path-like
        A model file of images, or the name of a model.
    rate : float, optional
        Bits per image; 256 by default. An archive may keep fewer of them: every rung of the ladder is a code.
    hold_out : int
        The last images of each class of each source, which are not fitted to, and measured on.
    seed : int
    device : str
    force : bool
        Replace an existing file.
    report : callable
        Told of the progress.

    Raises
    ------
    SourceError, TrainingError, UsageError, ModelError, OutputError
    """
    require_extra("adapting a model", "torch", "lightning_fabric")
    from stochcl.encoders.config import feature_width
    from stochcl.encoders.pretrained import backbone_options

    if (matrix := matrix_among(sources)) is not None:
        raise UsageError(
            f"{escape_name(matrix.path)}: these are embeddings, which no network is kept for; `stochcl train` "
            "makes a model of them in a minute."
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
