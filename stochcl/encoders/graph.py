"""ONNX graphs of image networks, equal to the PyTorch layers, from configuration and weights alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.encoders import onnx
from stochcl.encoders.config import EFFICIENTNETS, RESNETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from stochcl.encoders.config import EncoderConfig

LITE_STEM, LITE_HEAD = 32, 1280
"""Channels of the first and the last convolution of an EfficientNet-Lite."""

LITE_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Stages of an EfficientNet-Lite: blocks, kernel, stride, expansion, channels."""

RESNET_DEPTHS = dict(zip(RESNETS, ((1, 1, 1, 1), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3)), strict=True))
"""Blocks in each of the four stages of a residual network."""

NOTHING = 1e-4
"""A channel's mass over an image that counts as zero."""

_NORM = ("weight", "bias", "running_mean", "running_var")
_ROUND = 8  # channels are multiples of this
_EPS = 1e-5  # PyTorch's epsilon of normalisations


def lite_blocks(name: str) -> list[tuple[int, int, int, int, int, bool]]:
    """Return the blocks of an EfficientNet-Lite: channels in and out, kernel, stride, expansion, end of a stage."""
    width, depth = EFFICIENTNETS[name]
    blocks, inputs = [], LITE_STEM
    for stage, (count, kernel, stride, expansion, channels) in enumerate(LITE_STAGES):
        outputs = _rounded(channels * width)
        inner = 0 < stage < len(LITE_STAGES) - 1  # only inner stages are deepened
        deep = math.ceil(count * depth) if inner else count
        for i in range(deep):
            blocks.append((inputs, outputs, kernel, stride if i == 0 else 1, expansion, i == deep - 1))
            inputs = outputs
    return blocks


