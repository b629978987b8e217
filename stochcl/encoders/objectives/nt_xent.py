"""NT-Xent: find the partner among all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stochcl.encoders.distributed import gathered
from stochcl.encoders.objectives.base import Objective, projector

if TYPE_CHECKING:
    from torch import Tensor


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
        Mean over all 2B rows of the cross-entropy of finding the partner among the other 2B - 1, in nats. With
        several processes, B is the rows of all of them, and each has the value of the whole batch.
    """
    a, b = gathered(a.float()), gathered(b.float())
    n = len(a)
    z = functional.normalize(torch.cat([a, b]), dim=1)
    with torch.autocast(z.device.type, enabled=False):  # it would take the product in bfloat16, off by 0.01 nats
        similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return functional.cross_entropy(similarity, partner)


class NTXent(Objective):
    """The objective of SimCLR: :func:`nt_xent` of projections, in nats.

    Parameters
    ----------
    features, temperature
        See :class:`~stochcl.encoders.objectives.base.Objective`.
    width : int
        P, the width of a projection.
    """

    def __init__(self, features: int, temperature: float = 0.2, width: int = 128) -> None:
        super().__init__(features, temperature)
        self.temperature = temperature
        self.head = projector(features, width)

    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:  # noqa: D102
        a, b = self.head(torch.cat([first, second])).chunk(2)
        return nt_xent(a, b, self.temperature)
