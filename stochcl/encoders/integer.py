"""EfficientNet-Lites in 8-bit integers, from the weights alone, with the same features on every CPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stochcl.encoders import onnx
from stochcl.encoders.graph import Network, lite_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from stochcl.encoders.config import EncoderConfig

    Channels = NDArray[np.float64]

DEVIATIONS = 4.0
"""Deviations from a channel's mean at which a response is clipped.

Among 3, 4, 5 and 6, it gave the features nearest to fp32 on training images of Tiny-ImageNet.
"""

_MOST = 127  # the largest signed byte; also the bound of two weights of a channel together, before rounding
_MOST_BIAS = 1 << 29  # leaves room for the products in 32 bits


class IntegerNetwork(Network):
    """A network with 8-bit weights and responses, and a scale per channel of weights.

    It needs no measurement on images and stores nothing more: the normalisations give each response channel's mean
    and deviation, and so its range and the average effect of rounding the weights.

    Every CPU gets the same numbers, because no sum depends on its order or instructions:

    - products of bytes add up in 32 bits; some CPUs first add pairs in 16 bits (AVX2, and AVX-512 without VNNI), for
      which no two weights are too large;
    - the terms of a residual sum share one scale, so that the runtime, which adds floats, adds whole numbers;
    - spatial means are of sums of integers below 2**24, which float32 holds exactly.
    """

    def __init__(self, config: EncoderConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._responses: dict[str, _Response] = {}
        self._scales = _stage_scales(config.backbone, tensors)
        self._grids: list[tuple[int, np.float32, np.uint8]] = []
        super().__init__(config, tensors)

    def _normalised(self) -> str:
        mean, std = np.array(self.config.mean), self.config.std
        low, high = np.divide(-mean, std), np.divide(1 - mean, std)
        response = _Response.of(low.min(), high.max(), np.zeros(3), np.ones(3))
        middle = 255 * mean[0]
        if np.ptp(low) == np.ptp(high) == 0 and abs(middle - round(middle)) < 1e-6:  # pixels already are such bytes
            return self._named(self._node("Transpose", ["pixels"], perm=[0, 3, 1, 2]), response)
        return self._named(self._node("QuantizeLinear", [super()._normalised(), *self._grid(response)]), response)

    def _layer(
        self, x: str, name: str, norm: str, eps: float, most: float | None, attributes: dict[str, Any]
    ) -> str:  # fmt: skip
        assert self.tensors is not None
        weight, bias = self._folded(name, norm, eps)
        given, depthwise, stem = self._responses[x], attributes["group"] > 1, weight.shape[1] == 3
        steps = steps_of(weight, alone=depthwise or stem)
        steps = np.maximum(steps, np.float32(abs(bias) / given.scale / _MOST_BIAS))  # for almost constant channels
        whole = np.rint(weight / steps[:, None, None, None])
        shift = (whole * steps[:, None, None, None] - weight).sum(axis=(2, 3))
        bias = bias - (shift[:, 0] * given.mean if depthwise else shift @ given.mean)
        mean, spread = (self.tensors[f"{norm}.{part}"].astype(np.float64) for part in ("bias", "weight"))
        if most is None:
            response = _Response.on(self._scales[norm], mean, spread**2)
        else:
            top = min(most, (mean + DEVIATIONS * abs(spread)).max())
            response = _Response.of(0, top, _clipped_mean(mean, abs(spread), most), spread**2)
        # The stem's few weights keep 8 bits as unsigned bytes, which every CPU multiplies without overflow.
        dtype, zero = (np.uint8, _MOST + 1) if stem else (np.int8, 0)
        constants = [
            (whole + zero).astype(dtype), steps, np.full(len(steps), zero, dtype), response.scale, response.zero,
            np.rint(bias / (given.scale.astype(np.float64) * steps)).astype(np.int32),
        ]  # fmt: skip
        inputs = [x, *self._grid(given), *map(self._constant, constants)]
        return self._named(self._node("QLinearConv", inputs, **attributes), response)

    def _sum(self, y: str, x: str) -> str:
        one, other = self._responses[y], self._responses[x]
        response = _Response.on(one.scale, one.mean + other.mean, one.variance + other.variance)
        inputs = [y, *self._grid(one), x, *self._grid(other), *self._grid(response)]
        return self._named(self._node("QLinearAdd", inputs, domain=onnx.RUNTIME), response)

    def _pool(self, x: str, channels: int) -> None:
        super()._pool(self._node("Cast", [x], to=1), channels)
        self._grids.append((channels, self._responses[x].scale, self._responses[x].zero))

    def _features(self) -> str:
        counts, scales, zeros = zip(*self._grids, strict=True)
        x = self._node("Sub", [super()._features(), self._constant(np.repeat(zeros, counts).astype(np.float32))])
        return self._node("Mul", [x, self._constant(np.repeat(scales, counts))])

    def _grid(self, response: _Response) -> list[str]:
        return [self._constant(response.scale), self._constant(response.zero)]

    def _named(self, name: str, response: _Response) -> str:
        self._responses[name] = response
        return name


class _Response(NamedTuple):
    """Bytes that mean ``scale * (byte - zero)``, and each channel's mean and variance."""

    scale: np.float32
    zero: np.uint8
    mean: Channels
    variance: Channels

    @staticmethod
    def of(low: float, high: float, mean: Channels, variance: Channels) -> _Response:
        """Return a response with the range from low to high."""
        scale = np.float32((high - low) / 255)
        return _Response(scale, np.uint8(round(-low / scale)), mean, variance)

    @staticmethod
    def on(scale: np.float32, mean: Channels, variance: Channels) -> _Response:
        """Return a response with this scale whose range starts low enough."""
        low = min(_ends(mean, variance)[0], 0)
        return _Response(scale, np.uint8(np.clip(round(-low / scale), 0, 255)), mean, variance)


