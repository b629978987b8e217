"""Encoders and images small enough that a test of them takes a moment."""

import numpy as np
import torch

from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.encoder import Encoder


def make_config(**changes) -> EncoderConfig:
    tiny = {"width": 4, "stem": "small", "latents": 16, "decoder": (8,), "size": 16}
    return EncoderConfig(**tiny | changes)


def make_encoder(seed: int = 0, **changes) -> Encoder:
    """An encoder in evaluation mode whose statistics, prior and table are not those that it begins with."""
    torch.manual_seed(seed)
    encoder = Encoder(make_config(**changes))
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if name.endswith(("running_mean", "bias", "centre")) or name == "prior":
                tensor.normal_(0, 0.3)
            elif name.endswith(("running_var", "norm.scale")):
                tensor.uniform_(0.5, 1.5)
        encoder.ones.random_(1, 4096)
    return encoder.eval()


def make_images(rows: int, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, size, size, 3), np.uint8)


def weights(encoder: Encoder) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in encoder.state_dict().items()}


def restored(encoder: Encoder, vectors: torch.Tensor) -> torch.Tensor:
    """Standardised vectors in the units of the input; features of images have no others."""
    return vectors * encoder.norm.scale + encoder.norm.centre if encoder.config.columns else vectors
