"""The example images: a few that scikit-learn carries, as files in folders named by their class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stochcl.data.files import why
from stochcl.data.names import printable
from stochcl.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DIGITS_PER_CLASS = 9
"""Images of each of the ten digits."""

_DIGIT_SIDE = 64
_PATCH_SIDE = 96
_GRID = (4, 5)  # rows and columns of patches in a photograph of 427 x 640 pixels
_JPEG_QUALITY = 85


def write_examples(folder: str | os.PathLike[str]) -> int:
    """Write the example images below ``folder``, one folder a class, and return how many there are.

    Ten classes of handwritten digits (``digit-0`` ... ``digit-9``, 64 x 64 PNG, enlarged smoothly from 8 x 8)
    and two of patches of photographs (``china``, ``flower``, 96 x 96 JPEG). The same images every time.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    written = 0
    try:
        for name, image in _images():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                image.save(path, optimize=True)
            else:
                image.save(path, quality=_JPEG_QUALITY)
            written += 1
    except OSError as exc:
        msg = f"{printable(os.fspath(folder))}: the example images cannot be written: {why(exc)}."
        raise OutputError(msg) from exc
    return written


def _images() -> Iterator[tuple[str, Image.Image]]:
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    for digit in range(10):
        for k, row in enumerate(np.flatnonzero(digits.target == digit)[:DIGITS_PER_CLASS]):
            yield f"digit-{digit}/{k:02d}.png", _enlarge(digits.images[row])
    photographs = load_sample_images()
    for path, pixels in zip(photographs.filenames, photographs.images, strict=True):
        label = Path(path).stem
        for k, patch in enumerate(_patches(pixels)):
            yield f"{label}/{k:02d}.jpg", Image.fromarray(patch)


def _enlarge(digit: NDArray[np.float64]) -> Image.Image:
    """Enlarge 8 x 8 values in 0..16 to an 8-bit grey image, cubic, so that strokes stay smooth."""
    small = Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8))
    return small.resize((_DIGIT_SIDE, _DIGIT_SIDE), Image.Resampling.BICUBIC)


def _patches(photograph: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Cut a grid of squares, spread evenly from edge to edge, out of a photograph of shape (H, W, 3)."""
    height, width = photograph.shape[:2]
    tops = np.linspace(0, height - _PATCH_SIDE, _GRID[0]).astype(int)
    lefts = np.linspace(0, width - _PATCH_SIDE, _GRID[1]).astype(int)
    return [photograph[t : t + _PATCH_SIDE, x : x + _PATCH_SIDE] for t in tops for x in lefts]
