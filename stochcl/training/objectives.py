"""Objectives: losses that compare two views of the same inputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from stochcl.encoders.posteriors import BIT
from stochcl.training.augment import from_words
from stochcl.training.runtime import all_gather, all_reduce_mean, global_mean

if TYPE_CHECKING:
    from stochcl.encoders.encoder import Encoder


class Objective(nn.Module, ABC):
    """A comparison of two views of the same inputs; its own heads are discarded after training.

    ``objective(first, second)`` compares two matrices of vectors of about unit variance, row by row, and returns a
    scalar to minimise, of the order of 1 to 10, so that objectives are interchangeable beside other terms. Averaged
    over processes, value and gradients are those of the joint batch. :meth:`step` is called after every optimizer
    step.
    """

    needs_momentum: ClassVar[bool] = False
    """Whether ``targets`` are the outputs of a :class:`MomentumEncoder`, which training then maintains."""

    def __init__(self, features: int, temperature: float = 0.2) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Compare vectors, float, shape (B, V), row i of one with row i of the other.

        ``targets`` are a momentum encoder's outputs for the two views; the vectors themselves are the default.
        """

    def step(self, fraction: float) -> None:
        """Update momentum heads after a step, at ``fraction`` of the training."""


def projector(features: int, width: int, *, last: bool = True) -> nn.Sequential:
    """Return a two-layer head from V features to the P compared numbers (SimCLR, section 4.2)."""
    layers: list[nn.Module] = [
        nn.Linear(features, features, bias=False),
        nn.BatchNorm1d(features),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, nn.Linear(features, width, bias=last))


class Reconstruct(Objective):
    r"""The squared error of each vector as a prediction of the other, relative to the other's power; no head.

        L = (|a - b'|^2 / |b'|^2 + |b - a'|^2 / |a'|^2) / 2,   ' without gradient

    Against frozen features (one of the two has no gradient) this is reconstruction, which keeps distances, whereas
    the other objectives keep what distinguishes inputs. Nothing in it separates different inputs: if both views'
    network is trained, it needs a normalisation that fixes the vectors' variance, and a decorrelation term.
    """

    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:  # noqa: D102
        return (relative_error(first, second.detach()) + relative_error(second, first.detach())) / 2


def relative_error(guesses: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error, relative to the power of the truth over all processes; shapes (..., B, V)."""
    power = all_reduce_mean(global_mean(truth.float().square()))
    return global_mean((guesses.float() - truth.float()).square()) / power.clamp(min=1e-6)


MOMENTUM = 0.95
"""tau at the start: the copy is about twenty steps behind.

The paper's 0.996 is for a hundred thousand steps and more. In 165 steps on 1,497 digits, a linear probe of the codes
scored 76.9 % with 0.99 and 86.6 % with 0.95 (one run each).
"""

Network = TypeVar("Network", bound=nn.Module)


def momentum(fraction: float, base: float = MOMENTUM) -> float:
    """Return tau of BYOL, which rises from ``base`` to 1 (Grill et al., arXiv 2006.07733, section 3.2).

    Examples
    --------
    >>> [round(momentum(fraction), 4) for fraction in (0, 0.5, 1)]
    [0.95, 0.975, 1.0]
    """
    return 1 - (1 - base) * (math.cos(math.pi * min(1.0, fraction)) + 1) / 2


class MomentumEncoder(nn.Module, Generic[Network]):
    """A slow copy of a network, ``network``: a moving average of its weights, without gradients.

    In training mode its normalisations use batch statistics, like the network's.
    """

    network: Network

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def step(self, network: Network, keep: float) -> None:
        """Move towards the network: keep the share ``keep`` of the copy's weights."""
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - keep)


