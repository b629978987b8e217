"""What all families of posteriors have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from stochcl.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from stochcl.encoders.model import EncoderConfig

ESTIMATORS = ("straight-through", "relaxed")
"""How gradients pass a draw of something discrete."""

BIT = math.log(2)
"""Nats in a bit."""


class Posterior(ABC):
    """A distribution q(z|x) over D independent latents of K values, for a batch of B images.

    The contract:

    - A latent's value exists in two forms. A *symbol* is an integer of 0..K-1, shape (B, D): what a file holds.
      The *decoder form* is what :meth:`stochcl.encoders.model.Encoder.decode` takes, floats of shape (B, D), or
      (B, D, K) for one-hot vectors; :meth:`embed` brings symbols to it.
    - :meth:`sample` draws in decoder form and lets gradients through to the parameters; :meth:`mode` is the symbol
      that is stored. All randomness is the caller's: the same noise gives the same draw.
    - Probabilities are those of symbols, for all families alike, so that entropy is never negative and the
      divergence never more than the rate. :meth:`log_prob`, :meth:`entropy` and :meth:`kl` are in nats, as in
      torch.distributions; :meth:`rate` is in bits. All have one value a latent, shape (B, D); the sum over a row is
      the image's.
    - The rate is what a coder with the prior's probabilities pays for a drawn code, in expectation: the cross-entropy
      of posterior and prior, not their divergence, which only bits-back coding would reach.
    - A prior is given by its parameters, the encoder's ``prior``, as the family's
      :class:`~stochcl.encoders.priors.Factorised` reads them.

    Parameters
    ----------
    parameters : Tensor of float, shape (B, family.width(config))
        What the encoder's head says.
    config : EncoderConfig
        Its ``latents`` (D) and ``alphabet`` (K) say what there is.
    """

    def __init__(self, parameters: Tensor, config: EncoderConfig) -> None:
        self.parameters = parameters
        self.config = config

    @staticmethod
    @abstractmethod
    def width(config: EncoderConfig) -> int:
        """Return how many numbers the head gives an image."""

    @staticmethod
    @abstractmethod
    def noise(config: EncoderConfig) -> int:
        """Return how many uniform numbers a draw takes an image."""

    @staticmethod
    def initialise(head: nn.Linear, config: EncoderConfig) -> None:
        """Set the head's last layer to what training begins with.

        Features of unit variance give log-odds of deviation 3: latents that are mostly decided from the first step
        on. With the usual initialisation they are coin tosses (52 of 1,024 bits), and nothing is learned through
        them.
        """
        nn.init.normal_(head.weight, std=3 / head.in_features**0.5)
        nn.init.zeros_(head.bias)

    @abstractmethod
    def sample(self, uniform: Tensor, estimator: str = "straight-through", temperature: float = 1.0) -> Tensor:
        """Draw in decoder form.

        Parameters
        ----------
        uniform : Tensor of float32, shape (B, family.noise(config))
            In [0, 1).
        estimator : str
            ``straight-through``: what a decoder will see, exactly; gradients are those of the probabilities (Bengio
            et al., arXiv 1308.3432). ``relaxed``: a point near it, with the gradients of the point itself.
            The nearest symbol to it is what ``straight-through`` draws from the same noise.
        temperature : float
            Of a relaxed draw: towards 0 it becomes hard, and its gradients noisy.

        Raises
        ------
        UsageError
            If there is no such estimator, or the temperature is not positive.
        """

    @abstractmethod
    def mode(self) -> Tensor:
        """Return the symbols that a file holds, shape (B, D), uint8, or int32 where K > 256."""

    @abstractmethod
    def tempered(self, temperature: float) -> Posterior:
        """Return a posterior of the same mode, less sure of it where the temperature is above 1.

        Log-odds and logits are divided by it, the deviation of a Gaussian latent is multiplied by it.
        """

    @abstractmethod
    def embed(self, symbols: Tensor) -> Tensor:
        """Return symbols, integers of shape (B, D), in decoder form, float32."""

    @abstractmethod
    def symbols(self, draw: Tensor) -> Tensor:
        """Return the symbols, int64, shape (B, D), that a draw in decoder form is, or is nearest to."""

    @abstractmethod
    def decisions(self, draw: Tensor) -> Tensor:
        """Return the binary decisions that a draw is coded as, float32, shape (B, T), T = D * ceil(log2 K).

        For :meth:`stochcl.encoders.priors.AutoregressivePrior.bits`; those of a hard draw are hard. Which gradients
        they have, each family says.
        """

    @abstractmethod
    def log_prob(self, symbols: Tensor) -> Tensor:
        """Return log q(symbols | x) of each latent, in nats, shape (B, D)."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Return the entropy of each latent, in nats, shape (B, D)."""

    @abstractmethod
    def rate(self, prior: Tensor) -> Tensor:
        """Return the cross-entropy with the prior of each latent, in bits, shape (B, D)."""

    def kl(self, prior: Tensor) -> Tensor:
        """Return the divergence KL(q||p) of each latent, in nats, shape (B, D)."""
        return self.rate(prior) * BIT - self.entropy()

    def _check(self, estimator: str, temperature: float) -> None:
        if estimator not in ESTIMATORS:
            raise UsageError(f"there is no estimator {estimator!r}; there are {', '.join(ESTIMATORS)}.")
        if not 0 < temperature < math.inf:
            raise UsageError(f"a temperature is more than 0, and finite, not {temperature}.")


def symbol_type(alphabet: int) -> torch.dtype:
    """Return the type of symbols: uint8, or int32 where there are more than 256."""
    return torch.uint8 if alphabet <= 256 else torch.int32


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return ``hard`` exactly, with the gradient of ``soft``."""
    # In this order the sum is exactly hard: (1 + p) - p is off by a rounding for some p.
    return hard + (soft - soft.detach())


def inside(uniform: Tensor) -> Tensor:
    """Return uniform noise of [0, 1) inside (0, 1), so that its logarithms are finite."""
    return uniform.clamp(2.0**-25, 1 - 2.0**-24)
