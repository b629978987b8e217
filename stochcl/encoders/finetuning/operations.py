"""The image operations of RandAugment, for a batch in which every image has a strength of its own.

They are those of Pillow, which RandAugment is defined by (Cubuk et al., arXiv 1909.13719), as tensor operations that
run where the images are. Libraries that offer RandAugment on batches draw one operation for the whole batch, and
draw it from a generator that the order of work advances; here an image's operation is a function of its key.

Images are float, shape (B, 3, S, S), of 0..255; an amount is float, shape (B,), of -1..1, whose sign matters to
operations that have two directions.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stochcl.encoders.devices import to_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_ENHANCED = 0.9  # a factor of 0.1 to 1.9
_SHEARED = 0.3
_SHIFTED = 0.45  # of the side
_TURNED = 30.0  # degrees
_POSTERISED = 4  # bits that are lost at most
_LUMA = (0.299, 0.587, 0.114)
GREY = 128.0
"""What stands where a moved image has left its place."""


def _column(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


def _blend(plain: Tensor, images: Tensor, amount: Tensor) -> Tensor:
    """Move images away from, or towards, a plain version of themselves (Haeberli and Voorhies, 1994)."""
    return (plain + _column(1 + _ENHANCED * amount) * (images - plain)).clamp(0, 255)


def _luma(images: Tensor) -> Tensor:
    return (images * _weights(images.device, images.dtype)).sum(1, keepdim=True)


@cache  # making it at every use would wait for a GPU
@torch.inference_mode(mode=False)
def _weights(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(_LUMA, device=device, dtype=dtype).view(3, 1, 1)


def brightness(images: Tensor, amount: Tensor) -> Tensor:
    """Blend with black."""
    return _blend(torch.zeros_like(images), images, amount)


def contrast(images: Tensor, amount: Tensor) -> Tensor:
    """Blend with the mean luma."""
    return _blend(_luma(images).mean(dim=(2, 3), keepdim=True), images, amount)


def colour(images: Tensor, amount: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(_luma(images), images, amount)


def sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """Blend with a smoothed image, except at the border."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device, dtype=images.dtype)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(images, kernel / 13, groups=3)
    return _blend(smooth, images, amount)


def posterise(images: Tensor, amount: Tensor) -> Tensor:
    """Drop the lowest bits."""
    step = 2 ** (_column(amount.abs()) * _POSTERISED).round()
    return (images / step).floor() * step


def solarise(images: Tensor, amount: Tensor) -> Tensor:
    """Invert what is brighter than a threshold."""
    threshold = 255 * (1 - _column(amount.abs()))
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to 0..255; the amount does not matter."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1e-6))
    return torch.where(high > low, stretched, images)


def equalise(images: Tensor, amount: Tensor) -> Tensor:
    """Give each channel a flat histogram; the amount does not matter."""
    b, c, h, w = images.shape
    values = images.round().clamp(0, 255).long().view(b * c, h * w)
    histogram = torch.zeros(b * c, 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, values, torch.ones_like(values))
    last = histogram.gather(1, values.amax(dim=1, keepdim=True))
    step = (h * w - last) // 255
    before = histogram.cumsum(1) - histogram
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(1, values).view(b, c, h, w).to(images.dtype)


def identity(images: Tensor, amount: Tensor) -> Tensor:
    """Leave images as they are."""
    return images


def _moved(images: Tensor, rows: list[Tensor]) -> Tensor:
    """Sample images at affinely moved places; ``rows`` are the six entries of each matrix, from output to input."""
    matrix = torch.stack(rows, dim=1).view(-1, 2, 3).to(images.dtype)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    # Grid sampling fills with zeros: of images less GREY, that is GREY.
    return functional.grid_sample(images - GREY, grid, align_corners=False) + GREY


def rotate(images: Tensor, amount: Tensor) -> Tensor:
    """Turn about the middle, anticlockwise where the amount is positive."""
    angle = torch.deg2rad(_TURNED * amount)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    return _moved(images, [cos, -sin, zero, sin, cos, zero])


def shear_x(images: Tensor, amount: Tensor) -> Tensor:
    """Shear along the rows."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return _moved(images, [one, _SHEARED * amount, zero, zero, one, zero])


def shear_y(images: Tensor, amount: Tensor) -> Tensor:
    """Shear along the columns."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return _moved(images, [one, zero, zero, _SHEARED * amount, one, zero])


def shift_x(images: Tensor, amount: Tensor) -> Tensor:
    """Move sideways."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return _moved(images, [one, zero, 2 * _SHIFTED * amount, zero, one, zero])


def shift_y(images: Tensor, amount: Tensor) -> Tensor:
    """Move up or down."""
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return _moved(images, [one, zero, zero, zero, one, 2 * _SHIFTED * amount])


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    identity, autocontrast, equalise, rotate, solarise, colour, posterise, contrast, brightness, sharpness, shear_x,
    shear_y, shift_x, shift_y,
)  # fmt: skip
"""The fourteen of RandAugment, in its order."""


def apply_each(images: Tensor, chosen: Tensor, amount: Tensor) -> Tensor:
    """Apply to each image an operation of its own.

    Parameters
    ----------
    images : Tensor of float, shape (B, 3, S, S)
    chosen : Tensor of int64, shape (B,), on the CPU
        Indices into ``OPERATIONS``; on the CPU, so that no device is waited for.
    amount : Tensor of float, shape (B,)
        Of -1..1.
    """
    out = images.clone()
    order = to_device(chosen.argsort(stable=True), images.device)
    counts = chosen.bincount(minlength=len(OPERATIONS)).tolist()
    for operation, rows in zip(OPERATIONS, torch.split(order, counts), strict=True):
        if operation is not identity and len(rows):
            out[rows] = operation(images[rows], amount[rows])
    return out
