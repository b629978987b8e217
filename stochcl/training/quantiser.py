"""The start of the latent stage: a classic quantiser of the features instead of a random head."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from stochcl.encoders.encoder import Encoder


_ROWS_A_CENTRE, _MOST_ROWS = 100, 30_000  # rows per centre, and at most, to find centres among
_PASSES = 20


_RANGE = 4.0  # deviations of the widest axis on each side that a quantiser's levels cover
_DRAW = 0.5  # initial deviation of a draw, in steps
_QUIET = 0.1  # factor of hidden units that no axis needs


def start_latents(encoder: Encoder, features: NDArray[np.floating], metric: Metric, *, seed: int) -> str:
    """Set untrained head and decoder to a classic quantiser of the features, in place.

    Return the kind of start in words.
    """
    family = encoder.config.posterior
    if family == "categorical" and start_from_quantiser(encoder, features, metric, seed=seed):
        return "a product quantiser"
    if family == "gaussian" and start_from_axes(encoder, metric):
        return "principal axes"
    return "a random head"


@torch.no_grad()
def start_from_axes(encoder: Encoder, metric: Metric) -> bool:
    r"""Set head and decoder of a Gaussian encoder to a transform coder of its features, in place.

    Latent j is the coordinate along the features' j-th principal axis, weighted like errors, with one step size for
    all: for Gaussian sources and small steps the best linear transform and allocation of bits (Goyal, Theoretical
    foundations of transform coding, IEEE Signal Processing Magazine, 2001). The widest axis' four deviations fill the
    quantiser. The decoder inverts this exactly if it is linear or has a hidden layer twice as wide as the code, since
    x = relu(x) - relu(-x); another kind is not changed.

    A random head has to find the axes first: 600 steps on features of photographs left its 128 latents 1 to 3 points
    of a linear classifier's accuracy behind. A head with a hidden layer starts as the same linear map, with two
    hidden units per number, and training may change it.
    """
    config = encoder.config
    layers = [layer for layer in encoder.head.modules() if isinstance(layer, nn.Linear)]
    count = min(config.latents, metric.axes.shape[1])
    if len(layers) > 2 or (len(layers) == 2 and layers[0].out_features < 2 * count):
        return False
    weight, axes = metric.weight[:count], metric.axes[:, :count]
    step = max(1e-6, float((metric.deviation * metric.weight).max())) * 2 * _RANGE / config.alphabet
    across = (axes * weight / step).T
    last = layers[-1]
    if len(layers) == 2:
        last.bias.zero_()
        _pair(layers[0], last, across, -(across @ metric.mean), torch.eye(last.out_features, count))
    else:
        last.weight[:count] = across
        last.bias[:count] = -(across @ metric.mean)
    last.weight[config.latents :] = 0
    last.bias[config.latents :] = math.log(_DRAW)
    _set_decoder(encoder, axes * (step / encoder.decoder_scale) / weight, metric.mean)
    return True


def _set_decoder(encoder: Encoder, across: Tensor, mean: Tensor) -> None:
    """Set the decoder to ``across`` times the first latents plus ``mean``, if its layers can express that."""
    layers = cast("list[nn.Linear]", list(encoder.decoder))
    count = across.shape[1]
    if len(layers) == 1:
        layers[0].weight[:, :count] = across
    elif len(layers) == 2 and layers[0].out_features >= 2 * count:
        _pair(layers[0], layers[1], torch.eye(count, layers[0].in_features), torch.zeros(count), across)
    else:
        return
    layers[-1].bias.copy_(mean)


def _pair(first: nn.Linear, last: nn.Linear, into: Tensor, bias: Tensor, out: Tensor) -> None:
    """Set two layers with a ReLU between them to x -> out (into x + bias), since x = relu(x) - relu(-x).

    ``into`` has shape (M, first.in_features), ``out`` (last.out_features, M). Surplus units get small weights.
    """
    plus = 2 * torch.arange(len(into))
    last.weight *= _QUIET
    for units, sign in ((plus, 1.0), (plus + 1, -1.0)):
        first.weight[units], first.bias[units] = sign * into, sign * bias
        last.weight[:, units] = sign * out


@torch.no_grad()
def start_from_quantiser(encoder: Encoder, features: NDArray[np.floating], metric: Metric, *, seed: int) -> bool:
    r"""Set head and codebooks of a categorical encoder to a product quantiser of its features, in place.

    The features' principal axes, weighted like errors, are dealt to the D groups so that the products of their
    variances are similar (eigenvalue allocation: Ge et al., Optimized Product Quantization, TPAMI 2014, section
    3.2.2); K centres c are found in each by k-means. A symbol's logit is that of a mixture of Gaussians around the
    centres, of the residual variance v,

        (x . c - |c|^2 / 2) / v  =  -|x - c|^2 / (2 v) + what all symbols have in common,

    which is linear in the features, so a linear head expresses it exactly. With larger logits, the cost of bits moves
    no symbol (four times as large gave 60 bits instead of 55). From a random start, groups of 256 symbols fall far
    behind: most symbols never win, and a symbol that does not win learns nothing.
    """
    config = encoder.config
    head = encoder.head
    if not isinstance(head, nn.Linear) or metric.axes.shape[1] < config.latents or len(features) < config.alphabet:
        return False
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(features))[: min(_MOST_ROWS, _ROWS_A_CENTRE * config.alphabet)])
    rows = (metric.coordinates(features[chosen]) * metric.weight).numpy()
    weight, bias = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
    for group, axes in enumerate(deal(rows.var(axis=0), config.latents)):
        centres, left = _centres(rows[:, axes], config.alphabet, seed + group)
        logits = slice(group * config.alphabet, (group + 1) * config.alphabet)
        # x = weight * axes^T (f - mean), so what is linear in x is linear in f.
        across = torch.from_numpy(centres / left).float() * metric.weight[axes]
        weight[logits] = across @ metric.axes[:, axes].T
        bias[logits] = -weight[logits] @ metric.mean - torch.from_numpy((centres**2).sum(1) / (2 * left)).float()
        _set_codebook(cast("nn.Parameter", encoder.codebooks)[group], centres)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return True


def deal(variances: NDArray[np.floating], groups: int) -> list[list[int]]:
    """Deal axes, widest first, each to the group with room whose product of variances is smallest so far.

    The group with the most variance comes first, so that a prefix of a code is a good code.

    Examples
    --------
    >>> deal(np.array([9.0, 4.0, 2.0, 1.5]), 2)
    [[0, 3], [1, 2]]
    """
    room = math.ceil(len(variances) / groups)
    logs = np.log(np.maximum(variances, 1e-12))
    logs -= logs.min()  # each axis then adds to a product
    dealt: list[list[int]] = [[] for _ in range(groups)]
    totals = np.zeros(groups)
    for axis in np.argsort(-variances, kind="stable").tolist():
        order = (g for g in np.lexsort((np.arange(groups), totals)) if len(dealt[g]) < room)
        group = next(order)
        dealt[group].append(axis)
        totals[group] += logs[axis]
    return sorted(dealt, key=lambda axes: (-float(variances[axes].sum()), axes))


def _centres(rows: NDArray[np.float32], count: int, seed: int) -> tuple[NDArray[np.float64], float]:
    """Return centres, shape (count, d), and the residual variance per axis."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(count, init="random", n_init=1, max_iter=_PASSES, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than centres
        means.fit(rows)
    return means.cluster_centers_.astype(np.float64), max(1e-6, float(means.inertia_) / rows.size)


