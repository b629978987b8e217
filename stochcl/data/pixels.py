"""Convert pixels of any kind to 8 bits per channel, and find how many of 16 bits are used."""

from __future__ import annotations

import re
import struct
import threading
import warnings
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, ImageCms

from stochcl.errors import ImageError
from stochcl.messages import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

MAX_PIXELS = 178_956_970
"""Largest image that is decoded by default, in pixels: Pillow's own limit for decompression bombs."""

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = struct.Struct(">I4s")
_NEAREST_MODE = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # RGB for all others


FULL_DEPTH = 16
"""Significant bits of 16-bit greyscale that uses its full range."""

OWN_DEPTH = 0
"""Special depth: each image uses the bits of its own maximum."""

LEAST_DEPTH = 8
"""Smallest depth: fewer bits are not stretched, as in an 8-bit image."""

_DARK = 13  # bits: an eighth of full brightness
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # tags of TIFF
_PNG_COLOUR_16 = re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR.{8}\x10[\x02\x04\x06]", re.DOTALL)


def to_eight_bits(image: Image.Image, depth: int = OWN_DEPTH, data: bytes = b"") -> Image.Image:
    """Convert a loaded image to mode L, RGB, LA or RGBA, 8 bits per channel, without changing its size.

    16-bit greyscale is scaled (65535 becomes 255), never clipped; with fewer significant bits, which the file
    (``data``) or else ``depth`` states, their maximum becomes 255. 32-bit integers within 0..65535 are treated as
    16-bit, floats within 0..1 or 0..255 as such; others are stretched from their minimum to their maximum. A
    transparent colour becomes alpha. Colour profiles are ignored.
    """
    mode = image.mode
    transparent = mode in ("1", "L", "P", "RGB") and image.info.get("transparency") is not None
    if transparent:
        return image.convert("RGBA")
    if mode in ("L", "RGB", "LA", "RGBA"):
        return image
    if mode == "F" or _is_wide(image):
        return _from_numbers(image, depth, data)
    if mode == "LAB":
        return _from_lab(image)
    return image.convert(_NEAREST_MODE.get(mode, "RGB"))


def _is_wide(image: Image.Image) -> bool:
    """Return whether an image is greyscale of 16 or 32 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def _from_numbers(image: Image.Image, depth: int, data: bytes) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F":
        grey = Image.fromarray(_float_to_bytes(values))
    else:
        grey = Image.fromarray(_integers_to_bytes(values, _stated_depth(image, values, data) or depth))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and image.mode != "F":
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        return Image.merge("LA", (grey, Image.fromarray(alpha)))
    return grey


def _integers_to_bytes(values: NDArray[Any], depth: int) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        return _stretch(values.astype(np.float64), low, high)
    bits = max(depth, high.bit_length(), LEAST_DEPTH)  # do not clip an image beyond the common range
    top = (1 << bits) - 1
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def _stated_depth(image: Image.Image, values: NDArray[Any], data: bytes) -> int | None:
    """Return the significant bits that a file states, in TIFF's samples or PNG's sBIT, or None.

    A PNG should scale its values to all 16 bits, with the original depth in sBIT. If the values are in the lowest
    bits instead, sBIT gives their range.
    """
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        bits, most = tags.get(_BITS_PER_SAMPLE, ()), tags.get(_MAX_SAMPLE_VALUE, ())
        if bits and LEAST_DEPTH <= bits[0] < FULL_DEPTH:
            return int(bits[0])
        most = most if isinstance(most, int) else max(most, default=0)
        return most.bit_length() if 1 << (LEAST_DEPTH - 1) <= most < 0xFFFF else None
    if image.format not in ("PNG", None):  # other decoders scale by the stated range
        return FULL_DEPTH
    bits = next((chunk[8] for kind, chunk in png_chunks(data) if kind == b"sBIT" and len(chunk) > 12), None)
    if bits is None or not 1 <= bits <= FULL_DEPTH:
        return None
    low_bits = (1 << (FULL_DEPTH - bits)) - 1
    scaled = int(values.max()) >= 1 << bits or not (values & low_bits).any()
    return FULL_DEPTH if scaled else max(LEAST_DEPTH, bits)


def depth_used(data: bytes) -> int | None:
    """Return how many bits the maximum of a greyscale 16-bit PNG or TIFF needs.

    None for other images, for damaged ones, and if the file states its depth.
    """
    try:
        with Image.open(BytesIO(data), formats=("PNG", "TIFF")) as image:
            if image.width * image.height > MAX_PIXELS or not _is_wide(image):
                return None
            image.load()
            values = np.asarray(image)
            stated = _stated_depth(image, values, data) is not None or int(values.min()) < 0
            return None if stated else int(values.max()).bit_length()
    except Exception:  # noqa: BLE001, RUF100 - decoding it later reports the error
        return None


def dark_colours(image: Image.Image, data: bytes) -> str | None:
    """Describe the fault of a 16-bit colour image that uses only its low bits, which Pillow drops.

    None for other images.
    """
    tags: Any = getattr(image, "tag_v2", {})
    if not _PNG_COLOUR_16.match(data) and FULL_DEPTH not in tuple(tags.get(_BITS_PER_SAMPLE, ())):
        return None
    top = max(high for _, high in image.convert("RGB").getextrema())  # type: ignore[misc]
    if not 0 < top < 1 << (_DARK - 8):
        return None
    bits = int(top).bit_length() + 8
    return f"its colours of 16 bits use {bits}, so that it is nearly black; convert it to 8 bits a channel"


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and bytes, with length and checksum, of each chunk of a PNG; nothing for other data."""
    at = len(PNG_MAGIC)
    while data.startswith(PNG_MAGIC) and at + 12 <= len(data):
        length, kind = _PNG_CHUNK.unpack_from(data, at)
        chunk, at = data[at : at + 12 + length], at + 12 + length
        yield kind, chunk


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


