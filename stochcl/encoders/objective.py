"""What training minimises: agreement of two views, reconstruction of features, and the rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from stochcl.encoders.model import Encoder


DECORRELATION = 0.02
"""gamma: what the covariance term is multiplied by."""


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the normalised, temperature-scaled cross-entropy (Chen et al., arXiv 2002.05709, equation 1).

    Parameters
    ----------
    a, b : Tensor of float, shape (B, P)
        Projections of two views of the same B images; row i of one belongs to row i of the other.
    temperature : float
        Divides the cosine similarities.

    Returns
    -------
    Tensor
        Mean over all 2B rows of the cross-entropy of finding the partner among the other 2B - 1, in nats.
    """
    n = len(a)
    z = functional.normalize(torch.cat([a, b]).float(), dim=1)
    with torch.autocast(z.device.type, enabled=False):  # it would take the product in bfloat16, off by 0.01 nats
        similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return functional.cross_entropy(similarity, partner)


def decorrelation(features: Tensor) -> Tensor:
    """Return the covariance term of VICReg (Bardes et al., arXiv 2105.04906, equation 3).

    Parameters
    ----------
    features : Tensor of float, shape (B, V)
        Standardised over the batch.

    Returns
    -------
    Tensor
        Sum of the squared correlations between different features, divided by V.
    """
    n, width = features.shape
    correlation = features.T @ features / n
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / width


class Projectors(nn.Module):
    """The two heads on which views are compared; thrown away after training.

    Parameters
    ----------
    features : int
        V, the width of features and of decoded vectors.
    width : int
        P, the width of a projection.
    """

    def __init__(self, features: int, width: int = 128) -> None:
        super().__init__()
        self.features = self._head(features, width)
        self.codes = self._head(features, width)

    @staticmethod
    def _head(features: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(features, features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(inplace=True),
            nn.Linear(features, width),
        )


@dataclass(frozen=True)
class Losses:
    """One step's terms: contrastive ones and the total in nats, the next two mean squares, rates in bits."""

    total: Tensor
    contrast: Tensor
    contrast_codes: Tensor
    decorrelation: Tensor
    reconstruction: Tensor
    rate: Tensor
    kl: Tensor


def stochastic_contrastive(
    model: Encoder,
    projectors: Projectors,
    views: Tensor,
    clean: Tensor,
    noise: Tensor,
    *,
    latents: int,
    beta: float,
    temperature: float,
) -> Losses:
    r"""Return the loss of one batch.

    With features f, code z ~ q(z|f), z_k its first k latents, g the decoder, h and h' projections, f* the
    features of the clean image (in evaluation mode, no gradient) and ' the other view,

        L = NTXent(h f) + NTXent(h' g(z)) / 2 + NTXent(h' g(z_k)) / 2 + gamma * C(f)
            + |g(z) - f*|^2 / 2|f*|^2 + |g(z_k) - f*|^2 / 2|f*|^2 + beta * E_q[-log2 p(z)]

    The contrastive term on the decoded code is that of Ramapuram et al. (arXiv 2110.00552, section 3); the
    one on the features keeps the backbone learning while codes are still noise. z_k makes the code nested
    (Rippel et al., arXiv 1402.0915). Reconstructing the clean image's features, from the codes of its views
    and from its own, makes the decoded vector worth what the features are worth. It trains latents and decoder
    only, lest the backbone make features that are easy to reconstruct rather than useful; C is the covariance
    term of VICReg, against variance that gathers in few directions, which a squared error counts by their variance
    and a classifier does not. (Both came in together, on ResNet-10 and Tiny-ImageNet: 84 % of the variance in 8 of
    512 directions before, 45 % after further training with both; which of the two did it was not measured.)
    The rate is the posterior's cross-entropy with the prior: what a file pays.

    Parameters
    ----------
    views : Tensor of float, shape (2B, 3, S, S)
        First views of all images, then second views, normalised.
    clean : Tensor of float, shape (C, 3, S', S'), C <= B
        The first C images themselves, normalised.
    noise : Tensor of float, shape (2B, the posterior's noise)
        Uniform in [0, 1).
    latents : int
        k, the prefix that is trained beside the full width.
    beta : float
        Nats that a bit of rate costs.
    temperature : float
        Of the contrastive terms.
    """
    model.eval()
    with torch.no_grad():
        target = model.features(clean)
    model.train()

    features = model.features(views)
    posterior = model.posterior(features)
    symbols = posterior.sample(noise)
    vectors, short = model.decode(symbols), model.decode(symbols, latents)

    first, second = projectors.features(features).chunk(2)
    contrast = nt_xent(first, second, temperature)
    first, second = projectors.codes(vectors).chunk(2)
    contrast_codes = nt_xent(first, second, temperature) / 2
    first, second = projectors.codes(short).chunk(2)
    contrast_codes = contrast_codes + nt_xent(first, second, temperature) / 2

    c, b = len(clean), len(views) // 2
    rows = torch.cat([features[:c], features[b : b + c], target]).detach()
    symbols = model.posterior(rows).sample(torch.cat([noise[:c], noise[b : b + c], noise[:c]]))
    guesses = torch.stack([model.decode(symbols), model.decode(symbols, latents)])
    # Relative to the target's own power: while the running statistics lag behind the first, large steps,
    # "standardised" features are anything but, and an absolute error drowns the other terms.
    reconstruction = (guesses - target.repeat(3, 1)).square().mean() / target.square().mean().clamp(min=1e-6)

    spread = decorrelation(features)
    rate = posterior.rate(model.prior).sum(1).mean()
    return Losses(
        total=contrast + contrast_codes + DECORRELATION * spread + reconstruction + beta * rate,
        contrast=contrast.detach(),
        contrast_codes=contrast_codes.detach(),
        decorrelation=spread.detach(),
        reconstruction=reconstruction.detach(),
        rate=rate.detach(),
        kl=posterior.kl(model.prior).sum(1).mean().detach() / math.log(2),
    )