def _set_codebook(codebook: Tensor, centres: NDArray[np.float64]) -> None:
    """Write centres along their widest directions, scaled to unit variance; other columns stay random."""
    centred = centres - centres.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    kept = min(codebook.shape[1], len(axes))
    written = centred @ axes[:kept].T
    spread = float(written.std()) or 1.0
    codebook[:, :kept] = torch.from_numpy(written / spread).to(codebook)


_ROWS = 1 << 15  # rows at a time
_KEPT = 0.99  # share of the weighted error in the kept axes
_SHRINKAGE = 0.01  # share of the mean variance added to each axis's before whitening


@dataclass(frozen=True, eq=False)
class Metric:
    """Principal axes of features, and the weight of an error along each.

    A squared error weights directions by their variance, unlike a classifier that standardises; full whitening
    weights noise like signal. A power of the variance lies between: errors are multiplied by variance**-power, where
    0 is the plain error and 1/2 the whitened one.

    ``axes`` are orthonormal columns, shape (V, M), by falling variance, with nearly all of the weighted error;
    ``deviation`` and ``weight`` have shape (M,), and ``power`` is the mean square of weighted features.
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

    @property
    def relative(self) -> Tensor:
        """Weights that scale features to unit mean square, shape (M,)."""
        found: Tensor = self.weight / self.power**0.5
        return found

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
        """Return the weighted mean squared error of coordinates, (B, M), relative to the features' power."""
        return ((guesses - targets) * self.weight).square().mean() / self.power


@contextmanager
def principal_decoder(encoder: Encoder, metric: Metric) -> Iterator[None]:
    """Let an encoder decode to M uncorrelated principal coordinates, fewer than its V features.

    Only the decoder's last layer changes; it has its old width again afterwards.
    """
    _replace_last(encoder, lambda weight, bias: (metric.axes.T @ weight, metric.axes.T @ (bias - metric.mean)))
    try:
        yield
    finally:
        _replace_last(encoder, lambda weight, bias: (metric.axes @ weight, metric.axes @ bias + metric.mean))


@torch.no_grad()
def _replace_last(encoder: Encoder, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    last = encoder.decoder[-1]
    weight, bias = change(last.weight, last.bias)
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    encoder.decoder[-1] = layer
