"""Priors p(z), learned with the encoder: what a coder believes before it has seen a code."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from stochcl.codes import bits_per_symbol
from stochcl.encoders.entropy import quantise
from stochcl.encoders.masked import MaskedNetwork
from stochcl.encoders.tree import decision_nodes, node_probabilities, nodes_per_symbol, quantised

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.encoders.entropy import EntropyNetwork
    from stochcl.encoders.model import EncoderConfig

_LEAST_SCALE = 0.06  # steps: sigmoid(-0.5 / 0.06) is 1/4096


def first_level(alphabet: int) -> int:
    """Return the value of a Gaussian latent, in steps, that its symbol 0 stands for; 0 itself is always a level.

    Examples
    --------
    >>> first_level(16), first_level(5)
    (-8, -2)
    """
    return -(alphabet // 2)


class Factorised(ABC):
    """p(z) of independent latents, one family's; its learned parameters are the encoder's ``prior``.

    Parameters
    ----------
    parameters : Tensor of float32, shape (D, ...)
        As :meth:`initial` makes them.
    config : EncoderConfig
    """

    def __init__(self, parameters: Tensor, config: EncoderConfig) -> None:
        self.parameters = parameters
        self.alphabet = config.alphabet

    @staticmethod
    @abstractmethod
    def initial(config: EncoderConfig) -> Tensor:
        """Return parameters to begin with."""

    @abstractmethod
    def log_prob(self) -> Tensor:
        """Return log p of every symbol, in nats, shape (D, K)."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Return the mean in decoder form, which stands for a missing latent: shape (D,), or (D, K) of one-hots."""

    def nodes(self) -> Tensor:
        """Return the probability of a one at every node of every latent's tree, shape (D, 2**bits - 1)."""
        return node_probabilities(self.log_prob().exp())

    def numerators(self) -> NDArray[np.int32]:
        """Return those probabilities as the coder's table holds them, in units of 1/4096, of 1..4095."""
        return quantised(self.nodes().detach().cpu().numpy())


class BernoulliPrior(Factorised):
    """Log-odds of a one, shape (D,)."""

    @staticmethod
    def initial(config: EncoderConfig) -> Tensor:  # noqa: D102
        return torch.zeros(config.latents)

    def log_prob(self) -> Tensor:  # noqa: D102
        return torch.stack([functional.logsigmoid(-self.parameters), functional.logsigmoid(self.parameters)], dim=1)

    def mean(self) -> Tensor:  # noqa: D102
        return torch.sigmoid(self.parameters)


class CategoricalPrior(Factorised):
    """Logits of the symbols, shape (D, K)."""

    @staticmethod
    def initial(config: EncoderConfig) -> Tensor:  # noqa: D102
        return torch.zeros(config.latents, config.alphabet)

    def log_prob(self) -> Tensor:  # noqa: D102
        return torch.log_softmax(self.parameters, dim=1)

    def mean(self) -> Tensor:  # noqa: D102
        return torch.softmax(self.parameters, dim=1)


class LogisticPrior(Factorised):
    """Of Gaussian latents: a logistic density integrated over the quantiser's bins; parameters of shape (D, 2).

    They are the mean, and the logarithm of what the scale is more than the least that a table can express,
    in units of quantisation steps. Its tails are heavier than a Gaussian's, so that a rare level costs bits in
    proportion to its distance and not to the square of it (as in Salimans et al., arXiv 1701.05517). The outermost
    bins reach to infinity, because the quantiser clips.
    """

    @staticmethod
    def initial(config: EncoderConfig) -> Tensor:  # noqa: D102
        scale = max(0.5, config.alphabet / 12)
        return torch.tensor([0.0, math.log(scale)]).repeat(config.latents, 1)

    def log_prob(self) -> Tensor:  # noqa: D102
        mean, scale = self.parameters[:, :1], self.parameters[:, 1:].exp() + _LEAST_SCALE
        edges = torch.arange(1, self.alphabet, device=mean.device) + first_level(self.alphabet) - 0.5
        u = (edges - mean) / scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): nothing cancels.
        inner = functional.logsigmoid(u[:, 1:]) + functional.logsigmoid(-u[:, :-1]) + (-(-1 / scale).expm1()).log()
        return torch.cat([functional.logsigmoid(u[:, :1]), inner, functional.logsigmoid(-u[:, -1:])], dim=1)

    def mean(self) -> Tensor:  # noqa: D102
        return self.parameters[:, 0]


FACTORISED: dict[str, type[Factorised]] = {
    "bernoulli": BernoulliPrior,
    "categorical": CategoricalPrior,
    "gaussian": LogisticPrior,
}
"""Factorised priors by the name of the posterior's family."""


class AutoregressivePrior(nn.Module):
    """p(z) over the binary decisions of a code, each given those before it: the coder's own kind, in real numbers.

    In a training loss it makes the encoder pay for what the coder's network will not foresee; when training ends,
    :meth:`quantised` is that network.

    Parameters
    ----------
    config : EncoderConfig
    hidden : int
        Hidden units; 0 is a linear network.
    seed : int
        Of the first weights.
    nodes : Tensor, shape (D, 2**bits - 1), optional
        Probabilities of a one to begin with; 1/2 by default.
    """

    def __init__(self, config: EncoderConfig, hidden: int = 512, seed: int = 0, nodes: Tensor | None = None) -> None:
        super().__init__()
        self.latents, self.alphabet = config.latents, config.alphabet
        if nodes is None:
            nodes = torch.full((config.latents, nodes_per_symbol(config.alphabet)), 0.5)
        decisions = config.latents * bits_per_symbol(config.alphabet)
        self.network = MaskedNetwork(torch.logit(nodes.float(), eps=1e-4), decisions, hidden, seed)

    def bits(self, decisions: Tensor) -> Tensor:
        """Return what each decision costs given those before it, in bits, shape (B, T).

        Parameters
        ----------
        decisions : Tensor of float, shape (B, T)
            As :meth:`~stochcl.encoders.posteriors.Posterior.decisions` gives them, or those of codes. Gradients
            reach them in both their parts: as what is coded, and as what later ones are foreseen from. At which
            nodes of their symbols' trees they are, is what they are nearer to, and has no gradient.
        """
        latent, node = decision_nodes(decisions, self.alphabet)
        logits = self.network(decisions, latent, node)
        nats: Tensor = functional.softplus(logits) - decisions * logits
        return nats / math.log(2)

    def quantised(self) -> EntropyNetwork:
        """Return the network in integers, for the coder."""
        return quantise(self.network, self.latents, self.alphabet)
