"""The entropy models that an encoder brings along, fitted to the codes of its training images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.codes import Codes
from stochcl.encoders.entropy import MIN_CODES, fit_entropy, smaller_images
from stochcl.encoders.inference import encode_images
from stochcl.encoders.measure import measure_ones

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stochcl.encoders.model import Encoder

_MEASURED_IMAGES = {"independent": 20_000, "autoregressive": 100_000}


def fit_tables(
    encoder: Encoder, images: NDArray[np.uint8], device: torch.device, *, entropy: str = "autoregressive",
    hidden: int | None = None, max_time: float | None = None, seed: int = 0, precision: str = "auto",
    progress: Callable[[float, str], None] = lambda fraction, line: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the table of independent symbols, and fit the entropy network, on codes of training images.

    Parameters
    ----------
    encoder : Encoder
        In evaluation mode, on ``device``; it takes both along.
    images : ndarray of uint8, shape (N, S, S, 3)
        Training images; a seeded choice of 20,000, or 100,000 for a network.
    device : torch.device
    entropy : str
        autoregressive, or independent for no network.
    hidden, max_time, precision, progress
        See :func:`~stochcl.encoders.entropy.fit_entropy`.
    seed : int

    Returns
    -------
    dict
        The network's record; empty where there is none.
    """
    chosen = np.random.default_rng(seed).permutation(len(images))[: _MEASURED_IMAGES[entropy]]
    images = images[np.sort(chosen)]
    codes = encode_images(encoder, images, device).codes
    networked = entropy == "autoregressive" and len(codes) >= MIN_CODES
    more = encode_images(encoder, smaller_images(images, seed), device).codes if networked else None
    return fit_code_tables(
        encoder, codes, more, entropy=entropy, hidden=hidden, max_time=max_time, seed=seed, precision=precision,
        progress=progress,
    )  # fmt: skip


def fit_code_tables(
    encoder: Encoder, codes: Codes, more: Codes | None = None, *, entropy: str = "autoregressive", **options: Any
) -> dict[str, Any]:
    """Measure the table of independent symbols, and fit the entropy network, on given codes.

    Parameters
    ----------
    encoder : Encoder
        It takes both along.
    codes : Codes
        Of training inputs.
    more : Codes, optional
        Of the same inputs in another guise, which the network is to foresee too, and the table need not.
    entropy : str
        autoregressive, or independent for no network.
    **options
        See :func:`~stochcl.encoders.entropy.fit_entropy`.

    Returns
    -------
    dict
        The network's record; empty where there is none.
    """
    encoder.ones.copy_(torch.from_numpy(measure_ones(codes)))
    if entropy == "independent" or len(codes) < MIN_CODES:
        encoder.set_entropy(None)
        return {}
    versions = 1
    if more is not None:
        codes, versions = Codes(np.concatenate([codes.packed, more.packed]), codes.latents, codes.alphabet), 2
    fitted = fit_entropy(codes, encoder.config.ladder, versions=versions, **options)
    encoder.set_entropy(fitted.network)
    return fitted.record