class BYOL(Objective):
    r"""The objective of Grill et al. (arXiv 2006.07733, equation 2), without negatives.

    With v, v' the vectors of two views, h the projector, q the predictor, and t' the other view's output of a slow
    copy of the network, projected by a slow copy of h:

        L = mean of |q(h v)/|q(h v)| - t'/|t'||^2,   over both views; 0 to 4.

    If the modules before the vectors (backbone, head, decoder) are trained, they have a slow copy whose vectors are
    the ``targets``. Otherwise, as with frozen features, the vectors are their own targets.
    """

    needs_momentum = True

    def __init__(self, features: int, temperature: float = 0.2, width: int = 128) -> None:
        super().__init__(features, temperature)
        self.head = projector(features, width)
        self.predictor = projector(width, width)
        self.slow_head = MomentumEncoder(self.head)

    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:  # noqa: D102
        guesses = self.predictor(self.head(torch.cat([first, second])))
        with torch.no_grad():
            a, b = self.slow_head.network(torch.cat(targets or (first, second))).chunk(2)
        likeness = functional.cosine_similarity(guesses.float(), torch.cat([b, a]).float(), dim=1)
        return 2 - 2 * likeness.mean()

    def step(self, fraction: float) -> None:
        """Update the momentum projector."""
        self.slow_head.step(self.head, momentum(fraction))


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the normalised, temperature-scaled cross-entropy (Chen et al., arXiv 2002.05709, equation 1)."""
    a, b = all_gather(a.float()), all_gather(b.float())
    n = len(a)
    z = functional.normalize(torch.cat([a, b]), dim=1)
    with torch.autocast(z.device.type, enabled=False):  # it would compute the product in bfloat16, off by 0.01 nats
        similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return functional.cross_entropy(similarity, partner)


class NTXent(Objective):
    """SimCLR's objective: :func:`nt_xent` of projections, in nats."""

    def __init__(self, features: int, temperature: float = 0.2, width: int = 128) -> None:
        super().__init__(features, temperature)
        self.temperature = temperature
        self.head = projector(features, width)

    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:  # noqa: D102
        a, b = self.head(torch.cat([first, second])).chunk(2)
        return nt_xent(a, b, self.temperature)


INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0
"""lambda, mu and nu of the paper (section 4.2)."""

SCALE = 1 / 10
"""The factor of the total, which makes it as large as a cross-entropy in nats."""


def decorrelation(features: Tensor) -> Tensor:
    """Return the covariance term of VICReg (Bardes et al., arXiv 2105.04906, equation 3)."""
    features = all_gather(features)
    n, width = features.shape
    correlation = features.T @ features / n
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / width


