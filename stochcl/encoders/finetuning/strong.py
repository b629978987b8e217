"""Strong augmentation for training on labels: crop, flip, operations of RandAugment, cutout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from stochcl.encoders.devices import to_device
from stochcl.encoders.finetuning.operations import OPERATIONS, apply_each
from stochcl.encoders.keyed import keyed_uniform

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = 6  # random numbers beside those of the operations: area, two of the place, flip, two of the hole


@dataclass(frozen=True)
class StrongAugmentation:
    """One view of each image of a batch; what is drawn for an image is a function of its key alone.

    A view is a window of the image, moved by up to ``padding`` beyond the border (where the image is reflected), as
    random crops of padded images are. Operations are drawn as by TrivialAugment (Mueller and Hutter, arXiv
    2103.10158): evenly from those of RandAugment, with an even strength. A square is cut out (DeVries and Taylor,
    arXiv 1708.04552).

    Parameters
    ----------
    size : int
        Side of a view in pixels. Where it is smaller than the image's and ``area`` is 1, a view is a piece of the
        image at its own scale: seen smaller in training, objects would be too large at test (Touvron et al., arXiv
        1906.06423).
    padding : float
        How far a window reaches beyond the image, as a part of its side.
    area : float
        Smallest part of the image's area that a window covers, which is then brought to the view's size.
    flip : bool
        Mirror every second image.
    operations : int
        How many are applied, one after the other.
    strength : float
        Of the strongest, 0..1.
    cutout : float
        Side of the square that is cut out, as a part of the view's; 0 for none.
    """

    size: int
    padding: float = 0.125
    area: float = 1.0
    flip: bool = True
    operations: int = 1
    strength: float = 1.0
    cutout: float = 0.25

    def __call__(self, images: Tensor, keys: Tensor, seed: int, stream: int, fill: Tensor) -> Tensor:
        """Draw one view of each image.

        Parameters
        ----------
        images : Tensor of uint8, shape (B, 3, S, S)
        keys : Tensor of int64, shape (B,), on the CPU
            See :func:`~stochcl.encoders.keyed.keyed_uniform`.
        seed, stream : int
            The run's seed, and which use of randomness this is.
        fill : Tensor of float, shape (1, 3, 1, 1)
            Colour of what is cut out, 0..255.

        Returns
        -------
        Tensor of float32, shape (B, 3, size, size), channels last
            Pixels of 0..255.
        """
        drawn = keyed_uniform(keys, seed, stream, _COLUMNS + 2 * self.operations)
        chosen = (drawn[:, _COLUMNS::2] * len(OPERATIONS)).long()
        u = to_device(drawn, images.device)
        grid = functional.affine_grid(self._window(u, images.shape[-1]), [len(u), 3, self.size, self.size], False)
        views = functional.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
        for i in range(self.operations):
            amount = (2 * u[:, _COLUMNS + 1 + 2 * i] - 1) * self.strength
            views = apply_each(views, chosen[:, i], amount)
        if self.cutout:
            views = torch.where(self._hole(u), fill.to(views.dtype), views)
        return views.contiguous(memory_format=torch.channels_last)

    def _window(self, u: Tensor, side: int) -> Tensor:
        """Return the affine map of each view, shape (B, 2, 3): from its corners to the window's."""
        whole = min(1.0, self.size / side) if self.area == 1 else 1.0
        scale = whole * torch.sqrt(self.area + (1 - self.area) * u[:, 0])
        reach = side * ((1 - scale) / 2 + self.padding)
        shift = [(2 * u[:, i] - 1) * reach for i in (1, 2)]
        if self.area == 1:  # by whole pixels, from where pixels fall on pixels: by parts of one they would be blurred
            odd = (side - self.size) % 2 / 2 if self.size < side else 0.0
            shift = [(pixels - odd).round() + odd for pixels in shift]
        x, y = (2 * pixels / side for pixels in shift)
        sign = torch.where(u[:, 3] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(scale)
        zero = torch.zeros_like(scale)
        return torch.stack([scale * sign, zero, x, zero, scale, y], dim=1).view(-1, 2, 3)

    def _hole(self, u: Tensor) -> Tensor:
        """Return where something is cut out, bool, shape (B, 1, size, size); the square's middle is in the view."""
        at = torch.arange(self.size, device=u.device) + 0.5
        half = self.cutout * self.size / 2
        row, column = ((at - u[:, i : i + 1] * self.size).abs() < half for i in (4, 5))
        return (row[:, :, None] & column[:, None, :])[:, None]