def _ends(mean: Channels, variance: Channels) -> tuple[float, float]:
    reach = DEVIATIONS * np.sqrt(variance)
    return float((mean - reach).min()), float((mean + reach).max())


def _stage_scales(name: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, np.float32]:
    """Return the scale of each block's output, by its normalisation's name: one per stage, from the widest range."""
    scales: dict[str, np.float32] = {}
    norms: list[str] = []
    widest, total = 0.0, (np.zeros(1), np.zeros(1))
    for i, (inputs, outputs, _, stride, _, ends) in enumerate(lite_blocks(name)):
        norms.append(f"backbone._blocks.{i}._bn2")
        mean, spread = (tensors[f"{norms[-1]}.{part}"].astype(np.float64) for part in ("bias", "weight"))
        adds = stride == 1 and inputs == outputs
        total = (total[0] + mean, total[1] + spread**2) if adds else (mean, spread**2)
        low, high = _ends(*total)
        widest = max(widest, max(high, 0) - min(low, 0))
        if ends:
            scales |= dict.fromkeys(norms, np.float32(widest / 255))
            norms, widest = [], 0.0
    return scales


def steps_of(weight: NDArray[np.float64], *, alone: bool) -> NDArray[np.float32]:
    """Return the step of each channel's integer weights.

    The largest weight is 127 or, unless weights are multiplied ``alone``, the two largest of one sign add up to 127,
    and to 128 after rounding: 128 * 255 is less than 2**15.
    """
    flat = weight.reshape(len(weight), -1)
    if alone:
        most = np.abs(flat).max(axis=1)
    else:
        most = np.max([np.sort(np.maximum(flat * sign, 0))[:, -2:].sum(axis=1) for sign in (1, -1)], axis=0)
    return np.where(most > 0, most / _MOST, 1).astype(np.float32)


def _clipped_mean(mean: Channels, deviation: Channels, most: float) -> Channels:
    """Return the mean of normal numbers clipped to 0..most."""
    deviation = np.maximum(deviation, 1e-9)
    low, high = -mean / deviation, (most - mean) / deviation
    below, up_to = (0.5 + 0.5 * np.vectorize(math.erf)(x / math.sqrt(2)) for x in (low, high))
    density = (np.exp(-(low**2) / 2) - np.exp(-(high**2) / 2)) / math.sqrt(2 * math.pi)
    found: Channels = mean * (up_to - below) + deviation * density + most * (1 - up_to)
    return found
