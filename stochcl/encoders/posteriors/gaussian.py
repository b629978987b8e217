"""Gaussian latents: real numbers, which a scalar quantiser makes symbols of."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from stochcl.codes import bits_per_symbol
from stochcl.encoders.posteriors.base import BIT, Posterior, inside, straight_through, symbol_type
from stochcl.encoders.priors import LogisticPrior, first_level

if TYPE_CHECKING:
    from torch import Tensor

    from stochcl.encoders.model import EncoderConfig

_MOST = 5.0  # of a log deviation, either way: 1/148 to 148 steps
_TINY = 1e-6  # a probability that is not divided by
_FAR = 1e12  # deviations: beyond the outermost edges


class Gaussian(Posterior):
    """D independent normal distributions, in units of the quantiser's step.

    The parameters, shape (B, 2 D), are the D means and then the D logarithms of deviations. The decoder form is the
    number itself, shape (B, D). Its symbol is ``clip(round(number - offset), 0, K - 1)`` with the offset
    :func:`~stochcl.encoders.priors.first_level`, so that 0 is the middle of a bin; probabilities are those of
    symbols: the normal density integrated over their bins, the outermost of which reach to infinity. As bins narrow
    beside the deviation, entropy and divergence become those of the densities (Cover and Thomas, Elements of
    Information Theory, section 8.3).

    A ``relaxed`` draw is the reparameterised number (Kingma and Welling, arXiv 1312.6114), whatever the temperature;
    a ``straight-through`` draw is that number quantised, as the decoder will see it, with the same gradient where
    the quantiser does not clip, and none where it does.
    """

    def __init__(self, parameters: Tensor, config: EncoderConfig) -> None:
        super().__init__(parameters, config)
        self.mean, log_deviation = parameters.chunk(2, dim=1)
        self.deviation = log_deviation.clamp(-_MOST, _MOST).exp()
        self.offset = first_level(config.alphabet)

    @staticmethod
    def width(config: EncoderConfig) -> int:  # noqa: D102
        return 2 * config.latents

    @staticmethod
    def noise(config: EncoderConfig) -> int:  # noqa: D102
        return config.latents

    @staticmethod
    def initialise(head: nn.Linear, config: EncoderConfig) -> None:
        """Let the means fill the quantiser's range, four deviations either way, with deviations of half a step."""
        mean, log_deviation = head.weight.chunk(2)
        nn.init.normal_(mean, std=config.alphabet / 8 / head.in_features**0.5)
        nn.init.normal_(log_deviation, std=0.1 / head.in_features**0.5)
        nn.init.zeros_(head.bias)
        nn.init.constant_(head.bias[config.latents :], math.log(0.5))

    def sample(self, uniform: Tensor, estimator: str = "straight-through", temperature: float = 1.0) -> Tensor:  # noqa: D102
        self._check(estimator, temperature)
        number: Tensor = self.mean + self.deviation * torch.special.ndtri(inside(uniform))
        if estimator == "relaxed":
            return number
        last = self.offset + self.config.alphabet - 1
        return straight_through(self.embed(self.symbols(number)), number.clamp(self.offset, last))

    def mode(self) -> Tensor:  # noqa: D102
        return self.symbols(self.mean).to(symbol_type(self.config.alphabet))

    def tempered(self, temperature: float) -> Gaussian:  # noqa: D102
        log_deviation = self.parameters[:, self.config.latents :] + math.log(temperature)
        return Gaussian(torch.cat([self.mean, log_deviation], dim=1), self.config)

    def embed(self, symbols: Tensor) -> Tensor:  # noqa: D102
        return symbols.float() + self.offset

    def symbols(self, draw: Tensor) -> Tensor:  # noqa: D102
        return (draw.detach() - self.offset).round().clamp(0, self.config.alphabet - 1).long()

    @cached_property
    def log_q(self) -> Tensor:
        """Log q of every symbol, in nats, shape (B, D, K)."""
        k = self.config.alphabet
        edges = torch.arange(1, k, device=self.mean.device) + self.offset - 0.5
        inner = (edges - self.mean[:, :, None]) / self.deviation[:, :, None]
        beyond = torch.full_like(inner[:, :, :1], _FAR)
        return _log_between(torch.cat([-beyond, inner], dim=2), torch.cat([inner, beyond], dim=2))

    def decisions(self, draw: Tensor) -> Tensor:
        """Return the bits of the symbols; gradients are those of the bits' probabilities at their nodes.

        That is, of each bit given those before it in its symbol: with it, the gradient of what bits cost is that of
        the expected cost of a decision, but not of where in the tree it is taken.
        """
        k = self.config.alphabet
        count = bits_per_symbol(k)
        symbols = self.symbols(draw)
        # A node is an interval of symbols, and each bit halves it: one value of the distribution function a bit,
        # where the probabilities of all symbols (log_q) would be K.
        begin, lower, upper = torch.zeros_like(symbols), torch.zeros_like(self.mean), torch.ones_like(self.mean)
        hard, soft = [], []
        for level in range(count - 1, -1, -1):
            middle = begin + (1 << level)
            edge = (middle + self.offset - 0.5 - self.mean) / self.deviation
            below = torch.where(middle < k, torch.special.ndtr(edge), 1.0)
            one = symbols >= middle
            soft.append((upper - below) / (upper - lower).clamp(min=_TINY))
            hard.append(one.to(draw.dtype))
            begin = torch.where(one, middle, begin)
            lower, upper = torch.where(one, below, lower), torch.where(one, upper, below)
        return straight_through(torch.stack(hard, dim=2), torch.stack(soft, dim=2)).flatten(1)

    def log_prob(self, symbols: Tensor) -> Tensor:  # noqa: D102
        # Of these symbols alone: all K of each latent take K / 2 times as long.
        edge = (symbols + (self.offset - 0.5) - self.mean) / self.deviation
        beyond = torch.full_like(edge, _FAR)
        lower = torch.where(symbols == 0, -beyond, edge)
        return _log_between(
            lower, torch.where(symbols == self.config.alphabet - 1, beyond, edge + 1 / self.deviation)
        )

    def entropy(self) -> Tensor:  # noqa: D102
        return -(self.log_q.exp() * self.log_q).sum(2)

    def rate(self, prior: Tensor) -> Tensor:  # noqa: D102
        return -(self.log_q.exp() * LogisticPrior(prior, self.config).log_prob()).sum(2) / BIT

    def kl(self, prior: Tensor) -> Tensor:  # noqa: D102
        return (self.log_q.exp() * (self.log_q - LogisticPrior(prior, self.config).log_prob())).sum(2)


def _log_between(lower: Tensor, upper: Tensor) -> Tensor:
    """Return log of the standard normal's probability between two numbers."""
    # Both from the tail that is nearer: far above the mean, the distribution functions are all 1.
    above = lower + upper > 0
    lower, upper = torch.where(above, -upper, lower), torch.where(above, -lower, upper)
    below, up_to = _log_distribution(lower), _log_distribution(upper)
    between: Tensor = up_to + (-(below - up_to).clamp(max=-1e-6).expm1()).log()
    return between


def _log_distribution(x: Tensor) -> Tensor:
    """Return log of the standard normal's distribution function.

    The gradient of torch's own, log_ndtr, is rounding noise beyond a few hundred deviations.
    """
    negative, positive = x.clamp(max=0), x.clamp(min=0)
    left = torch.special.erfcx(negative * -(0.5**0.5)).log() - math.log(2) - negative.square() / 2
    return torch.where(x < 0, left, (-torch.erfc(positive * 0.5**0.5) / 2).log1p())
