"""VICReg: alike between views, spread and uncorrelated over a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stochcl.encoders.distributed import gathered
from stochcl.encoders.objectives.base import Objective, projector

if TYPE_CHECKING:
    from torch import Tensor

INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0
"""lambda, mu and nu of the paper (section 4.2)."""

SCALE = 1 / 10
"""What the total is multiplied by, to be of the size of a cross-entropy in nats."""


def decorrelation(features: Tensor) -> Tensor:
    """Return the covariance term of VICReg (Bardes et al., arXiv 2105.04906, equation 3).

    Parameters
    ----------
    features : Tensor of float, shape (B, V)
        Standardised over the batch (of all processes).

    Returns
    -------
    Tensor
        Sum of the squared correlations between different features, divided by V.
    """
    features = gathered(features)
    n, width = features.shape
    correlation = features.T @ features / n
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / width


def vicreg(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the loss of VICReg (equations 1 to 6), unscaled.

    With v the mean over dimensions of max(0, 1 - deviation), c the sum of squared covariances of different
    dimensions, divided by P,

        L = 25 mean|a - b|^2  +  25 (v(a) + v(b)) / 2  +  c(a) + c(b)

    (the half is that of the authors' program). With several processes, the statistics are those of the rows of all.

    Parameters
    ----------
    a, b : Tensor of float, shape (B, P), B > 1
        Projections of two views.
    """
    a, b = gathered(a.float()), gathered(b.float())
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
    """:func:`vicreg` of projections, a tenth of it.

    Parameters
    ----------
    features, temperature
        See :class:`~stochcl.encoders.objectives.base.Objective`; there is no temperature.
    width : int
        P, the width of a projection (the paper's is 8,192).
    """

    def __init__(self, features: int, temperature: float = 0.2, width: int = 512) -> None:
        super().__init__(features, temperature)
        self.head = projector(features, width, last=False)

    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:  # noqa: D102
        a, b = self.head(torch.cat([first, second])).chunk(2)
        return SCALE * vicreg(a, b)
