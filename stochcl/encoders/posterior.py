"""Posteriors q(z|x) over discrete latents: one interface for all families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

_NAT = 1 / 0.6931471805599453  # bits in a nat


class Posterior(ABC):
    """A distribution q(z|x) over D independent discrete latents, for a batch of B images.

    The contract:

    - ``sample`` draws symbols and lets gradients through to the logits; ``mode`` is the most probable symbol,
      which is what a file holds.
    - ``rate`` is what a coder with the prior's probabilities pays for a drawn code, in expectation:
      the cross-entropy of posterior and prior, not their divergence, which only bits-back coding would reach.
    - Information is in bits, one value a latent, shape (B, D); the sum over a row is the image's.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @abstractmethod
    def sample(self, uniform: Tensor) -> Tensor:
        """Draw symbols as floats, shape (B, D), from uniform noise in [0, 1) of the same shape."""

    @abstractmethod
    def mode(self) -> Tensor:
        """Return the most probable symbols, shape (B, D), uint8."""

    @abstractmethod
    def log_prob(self, symbols: Tensor) -> Tensor:
        """Return log2 q(symbols | x) of each latent, in bits, shape (B, D)."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Return the entropy of each latent, in bits, shape (B, D)."""

    @abstractmethod
    def rate(self, prior_logits: Tensor) -> Tensor:
        """Return the cross-entropy with the prior of each latent, in bits, shape (B, D)."""

    def kl(self, prior_logits: Tensor) -> Tensor:
        """Return the divergence KL(q||p) of each latent, in bits, shape (B, D)."""
        return self.rate(prior_logits) - self.entropy()


class Bernoulli(Posterior):
    """D independent bits; ``logits``, shape (B, D), are log-odds of a one.

    Samples are hard, and gradients pass straight through to the probabilities (Bengio et al., arXiv
    1308.3432): the forward pass sees just what a decoder will see.
    """

    def sample(self, uniform: Tensor) -> Tensor:  # noqa: D102
        probability = torch.sigmoid(self.logits)
        hard = (uniform < probability).to(probability.dtype)
        # In this order the sum is exactly hard: (1 + p) - p is off by a rounding for some p.
        return hard + (probability - probability.detach())

    def mode(self) -> Tensor:  # noqa: D102
        return (self.logits > 0).to(torch.uint8)

    def log_prob(self, symbols: Tensor) -> Tensor:  # noqa: D102
        return -_NAT * functional.binary_cross_entropy_with_logits(
            self.logits, symbols.to(self.logits.dtype), reduction="none"
        )

    def entropy(self) -> Tensor:  # noqa: D102
        return self.rate(self.logits)

    def rate(self, prior_logits: Tensor) -> Tensor:  # noqa: D102
        probability = torch.sigmoid(self.logits)
        return _NAT * (functional.softplus(prior_logits) - probability * prior_logits)


POSTERIORS: dict[str, type[Posterior]] = {"bernoulli": Bernoulli}
"""Posterior families by the name that a model file holds."""
