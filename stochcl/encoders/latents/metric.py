"""The metric in which decoded vectors are compared with features: principal axes, partly whitened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.encoders.model import Encoder

_ROWS = 1 << 15  # at a time
_KEPT = 0.99  # of what errors weigh, in the axes that are looked at
_SHRINKAGE = 0.01  # of the mean variance, added to each axis's before it is whitened


@dataclass(frozen=True, eq=False)
class Metric:
    """Principal axes of features, and what an error along each of them weighs.

    A squared error counts directions by their variance, which a classifier that standardises does not; full whitening
    counts directions of noise like those of signal. In between lies a power of the variance: errors are multiplied
    by variance**-power, 0 being the plain error and 1/2 the whitened one.

    Parameters
    ----------
    mean : Tensor of float32, shape (V,)
    axes : Tensor of float32, shape (V, M)
        Orthonormal columns, by falling variance; together they hold nearly all that errors weigh.
    deviation : Tensor of float32, shape (M,)
        Of features along each axis.
    weight : Tensor of float32, shape (M,)
    power : float
        Mean square of weighted features: what errors are relative to.
    """

    mean: Tensor
    axes: Tensor
    deviation: Tensor
    weight: Tensor
    power: float

    @classmethod
    def of(cls, features: NDArray[np.float32], whitening: float) -> Metric:
        """Measure features, shape (N, V); ``whitening`` is the power, 0 to 1/2."""
        n, width = features.shape
        mean = features.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((width, width))
        for start in range(0, n, _ROWS):
            part = features[start : start + _ROWS] - mean
            covariance += part.T @ part
        variance, axes = np.linalg.eigh(covariance / n)
        variance, axes = np.maximum(variance[::-1], 0), axes[:, ::-1]
        weight = (variance + _SHRINKAGE * variance.mean() + 1e-12) ** -whitening
        share = np.cumsum(variance * weight**2)
        kept = int(min(width, np.searchsorted(share, _KEPT * share[-1]) + 1))
        variance, axes, weight = variance[:kept], np.ascontiguousarray(axes[:, :kept]), weight[:kept]
        return cls(
            mean=torch.from_numpy(mean.astype(np.float32)),
            axes=torch.from_numpy(axes.astype(np.float32)),
            deviation=torch.from_numpy(np.sqrt(variance).astype(np.float32)),
            weight=torch.from_numpy(weight.astype(np.float32)),
            power=float((variance * weight**2).mean()) or 1.0,
        )

    def coordinates(self, features: NDArray[np.floating]) -> Tensor:
        """Return features, shape (N, V), in these axes, float32, shape (N, M)."""
        out = torch.empty(len(features), self.axes.shape[1])
        for start in range(0, len(features), _ROWS):
            part = torch.from_numpy(np.asarray(features[start : start + _ROWS], np.float32))
            out[start : start + _ROWS] = (part - self.mean) @ self.axes
        return out

    def features(self, coordinates: Tensor) -> Tensor:
        """Return coordinates, shape (B, M), as features, shape (B, V)."""
        return coordinates @ self.axes.T + self.mean

    def error(self, guesses: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted mean squared error, relative to the features' own power, of coordinates (B, M)."""
        return ((guesses - targets) * self.weight).square().mean() / self.power


class PrincipalDecoder:
    """Lets an encoder decode to principal coordinates while it is trained: fewer than its features, and uncorrelated.

    Inside the context the decoder's last layer gives M numbers; afterwards it gives V again, and nothing else has
    changed.
    """

    def __init__(self, encoder: Encoder, metric: Metric) -> None:
        self._layers, self._metric = encoder.decoder, metric  # nn.ModuleList of nn.Linear

    @torch.no_grad()
    def __enter__(self) -> None:
        last, metric = cast("nn.Linear", self._layers[-1]), self._metric
        rotated = nn.Linear(last.in_features, metric.axes.shape[1], device=last.weight.device)
        rotated.weight.copy_(metric.axes.T @ last.weight)
        rotated.bias.copy_(metric.axes.T @ (last.bias - metric.mean))
        self._layers[-1] = rotated

    @torch.no_grad()
    def __exit__(self, *exc: object) -> None:
        rotated, metric = cast("nn.Linear", self._layers[-1]), self._metric
        last = nn.Linear(rotated.in_features, len(metric.mean), device=rotated.weight.device)
        last.weight.copy_(metric.axes @ rotated.weight)
        last.bias.copy_(metric.axes @ rotated.bias + metric.mean)
        self._layers[-1] = last
