"""Two random views of an image: crop, flip and colour, for a whole batch in a few tensor operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stochcl.encoders.keyed import keyed_uniform

if TYPE_CHECKING:
    from torch import Tensor

# Rec. 601 luma, and the rotation of hue in YIQ, where it leaves the luma alone.
_RGB_TO_YIQ = [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
_COLUMNS = 13  # random numbers that one view uses
_BLUR = (0.1, 2.0)  # deviations of SimCLR's Gaussian blur, in pixels
_BLUR_SIDE = 10  # its kernel is one such part of a view wide


@cache  # making them at every step would wait for a GPU
@torch.inference_mode(mode=False)
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrix to YIQ and its inverse, float32, shape (3, 3)."""
    matrix = torch.tensor(_RGB_TO_YIQ)
    return matrix.to(device), torch.linalg.inv(matrix).to(device)


@dataclass(frozen=True)
class Augmentation:
    """The views of SimCLR (Chen et al., arXiv 2002.05709, appendix A), drawn in one batch.

    Crop, flip and resizing are one affine sampling; brightness, contrast, saturation, hue and greyscale are
    all affine in RGB and are composed into one 3 x 4 matrix an image. That makes two passes over the pixels
    where a chain of operations makes eight, and the parameters of an image are a function of its key alone.

    Parameters
    ----------
    size : int
        Side of a view in pixels.
    area : tuple of float
        Smallest and largest part of the image's area that a crop covers.
    ratio : float
        Largest aspect ratio of a crop; the smallest is its inverse.
    strength : float
        Of the colour distortion: brightness, contrast and saturation change by up to 0.8 of it, hue by 0.2.
    jitter, grey, blur : float
        Probability of the colour distortion, of greyscale, and of a Gaussian blur (kornia's), which images of 64
        pixels and fewer are better without (SimCLR, appendix B.9).
    flip : bool
        Whether every second view is mirrored.
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
        """Draw one view of each image.

        Parameters
        ----------
        images : Tensor of uint8 or float, shape (B, 3, S, S)
            Pixels of 0..255.
        keys : Tensor of int64, shape (B,)
            See :func:`~stochcl.encoders.keyed.keyed_uniform`.
        seed, stream : int
            The run's seed, and which view this is.

        Returns
        -------
        Tensor of float32, shape (B, 3, size, size), channels last
            Pixels of 0..255.
        """
        u = keyed_uniform(keys, seed, stream, _COLUMNS)
        grid = functional.affine_grid(self._crop(u), [len(images), 3, self.size, self.size], align_corners=False)
        views = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        matrix, offset = self._colour(u, views.mean(dim=(2, 3)))
        views = torch.baddbmm(offset[:, :, None], matrix, views.flatten(2)).view_as(views)
        views = views.clamp_(0, 255)
        if self.blur:
            views = self._blurred(views, u)
        return views.contiguous(memory_format=torch.channels_last)

    def _crop(self, u: Tensor) -> Tensor:
        """Return the affine map of each view, shape (B, 2, 3): from its corners to the crop's."""
        area = self.area[0] + (self.area[1] - self.area[0]) * u[:, 0]
        ratio = torch.exp((2 * u[:, 1] - 1) * math.log(self.ratio))
        width = torch.sqrt(area * ratio).clamp(max=1)
        height = torch.sqrt(area / ratio).clamp(max=1)
        flip = torch.where((u[:, 4] < 0.5) & self.flip, -1.0, 1.0)
        zero = torch.zeros_like(width)
        x = (2 * u[:, 2] - 1) * (1 - width)
        y = (2 * u[:, 3] - 1) * (1 - height)
        return torch.stack([width * flip, zero, x, zero, height, y], dim=1).view(-1, 2, 3)

    def _blurred(self, views: Tensor, u: Tensor) -> Tensor:
        """Blur some views, each by its own deviation."""
        from kornia.filters import gaussian_blur2d  # only some runs need it

        rows = (u[:, 11] < self.blur).nonzero()[:, 0]
        if not len(rows):
            return views
        side = self.size // _BLUR_SIDE | 1
        deviation = (_BLUR[0] + (_BLUR[1] - _BLUR[0]) * u[rows, 12, None]).expand(-1, 2)
        return views.index_copy(0, rows, gaussian_blur2d(views[rows], (side, side), deviation))

    def _colour(self, u: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Compose the colour changes: matrices (B, 3, 3) and offsets (B, 3), from mean colours (B, 3)."""
        b = len(u)
        on = (u[:, 5] < self.jitter).float()[:, None]
        signed = on * (2 * u[:, 6:10] - 1)
        spread = 0.8 * self.strength
        brightness, contrast, saturation = (1 + spread * signed[:, i].view(b, 1, 1) for i in range(3))
        angle = 2 * math.pi * 0.2 * self.strength * signed[:, 3]
        yiq, inverse = _yiq(u.device)
        luma = yiq[0].expand(3, 3)
        eye = torch.eye(3, device=u.device)
        rotation = torch.zeros(b, 3, 3, device=u.device)
        rotation[:, 0, 0] = 1
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
