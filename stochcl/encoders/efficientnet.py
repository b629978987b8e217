"""EfficientNet-Lite, whose state-dict names are those of the published PyTorch file, so that its weights load."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from stochcl.encoders.graph import LITE_HEAD, LITE_STEM, lite_blocks
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


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
            self._blocks.append(_Block(inputs, outputs, kernel, stride, expansion))
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
        """Return pooled features, float, shape (B, features), of images, float, shape (B, 3, S, S)."""
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
        """Return what runs before and in the first stages."""
        return [self._conv_stem, self._bn0, *self._blocks[: self._ends[count - 1] + 1]]


class _Block(nn.Module):
    """A 1 x 1 convolution that widens, one over places, and a 1 x 1 that narrows, around a shortcut."""

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
    """A convolution with TensorFlow's "same" padding, and the batch normalisation behind it."""

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
        # Folded into the weights at every batch: a hundredth of the work, half of the time, and nothing to go stale.
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
        """Return the padding before and after n places; the wider one is after."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max(0, (math.ceil(n / stride) - 1) * stride + kernel - n)
        return total // 2, total - total // 2


class Depthwise(torch.autograd.Function):
    """A depthwise convolution, 3 x 3 or 5 x 5, whose gradients a processor computes fast.

    oneDNN 3.12 (PyTorch 2.13) has no fast code for the gradient of 5 x 5 weights, and in bfloat16 none for that of
    the input of a strided one: together four fifths of a training step's time. Here the former are those of four
    overlapping 3 x 3 windows, and the latter is a convolution of gradients with zeros between them.
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
