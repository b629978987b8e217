"""Posteriors q(z|x) over latents: one interface for all families."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from stochcl.codes import bits_per_symbol
from stochcl.encoders.layout import first_level
from stochcl.encoders.priors import FACTORISED, symbol_bits
from stochcl.errors import UsageError
from stochcl.lazy import cached_property

if TYPE_CHECKING:
    from stochcl.encoders.config import EncoderConfig


__all__ = ["ESTIMATORS", "POSTERIORS", "Bernoulli", "Categorical", "Gaussian", "Posterior"]

ESTIMATORS = ("straight-through", "relaxed")
"""Gradient estimators of discrete draws."""

BIT = math.log(2)
"""Nats in a bit."""


class Posterior(ABC):
    """A distribution q(z|x) over D latents of up to K values, for a batch of B images.

    Contract:

    - A latent's value has two forms. A *symbol* is an integer of 0..K-1, shape (B, D), as stored in files.
      The *decoder form* is the input of :meth:`stochcl.encoders.encoder.Encoder.decode`, floats of shape (B, D), or
      (B, D, K) for one-hot vectors; :meth:`embed` converts symbols to it.
    - :meth:`sample` draws in decoder form and passes gradients to the parameters; :meth:`mode` is the stored symbol.
      All randomness is the caller's: the same noise gives the same draw.
    - A latent may have fewer than K values: the others have no probability and are never drawn.
    - Probabilities are those of symbols in all families, so entropy is never negative and the divergence never
      exceeds the rate. :meth:`log_prob`, :meth:`entropy` and :meth:`kl` are in nats, as in torch.distributions;
      :meth:`rate` is in bits. All have one value per latent, shape (B, D), and add up to the image's.
    - The rate is the expected length of a drawn code under the prior: the cross-entropy of posterior and prior, not
      their divergence, which only bits-back coding would reach.
    - ``parameters`` are the head's output, float, shape (B, family.width(config)); a prior is given by its
      parameters, the encoder's ``prior``, for the family's :class:`~stochcl.encoders.priors.Factorised`.
    """

    def __init__(self, parameters: Tensor, config: EncoderConfig) -> None:
        self.parameters = parameters
        self.config = config

    @staticmethod
    def decoder_scale(config: EncoderConfig) -> float:
        """Return the factor that scales centred numbers in decoder form to about -1..1 or unit variance."""
        return 2.0

    @staticmethod
    def width(config: EncoderConfig) -> int:
        """Return the number of head outputs per image."""
        return config.latents

    @staticmethod
    def noise(config: EncoderConfig) -> int:
        """Return the number of uniform random numbers that a draw needs per image."""
        return config.latents

    @staticmethod
    def initialise(head: nn.Linear, config: EncoderConfig) -> None:
        """Initialise the head's last layer.

        Features of unit variance give log-odds with a deviation of 3, so most latents are decided from the first
        step. With the usual initialisation they are coin tosses (52 of 1,024 bits), through which nothing is learned.
        """
        nn.init.normal_(head.weight, std=3 / head.in_features**0.5)
        nn.init.zeros_(head.bias)

    @abstractmethod
    def sample(self, uniform: Tensor, estimator: str = "straight-through", temperature: float = 1.0) -> Tensor:
        """Draw in decoder form from noise in [0, 1), float32, shape (B, family.noise(config)).

        ``straight-through``: exactly the decoder's later input, with the gradients of the probabilities (Bengio et
        al., arXiv 1308.3432). ``relaxed``: a nearby point with its own gradients, whose nearest symbol is the
        ``straight-through`` draw of the same noise. Towards a temperature of 0 it becomes hard and its gradients
        noisy.
        """

    @abstractmethod
    def mode(self) -> Tensor:
        """Return the symbols to store, shape (B, D), uint8, or int32 if K > 256."""

    def tempered(self, temperature: float) -> Posterior:
        """Return a posterior with the same mode, less certain if the temperature is above 1.

        It divides log-odds and logits, and multiplies the deviation of a Gaussian latent.
        """
        return type(self)(self.parameters / temperature, self.config)

    @staticmethod
    def embed(symbols: Tensor, config: EncoderConfig) -> Tensor:
        """Convert symbols, integers of shape (B, D), to decoder form, float32."""
        return symbols.float()

    @abstractmethod
    def symbols(self, draw: Tensor) -> Tensor:
        """Return the nearest symbols, int64, shape (B, D), of a draw in decoder form."""

    @abstractmethod
    def decisions(self, draw: Tensor) -> Tensor:
        """Return the binary decisions of a draw, float32, shape (B, T), T = D * ceil(log2 K).

        For :meth:`stochcl.encoders.priors.AutoregressivePrior.bits`. A hard draw gives hard decisions; each family
        documents their gradients.
        """

    @property
    def log_q(self) -> Tensor:
        """Log q of every symbol, in nats, shape (B, D, K)."""
        raise NotImplementedError

    def log_prob(self, symbols: Tensor) -> Tensor:
        """Return log q(symbols | x) of each latent, in nats, shape (B, D)."""
        return self.log_q.gather(2, symbols.long()[:, :, None])[:, :, 0]

    def entropy(self) -> Tensor:
        """Return the entropy of each latent, in nats, shape (B, D)."""
        return -(self.log_q.exp() * self.log_q).sum(2)

    def rate(self, prior: Tensor) -> Tensor:
        """Return the cross-entropy with the prior of each latent, in bits, shape (B, D)."""
        return -(self.log_q.exp() * self._log_p(prior)).sum(2) / BIT

    def kl(self, prior: Tensor) -> Tensor:
        """Return the divergence KL(q||p) of each latent, in nats, shape (B, D)."""
        return (self.log_q.exp() * (self.log_q - self._log_p(prior))).sum(2)

    def _log_p(self, prior: Tensor) -> Tensor:
        return FACTORISED[self.config.posterior](prior, self.config).log_prob()

    def _check(self, estimator: str, temperature: float) -> None:
        if estimator not in ESTIMATORS:
            raise UsageError(f"there is no estimator {estimator!r}; there are {', '.join(ESTIMATORS)}.")
        if not 0 < temperature < math.inf:
            raise UsageError(f"a temperature is more than 0, and finite, not {temperature}.")


def symbol_type(alphabet: int) -> torch.dtype:
    """Return the type of symbols: uint8, or int32 if K > 256."""
    return torch.uint8 if alphabet <= 256 else torch.int32


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return ``hard`` exactly, with the gradient of ``soft``."""
    # In this order the sum is exactly ``hard``: (1 + p) - p is off by a rounding for some p.
    return hard + (soft - soft.detach())