# Like warnings.filterwarnings; the comment makes the pattern, and so the filter, unique.
_FILTER = ("ignore", None, Warning, re.compile(r"PIL\.(?#stochcl)"), 0)

_lock = threading.Lock()
_threads = 0
_this_thread = threading.local()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore warnings raised inside Pillow within this block; blocks may be nested.

    ``warnings.catch_warnings`` saves and restores the whole list of filters, which is not safe with threads. Here
    the first thread to enter adds one filter and the last to leave removes it. An inner block costs almost nothing,
    so a loop over small images (100 microseconds each) can be inside an outer one.
    """
    if getattr(_this_thread, "quiet", False):
        yield
        return
    _this_thread.quiet = True
    _count_thread(1)
    try:
        yield
    finally:
        _this_thread.quiet = False
        _count_thread(-1)


def _count_thread(change: int) -> None:
    """Count a thread that enters or leaves; the first adds the filter, and the last removes it."""
    global _threads  # noqa: PLW0603 - the list of filters is the process's, and so is the count
    filters = cast("list[Any]", warnings.filters)
    with _lock:
        _threads += change
        if _threads == change == 1:
            filters.insert(0, _FILTER)
        elif _threads == 0 and _FILTER in filters:
            filters.remove(_FILTER)


SAMPLED = 64
"""Most images sampled for the depth of a source."""

SAMPLED_BYTES = 256 << 20


def common_depth(files: Iterable[bytes]) -> tuple[int, str]:
    """Return the depth that 16-bit greyscale images share, and a remark about it.

    It is the depth of the largest value in any of them; without any such image, each has its own.
    """
    with quiet_pillow():
        used = [bits for bits in map(depth_used, files) if bits is not None]
    if not any(used):
        return OWN_DEPTH, ""
    depth = max(*used, LEAST_DEPTH)
    dark = sum(0 < bits <= depth - _DARKER for bits in used)
    looked, white = f"of {plural(len(used), 'image')} looked at", (1 << depth) - 1
    if dark:
        return depth, (
            f"16-bit images here have different ranges: {dark:,} {looked} use a sixteenth of the others' and come "
            f"out nearly black where {white:,} is white; --depth {OWN_DEPTH} gives each its own range"
        )
    if depth < FULL_DEPTH:
        return depth, (
            f"16-bit images here use {depth} bits: no value {looked} is above {white:,}, which becomes white "
            "(recorded in the archive; --depth 16 has 65,535 white)"
        )
    return depth, ""


_DARKER = 4  # bits