def vicreg(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the loss of VICReg (equations 1 to 6), unscaled.

    With v the mean over dimensions of max(0, 1 - deviation), c the sum of squared covariances of different
    dimensions, divided by P,

        L = 25 mean|a - b|^2  +  25 (v(a) + v(b)) / 2  +  c(a) + c(b)

    (the half is from the authors' program). Statistics cover the rows of all processes.
    """
    a, b = all_gather(a.float()), all_gather(b.float())
    with torch.autocast(a.device.type, enabled=False):
        loss = INVARIANCE * functional.mse_loss(a, b)
        for z in (a, b):
            centred = z - z.mean(0)
            covariance = centred.T @ centred / (len(z) - 1)
            deviation = (covariance.diagonal() + 1e-4).sqrt()
            different = covariance.square().sum() - covariance.diagonal().square().sum()
            loss = loss + VARIANCE * (1 - deviation).relu().mean() / 2 + COVARIANCE * different / z.shape[1]
    return loss


class VICReg(Objective):
    """A tenth of :func:`vicreg` of projections."""

    def __init__(self, features: int, temperature: float = 0.2, width: int = 512) -> None:
        super().__init__(features, temperature)
        self.head = projector(features, width, last=False)

    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:  # noqa: D102
        a, b = self.head(torch.cat([first, second])).chunk(2)
        return SCALE * vicreg(a, b)


OBJECTIVES: dict[str, type[Objective]] = {
    "nt-xent": NTXent, "byol": BYOL, "vicreg": VICReg, "reconstruct": Reconstruct,
}  # fmt: skip
"""Objectives by name."""


DECORRELATION = 0.02
"""gamma: the weight of the covariance term."""


class Losses(NamedTuple):
    """One step's terms: agreements and the total in nats, the next two mean squares, rates in bits."""

    total: Tensor
    contrast: Tensor
    contrast_codes: Tensor
    decorrelation: Tensor
    reconstruction: Tensor
    rate: Tensor
    kl: Tensor


class StochasticContrastive(nn.Module):
    r"""The loss of one batch, with heads that are discarded after training.

    With features f, code z ~ q(z|f), z_k its first k latents, g the decoder, A and A' objectives that compare views
    (:mod:`stochcl.training.objectives`), f* the features of the clean image (in evaluation mode, no gradient),

        L = A(f) + A'(g(z)) / 2 + A'(g(z_k)) / 2 + gamma * C(f)
            + |g(z) - f*|^2 / 2|f*|^2 + |g(z_k) - f*|^2 / 2|f*|^2 + beta * E_q[-log2 p(z)]

    The agreement of decoded codes follows Ramapuram et al. (arXiv 2110.00552, section 3); that of features keeps the
    backbone learning while codes are still noise. z_k makes the code nested (Rippel et al., arXiv 1402.0915).
    Reconstructing the clean image's features from the codes of its views and its own makes decoded vectors as useful
    as the features. It trains only latents and decoder, so that the backbone does not make features that are easy to
    reconstruct rather than useful; C is the covariance term of VICReg, against variance in few directions. The rate
    is the posterior's cross-entropy with the prior: the cost in a file.

    If A follows a slow copy (BYOL), it is a copy of the whole encoder: its features are the targets of A, the vectors
    decoded from its own full draws those of A'.

    Its deterministic twin uses features in place of codes, and has no terms of codes:

        L = A(f) + A'(f) + gamma * C(f)

    A deterministic twin's head, decoder and prior have no gradient.
    """

    def __init__(
        self, encoder: Encoder, objective: str = "nt-xent", *, temperature: float = 0.2,
        estimator: str = "straight-through", deterministic: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.estimator, self.deterministic = encoder, estimator, deterministic
        if deterministic:
            for name, parameter in encoder.named_parameters():
                parameter.requires_grad_(name.startswith("backbone."))
        self.features, self.codes = (OBJECTIVES[objective](encoder.feature_dim, temperature) for _ in range(2))
        self.slow = MomentumEncoder(encoder) if self.features.needs_momentum else None

    def forward(self, views: Tensor, clean: Tensor, noise: Tensor, latents: int, beta: float) -> Losses:
        """Return the terms."""
        model = self.encoder
        if self.deterministic:
            return self._twin(views)
        if not noise.is_floating_point():
            noise = from_words(noise)
        model.eval()
        with torch.no_grad():
            target = model.features(clean)
        model.train()

        features = model.features(views)
        posterior = model.posterior(features)
        symbols = posterior.sample(noise, self.estimator)
        vectors, short = model.decode(symbols), model.decode(symbols, latents)

        slow_features, slow_vectors = self._slow(views, noise)
        contrast = self.features(*features.chunk(2), slow_features)
        contrast_codes = sum(self.codes(*decoded.chunk(2), slow_vectors) for decoded in (vectors, short)) / 2

        c, b = len(clean), len(views) // 2
        rows = torch.cat([features[:c], features[b : b + c], target]).detach()
        symbols = model.posterior(rows).sample(torch.cat([noise[:c], noise[b : b + c], noise[:c]]), self.estimator)
        guesses = torch.stack([model.decode(symbols), model.decode(symbols, latents)])
        # Relative to the target's own power: while running statistics lag behind the first, large steps, the
        # "standardised" features are not standardised, and an absolute error would drown the other terms.
        reconstruction = relative_error(guesses, target.repeat(2, 3, 1))

        spread = decorrelation(features)
        rate = posterior.rate(model.prior).sum(1).mean()
        with torch.no_grad():  # only for display
            kl = posterior.kl(model.prior).sum(1).mean() / BIT
        total = contrast + contrast_codes + DECORRELATION * spread + reconstruction + beta * rate
        terms = (contrast, contrast_codes, spread, reconstruction, rate, kl)
        return Losses(total, *(term.detach() for term in terms))

    def _twin(self, views: Tensor) -> Losses:
        self.encoder.train()
        features = self.encoder.features(views)
        slow = None
        if self.slow is not None:
            with torch.no_grad():
                slow = self.slow.network.features(views).chunk(2)
        contrast, again = (objective(*features.chunk(2), slow) for objective in (self.features, self.codes))
        spread, zero = decorrelation(features), features.new_zeros(())
        total = contrast + again + DECORRELATION * spread
        return Losses(total, contrast.detach(), again.detach(), spread.detach(), zero, zero, zero)

    @torch.no_grad()
    def _slow(self, views: Tensor, noise: Tensor) -> tuple[Any, Any]:
        """Return the slow copy's features of both views, and its vectors decoded from codes."""
        if self.slow is None:
            return None, None
        network = self.slow.network
        features = network.features(views)
        vectors = network.decode(network.posterior(features).sample(noise))
        return features.chunk(2), vectors.chunk(2)

    def step(self, fraction: float) -> None:
        """Update momentum encoders after an optimizer step."""
        self.features.step(fraction)
        self.codes.step(fraction)
        if self.slow is not None:
            self.slow.step(self.encoder, momentum(fraction))
