"""A masked network over binary decisions with real weights: each decision's log-odds from those before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_STRIDE = 8  # hidden units begin at multiples of this many decisions: a decoder computes them group by group
_FIRST = 0.5  # deviation of a hidden unit's sum before training


class MaskedNetwork(nn.Module):
    """logit_j = bias_j + direct_j s + output_j clamp(hidden s + hidden_bias, 0, 1), with s = 2 d - 1 (MADE).

    Germain et al., arXiv 1502.03509, with one hidden layer and direct connections. Its integer form is
    :class:`~stochcl.encoders.entropy.EntropyNetwork`.

    Parameters
    ----------
    bias : Tensor of float32, shape (D, 2**bits - 1)
        Log-odds of a one at every node of every latent's tree, to begin with.
    decisions : int
        T = D * bits.
    hidden : int
        H, the number of hidden units; 0 is a linear network.
    seed : int
        Of the hidden units' first weights.
    """

    def __init__(self, bias: Tensor, decisions: int, hidden: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.degrees = spread_degrees(decisions, hidden)
        degrees, places = torch.from_numpy(self.degrees).long(), torch.arange(decisions)
        self.bias = nn.Parameter(bias)
        self.direct = nn.Parameter(torch.zeros(decisions, decisions))
        start = _FIRST * torch.randn(hidden, decisions, generator=generator) / degrees[:, None].sqrt()
        self.hidden = nn.Parameter(start)
        self.hidden_bias = nn.Parameter(torch.full((hidden,), 0.5))
        self.output = nn.Parameter(torch.zeros(decisions, hidden))
        masks = {
            "direct": torch.ones(decisions, decisions).tril(-1),
            "hidden": (places < degrees[:, None]).float(),
            "output": (degrees <= places[:, None]).float(),
        }
        for name, mask in masks.items():
            self.register_buffer(f"{name}_mask", mask, persistent=False)
        self.apply_masks()

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Take away what a decision may not see."""
        for name in ("direct", "hidden", "output"):
            getattr(self, name).mul_(self.get_buffer(f"{name}_mask"))

    def masked(self, name: str) -> Tensor:
        """Return a weight whose masked part stays zero in what it computes and in its gradient."""
        weight: Tensor = getattr(self, name) * self.get_buffer(f"{name}_mask")
        return weight

    def forward(self, decisions: Tensor, latent: Tensor, node: Tensor) -> Tensor:
        """Return log-odds, shape (B, T), of decisions, float32, shape (B, T)."""
        signs = 2 * decisions - 1
        logits = functional.linear(signs, self.masked("direct"))
        if len(self.degrees):
            u = functional.linear(signs, self.masked("hidden"), self.hidden_bias)
            logits = logits + functional.linear(functional.hardtanh(u, 0, 1), self.masked("output"))
        return logits.float() + self.bias[latent, node]


def spread_degrees(decisions: int, hidden: int) -> NDArray[np.int32]:
    """Return how many decisions each hidden unit sees: spread evenly over the multiples of the stride."""
    stride = min(_STRIDE, decisions - 1)
    groups = max(1, (decisions - 1) // stride)
    return ((np.arange(hidden) * groups // max(1, hidden) + 1) * stride).astype(np.int32)
