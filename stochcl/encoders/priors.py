"""Priors p(z), learned with the encoder: a factorised one for each family, and an autoregressive one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stochcl.codes import Codes, bits_per_symbol
from stochcl.encoders.layout import first_level
from stochcl.entropy.independent import nodes_per_symbol, quantised
from stochcl.entropy.model import rounded_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.encoders.config import EncoderConfig
    from stochcl.entropy.autoregressive import AutoregressiveModel

_LEAST = 1e-6  # the least initial probability of a prior
_REACHED = 1e-18  # the gradient divides by its square, which float32 still holds


def node_probabilities(probabilities: Tensor) -> Tensor:
    """Return the probability of a one at every node, shape (..., 2**bits - 1), from those of symbols, shape (..., K).

    It is 1/2 at nodes that are almost never reached.
    """
    bits = bits_per_symbol(probabilities.shape[-1])
    leaves = functional.pad(probabilities, (0, (1 << bits) - probabilities.shape[-1]))
    levels = []
    for level in range(bits):
        children = leaves.reshape(*leaves.shape[:-1], 1 << level, 2, -1).sum(-1)
        total = children.sum(-1)
        reached = total > _REACHED
        levels.append(torch.where(reached, children[..., 1] / torch.where(reached, total, 1), 0.5))
    return torch.cat(levels, dim=-1)


def symbol_bits(alphabet: int, device: torch.device | None = None) -> Tensor:
    """Return the decisions of each symbol, float32, shape (K, bits), most significant first."""
    bits = bits_per_symbol(alphabet)
    symbols = torch.arange(alphabet, device=device)
    return (symbols[:, None] >> torch.arange(bits - 1, -1, -1, device=device) & 1).float()


def decision_nodes(decisions: Tensor, alphabet: int) -> tuple[Tensor, Tensor]:
    """Return latent, shape (T,), and node, shape (B, T), of every decision, given the earlier ones of its symbol."""
    bits = bits_per_symbol(alphabet)
    latents = decisions.shape[1] // bits
    latent = torch.arange(latents, device=decisions.device).repeat_interleave(bits)
    hard = (decisions.detach() > 0.5).long().reshape(-1, latents, bits)
    nodes = [torch.zeros_like(hard[..., 0])]
    for level in range(bits - 1):
        nodes.append(2 * nodes[-1] + 1 + hard[..., level])
    return latent, torch.stack(nodes, dim=2).reshape(len(decisions), -1)


_STRIDE = 8  # hidden units start at multiples of this many decisions, because a decoder computes them in groups
_FIRST = 0.5  # initial deviation of a hidden unit's sum


class AutoregressivePrior(nn.Module):
    """p(z) over the binary decisions d of a code, each given the earlier ones, with s = 2 d - 1 (MADE):

        logit_j = bias_j + direct_j s + output_j clamp(hidden s + hidden_bias, 0, 1)

    Germain et al., arXiv 1502.03509, with one hidden layer, or none, and direct connections. As the rate of
    a training loss it gives the coder's cost: :meth:`quantised` is the coder's network.

    ``code`` has ``latents`` and ``alphabet``. ``bias`` starts as the log-odds of ``nodes``, the probabilities of a
    one in every latent's tree, shape (D, 2**bits - 1), 1/2 by default.
    Decisions from ``joint`` on are independent of all others. With ``joint``, hidden units start at every decision,
    because coding a word's last bits needs its first ones.
    """  # noqa: D400

    def __init__(
        self, code: EncoderConfig | Codes, hidden: int, seed: int = 0, nodes: Tensor | None = None,
        joint: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.latents, self.alphabet = code.latents, code.alphabet
        if nodes is None:
            nodes = torch.full((code.latents, nodes_per_symbol(code.alphabet)), 0.5)
        decisions = code.latents * bits_per_symbol(code.alphabet)
        self.degrees = spread_degrees(decisions, hidden) if joint is None else spread_degrees(joint, hidden, 1)
        joint = decisions if joint is None else joint
        degrees, places = torch.from_numpy(self.degrees).long(), torch.arange(decisions)
        generator = torch.Generator().manual_seed(seed)
        start = _FIRST * torch.randn(hidden, decisions, generator=generator) / degrees[:, None].sqrt()
        self.bias = nn.Parameter(torch.logit(nodes.float(), eps=_LEAST))
        self.direct = nn.Parameter(torch.zeros(decisions, decisions))
        self.hidden = nn.Parameter(start)
        self.hidden_bias = nn.Parameter(torch.full((hidden,), 0.5))
        self.output = nn.Parameter(torch.zeros(decisions, hidden))
        masks = {
            "direct": torch.ones(decisions, decisions).tril(-1) * (places < joint)[:, None],
            "hidden": (places < degrees[:, None]).float(),
            "output": ((degrees <= places[:, None]) & (places < joint)[:, None]).float(),
        }
        for name, mask in masks.items():
            self.register_buffer(f"{name}_mask", mask, persistent=False)
        self.apply_masks()

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Zero the weights from decisions that are not known yet."""
        for name in ("direct", "hidden", "output"):
            getattr(self, name).mul_(self.get_buffer(f"{name}_mask"))

    def masked(self, name: str) -> Tensor:
        """Return a weight with its masked part zero in value and gradient."""
        weight: Tensor = getattr(self, name) * self.get_buffer(f"{name}_mask")
        return weight

    def forward(self, decisions: Tensor) -> Tensor:
        """Return log-odds, shape (B, T), of decisions, float32, shape (B, T)."""
        signs = 2 * decisions - 1
        logits = functional.linear(signs, self.masked("direct"))
        if len(self.degrees):
            u = functional.linear(signs, self.masked("hidden"), self.hidden_bias)
            logits = logits + functional.linear(functional.hardtanh(u, 0, 1), self.masked("output"))
        bias = self.bias[:, 0] if self.alphabet == 2 else self.bias[decision_nodes(decisions, self.alphabet)]
        return logits.float() + bias

    def bits(self, decisions: Tensor) -> Tensor:
        """Return the cost of each decision given the earlier ones, in bits, shape (B, T)."""
        logits = self(decisions)
        nats: Tensor = functional.softplus(logits) - decisions * logits
        return nats / math.log(2)

    @torch.no_grad()
    def quantised(self) -> AutoregressiveModel:
        """Return the integer network for the coder."""
        named = [self.bias, self.masked("direct"), self.masked("hidden"), self.hidden_bias, self.masked("output")]
        bias, direct, hidden, hidden_bias, output = (t.double().cpu().numpy() for t in named)
        return rounded_model(
            self.latents, self.alphabet, bias, direct, degrees=self.degrees, hidden=hidden, hidden_bias=hidden_bias,
            output=output,
        )  # fmt: skip


