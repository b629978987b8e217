"""Every pixel format that Pillow knows, brought to 8 bits a channel: L, RGB, LA or RGBA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms

from stochcl.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NEAREST_MODE = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # RGB for all others


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert a loaded image to mode L, RGB, LA or RGBA, 8 bits a channel, without changing its size.

    16-bit greyscale is scaled (65535 becomes 255), never clipped. 32-bit integers within 0..65535 are taken
    as 16-bit, floats within 0..1 or 0..255 as such; others are stretched from their own least to their
    greatest value. A transparent colour becomes alpha. Colour profiles are ignored.

    Raises
    ------
    ImageError
        If a float image holds values that are not finite.
    """
    mode = image.mode
    transparent = mode in ("1", "L", "P", "RGB") and image.info.get("transparency") is not None
    if transparent:
        return image.convert("RGBA")
    if mode in ("L", "RGB", "LA", "RGBA"):
        return image
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _from_numbers(image)
    if mode == "LAB":
        return _from_lab(image)
    return image.convert(_NEAREST_MODE.get(mode, "RGB"))


def _from_numbers(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = Image.fromarray(_float_to_bytes(values) if image.mode == "F" else _integers_to_bytes(values))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and image.mode != "F":
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        return Image.merge("LA", (grey, Image.fromarray(alpha)))
    return grey


def _integers_to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype.itemsize > 2:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            return _stretch(values.astype(np.float64), low, high)
    # Rounded division: 65535 = 255 * 257, so 0 and 65535 land exactly on 0 and 255.
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _float_to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError("the image holds values that are not finite")
    if low >= 0 and high <= 255:
        scale = 255.0 if high <= 1 else 1.0
        return np.rint(values * scale).astype(np.uint8)
    return _stretch(values.astype(np.float64), low, high)


def _stretch(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    span = high - low
    return np.rint((values - low) * (255.0 / span if span else 0.0)).astype(np.uint8)


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:  # only where asked to work in place
        raise ImageError("the image's colours (CIE Lab) cannot be converted")
    return converted
