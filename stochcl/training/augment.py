"""Random views of image batches: SimCLR's for pre-training, strong ones for fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stochcl.training.runtime import to_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift 64-bit words right logically; torch's shift keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser (Steele, Lea, Flood: Fast splittable pseudorandom generators, 2014)."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def counter_rng(keys: Tensor, seed: int, stream: int, count: int) -> Tensor:
    """Return ``count`` uniform numbers in [0, 1) per key, as a function of only key, seed and stream."""
    golden = _signed(0x9E3779B97F4A7C15)
    # On the CPU: copying it to a GPU would wait for the GPU's queue.
    start = int(_mix(torch.tensor([seed], dtype=torch.int64) * golden + stream + 1))
    rows = _mix(keys.to(torch.int64) * golden + start)
    columns = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * golden
    return _shift(_mix(rows[:, None] + columns), 40).to(torch.float32) * 2.0**-24


def as_words(uniform: Tensor) -> Tensor:
    """Return numbers of :func:`counter_rng` as int32, which mixed precision does not round.

    Fabric rounds a network's float inputs to bfloat16, and some of these numbers to 1.
    """
    return (uniform * 2.0**24).to(torch.int32)


def from_words(words: Tensor) -> Tensor:
    """Invert :func:`as_words`; float32 in [0, 1)."""
    return words.to(torch.float32) * 2.0**-24


# Rec. 601 luma, and the hue rotation in YIQ, which keeps luma.
_RGB_TO_YIQ = [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
_VIEW_COLUMNS = 13  # random numbers per view
_BLUR = (0.1, 2.0)  # deviations of SimCLR's Gaussian blur, in pixels
_BLUR_SIDE = 10  # its kernel is a tenth of a view wide


@cache  # recomputing them at every step would wait for a GPU
@torch.inference_mode(mode=False)
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrix to YIQ and its inverse, float32, shape (3, 3)."""
    matrix = torch.tensor(_RGB_TO_YIQ)
    return matrix.to(device), torch.linalg.inv(matrix).to(device)