def spread_degrees(decisions: int, hidden: int, stride: int = _STRIDE) -> NDArray[np.int32]:
    """Return how many decisions each hidden unit sees, spread evenly over multiples of the stride."""
    stride = min(stride, decisions - 1)
    groups = max(1, (decisions - 1) // stride)
    return ((np.arange(hidden) * groups // max(1, hidden) + 1) * stride).astype(np.int32)


_LEAST_SCALE = 0.06  # steps: sigmoid(-0.5 / 0.06) is 1/4096


class Factorised(ABC):
    """A family's p(z) of independent latents; its learned parameters are the encoder's ``prior``.

    Parameters are float32, shape (D, ...), as made by :meth:`initial`.
    """

    def __init__(self, parameters: Tensor, config: EncoderConfig) -> None:
        self.parameters = parameters
        self.alphabet = config.alphabet

    @staticmethod
    @abstractmethod
    def initial(config: EncoderConfig) -> Tensor:
        """Return initial parameters."""

    @abstractmethod
    def log_prob(self) -> Tensor:
        """Return log p of every symbol, in nats, shape (D, K)."""

    @abstractmethod
    def mean(self) -> Tensor:
        """Return the mean in decoder form, for missing latents: shape (D,), or (D, K) for one-hot vectors."""

    def nodes(self) -> Tensor:
        """Return the probability of a one at every node of every latent's tree, shape (D, 2**bits - 1)."""
        return node_probabilities(self.log_prob().exp())

    def numerators(self) -> NDArray[np.int32]:
        """Return the node probabilities for the coder's table, in units of 1/4096, in 1..4095."""
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
    """A logistic density integrated over the quantiser's bins, for Gaussian latents; parameters of shape (D, 2).

    They are the mean and the log of the scale's excess over the least that a table can express, in quantisation
    steps. Its tails are heavier than a Gaussian's, so a rare level costs bits in proportion to its distance, not to
    the square (as in Salimans et al., arXiv 1701.05517). The outermost bins reach to infinity, because the quantiser
    clips.
    """

    @staticmethod
    def initial(config: EncoderConfig) -> Tensor:  # noqa: D102
        scale = max(0.5, config.alphabet / 12)
        return torch.tensor([0.0, math.log(scale)]).repeat(config.latents, 1)

    def log_prob(self) -> Tensor:  # noqa: D102
        mean, scale = self.parameters[:, :1], self.parameters[:, 1:].exp() + _LEAST_SCALE
        edges = torch.arange(1, self.alphabet, device=mean.device) + first_level(self.alphabet) - 0.5
        u = (edges - mean) / scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), without cancellation.
        inner = functional.logsigmoid(u[:, 1:]) + functional.logsigmoid(-u[:, :-1]) + (-(-1 / scale).expm1()).log()
        return torch.cat([functional.logsigmoid(u[:, :1]), inner, functional.logsigmoid(-u[:, -1:])], dim=1)

    def mean(self) -> Tensor:  # noqa: D102
        return self.parameters[:, 0]


FACTORISED: dict[str, type[Factorised]] = {
    "bernoulli": BernoulliPrior,
    "categorical": CategoricalPrior,
    "gaussian": LogisticPrior,
    "residual": BernoulliPrior,
}
"""Factorised priors by the name of the posterior's family."""