def inside(uniform: Tensor) -> Tensor:
    """Clamp uniform noise of [0, 1) to (0, 1), so that its logarithms are finite."""
    return uniform.clamp(2.0**-25, 1 - 2.0**-24)


_MOST = 5.0  # bound of a log deviation: 1/148 to 148 steps
_TINY = 1e-6  # smallest divisor of a probability
_FAR = 1e12  # deviations: beyond the outermost edges


class Gaussian(Posterior):
    """D independent normal distributions, in units of the quantiser's step.

    The parameters, shape (B, 2 D), are D means, then D log deviations. The decoder form is the number itself, shape
    (B, D). Its symbol is ``clip(round(number - offset), 0, K - 1)`` with the offset
    :func:`~stochcl.encoders.priors.first_level`, so that 0 is the middle of a bin. A symbol's probability is the
    normal density integrated over its bin; the outermost bins reach to infinity. For bins that are narrow relative to
    the deviation, entropy and divergence approach those of the densities (Cover and Thomas, Elements of Information
    Theory, section 8.3).

    A ``relaxed`` draw is the reparameterised number (Kingma and Welling, arXiv 1312.6114), at any temperature; a
    ``straight-through`` draw is that number quantised, with the same gradient unless the quantiser clips it, and then
    none.
    """

    def __init__(self, parameters: Tensor, config: EncoderConfig) -> None:
        super().__init__(parameters, config)
        self.mean, log_deviation = parameters.chunk(2, dim=1)
        self.deviation = log_deviation.clamp(-_MOST, _MOST).exp()
        self.offset = first_level(config.alphabet)

    @staticmethod
    def decoder_scale(config: EncoderConfig) -> float:  # noqa: D102
        return 8 / config.alphabet

    @staticmethod
    def width(config: EncoderConfig) -> int:  # noqa: D102
        return 2 * config.latents

    @staticmethod
    def initialise(head: nn.Linear, config: EncoderConfig) -> None:
        """Let the means fill the quantiser's range, four deviations on each side, with deviations of half a step."""
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
        return straight_through(self.embed(self.symbols(number), self.config), number.clamp(self.offset, last))

    def mode(self) -> Tensor:  # noqa: D102
        return self.symbols(self.mean).to(symbol_type(self.config.alphabet))

    def tempered(self, temperature: float) -> Gaussian:  # noqa: D102
        log_deviation = self.parameters[:, self.config.latents :] + math.log(temperature)
        return Gaussian(torch.cat([self.mean, log_deviation], dim=1), self.config)

    @staticmethod
    def embed(symbols: Tensor, config: EncoderConfig) -> Tensor:  # noqa: D102
        return symbols.float() + first_level(config.alphabet)

    def symbols(self, draw: Tensor) -> Tensor:  # noqa: D102
        return (draw.detach() - self.offset).round().clamp(0, self.config.alphabet - 1).long()

    @cached_property
    def log_q(self) -> Tensor:  # noqa: D102
        k = self.config.alphabet
        edges = torch.arange(1, k, device=self.mean.device) + self.offset - 0.5
        inner = (edges - self.mean[:, :, None]) / self.deviation[:, :, None]
        beyond = torch.full_like(inner[:, :, :1], _FAR)
        return _log_between(torch.cat([-beyond, inner], dim=2), torch.cat([inner, beyond], dim=2))

    def decisions(self, draw: Tensor) -> Tensor:
        """Return the bits of the symbols; their gradients are those of the bits' probabilities at their nodes.

        That is, of each bit given the earlier bits of its symbol. The gradient of the bits' cost is then that of a
        decision's expected cost, without the effect of reaching another node.
        """
        k = self.config.alphabet
        count = bits_per_symbol(k)
        symbols = self.symbols(draw)
        # A node is an interval of symbols that each bit halves: one value of the distribution function per bit,
        # instead of the K probabilities of log_q.
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
        # Only of these symbols: all K of each latent take K / 2 times as long.
        edge = (symbols + (self.offset - 0.5) - self.mean) / self.deviation
        beyond = torch.full_like(edge, _FAR)
        lower = torch.where(symbols == 0, -beyond, edge)
        return _log_between(
            lower, torch.where(symbols == self.config.alphabet - 1, beyond, edge + 1 / self.deviation)
        )


