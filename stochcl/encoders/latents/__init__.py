"""The latent stage: head, prior and decoder trained on features that stand still, to the rate that was asked for."""

from stochcl.encoders.latents.fit import FittedLatents, LatentProgress, LatentStage
from stochcl.encoders.latents.options import LatentOptions
from stochcl.encoders.latents.quantiser import start_from_axes, start_from_quantiser, start_latents

__all__ = [
    "FittedLatents",
    "LatentOptions",
    "LatentProgress",
    "LatentStage",
    "start_from_axes",
    "start_from_quantiser",
    "start_latents",
]