def _rounded(channels: float) -> int:
    """Round to the nearest multiple of 8, but never down by more than a tenth."""
    rounded = max(_ROUND, int(channels + _ROUND / 2) // _ROUND * _ROUND)
    return rounded + _ROUND if rounded < 0.9 * channels else rounded


class Network:
    """The backbone of a configuration, layer by layer: its tensors' shapes and, given the tensors, its graph.

    Attributes
    ----------
    shapes : dict
        Shape of each tensor of the backbone, by its name in a model file.
    features : int
        V, the width of the features.
    """

    def __init__(self, config: EncoderConfig, tensors: Mapping[str, NDArray[Any]] | None = None) -> None:
        self.config, self.tensors = config, tensors
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.features = 0
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._pooled: list[str] = []
        self._side = config.size  # of the current activations
        if config.backbone in EFFICIENTNETS:
            self._efficientnet(self._normalised())
        else:
            self._resnet(self._normalised())

    def to_bytes(self, rows: int) -> bytes:
        """Return the ONNX model from pixels, uint8, shape (rows, S, S, 3), to standardised features, (rows, V)."""
        if self.tensors is None:
            raise ValueError("a network without weights has no graph")
        x = self._features()
        mean, variance = (self.tensors[f"norm.running_{what}"] for what in ("mean", "var"))
        x = self._node("Sub", [x, self._constant(mean)])
        scale = 1 / np.sqrt(variance + np.float32(_EPS))
        self._nodes.append(onnx.node("Mul", [x, self._constant(scale)], "features"))
        size = self.config.size
        given = onnx.value("pixels", "uint8", (rows, size, size, 3))
        return onnx.model(
            self._nodes, self._constants, given, onnx.value("features", "float32", (rows, self.features))
        )

    def _normalised(self) -> str:
        """Add nodes that normalise pixels to zero mean and unit variance, shape (rows, 3, S, S)."""
        config = self.config
        mean, std = (np.float32(np.reshape(colours, (1, 3, 1, 1))) * 255 for colours in (config.mean, config.std))
        x = self._node("Transpose", ["pixels"], perm=[0, 3, 1, 2])
        x = self._node("Cast", [x], to=1)
        x = self._node("Sub", [x, self._constant(mean.astype(np.float32))])
        return self._node("Div", [x, self._constant(std.astype(np.float32))])

    def _features(self) -> str:
        return self._pooled[0] if len(self._pooled) == 1 else self._node("Concat", self._pooled, axis=1)

    def _efficientnet(self, x: str) -> None:
        """Build the graph of :class:`stochcl.encoders.backbones.EfficientNetLite`."""
        at, norm = "backbone.", dict[str, Any](eps=1e-3, same=True)
        x = self._conv(x, f"{at}_conv_stem", f"{at}_bn0", (LITE_STEM, 3, 3), 2, most=6.0, **norm)
        for i, (inputs, outputs, kernel, stride, expansion, ends) in enumerate(lite_blocks(self.config.backbone)):
            block, wide, y = f"{at}_blocks.{i}.", inputs * expansion, x
            if expansion > 1:
                y = self._conv(y, f"{block}_expand_conv", f"{block}_bn0", (wide, inputs, 1), most=6.0, **norm)
            names = f"{block}_depthwise_conv", f"{block}_bn1"
            y = self._conv(y, *names, (wide, 1, kernel), stride, groups=wide, most=6.0, **norm)
            y = self._conv(y, f"{block}_project_conv", f"{block}_bn2", (outputs, wide, 1), **norm)
            x = self._sum(y, x) if stride == 1 and inputs == outputs else y
            if ends and self.config.pooling == "stages":
                self._pool(x, outputs)
        x = self._conv(x, f"{at}_conv_head", f"{at}_bn1", (LITE_HEAD, outputs, 1), most=6.0, **norm)
        self._pool(x, LITE_HEAD)

    def _resnet(self, x: str) -> None:
        """Build the graph of :class:`stochcl.encoders.backbones.ResNet`."""
        config, at = self.config, "backbone."
        large, bottleneck = config.stem == "imagenet", config.backbone == "resnet50"
        kernel, stride = (7, 2) if large else (3, 1)
        x = self._conv(x, f"{at}conv1", f"{at}bn1", (config.width, 3, kernel), stride, most=math.inf)
        if large:
            x = self._node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
            self._side = (self._side - 1) // 2 + 1
        inputs = config.width
        for stage, depth in enumerate(RESNET_DEPTHS[config.backbone], 1):
            for i in range(depth):
                block, width = f"{at}layer{stage}.{i}.", config.width << (stage - 1)
                outputs = 4 * width if bottleneck else width
                x = self._block(x, block, (inputs, width, outputs), 2 if stage > 1 and i == 0 else 1)
                inputs = outputs
            if stage == 4 or config.pooling == "stages":
                self._pool(x, inputs)
            elif config.pooling == "moments":
                self._moments(x, inputs)

    def _block(self, x: str, block: str, channels: tuple[int, int, int], stride: int) -> str:
        inputs, width, outputs = channels
        if outputs > width:  # a bottleneck strides in its middle convolution
            layers = [(width, inputs, 1, 1), (width, width, 3, stride), (outputs, width, 1, 1)]
        else:
            layers = [(width, inputs, 3, stride), (outputs, width, 3, 1)]
        before, y = self._side, x
        for i, (out, given, kernel, step) in enumerate(layers, 1):
            most = math.inf if i < len(layers) else None
            y = self._conv(y, f"{block}conv{i}", f"{block}bn{i}", (out, given, kernel), step, most=most)
        if stride > 1 or inputs != outputs:
            self._side = before
            names = f"{block}downsample.0", f"{block}downsample.1"
            x = self._conv(x, *names, (outputs, inputs, 1), stride)
        return self._node("Relu", [self._node("Add", [y, x])])

    def _conv(
        self, x: str, name: str, norm: str, shape: tuple[int, int, int], stride: int = 1, *, groups: int = 1,
        eps: float = _EPS, same: bool = False, most: float | None = None,
    ) -> str:  # fmt: skip
        """Add a square convolution with its normalisation folded in; ``most`` is the activation's upper bound.

        Padding is PyTorch's, kernel // 2 on all sides, or TensorFlow's ``same``.
        """
        outputs, inputs, kernel = shape
        self.shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        self.shapes |= {f"{norm}.{part}": (outputs,) for part in _NORM}
        before = after = kernel // 2
        if same and stride > 1:
            total = max(0, (math.ceil(self._side / stride) - 1) * stride + kernel - self._side)
            before, after = total // 2, total - total // 2
        self._side = (self._side + before + after - kernel) // stride + 1
        if self.tensors is None:
            return x
        attributes = {
            "kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [before, before, after, after],
            "group": groups,
        }  # fmt: skip
        return self._layer(x, name, norm, eps, most, attributes)

    def _layer(
        self, x: str, name: str, norm: str, eps: float, most: float | None, attributes: dict[str, Any]
    ) -> str:  # fmt: skip
        weight, bias = self._folded(name, norm, eps)
        folded = weight.astype(np.float32), bias.astype(np.float32)
        x = self._node("Conv", [x, *map(self._constant, folded)], **attributes)
        if most is None:
            return x
        bounds = [self._constant(np.float32(bound)) for bound in (0, most)]
        return self._node("Relu", [x]) if most == math.inf else self._node("Clip", [x, *bounds])

    def _folded(self, name: str, norm: str, eps: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a convolution's weight and bias with the following normalisation folded in."""
        assert self.tensors is not None
        weight = self.tensors[f"{name}.weight"].astype(np.float64)
        gain, bias, mean, variance = (self.tensors[f"{norm}.{part}"].astype(np.float64) for part in _NORM)
        scale = gain / np.sqrt(variance + eps)
        return weight * scale[:, None, None, None], bias - mean * scale

    def _sum(self, y: str, x: str) -> str:
        return self._node("Add", [y, x])

    def _pool(self, x: str, channels: int) -> None:
        self.features += channels
        self._pooled.append(self._node("ReduceMean", [x], axes=[2, 3], keepdims=0))

    def _moments(self, x: str, channels: int) -> None:
        """Build the graph of :func:`stochcl.encoders.backbones.moments`."""
        self.features += 6 * channels
        side = self._side
        places = (np.arange(side, dtype=np.float32) + 0.5) * np.float32(2 / side) - 1
        across, down = np.meshgrid(places, places)
        basis = np.stack([np.ones_like(across), across, down, across**2, down**2, across * down], axis=-1)
        flat = self._node("Reshape", [x, self._constant(np.array([0, 0, side * side], np.int64))])
        sums = self._node("MatMul", [flat, self._constant(basis.reshape(-1, 6).astype(np.float32))])
        mass, *rest = (self._node("Gather", [sums, self._constant(np.int64(i))], axis=2) for i in range(6))
        whole = self._node("Add", [mass, self._constant(np.float32(NOTHING))])
        mx, my, xx, yy, xy = (self._node("Div", [part, whole]) for part in rest)
        self._pooled += [self._node("Div", [mass, self._constant(np.float32(side * side))]), mx, my]
        for square, one, other in ((xx, mx, mx), (yy, my, my), (xy, mx, my)):
            self._pooled.append(self._node("Sub", [square, self._node("Mul", [one, other])]))

    def _node(self, operator: str, inputs: list[str], *, domain: str = "", **attributes: Any) -> str:
        output = f"{operator}{len(self._nodes)}"
        self._nodes.append(onnx.node(operator, inputs, output, domain=domain, **attributes))
        return output

    def _constant(self, array: NDArray[Any] | np.generic) -> str:
        name = f"constant{len(self._constants)}"
        self._constants.append(onnx.tensor(name, np.asarray(array)))
        return name