@dataclass(frozen=True)
class Augmentation:
    """SimCLR's views (Chen et al., arXiv 2002.05709, appendix A), drawn per batch.

    Crop, flip and resizing are one affine sampling; brightness, contrast, saturation, hue and greyscale are affine in
    RGB and combined into one 3 x 4 matrix per image. That takes two passes over the pixels instead of eight, and an
    image's parameters depend only on its key.

    ``size`` is a view's side in pixels, ``area`` the smallest and largest part of the image in a crop, ``ratio`` its
    largest aspect ratio. Brightness, contrast and saturation change by up to 0.8 of ``strength``, hue by 0.2 of it.
    ``jitter``, ``grey`` and ``blur`` are probabilities; images of up to 64 pixels do better without blur (SimCLR,
    appendix B.9).
    """

    size: int
    area: tuple[float, float] = (0.2, 1.0)
    ratio: float = 4 / 3
    strength: float = 0.5
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    flip: bool = True

    def __call__(self, images: Tensor, keys: Tensor, seed: int, stream: int) -> Tensor:
        """Draw one view of each image."""
        u = counter_rng(keys, seed, stream, _VIEW_COLUMNS)
        grid = functional.affine_grid(self._crop(u), [len(images), 3, self.size, self.size], align_corners=False)
        views = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        matrix, offset = self._colour(u, views.mean(dim=(2, 3)))
        views = torch.baddbmm(offset[:, :, None], matrix, views.flatten(2)).view_as(views)
        views = views.clamp_(0, 255)
        if self.blur and len(rows := (u[:, 11] < self.blur).nonzero()[:, 0]):
            deviation = _BLUR[0] + (_BLUR[1] - _BLUR[0]) * u[rows, 12]
            views = views.index_copy(0, rows, gaussian_blur(views[rows], self.size // _BLUR_SIDE | 1, deviation))
        return views.contiguous(memory_format=torch.channels_last)

    def _crop(self, u: Tensor) -> Tensor:
        """Return each view's affine map, shape (B, 2, 3), from its corners to the crop's."""
        area = self.area[0] + (self.area[1] - self.area[0]) * u[:, 0]
        ratio = torch.exp((2 * u[:, 1] - 1) * math.log(self.ratio))
        width = torch.sqrt(area * ratio).clamp(max=1)
        height = torch.sqrt(area / ratio).clamp(max=1)
        flip = torch.where((u[:, 4] < 0.5) & self.flip, -1.0, 1.0)
        zero = torch.zeros_like(width)
        x = (2 * u[:, 2] - 1) * (1 - width)
        y = (2 * u[:, 3] - 1) * (1 - height)
        return torch.stack([width * flip, zero, x, zero, height, y], dim=1).view(-1, 2, 3)

    def _colour(self, u: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Combine the colour changes to matrices (B, 3, 3) and offsets (B, 3), from mean colours (B, 3)."""
        b = len(u)
        on = (u[:, 5] < self.jitter).float()[:, None]
        signed = on * (2 * u[:, 6:10] - 1)
        spread = 0.8 * self.strength
        brightness, contrast, saturation = (1 + spread * signed[:, i].view(b, 1, 1) for i in range(3))
        angle = 2 * math.pi * 0.2 * self.strength * signed[:, 3]
        yiq, inverse = _yiq(u.device)
        luma = yiq[0].expand(3, 3)
        eye = torch.eye(3, device=u.device)
        rotation = eye.repeat(b, 1, 1)
        rotation[:, 1, 1] = rotation[:, 2, 2] = torch.cos(angle)
        rotation[:, 1, 2], rotation[:, 2, 1] = -torch.sin(angle), torch.sin(angle)
        hue = inverse @ rotation @ yiq
        grey = (u[:, 10] < self.grey).view(b, 1, 1).float()
        # Contrast pulls towards the mean luma, which brightness has already scaled.
        matrix = brightness * contrast * eye.expand(b, 3, 3)
        offset = ((1 - contrast) * brightness).view(b, 1) * (mean @ yiq[0])[:, None].expand(b, 3)
        for step in (saturation * eye + (1 - saturation) * luma, hue, grey * luma + (1 - grey) * eye):
            matrix = step @ matrix
            offset = (step @ offset[:, :, None]).squeeze(2)
        return matrix, offset


def gaussian_blur(images: Tensor, side: int, deviation: Tensor) -> Tensor:
    """Blur each image with its own Gaussian deviation, in pixels, cut to an odd ``side``; borders reflect."""
    b, c, h, w = images.shape
    offsets = torch.arange(side, device=images.device) - side // 2
    kernels = torch.softmax(-offsets.square() / (2 * deviation.square()[:, None]), dim=1)
    kernels = kernels.to(images.dtype).repeat_interleave(c, 0)[:, None, None]
    planes = functional.pad(images.reshape(1, b * c, h, w), [side // 2] * 4, mode="reflect")
    rows = functional.conv2d(planes, kernels, groups=b * c)
    return functional.conv2d(rows, kernels.transpose(2, 3), groups=b * c).view(b, c, h, w)


_ENHANCED = 0.9  # a factor of 0.1 to 1.9
_SHEARED = 0.3
_SHIFTED = 0.45  # of the side
_TURNED = 30.0  # degrees
_POSTERISED = 4  # bits lost at most
GREY = 128.0
"""The fill outside a moved image."""


def _column(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


def _blend(plain: Tensor, images: Tensor, amount: Tensor) -> Tensor:
    """Move images away from, or towards, a plain version of themselves (Haeberli and Voorhies, 1994)."""
    return (plain + _column(1 + _ENHANCED * amount) * (images - plain)).clamp(0, 255)


def _luma(images: Tensor) -> Tensor:
    return (images * _yiq(images.device)[0][0].to(images.dtype).view(3, 1, 1)).sum(1, keepdim=True)


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
    """Invert pixels above a threshold."""
    threshold = 255 * (1 - _column(amount.abs()))
    return torch.where(images >= threshold, 255 - images, images)


def autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to 0..255; ignores the amount."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1e-6))
    return torch.where(high > low, stretched, images)


def equalise(images: Tensor, amount: Tensor) -> Tensor:
    """Equalise each channel's histogram; ignores the amount."""
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
    """Return the images unchanged."""
    return images


def _moved(images: Tensor, changed: dict[int, Tensor]) -> Tensor:
    """Resample images with an affine map; ``changed`` sets entries of its matrix by position."""
    matrix = torch.eye(2, 3, device=images.device, dtype=images.dtype).flatten().repeat(len(images), 1)
    for place, values in changed.items():
        matrix[:, place] = values
    grid = functional.affine_grid(matrix.view(-1, 2, 3), list(images.shape), align_corners=False)
    # Grid sampling fills with zeros, so subtract GREY first.
    return functional.grid_sample(images - GREY, grid, align_corners=False) + GREY


def rotate(images: Tensor, amount: Tensor) -> Tensor:
    """Rotate about the centre, anticlockwise for positive amounts."""
    angle = torch.deg2rad(_TURNED * amount)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _moved(images, {0: cos, 1: -sin, 3: sin, 4: cos})


def _mover(place: int, most: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return an operation that changes one matrix entry by up to ``most``."""
    return lambda images, amount: _moved(images, {place: most * amount})


shear_x, shear_y = _mover(1, _SHEARED), _mover(3, _SHEARED)
shift_x, shift_y = _mover(2, 2 * _SHIFTED), _mover(5, 2 * _SHIFTED)  # sideways, and up or down


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    identity, autocontrast, equalise, rotate, solarise, colour, posterise, contrast, brightness, sharpness, shear_x,
    shear_y, shift_x, shift_y,
)  # fmt: skip
"""RandAugment's fourteen operations in its order."""


def apply_each(images: Tensor, chosen: Tensor, amount: Tensor) -> Tensor:
    """Apply to each image its own operation."""
    out = images.clone()
    order = to_device(chosen.argsort(stable=True), images.device)
    counts = chosen.bincount(minlength=len(OPERATIONS)).tolist()
    for operation, rows in zip(OPERATIONS, torch.split(order, counts), strict=True):
        if operation is not identity and len(rows):
            out[rows] = operation(images[rows], amount[rows])
    return out


_STRONG_COLUMNS = 6  # random numbers besides the operations' own: area, two for the position, flip, two for the hole


@dataclass(frozen=True)
class StrongAugmentation:
    """One strong view of each image; an image's draws depend only on its key.

    A view is a window of the image, shifted by up to ``padding`` beyond the border (where the image is reflected),
    like random crops of padded images. Operations are drawn as in TrivialAugment (Mueller and Hutter, arXiv
    2103.10158): uniformly from RandAugment's, with a uniform strength. A square is cut out (DeVries and Taylor, arXiv
    1708.04552).

    ``padding`` and ``cutout`` are fractions of the side; ``area`` is the smallest part of the image in a window,
    which is resized to ``size``. If the view is smaller than the image and ``area`` is 1, a view is a piece of the
    image at its own scale: objects seen smaller in training would look too large at test (Touvron et al., arXiv
    1906.06423).
    """

    size: int
    padding: float = 0.125
    area: float = 1.0
    flip: bool = True
    operations: int = 1
    strength: float = 1.0
    cutout: float = 0.25

    def __call__(self, images: Tensor, keys: Tensor, seed: int, stream: int, fill: Tensor) -> Tensor:
        """Draw one view of each image."""
        drawn = counter_rng(keys, seed, stream, _STRONG_COLUMNS + 2 * self.operations)
        chosen = (drawn[:, _STRONG_COLUMNS::2] * len(OPERATIONS)).long()
        u = to_device(drawn, images.device)
        grid = functional.affine_grid(self._window(u, images.shape[-1]), [len(u), 3, self.size, self.size], False)
        views = functional.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
        for i in range(self.operations):
            amount = (2 * u[:, _STRONG_COLUMNS + 1 + 2 * i] - 1) * self.strength
            views = apply_each(views, chosen[:, i], amount)
        if self.cutout:
            views = torch.where(self._hole(u), fill.to(views.dtype), views)
        return views.contiguous(memory_format=torch.channels_last)

    def _window(self, u: Tensor, side: int) -> Tensor:
        """Return each view's affine map, shape (B, 2, 3), from its corners to the window's."""
        whole = min(1.0, self.size / side) if self.area == 1 else 1.0
        scale = whole * torch.sqrt(self.area + (1 - self.area) * u[:, 0])
        reach = side * ((1 - scale) / 2 + self.padding)
        shift = [(2 * u[:, i] - 1) * reach for i in (1, 2)]
        if self.area == 1:  # shift by whole pixels on the pixel grid, because fractions would blur
            odd = (side - self.size) % 2 / 2 if self.size < side else 0.0
            shift = [(pixels - odd).round() + odd for pixels in shift]
        x, y = (2 * pixels / side for pixels in shift)
        sign = torch.where(u[:, 3] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(scale)
        zero = torch.zeros_like(scale)
        return torch.stack([scale * sign, zero, x, zero, scale, y], dim=1).view(-1, 2, 3)

    def _hole(self, u: Tensor) -> Tensor:
        """Return the mask of the cut-out squares, bool, shape (B, 1, size, size); centres are inside the view."""
        at = torch.arange(self.size, device=u.device) + 0.5
        half = self.cutout * self.size / 2
        row, column = ((at - u[:, i : i + 1] * self.size).abs() < half for i in (4, 5))
        return (row[:, :, None] & column[:, None, :])[:, None]
