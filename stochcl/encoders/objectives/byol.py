"""BYOL: predict what a slow copy of the network makes of the other view."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stochcl.encoders.objectives.base import Objective, projector
from stochcl.encoders.objectives.following import Follower, momentum

if TYPE_CHECKING:
    from torch import Tensor


class BYOL(Objective):
    r"""The objective of Grill et al. (arXiv 2006.07733, equation 2), without negatives.

    With v, v' the vectors of two views, h the projector, q the predictor, and t' what a slow copy of the network
    makes of the other view, projected by a slow copy of h:

        L = mean of |q(h v)/|q(h v)| - t'/|t'||^2,   over both views; 0 to 4.

    What is before the vectors (backbone, head, decoder) has a slow copy of its own where it is trained: its vectors
    come as ``targets``. Where it is not trained, as with frozen features, the vectors are their own targets.

    Parameters
    ----------
    features, temperature
        See :class:`~stochcl.encoders.objectives.base.Objective`; there is no temperature.
    width : int
        P, the width of a projection.
    """

    follows = True

    def __init__(self, features: int, temperature: float = 0.2, width: int = 128) -> None:
        super().__init__(features, temperature)
        self.head = projector(features, width)
        self.predictor = projector(width, width)
        self.slow_head = Follower(self.head)

    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:  # noqa: D102
        guesses = self.predictor(self.head(torch.cat([first, second])))
        with torch.no_grad():
            a, b = self.slow_head.network(torch.cat(targets or (first, second))).chunk(2)
        likeness = functional.cosine_similarity(guesses.float(), torch.cat([b, a]).float(), dim=1)
        return 2 - 2 * likeness.mean()

    def step(self, fraction: float) -> None:
        """Let the slow copy of the projector follow."""
        self.slow_head.step(self.head, momentum(fraction))
