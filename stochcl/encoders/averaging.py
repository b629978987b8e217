"""A moving average of a network's weights, which classifies better than the weights themselves."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from stochcl.encoders.model import Encoder


class Averaged:
    """The exponential moving average of a network (Polyak and Juditsky, 1992), statistics of normalisation included.

    Parameters
    ----------
    network : Encoder
    decay : float
        Of the average, below 1. In the first steps it is (1 + t) / (10 + t), so that the beginning is forgotten.

    Attributes
    ----------
    network : Encoder
        A copy with averaged weights, in evaluation mode.
    """

    def __init__(self, network: Encoder, decay: float) -> None:
        self.decay = decay
        self.network = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: Encoder, step: int) -> None:
        """Take the weights after ``step`` steps in."""
        keep = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = self.network.state_dict(), network.state_dict()
        floating = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in floating], [theirs[n].to(ours[n].dtype) for n in floating], 1 - keep)
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])