def _log_between(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the log of the standard normal's probability between two numbers."""
    # Computed from the nearer tail: far above the mean, the distribution functions are all 1.
    above = lower + upper > 0
    lower, upper = torch.where(above, -upper, lower), torch.where(above, -lower, upper)
    below, up_to = _log_distribution(lower), _log_distribution(upper)
    between: Tensor = up_to + (-(below - up_to).clamp(max=-1e-6).expm1()).log()
    return between


def _log_distribution(x: Tensor) -> Tensor:
    """Return the log of the standard normal's distribution function.

    The gradient of torch's log_ndtr is rounding noise beyond a few hundred deviations.
    """
    negative, positive = x.clamp(max=0), x.clamp(min=0)
    left = torch.special.erfcx(negative * -(0.5**0.5)).log() - math.log(2) - negative.square() / 2
    return torch.where(x < 0, left, (-torch.erfc(positive * 0.5**0.5) / 2).log1p())


class Bernoulli(Posterior):
    """D independent bits; the parameters, shape (B, D), are log-odds of a one.

    Relaxed draws in 0..1 follow the binary concrete distribution (Maddison et al., arXiv 1611.00712, section 3.3).
    """

    def sample(self, uniform: Tensor, estimator: str = "straight-through", temperature: float = 1.0) -> Tensor:  # noqa: D102
        self._check(estimator, temperature)
        if estimator == "relaxed":
            return torch.sigmoid((self.parameters - torch.logit(inside(uniform))) / temperature)
        probability = torch.sigmoid(self.parameters)
        return straight_through((uniform < probability).to(probability.dtype), probability)

    def mode(self) -> Tensor:  # noqa: D102
        return (self.parameters > 0).to(torch.uint8)

    def symbols(self, draw: Tensor) -> Tensor:  # noqa: D102
        return (draw.detach() > 0.5).long()

    def decisions(self, draw: Tensor) -> Tensor:
        """Return the draw: each bit is one decision."""
        return draw

    def log_prob(self, symbols: Tensor) -> Tensor:  # noqa: D102
        symbols = symbols.to(self.parameters.dtype)
        return -functional.binary_cross_entropy_with_logits(self.parameters, symbols, reduction="none")

    def entropy(self) -> Tensor:  # noqa: D102
        return self.rate(self.parameters) * BIT

    def rate(self, prior: Tensor) -> Tensor:  # noqa: D102
        probability = torch.sigmoid(self.parameters)
        return (functional.softplus(prior) - probability * prior) / BIT

    def kl(self, prior: Tensor) -> Tensor:  # noqa: D102
        return self.rate(prior) * BIT - self.entropy()


class Categorical(Posterior):
    """D independent symbols of 0..K-1; the parameters, shape (B, D * K), are their logits, latent by latent.

    The decoder form is one-hot, shape (B, D, K). Draws are Gumbel-max, relaxed ones Gumbel-softmax (Jang et al.,
    arXiv 1611.01144; Maddison et al., arXiv 1611.00712), points of the simplex.
    """

    def __init__(self, parameters: Tensor, config: EncoderConfig) -> None:
        super().__init__(parameters, config)
        self.logits = parameters.reshape(len(parameters), config.latents, config.alphabet)

    @cached_property
    def log_q(self) -> Tensor:  # noqa: D102
        return torch.log_softmax(self.logits, dim=2)

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
        return straight_through(self.embed(perturbed.argmax(dim=2), self.config), self.log_q.exp())

    def mode(self) -> Tensor:  # noqa: D102
        return self.logits.argmax(dim=2).to(symbol_type(self.config.alphabet))

    @staticmethod
    def embed(symbols: Tensor, config: EncoderConfig) -> Tensor:  # noqa: D102
        return functional.one_hot(symbols.long(), config.alphabet).float()

    def symbols(self, draw: Tensor) -> Tensor:  # noqa: D102
        return draw.detach().argmax(dim=2)

    def decisions(self, draw: Tensor) -> Tensor:
        """Return the bits of the symbols, a linear function of one-hot vectors with the draw's gradients.

        With a straight-through draw, a decision's gradient is that of its probability over all symbols.
        """
        return (draw @ symbol_bits(self.config.alphabet, draw.device).to(draw.dtype)).reshape(len(draw), -1)


POSTERIORS: dict[str, type[Posterior]] = {"bernoulli": Bernoulli, "categorical": Categorical, "gaussian": Gaussian}
"""Families trained by gradients, by their name in a model file; residual latents are fitted instead."""
