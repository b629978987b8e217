"""How well a fine-tuned encoder classifies, from hard codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from stochcl.data import printable
from stochcl.encoders.inference import encode_images
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.errors import LabelsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.encoders.model import Encoder

_CHUNK = 1024


@torch.inference_mode()
def class_scores(encoder: Encoder, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """Return the classifier's scores, log-odds, shape (N, C), of hard codes, or of features for a deterministic twin.

    Parameters
    ----------
    encoder : Encoder
        With a classifier, in evaluation mode, on ``device``.
    images : ndarray of uint8, shape (N, S, S, 3)
    device : torch.device
    """
    encoded = encode_images(encoder, images, device)
    if encoder.config.classifies == "features":
        rows, decode = torch.from_numpy(encoded.features), None
    else:
        rows, decode = torch.from_numpy(encoded.codes.symbols()), _form
    out = np.empty((len(images), len(encoder.config.classes)), np.float32)
    for start in range(0, len(images), _CHUNK):
        part = rows[start : start + _CHUNK].to(device)
        vectors = part if decode is None else encoder.decode(decode(encoder, part))
        out[start : start + _CHUNK] = encoder.classify(vectors).float().cpu().numpy()
    return out


def _form(encoder: Encoder, symbols: torch.Tensor) -> torch.Tensor:
    """Bring symbols to the form that the decoder takes."""
    family = POSTERIORS[encoder.config.posterior]
    nothing = torch.zeros(len(symbols), family.width(encoder.config), device=symbols.device)
    return family(nothing, encoder.config).embed(symbols)


def with_mirrored(
    encoder: Encoder, images: NDArray[np.uint8], device: torch.device, scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return mean class probabilities, shape (N, C), of images that have these scores and of their mirror images."""
    mirrored = class_scores(encoder, np.ascontiguousarray(images[:, :, ::-1]), device)
    found = [torch.from_numpy(part).softmax(1) for part in (scores, mirrored)]
    mean: NDArray[np.float32] = ((found[0] + found[1]) / 2).numpy()
    return mean


def class_indices(labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each label among the classes, int64, shape (N,).

    Raises
    ------
    LabelsError
        If a label is none of the classes.
    """
    places = {name: i for i, name in enumerate(classes)}
    if unknown := sorted(set(labels) - set(places)):
        shown = ", ".join(printable(name) for name in unknown[:3])
        raise LabelsError(f"{len(unknown):,} labels are none of the {len(places):,} classes trained on: {shown}.")
    return np.array([places[label] for label in labels], np.int64)


def top1(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the fraction of rows whose highest score is that of their label.

    Examples
    --------
    >>> top1(np.array([[0.1, 0.9], [0.8, 0.2]], np.float32), np.array([1, 1]))
    0.5
    """
    return float((scores.argmax(axis=1) == labels).mean())
