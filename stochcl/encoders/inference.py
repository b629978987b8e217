"""Running an encoder over images: codes, features, uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from stochcl.codes import Codes
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.encoders.model import Encoder

# The network always sees batches of one shape, the last one padded: kernels are chosen by shape, and another
# order of summation flips bits whose posterior is near one half. So codes do not depend on --batch-size, on
# which images were skipped, or on where a run was interrupted.
_CHUNK = {"cpu": 64, "cuda": 512, "mps": 128}


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder says about B images.

    Parameters
    ----------
    codes : Codes
        Modes of the posterior, with the posterior's entropy in bits as uncertainty.
    features : ndarray of float32, shape (B, V)
        Standardised features before the latents.
    """

    codes: Codes
    features: NDArray[np.float32]


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; "auto" takes a GPU where there is one.

    Raises
    ------
    UsageError
        If there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # the way back, too: "meta" holds no numbers
    except (RuntimeError, AssertionError, ImportError) as exc:  # some devices are modules of their own
        reason = str(exc).partition("\n")[0]
        raise UsageError(f"there is no device {name!r} here ({reason}); try --device cpu.") from exc
    return device


@torch.inference_mode()
def encode_images(encoder: Encoder, images: NDArray[np.uint8], device: torch.device) -> Encoded:
    """Encode pixels.

    Parameters
    ----------
    encoder : Encoder
        In evaluation mode, on ``device``.
    images : ndarray of uint8, shape (B, S, S, 3)
        Preprocessed to the encoder's size.
    device : torch.device

    Raises
    ------
    UsageError
        If the images have another shape.
    """
    size = encoder.config.size
    if images.ndim != 4 or images.shape[1:] != (size, size, 3) or images.dtype != np.uint8:
        msg = f"this encoder takes uint8 images of shape (B, {size}, {size}, 3), not {images.dtype} {images.shape}."
        raise UsageError(msg)
    chunk = _CHUNK.get(device.type, 64)
    symbols = np.empty((len(images), encoder.config.latents), np.uint8)
    entropy = np.empty(len(images), np.float32)
    features = np.empty((len(images), encoder.feature_dim), np.float32)
    padded = np.zeros((chunk, size, size, 3), np.uint8)
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        rows = slice(start, start + len(part))
        padded[: len(part)] = part
        pixels = torch.from_numpy(padded).to(device).permute(0, 3, 1, 2).float()
        latent = encoder.features(encoder.normalise(pixels).contiguous(memory_format=torch.channels_last))
        posterior = encoder.posterior(latent)
        symbols[rows] = posterior.mode()[: len(part)].cpu().numpy()
        entropy[rows] = posterior.entropy().sum(1)[: len(part)].cpu().numpy()
        features[rows] = latent[: len(part)].float().cpu().numpy()
    codes = Codes.from_symbols(symbols, alphabet=2, uncertainty=entropy)
    return Encoded(codes, features)
