"""Categorical latents: one of K symbols each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stochcl.encoders.posteriors.base import BIT, Posterior, inside, straight_through, symbol_type
from stochcl.encoders.tree import symbol_bits

if TYPE_CHECKING:
    from torch import Tensor

    from stochcl.encoders.model import EncoderConfig


class Categorical(Posterior):
    """D independent symbols of 0..K-1; the parameters, shape (B, D * K), are their logits, latent after latent.

    The decoder form is one-hot, shape (B, D, K). Draws are Gumbel-max, relaxed ones Gumbel-softmax (Jang et al.,
    arXiv 1611.01144; Maddison et al., arXiv 1611.00712), points of the simplex.
    """

    def __init__(self, parameters: Tensor, config: EncoderConfig) -> None:
        super().__init__(parameters, config)
        self.logits = parameters.reshape(len(parameters), config.latents, config.alphabet)
        self.log_q = torch.log_softmax(self.logits, dim=2)

    @staticmethod
    def width(config: EncoderConfig) -> int:  # noqa: D102
        return config.latents * config.alphabet

    @staticmethod
    def noise(config: EncoderConfig) -> int:  # noqa: D102
        return config.latents * config.alphabet

    def sample(self, uniform: Tensor, estimator: str = "straight-through", temperature: float = 1.0) -> Tensor:  # noqa: D102
        self._check(estimator, temperature)
        gumbel = -(-inside(uniform).log()).log()
        perturbed = self.logits + gumbel.reshape(self.logits.shape)
        if estimator == "relaxed":
            return torch.softmax(perturbed / temperature, dim=2)
        return straight_through(self.embed(perturbed.argmax(dim=2)), self.log_q.exp())

    def mode(self) -> Tensor:  # noqa: D102
        return self.logits.argmax(dim=2).to(symbol_type(self.config.alphabet))

    def tempered(self, temperature: float) -> Categorical:  # noqa: D102
        return Categorical(self.parameters / temperature, self.config)

    def embed(self, symbols: Tensor) -> Tensor:  # noqa: D102
        return functional.one_hot(symbols.long(), self.config.alphabet).float()

    def symbols(self, draw: Tensor) -> Tensor:  # noqa: D102
        return draw.detach().argmax(dim=2)

    def decisions(self, draw: Tensor) -> Tensor:
        """Return the bits of the symbols, a linear function of one-hot vectors: gradients are the draw's.

        With a straight-through draw, a decision's gradient is that of its probability, over all symbols.
        """
        return (draw @ symbol_bits(self.config.alphabet, draw.device).to(draw.dtype)).reshape(len(draw), -1)

    def log_prob(self, symbols: Tensor) -> Tensor:  # noqa: D102
        return self.log_q.gather(2, symbols.long()[:, :, None])[:, :, 0]

    def entropy(self) -> Tensor:  # noqa: D102
        return -(self.log_q.exp() * self.log_q).sum(2)

    def rate(self, prior: Tensor) -> Tensor:  # noqa: D102
        return -(self.log_q.exp() * torch.log_softmax(prior, dim=1)).sum(2) / BIT

    def kl(self, prior: Tensor) -> Tensor:  # noqa: D102
        return (self.log_q.exp() * (self.log_q - torch.log_softmax(prior, dim=1))).sum(2)
