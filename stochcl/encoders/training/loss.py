"""What training on images minimises: agreement of two views, reconstruction of features, and the rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from stochcl.encoders.keyed import from_words
from stochcl.encoders.objectives import OBJECTIVES, Objective, decorrelation
from stochcl.encoders.objectives.following import Follower, momentum
from stochcl.encoders.objectives.reconstruct import relative_error
from stochcl.encoders.posteriors.base import BIT

if TYPE_CHECKING:
    from stochcl.encoders.model import Encoder

DECORRELATION = 0.02
"""gamma: what the covariance term is multiplied by."""

Pair = tuple[Tensor, Tensor]


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
    r"""The loss of one batch, with the heads that are thrown away after training.

    With features f, code z ~ q(z|f), z_k its first k latents, g the decoder, A and A' objectives that compare views
    (:mod:`stochcl.encoders.objectives`), f* the features of the clean image (in evaluation mode, no gradient),

        L = A(f) + A'(g(z)) / 2 + A'(g(z_k)) / 2 + gamma * C(f)
            + |g(z) - f*|^2 / 2|f*|^2 + |g(z_k) - f*|^2 / 2|f*|^2 + beta * E_q[-log2 p(z)]

    The agreement of decoded codes is that of Ramapuram et al. (arXiv 2110.00552, section 3); the
    one of features keeps the backbone learning while codes are still noise. z_k makes the code nested
    (Rippel et al., arXiv 1402.0915). Reconstructing the clean image's features, from the codes of its views
    and from its own, makes the decoded vector worth what the features are worth. It trains latents and decoder
    only, lest the backbone make features that are easy to reconstruct rather than useful; C is the covariance
    term of VICReg, against variance that gathers in few directions, which a squared error counts by their variance
    and a classifier does not. (Both came in together, on ResNet-10 and Tiny-ImageNet: 84 % of the variance in 8 of
    512 directions before, 45 % after further training with both; which of the two did it was not measured.)
    The rate is the posterior's cross-entropy with the prior: what a file pays.

    Where A follows a slow copy (BYOL), the copy is of the whole encoder: its features are the targets of A, what it
    decodes from its own draws of full codes those of A'.

    Its deterministic twin has features where codes stood, and nothing that only codes have:

        L = A(f) + A'(f) + gamma * C(f)

    Parameters
    ----------
    encoder : Encoder
    objective : str
    temperature : float
        Of a contrastive objective.
    estimator : str
        How gradients pass the draw.
    deterministic : bool
        Whether it is the twin's: head, decoder and prior then have no gradient.
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
        self.slow = Follower(encoder) if self.features.follows else None

    def forward(self, views: Tensor, clean: Tensor, noise: Tensor, latents: int, beta: float) -> Losses:
        """Return the terms.

        Parameters
        ----------
        views : Tensor of float, shape (2B, 3, S, S)
            First views of all images, then second views, normalised.
        clean : Tensor of float, shape (C, 3, S', S'), C <= B
            The first C images themselves, normalised.
        noise : Tensor of int32, shape (2B, the posterior's noise)
            Uniform, as words: see :func:`~stochcl.encoders.keyed.as_words`. Or float32 in [0, 1), where nothing
            rounds what goes in.
        latents : int
            k, the prefix that is trained beside the full width.
        beta : float
            Nats that a bit of rate costs.
        """
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
        contrast = _agreement(self.features, features, slow_features)
        contrast_codes = (
            _agreement(self.codes, vectors, slow_vectors) / 2 + _agreement(self.codes, short, slow_vectors) / 2
        )

        c, b = len(clean), len(views) // 2
        rows = torch.cat([features[:c], features[b : b + c], target]).detach()
        symbols = model.posterior(rows).sample(torch.cat([noise[:c], noise[b : b + c], noise[:c]]), self.estimator)
        guesses = torch.stack([model.decode(symbols), model.decode(symbols, latents)])
        # Relative to the target's own power: while the running statistics lag behind the first, large steps,
        # "standardised" features are anything but, and an absolute error drowns the other terms.
        reconstruction = relative_error(guesses, target.repeat(2, 3, 1))

        spread = decorrelation(features)
        rate = posterior.rate(model.prior).sum(1).mean()
        with torch.no_grad():  # looked at only
            kl = posterior.kl(model.prior).sum(1).mean() / BIT
        total = contrast + contrast_codes + DECORRELATION * spread + reconstruction + beta * rate
        terms = (contrast, contrast_codes, spread, reconstruction, rate, kl)
        return Losses(total, *(term.detach() for term in terms))

    def _twin(self, views: Tensor) -> Losses:
        """Return the terms of the twin without latents."""
        self.encoder.train()
        features = self.encoder.features(views)
        slow = None
        if self.slow is not None:
            with torch.no_grad():
                slow = _halves(self.slow.network.features(views))
        contrast, again = (_agreement(objective, features, slow) for objective in (self.features, self.codes))
        spread, zero = decorrelation(features), features.new_zeros(())
        total = contrast + again + DECORRELATION * spread
        return Losses(total, contrast.detach(), again.detach(), spread.detach(), zero, zero, zero)

    @torch.no_grad()
    def _slow(self, views: Tensor, noise: Tensor) -> tuple[Pair | None, Pair | None]:
        """Return what the slow copy makes of first and second views: features, and vectors decoded from codes."""
        if self.slow is None:
            return None, None
        network = self.slow.network
        features = network.features(views)
        vectors = network.decode(network.posterior(features).sample(noise))
        return _halves(features), _halves(vectors)

    def step(self, fraction: float) -> None:
        """Let everything that follows the weights do so, after a step of the optimizer."""
        self.features.step(fraction)
        self.codes.step(fraction)
        if self.slow is not None:
            self.slow.step(self.encoder, momentum(fraction))


def _agreement(objective: Objective, vectors: Tensor, targets: Pair | None) -> Tensor:
    compared: Tensor = objective(*_halves(vectors), targets)
    return compared


def _halves(rows: Tensor) -> Pair:
    first, second = rows.chunk(2)
    return first, second
