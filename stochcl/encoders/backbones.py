"""Networks from images to features: ResNet, EfficientNet-Lite and those of timm and open_clip."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stochcl.encoders.config import (
    EFFICIENTNETS,
    OPEN_CLIP_PREFIX,
    POOLINGS,
    STEMS,
    TIMM_PREFIX,
    check_backbone,
    feature_width,
)
from stochcl.encoders.graph import LITE_HEAD, LITE_STEM, NOTHING, RESNET_DEPTHS, lite_blocks
from stochcl.errors import UsageError, require


class TimmBackbone(nn.Module):
    """A randomly initialised timm network without its classifier: images to pooled features.

    ``name`` is that of ``timm.create_model``. Published weights come from a safetensors file, see
    :func:`stochcl.encoders.pretrained.init_backbone`; nothing is downloaded.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        timm = require("timm", "a backbone called timm:NAME", "timm")
        try:
            self.network: Any = timm.create_model(name, pretrained=False, num_classes=0)
        except (RuntimeError, TypeError, ValueError) as exc:
            reason = str(exc).partition("\n")[0]
            raise UsageError(f"timm cannot make a model {name!r} ({reason}); timm.list_models() has names.") from exc
        # Networks such as MobileNetV3 widen their features after pooling, under another attribute.
        features = getattr(self.network, "head_hidden_size", None) or getattr(self.network, "num_features", None)
        if not isinstance(features, int) or features < 1:
            raise UsageError(f"timm's {name!r} does not say how wide its features are; take another model.")
        self.features: int = features

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features, float, shape (B, features), from images, float, shape (B, 3, S, S)."""
        out: Tensor = self.network(images)
        return out


class OpenClipBackbone(nn.Module):
    """An image tower of open_clip: images to embeddings, not scaled to unit length; its weights begin random.

    ``name`` is one of ``open_clip.list_models()``. Published weights come from a safetensors file; nothing is
    downloaded.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        open_clip = require("open_clip", "a backbone called open_clip:NAME", "open-clip")
        if name not in open_clip.list_models():
            raise UsageError(f"open_clip has no model {name!r}; open_clip.list_models() has names.")
        self.visual: Any = open_clip.create_model(name, pretrained=None).visual
        features = getattr(self.visual, "output_dim", None)
        if not isinstance(features, int) or features < 1:
            raise UsageError(f"open_clip's {name!r} does not say how wide its embeddings are; take another model.")
        self.features: int = features

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings, float, shape (B, features), of images, float, shape (B, 3, S, S)."""
        out: Tensor = self.visual(images)
        return out


_NARROW = 8  # channels


class _Block(nn.Module):
    """Convolutions with a shortcut; children are named as in torchvision."""

    expansion: int

    def __init__(self, inputs: int, *convolutions: nn.Conv2d, stride: int) -> None:
        super().__init__()
        for i, convolution in enumerate(convolutions, 1):
            self.add_module(f"conv{i}", convolution)
            self.add_module(f"bn{i}", nn.BatchNorm2d(convolution.out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, convolutions[-1].out_channels, stride)
        self.depth = len(convolutions)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            x = self.relu(x + shortcut if i == self.depth else x)
        return x


class BasicBlock(_Block):
    """Two 3 x 3 convolutions (He et al., arXiv 1512.03385, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        first = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        super().__init__(inputs, first, nn.Conv2d(width, width, 3, 1, 1, bias=False), stride=stride)


class Bottleneck(_Block):
    """1 x 1, 3 x 3 (with the stride, as in torchvision) and 1 x 1 convolutions (figure 5 right)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        first, middle = nn.Conv2d(inputs, width, 1, bias=False), nn.Conv2d(width, width, 3, stride, 1, bias=False)
        super().__init__(inputs, first, middle, nn.Conv2d(width, 4 * width, 1, bias=False), stride=stride)


class _NarrowShortcut(nn.Conv2d):
    """A 1 x 1 convolution that subsamples first and then strides by 1, with the same result.

    On CPUs without AVX-512, oneDNN 3.12 (PyTorch 2.13) writes out of bounds when computing the gradient of a strided
    one over 4 to 6 channels (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return functional.conv2d(input[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    convolution = _NarrowShortcut if inputs < _NARROW else nn.Conv2d
    return nn.Sequential(convolution(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


BACKBONES: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    name: (Bottleneck if name == "resnet50" else BasicBlock, depths) for name, depths in RESNET_DEPTHS.items()
}
"""Residual networks by name: the block type and the number of blocks in each of the four stages."""

MOMENTS = 6
"""Numbers per channel of a stage, see :func:`moments`."""


def moments(responses: Tensor) -> Tensor:
    """Return the spatial moments of each channel, float32, shape (B, 6 C).

    Responses count as mass: the mean, the centre of mass relative to the middle, and the variances (across, down) and
    covariance around it, in units of half the image. A silent channel is centred. The centre is a spatial soft argmax
    (Finn et al., arXiv 1509.06113) without the softmax.

    Examples
    --------
    >>> image = torch.zeros(1, 1, 4, 4)
    >>> image[0, 0, 1, 3] = 8
    >>> moments(image)[0, :3].round(decimals=3).tolist()
    [0.5, 0.75, -0.25]
    """
    height, width = responses.shape[-2:]
    down, across = (torch.arange(n, device=responses.device).add(0.5).mul(2 / n).sub(1) for n in (height, width))
    x, y = across.expand(height, width), down[:, None].expand(height, width)
    basis = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=-1).flatten(0, 1)
    with torch.autocast(responses.device.type, enabled=False):  # computes differences of squares
        mass, *sums = (responses.float().flatten(2) @ basis).unbind(-1)
    x, y, xx, yy, xy = (part / (mass + NOTHING) for part in sums)
    return torch.cat([mass / (height * width), x, y, xx - x * x, yy - y * y, xy - x * y], dim=1)


class ResNet(nn.Module):
    """A residual network without its classifier: images to pooled features.

    ``width`` is the number of channels of the first stage (64 in torchvision), which each later stage doubles.
    Training without labels makes the last stage invariant; earlier stages keep what it gives up, so all four together
    suit unknown tasks. A mean knows positions only through the padding at the edges; moments state them.
    """

    def __init__(self, name: str, *, width: int = 64, stem: str = "imagenet", pooling: str = "mean") -> None:
        super().__init__()
        for what, value, known in (
            ("backbone", name, BACKBONES),
            ("stem", stem, STEMS),
            ("pooling", pooling, POOLINGS),
        ):
            if value not in known:
                raise UsageError(f"there is no {what} {value!r}; there are {', '.join(known)}.")
        block, depths = BACKBONES[name]
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False) if large else nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        inputs, widths = width, []
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                blocks.append(block(inputs, width << stage, 2 if stage and i == 0 else 1))
                inputs = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            widths.append(inputs)
        self.pooling = pooling
        early = {"mean": 0, "stages": 1, "moments": MOMENTS}[pooling]  # numbers per channel of the earlier stages
        self.features = early * sum(widths[:-1]) + widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features, float, shape (B, features), from images, float, shape (B, 3, S, S)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        pooled = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            if stage == 4 or self.pooling == "stages":
                pooled.append(x.mean(dim=(2, 3)))
            elif self.pooling == "moments":
                pooled.append(moments(x))
        return torch.cat(pooled, dim=1) if len(pooled) > 1 else pooled[0]

    def first_stages(self, count: int) -> list[nn.Module]:
        """Return the stem and the first ``count`` stages."""
        return [self.conv1, self.bn1, *(self.get_submodule(f"layer{i + 1}") for i in range(count))]


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its classifier: images to pooled features.

    Inverted residual blocks without squeeze-and-excitation, ReLU6 (Tan and Le, arXiv 1905.11946, and Google's
    ``tensorflow/tpu``). Padding is TensorFlow's "same": at stride 2 it is wider on the right and below.
    """

    def __init__(self, name: str, *, pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in ("mean", "stages"):
            raise UsageError(f"{name} has no pooling {pooling!r}; there are mean, stages.")
        self._conv_stem = _Convolution(3, LITE_STEM, 3, 2)
        self._bn0 = _norm(LITE_STEM)
        self._blocks = nn.ModuleList()
        self.pooling = pooling
        self._ends: list[int] = []  # the last block of each stage
        widths, outputs = [], LITE_STEM
        for i, (inputs, outputs, kernel, stride, expansion, ends) in enumerate(lite_blocks(name)):
            self._blocks.append(_InvertedBlock(inputs, outputs, kernel, stride, expansion))
            if ends:
                self._ends.append(i)
                widths.append(outputs)
        self._conv_head = _Convolution(outputs, LITE_HEAD, 1)
        self._bn1 = _norm(LITE_HEAD)
        self.features = (sum(widths) if pooling == "stages" else 0) + LITE_HEAD
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features, float, shape (B, features), from images, float, shape (B, 3, S, S)."""
        x: Tensor = functional.relu6(self._conv_stem(images, self._bn0), inplace=True)
        pooled = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if self.pooling == "stages" and i in self._ends:
                pooled.append(x.mean(dim=(2, 3)))
        x = functional.relu6(self._conv_head(x, self._bn1), inplace=True)
        pooled.append(x.mean(dim=(2, 3)))
        return torch.cat(pooled, dim=1) if len(pooled) > 1 else pooled[0]

    def first_stages(self, count: int) -> list[nn.Module]:
        """Return the stem and the first ``count`` stages."""
        return [self._conv_stem, self._bn0, *self._blocks[: self._ends[count - 1] + 1]]


class _InvertedBlock(nn.Module):
    """An inverted residual block: widening 1 x 1, depthwise and narrowing 1 x 1 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = _Convolution(inputs, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _Convolution(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = _Convolution(wide, outputs, 1)
        self._bn2 = _norm(outputs)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self._expand_conv(x, self._bn0), inplace=True) if self.expands else x
        y = functional.relu6(self._depthwise_conv(y, self._bn1), inplace=True)
        y = self._project_conv(y, self._bn2)
        out: Tensor = y + x if self.shortcut else y
        return out


class _Convolution(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, followed by batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor, norm: nn.BatchNorm2d) -> Tensor:  # type: ignore[override]
        if self.stride[0] > 1:
            (top, bottom), (left, right) = (self._around(n) for n in x.shape[-2:])
            x = functional.pad(x, (left, right, top, bottom))
        if norm.training:
            depthwise = self.groups > 1 and x.device.type == "cpu"
            normalised: Tensor = norm(self._depthwise(x) if depthwise else super().forward(x))
            return normalised
        # Folded into the weights in every batch: 1 % of the work, half the time, and nothing to go stale.
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        weight, bias = self.weight * scale.view(-1, 1, 1, 1), norm.bias - mean * scale
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _depthwise(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        weight, padding = self.weight.to(dtype), int(self.padding[0])
        out: Tensor = Depthwise.apply(x.to(dtype), weight, self.stride[0], padding)  # type: ignore[no-untyped-call]
        return out

    def _around(self, n: int) -> tuple[int, int]:
        """Return the padding before and after n pixels; the larger part goes after."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max(0, (math.ceil(n / stride) - 1) * stride + kernel - n)
        return total // 2, total - total // 2


class Depthwise(torch.autograd.Function):
    """A depthwise convolution, 3 x 3 or 5 x 5, whose gradients are fast on CPUs.

    oneDNN 3.12 (PyTorch 2.13) has no fast code for the gradient of 5 x 5 weights nor, in bfloat16, for the input
    gradient of a strided convolution: together four fifths of a training step. Here the former is computed from four
    overlapping 3 x 3 windows, and the latter is a convolution of the gradients with zeros in between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:  # noqa: D102
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: D102
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        wanted = ctx.needs_input_grad
        return (
            _input_gradient(grad, x, weight, ctx.stride, ctx.padding) if wanted[0] else None,
            _weight_gradient(grad, x, weight, ctx.stride, ctx.padding) if wanted[1] else None,
            None,
            None,
        )


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    turned, around = weight.flip(2, 3), weight.shape[-1] - 1
    before = around - padding
    if stride == 1:
        return functional.conv2d(grad, turned, None, 1, before, 1, len(weight))
    (height, width), (rows, columns) = x.shape[-2:], grad.shape[-2:]
    spread = grad.new_zeros(len(x), height + around, width + around, len(weight)).permute(0, 3, 1, 2)
    spread[:, :, before:, before:][:, :, : rows * stride : stride, : columns * stride : stride] = grad
    return functional.conv2d(spread, turned, groups=len(weight))


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    out, side = torch.zeros_like(weight), weight.shape[-1]
    x = functional.pad(x, [padding] * 4) if padding else x
    high, wide = ((n - 1) * stride + 3 for n in grad.shape[-2:])
    for i in range(0, side - 1, 2):
        for j in range(0, side - 1, 2):
            part = x[:, :, i : i + high, j : j + wide].contiguous(memory_format=torch.channels_last)
            out[:, :, i : i + 3, j : j + 3] = torch.ops.aten.convolution_backward(
                grad, part, out[:, :, :3, :3].contiguous(), None, [stride] * 2, [0, 0], [1, 1], False, [0, 0],
                len(weight), [False, True, False],
            )[1]  # fmt: skip
    return out


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Features(nn.Module):
    """The identity backbone, for vectors that are features already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the vectors, float, shape (B, W)."""
        return vectors


def make_backbone(
    name: str, *, width: int = 64, stem: str = "imagenet", pooling: str = "mean"
) -> ResNet | EfficientNetLite | TimmBackbone | OpenClipBackbone | Features:
    """Return a new backbone; its ``features`` is their width."""
    check_backbone(name)
    if name in BACKBONES:
        return ResNet(name, width=width, stem=stem, pooling=pooling)
    if name in EFFICIENTNETS:
        return EfficientNetLite(name, pooling=pooling)
    if pooling != "mean":
        raise UsageError(f"the backbone {name} has no stages to pool; {pooling} is for {', '.join(BACKBONES)}.")
    if columns := feature_width(name):
        return Features(columns)
    if name.startswith(OPEN_CLIP_PREFIX):
        return OpenClipBackbone(name.removeprefix(OPEN_CLIP_PREFIX))
    return TimmBackbone(name.removeprefix(TIMM_PREFIX))
