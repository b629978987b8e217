"""What all objectives have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Objective(nn.Module, ABC):
    """A comparison of two views of the same inputs, with heads of its own that are thrown away after training.

    The contract:

    - ``objective(first, second)`` compares two matrices of vectors, row by row, and returns one number to be
      minimised, of the order of 1 to 10 so that objectives can stand in for each other beside other terms. Averaged
      over processes it is the value, and its gradients are those, of the batch of all processes.
    - Vectors are compared by direction and scale as the objective likes; they should have about unit variance.
    - After every step of an optimizer, :meth:`step` is called, for what follows weights without a gradient.

    Parameters
    ----------
    features : int
        V, the width of the vectors.
    temperature : float
        Of objectives that have one.

    Attributes
    ----------
    follows : bool
        Whether the objective wants, as ``targets``, what a slow copy of the network makes of the views: then whoever
        trains one should keep a :class:`~stochcl.encoders.objectives.following.Follower`.
    """

    follows: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, features: int, temperature: float = 0.2) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, first: Tensor, second: Tensor, targets: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Compare vectors, float, shape (B, V), row i of one with row i of the other.

        Parameters
        ----------
        first, second : Tensor
        targets : pair of Tensor, shape (B, V), optional
            What a slow copy of the network makes of the first and of the second view. Objectives that do not follow
            one ignore it; for those that do, the vectors themselves stand in where it is not given.
        """

    def step(self, fraction: float) -> None:
        """Follow the weights after a step, when ``fraction`` of the training is done."""


def projector(features: int, width: int, *, last: bool = True) -> nn.Sequential:
    """Return a head of two layers, from V features to the P numbers that are compared (SimCLR, section 4.2)."""
    layers: list[nn.Module] = [
        nn.Linear(features, features, bias=False),
        nn.BatchNorm1d(features),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, nn.Linear(features, width, bias=last))
