"""Reconstruction: one view's vector is to be the other's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochcl.encoders.distributed import averaged, mean_of_all
from stochcl.encoders.objectives.base import Objective

if TYPE_CHECKING:
    from torch import Tensor


class Reconstruct(Objective):
    r"""The squared error of each vector as a guess at the other, relative to the other's power; no head.

        L = (|a - b'|^2 / |b'|^2 + |b - a'|^2 / |a'|^2) / 2,   ' without gradient

    Against frozen features (one of the two has no gradient) that is reconstruction, which keeps distances where the
    other objectives keep what tells inputs apart. Nothing in it pushes different inputs apart: where both views'
    network is trained, it takes a normalisation that fixes the vectors' variance, and a term that keeps them from
    being correlated.
    """

    def __init__(self, features: int, temperature: float = 0.2) -> None:
        super().__init__(features, temperature)

    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:  # noqa: D102
        return (relative_error(first, second.detach()) + relative_error(second, first.detach())) / 2


def relative_error(guesses: Tensor, truth: Tensor) -> Tensor:
    """Return the mean squared error, relative to the power of the truth over all processes; shapes (..., B, V)."""
    power = averaged(mean_of_all(truth.float().square()))
    return mean_of_all((guesses.float() - truth.float()).square()) / power.clamp(min=1e-6)
