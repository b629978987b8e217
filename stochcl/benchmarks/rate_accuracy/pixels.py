"""Images themselves as the code: made small, and coded by what the web uses."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.errors import MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDES = (8, 12, 16, 32)
"""Pixels that images are shrunk to, where the network's own are more."""

_RIFF_HEADERS = 12 + 8 + 10  # RIFF and WEBP; the chunk; VP8's frame header, which holds the size
_SCAN, _END = b"\xff\xda", 2  # JPEG's start of scan, and the bytes of the end marker

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 20, "optimize": True, "subsampling": 2}),
    "webp": ("WEBP", {"quality": 20, "method": 6}),
    "avif": ("AVIF", {"quality": 20, "speed": 6}),
    "jxl": ("JXL", {"quality": 20, "effort": 5}),
}
"""Pillow's names and settings. Qualities below 20 cost accuracy faster than bits."""


@dataclass(frozen=True)
class PixelCode:
    """A format at a size.

    Parameters
    ----------
    format : str
        A key of :data:`FORMATS`.
    side : int
        Pixels across.
    """

    format: str
    side: int

    @property
    def name(self) -> str:
        """What a row is called."""
        return f"{FORMATS[self.format][0]} pixels"

    @property
    def coding(self) -> str:
        """Its setting in words."""
        return f"{self.side} x {self.side}, quality {FORMATS[self.format][1]['quality']}"

    def need(self) -> None:
        """Raise MissingExtraError where this Pillow cannot write the format."""
        from PIL import features

        if self.format == "jxl":
            if find_spec("pillow_jxl") is None:
                raise MissingExtraError(
                    "JPEG XL needs pillow-jxl-plugin; install it with: pip install 'stochcl[bench]'."
                )
            import pillow_jxl  # noqa: F401 - it tells Pillow of the format
        elif self.format in ("webp", "avif") and not features.check(self.format):
            name = FORMATS[self.format][0]
            raise MissingExtraError(f"this Pillow was built without {name}; install one that has it.")

    def code(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int, int]:
        """Shrink, code and decode one image, and enlarge what came back."""
        from PIL import Image

        name, settings = FORMATS[self.format]
        whole = Image.fromarray(pixels)
        size = whole.size
        buffer = io.BytesIO()
        whole.resize((self.side, self.side), Image.Resampling.BICUBIC, reducing_gap=3).save(buffer, name, **settings)
        data = buffer.getvalue()
        back = Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        return np.asarray(back), len(data), bare_bytes(self.format, data)


def bare_bytes(kind: str, data: bytes) -> int:
    """Return how many bytes of a file are not headers, a lower bound of what it would take with the rest agreed upon.

    Of JPEG the scans with their Huffman tables left out, of WebP the frame without its header, of AVIF the media
    data; JPEG XL's bare codestream counts whole, for its few header bytes are not on byte boundaries.
    """
    if kind == "jpeg":
        start = data.index(_SCAN)
        length: int = struct.unpack_from(">H", data, start + 2)[0]
        return len(data) - (start + 2 + length) - _END
    if kind == "webp":
        return max(0, len(data) - _RIFF_HEADERS)
    if kind == "avif":
        return _media(data)
    return len(data)


def _media(data: bytes) -> int:
    """Return the bytes in the media data boxes of an ISO base media file (ISO/IEC 14496-12, 4.2)."""
    at = found = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        size = int(size) or len(data) - at  # 0: to the end
        found += size - 8 if kind == b"mdat" else 0
        at += max(size, 8)
    return found
