"""Bernoulli latents: bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stochcl.encoders.posteriors.base import BIT, Posterior, inside, straight_through

if TYPE_CHECKING:
    from torch import Tensor

    from stochcl.encoders.model import EncoderConfig


class Bernoulli(Posterior):
    """D independent bits; the parameters, shape (B, D), are log-odds of a one.

    Relaxed draws are those of the binary concrete distribution (Maddison et al., arXiv 1611.00712, section 3.3),
    numbers of 0..1.
    """

    @property
    def logits(self) -> Tensor:
        """Log-odds of a one, shape (B, D)."""
        return self.parameters

    @staticmethod
    def width(config: EncoderConfig) -> int:  # noqa: D102
        return config.latents

    @staticmethod
    def noise(config: EncoderConfig) -> int:  # noqa: D102
        return config.latents

    def sample(self, uniform: Tensor, estimator: str = "straight-through", temperature: float = 1.0) -> Tensor:  # noqa: D102
        self._check(estimator, temperature)
        if estimator == "relaxed":
            return torch.sigmoid((self.parameters - torch.logit(inside(uniform))) / temperature)
        probability = torch.sigmoid(self.parameters)
        return straight_through((uniform < probability).to(probability.dtype), probability)

    def mode(self) -> Tensor:  # noqa: D102
        return (self.parameters > 0).to(torch.uint8)

    def tempered(self, temperature: float) -> Bernoulli:  # noqa: D102
        return Bernoulli(self.parameters / temperature, self.config)

    def embed(self, symbols: Tensor) -> Tensor:  # noqa: D102
        return symbols.float()

    def symbols(self, draw: Tensor) -> Tensor:  # noqa: D102
        return (draw.detach() > 0.5).long()

    def decisions(self, draw: Tensor) -> Tensor:
        """Return the draw itself: a bit is one decision, and its gradients are the draw's."""
        return draw

    def log_prob(self, symbols: Tensor) -> Tensor:  # noqa: D102
        symbols = symbols.to(self.parameters.dtype)
        return -functional.binary_cross_entropy_with_logits(self.parameters, symbols, reduction="none")

    def entropy(self) -> Tensor:  # noqa: D102
        return self.rate(self.parameters) * BIT

    def rate(self, prior: Tensor) -> Tensor:  # noqa: D102
        probability = torch.sigmoid(self.parameters)
        return (functional.softplus(prior) - probability * prior) / BIT
