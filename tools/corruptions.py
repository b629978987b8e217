"""Images made worse: blurred, noisy, faded, compressed, coarse, covered.

    python tools/corruptions.py IMAGES.zip -o FOLDER [--count 300] [--strength 3]

writes a random sample of the images of the .zip, each with every corruption, as FOLDER/WAY/NAME.png.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

STRENGTHS = (1, 2, 3, 4, 5)

_BLUR = (0.01, 0.018, 0.028, 0.042, 0.06)  # standard deviation, relative to the side
_NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)  # standard deviation, relative to white
_CONTRAST = (0.7, 0.5, 0.35, 0.22, 0.12)  # remaining contrast
_JPEG = (40, 25, 15, 10, 5)  # quality
_PIXELATE = (0.6, 0.45, 0.33, 0.25, 0.17)  # remaining pixels, relative to the side
_OCCLUDE = (0.2, 0.3, 0.4, 0.5, 0.6)  # covered side, relative to the side


def _blur(image: Pixels, strength: int, rng: Generator) -> Pixels:
    from PIL import Image, ImageFilter

    radius = _BLUR[strength] * image.shape[0]
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _noise(image: Pixels, strength: int, rng: Generator) -> Pixels:
    drawn = rng.standard_normal(image.shape, np.float32) * (255 * _NOISE[strength])
    noisy: Pixels = np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)
    return noisy


def _contrast(image: Pixels, strength: int, rng: Generator) -> Pixels:
    mean = image.mean(axis=(0, 1))
    worse: Pixels = np.clip(np.rint((image - mean) * _CONTRAST[strength] + mean), 0, 255).astype(np.uint8)
    return worse


def _jpeg(image: Pixels, strength: int, rng: Generator) -> Pixels:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG[strength])
    return np.asarray(Image.open(file).convert("RGB"))


def _pixelate(image: Pixels, strength: int, rng: Generator) -> Pixels:
    from PIL import Image

    height, width = image.shape[:2]
    small = max(1, round(width * _PIXELATE[strength])), max(1, round(height * _PIXELATE[strength]))
    coarse = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST), np.uint8)


def _occlude(image: Pixels, strength: int, rng: Generator) -> Pixels:
    height, width = (max(1, round(side * _OCCLUDE[strength])) for side in image.shape[:2])
    top, left = rng.integers(0, image.shape[0] - height + 1), rng.integers(0, image.shape[1] - width + 1)
    out = image.copy()
    out[top : top + height, left : left + width] = 127
    return out


CORRUPTIONS: dict[str, Callable[[Pixels, int, Generator], Pixels]] = {
    "blur": _blur,
    "noise": _noise,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "occlude": _occlude,
}
"""Corruptions by name; each takes an image, a strength from 0, and a random generator."""


def corrupt(images: Pixels, kind: str, strength: int, *, seed: int = 0) -> Pixels:
    """Return corrupted images.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, H, W, 3)
    kind : str
        A key of ``CORRUPTIONS``.
    strength : int
        1 to 5.
    seed : int
        Each image has its own randomness, which depends on its index, not on the other images.

    Returns
    -------
    ndarray of uint8, shape (N, H, W, 3)

    Raises
    ------
    UsageError
        If the corruption or strength is unknown, or these are not images.

    Examples
    --------
    >>> grey = np.full((1, 8, 8, 3), 100, np.uint8)
    >>> int((corrupt(grey, "occlude", 5) == 127).all(axis=3).sum())  # 60 % of each side
    25
    """
    if kind not in CORRUPTIONS:
        raise UsageError(f"there is no corruption {kind!r}; there are {', '.join(CORRUPTIONS)}.")
    if strength not in STRENGTHS:
        raise UsageError(f"a corruption has the strengths 1 to 5, not {strength}.")
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise UsageError(f"images are uint8 of shape (N, H, W, 3), not {images.dtype} of shape {images.shape}.")
    out = np.empty_like(images)
    for i, image in enumerate(images):
        out[i] = CORRUPTIONS[kind](image, strength - 1, np.random.default_rng([seed, strength, i]))
    return out


def main() -> None:
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--strength", type=int, default=3, choices=STRENGTHS)
    options = parser.parse_args()
    with zipfile.ZipFile(options.source) as file:
        names = sorted(name for name in file.namelist() if not name.endswith("/"))
        for i in np.sort(np.random.default_rng(0).permutation(len(names))[: options.count]):
            with Image.open(io.BytesIO(file.read(names[i]))) as image:
                pixels = np.asarray(image.convert("RGB"))
            for kind in CORRUPTIONS:
                path = options.output / kind / f"{names[i].replace('/', '-')}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(corrupt(pixels[None], kind, options.strength, seed=int(i))[0]).save(path)


if __name__ == "__main__":
    main()
