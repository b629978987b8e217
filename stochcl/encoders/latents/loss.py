"""What the latent stage minimises, on features that stand still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from stochcl.encoders.latents.metric import Metric
    from stochcl.encoders.model import Encoder
    from stochcl.encoders.priors import AutoregressivePrior

_BESIDE = 0.01  # of its nats: whatever it is, AdamW moves a prior that nothing else pulls at by its learning rate


@dataclass(frozen=True)
class LatentLosses:
    """One step's terms: the total and the agreement in nats, relative squared errors, the rate in bits."""

    total: Tensor
    reconstruction: Tensor
    agreement: Tensor
    rate: Tensor


def latent_loss(
    encoder: Encoder,
    prior: AutoregressivePrior | None,
    agree: Callable[[Tensor, Tensor], Tensor] | None,
    metric: Metric,
    views: Tensor,
    targets: Tensor,
    noise: Tensor,
    *,
    latents: int | None,
    beta: float,
    agreement: float,
    estimator: str,
) -> LatentLosses:
    r"""Return the loss of one batch.

    With the code z ~ q(z|v) of a view v of the feature f, z_k its first k latents, g the decoder and W the metric,

        L = sum over c in {z, z_k}:  |W (g(c) - f)|^2 / E|W f|^2  +  a * A(W g(c), W f)   +   beta * E_q[-log2 p(z)]

    where A, the agreement, is by default the normalised temperature-scaled cross-entropy: to find the feature that a
    code stands for among those of the batch, and the other way round. It bounds from below what the code says about
    which input it was (van den Oord et al., arXiv 1807.03748, equation 9), and keeps what tells inputs apart where
    the squared error keeps what has variance. p is the autoregressive prior, if there is one: the coder's own kind
    of model. The factorised prior is then fitted beside, to codes that it has no influence on.

    Parameters
    ----------
    views : Tensor of float32, shape (B, V)
    targets : Tensor of float32, shape (B, M)
        The features' principal coordinates; the encoder decodes to these.
    noise : Tensor of float32, shape (B, family.noise(config))
        Uniform in [0, 1).
    latents : int or None
        k; None trains the full width only.
    beta : float
        Nats a bit.
    """
    posterior = encoder.posterior(views)
    draw = posterior.sample(noise, estimator)
    widths = [None] if latents is None else [None, latents]
    guesses = [encoder.decode(draw, k) for k in widths]
    reconstruction = sum((metric.error(guess, targets) for guess in guesses[1:]), metric.error(guesses[0], targets))
    total = reconstruction
    agreed = targets.new_zeros(())
    if agree is not None and agreement:
        weight = metric.weight / metric.power**0.5
        agreed = sum((agree(guess * weight, targets * weight) for guess in guesses), agreed)
        total = total + agreement * agreed
    if prior is None:
        rate = posterior.rate(encoder.prior).sum(1).mean()
        total = total + beta * rate
    else:
        rate = prior.bits(posterior.decisions(draw)).sum(1).mean()
        costs = -encoder.factorised.log_prob()
        beside = costs.gather(1, posterior.symbols(draw).T).sum(0).mean()
        total = total + beta * rate + _BESIDE * beside
    return LatentLosses(total, reconstruction.detach(), agreed.detach(), rate.detach())
