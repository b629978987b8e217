"""What fine-tuning minimises: the cross-entropy of a classifier on decoded codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from stochcl.encoders.devices import to_device
from stochcl.encoders.posteriors import POSTERIORS

if TYPE_CHECKING:
    from torch import Tensor

    from stochcl.encoders.model import Encoder
    from stochcl.encoders.posteriors import Posterior


@dataclass(frozen=True)
class Losses:
    """One step's terms: the total and cross-entropies in nats, the rate in bits per image."""

    total: Tensor
    classification: Tensor
    nested: Tensor
    rate: Tensor


def soft_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return smoothed labels (Szegedy et al., arXiv 1512.00567, section 7), float32, shape (B, C)."""
    hard = functional.one_hot(labels, classes).float()
    return hard * (1 - smoothing) + smoothing / classes


def mixup(views: Tensor, targets: Tensor, alpha: float, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Mix each view, and its target, with those of the next row (Zhang et al., arXiv 1710.09412).

    Rows stand in a random order already. Each has a weight of its own from Beta(alpha, alpha), of which the larger
    part is the row's own.

    Parameters
    ----------
    views : Tensor of float, shape (B, 3, S, S)
    targets : Tensor of float, shape (B, C)
    alpha : float
        0 mixes nothing.
    seed : list of int
        What the weights are drawn from.
    """
    if not alpha:
        return views, targets
    drawn = np.random.default_rng(seed).beta(alpha, alpha, len(views)).astype(np.float32)
    weight = to_device(torch.from_numpy(np.maximum(drawn, 1 - drawn)), views.device)
    mixed = torch.lerp(views.roll(-1, 0), views, weight.view(-1, 1, 1, 1).to(views.dtype))
    return mixed, torch.lerp(targets.roll(-1, 0), targets, weight[:, None])


def classification(
    encoder: Encoder, views: Tensor, targets: Tensor, noise: Tensor, *, latents: int, nested: float, beta: float
) -> Losses:
    r"""Return the loss of one batch.

    With the code z ~ q(z|x), z_k its first k latents, g the decoder, W the classifier, t the soft target,

        L = H(t, softmax(W g(z))) + nested * H(t, softmax(W g(z_k))) + beta * E_q[-log2 p(z)] + E[-log p(z)]

    The classifier reads the decoded vector: what a reader of a file has, whatever the family of the latents, and for
    every prefix of a code. z is sampled here (Ramapuram et al., arXiv 2110.00552, section 3), and hard at test. The
    last term has no gradient but the prior's: the prior follows the codes, as missing latents count as its mean.

    Parameters
    ----------
    views : Tensor of float, shape (B, 3, S, S)
        Normalised.
    targets : Tensor of float, shape (B, C)
    noise : Tensor of float, shape (B, family.noise(config))
        Uniform in [0, 1).
    latents : int
        k.
    nested, beta : float
    """
    posterior = encoder.posterior(encoder.features(views))
    draw = posterior.sample(noise)
    cross_entropy = functional.cross_entropy(_logits(encoder, draw, None), targets)
    short = (
        functional.cross_entropy(_logits(encoder, draw, latents), targets) if nested else cross_entropy.new_zeros(())
    )
    rate = posterior.rate(encoder.prior.detach()).sum(1).mean()
    return Losses(
        total=cross_entropy + nested * short + beta * rate + _prior_fit(encoder, posterior),
        classification=cross_entropy.detach(),
        nested=short.detach(),
        rate=rate.detach(),
    )


def deterministic_classification(encoder: Encoder, views: Tensor, targets: Tensor) -> Losses:
    """Return the loss of the deterministic twin: the classifier reads the features themselves."""
    logits = encoder.classify(encoder.features(views))
    cross_entropy = functional.cross_entropy(logits, targets)
    zero = cross_entropy.new_zeros(())
    return Losses(total=cross_entropy, classification=cross_entropy.detach(), nested=zero, rate=zero)


def _logits(encoder: Encoder, draw: Tensor, latents: int | None) -> Tensor:
    return encoder.classify(encoder.decode(draw, latents))


def _prior_fit(encoder: Encoder, posterior: Posterior) -> Tensor:
    """Return what the codes cost under the prior, in nats, less their gradient."""
    still = POSTERIORS[encoder.config.posterior](posterior.parameters.detach(), encoder.config)
    nats = still.rate(encoder.prior).sum(1).mean() * float(np.log(2))
    # Its value is of no interest beside a cross-entropy, and a thousand times as large.
    return nats - nats.detach()
