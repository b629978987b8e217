"""From the bytes of an image file to the square of pixels for an encoder."""

from __future__ import annotations

import struct
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from stochcl.data.pixels import (
    FULL_DEPTH,
    LEAST_DEPTH,
    MAX_PIXELS,
    OWN_DEPTH,
    PNG_MAGIC,
    dark_colours,
    png_chunks,
    quiet_pillow,
    to_eight_bits,
)
from stochcl.errors import ImageError
from stochcl.files import is_lfs_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Fit = Literal["crop", "pad", "stretch"]

FITS: tuple[str, ...] = get_args(Fit)
"""Ways to make an image square."""

MAX_FILE_BYTES = 512 * 1024**2
"""Maximum size of an image file or archive member."""

MAX_SIZE = 4096
"""Maximum side of a preprocessed image, in pixels."""

PAD_GREY = 128
"""The grey of the borders with ``fit="pad"``."""

# First a reduction by whole factors (JPEG's own scaled decoding, then box averages), down to at least this many
# times the final size; then the bicubic filter. Pillow calls 3 nearly indistinguishable from a fair resampling;
# for JPEG, whose scaled decoding is itself band-limited, 2 is.
_REDUCING_GAP = 3.0
_DRAFT_GAP = 2.0

_FORMATS = [
    "JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI", "JXL", "HEIF",
]  # fmt: skip
# No format that runs a program (EPS runs Ghostscript) or that only refers to an image, and none without a magic
# number, which would match any bytes (TGA).

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_JXL_MAGICS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_PNG_KEPT = (b"tRNS", b"eXIf")  # ancillary chunks to keep: transparency and orientation
_JPEG_MAGIC, _JPEG_END, _JPEG_SCAN = b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda"
_PADDING = (bytes.fromhex("5aa7330f") * 64, bytes.fromhex("00") * 256, bytes.fromhex("c3912e78a4") * 50)

_TIFF_MAGICS = (b"II*\0", b"MM\0*")
_ORIENTATION_TAG = 0x0112
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DamagedImage(ImageError):
    """A damaged image that is still readable, with its pixels."""

    def __init__(self, reason: str, pixels: NDArray[np.uint8]) -> None:
        super().__init__(reason)
        self.pixels = pixels


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image of any shape becomes ``size`` x ``size`` RGB pixels.

    The image is turned upright by its EXIF orientation, resized (bicubic, antialiased), and composed on white if
    transparent.

    Parameters
    ----------
    size : int
        Side of the result, in pixels.
    fit : {"crop", "pad", "stretch"}
        ``crop`` resizes the short side to ``size`` and keeps the centre; ``pad`` resizes the long side and
        adds grey borders (``PAD_GREY``); ``stretch`` resizes both sides and changes the aspect.
    depth : int, optional
        Significant bits of 16-bit greyscale images that do not state them, which sets white. 0 uses each image's own
        maximum. None uses the maximum over a sample of the source's 16-bit images, or 0 without any.
    max_pixels : int
        Larger images are not decoded.

    Raises
    ------
    ValueError
        If ``size``, ``fit`` or ``depth`` is out of range.
    """

    size: int
    fit: Fit = "crop"
    depth: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"an image is preprocessed to 1 to {MAX_SIZE} pixels a side, not {self.size}")
        if self.fit not in FITS:
            raise ValueError(f"fit is one of {', '.join(FITS)}, not {self.fit!r}")
        if self.depth not in (None, OWN_DEPTH) and not LEAST_DEPTH <= self.depth <= FULL_DEPTH:
            raise ValueError(f"16-bit images have {LEAST_DEPTH} to {FULL_DEPTH} significant bits, not {self.depth}")

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode an image file to shape (size, size, 3), uint8; the first frame if there are several.

        Raises
        ------
        DamagedImage
            If it is damaged but readable: the error has the pixels.
        ImageError
            If it cannot be read.
        """
        if not data:
            raise ImageError("the file is empty (0 bytes)")
        try:
            return self._decode_file(data)
        except DamagedImage:
            raise
        except ImageError as exc:
            if (needed := what_is_needed(data, _formats())) is not None:
                raise ImageError(needed) from exc
            with quiet_pillow():
                ended = ended_jpeg(data)
            if ended is not None:
                raise DamagedImage("the end marker is missing", self._decode_file(ended)) from exc
            lean = lean_png(data)
            if lean is None:
                raise
            with suppress(ImageError):
                return self._decode_file(lean, data)
            raise

    def _decode_file(self, data: bytes, original: bytes = b"") -> NDArray[np.uint8]:
        with self._explained(), quiet_pillow(), self._opened(data) as image:
            self._check_pixels(image)
            image.draft(None, self._scaled(*image.size, self.size * _DRAFT_GAP))
            pixels = self.apply(image, original or data)
            if (reason := dark_colours(image, original or data)) is not None:
                raise DamagedImage(reason, pixels)
            return pixels

    def _opened(self, data: bytes) -> Image.Image:
        try:
            return Image.open(BytesIO(data), formats=_formats())
        except Image.DecompressionBombError:  # Pillow's own limit is global to the process, so it stays unchanged
            if self.max_pixels <= MAX_PIXELS:
                raise
        for factory, accept in (Image.OPEN[kind] for kind in _formats()):
            if accept is None or accept(data[:16]) is True:
                with suppress(SyntaxError, IndexError, TypeError, struct.error):
                    return factory(BytesIO(data), "")
        raise UnidentifiedImageError

    def convert(self, image: Image.Image) -> NDArray[np.uint8]:
        """Preprocess a Pillow image, decoded or not, to shape (size, size, 3), uint8."""
        with self._explained(), quiet_pillow():
            self._check_pixels(image)
            return self.apply(image)

    def apply(self, image: Image.Image, data: bytes = b"") -> NDArray[np.uint8]:
        """Preprocess a Pillow image with these file bytes to shape (size, size, 3), uint8."""
        image.load()
        # The crop is central and the result square, so the rotation can follow at the smaller size.
        small = self._resize(to_eight_bits(image, self.depth or OWN_DEPTH, data))
        turn = _TRANSPOSED.get(_orientation(image))
        upright = _on_white(small if turn is None else small.transpose(turn))
        if self.fit != "pad":
            return np.array(upright)
        canvas = Image.new("RGB", (self.size, self.size), (PAD_GREY,) * 3)
        canvas.paste(upright, ((self.size - upright.width) // 2, (self.size - upright.height) // 2))
        return np.array(canvas)

    def _scaled(self, width: int, height: int, size: float) -> tuple[int, int]:
        """Return the size of the whole image when the result's side is ``size``."""
        if self.fit == "stretch":
            return max(1, round(size)), max(1, round(size))
        factor = size / (min(width, height) if self.fit == "crop" else max(width, height))
        return max(1, round(width * factor)), max(1, round(height * factor))

    def _resize(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.fit == "crop":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            return _resample(image, (self.size, self.size), (left, top, left + side, top + side))
        whole = (0.0, 0.0, float(width), float(height))
        return _resample(image, self._scaled(width, height, self.size), whole)

    def _check_pixels(self, image: Image.Image) -> None:
        width, height = image.size
        if width * height > self.max_pixels:
            raise ImageError(f"it has {width} x {height} pixels; --max-pixels allows more than {self.max_pixels:,}")
        if width < 1 or height < 1:
            raise ImageError(f"it has {width} x {height} pixels")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn Pillow's errors into an ImageError."""
        try:
            yield
        except ImageError:
            raise
        except UnidentifiedImageError as exc:
            raise ImageError("it is not an image in a format that is read here, or its beginning is damaged") from exc
        except Image.DecompressionBombError as exc:
            raise ImageError(f"it has more than {self.max_pixels:,} pixels; --max-pixels allows more") from exc
        except MemoryError as exc:
            raise ImageError("there is not enough memory to decode it") from exc
        except Exception as exc:  # Pillow's decoders raise many kinds of error on damaged data
            reason = " ".join(str(exc).split())[:200] or type(exc).__name__
            raise ImageError(f"the image is truncated or damaged ({reason})") from exc


def identify(data: bytes) -> bool:
    """Return whether data begins like an image in a supported format."""
    if data.startswith(_TIFF_MAGICS):  # a TIFF's size may be at the end of the file
        return True
    try:
        with quiet_pillow(), Image.open(BytesIO(data), formats=_formats()):
            return True
    except Exception:  # noqa: BLE001, RUF100 - as in decode: any failure means no
        return False


def _resample(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    if size == image.size and box == (0.0, 0.0, float(size[0]), float(size[1])):
        return image
    return image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "RGBA"):
        return image if image.mode == "RGB" else image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, or 1 if there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001, RUF100 - damaged metadata does not make the pixels unreadable
        return 1
    return value if isinstance(value, int) else 1


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401 - registers itself
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def what_is_needed(data: bytes, formats: tuple[str, ...]) -> str | None:
    """Return advice for a Git LFS pointer, or an image that needs a Pillow plug-in; None for other files."""
    if is_lfs_pointer(data):
        return "it is a Git LFS pointer in place of the image; run: git lfs pull"
    heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
    for there, name, kind, plugin in (
        (heif, "HEIC", "HEIF", "pillow-heif"),
        (data.startswith(_JXL_MAGICS), "JPEG XL", "JXL", "pillow-jxl-plugin"),
    ):
        if there and kind not in formats:
            return f"it is a {name} image, which needs {plugin}, not installed here; run: pip install {plugin}"
    return None


def lean_png(data: bytes) -> bytes | None:
    """Return a PNG without damaged or needless ancillary chunks, such as texts and profiles.

    None if it is no PNG, or has no such chunk.
    """
    parts, left_out = [PNG_MAGIC], False
    for kind, chunk in png_chunks(data):
        critical = not kind[0] & 0x20
        sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if critical or (kind in _PNG_KEPT and sound):
            parts.append(chunk)
        else:
            left_out = True
    return b"".join(parts) if left_out else None


def ended_jpeg(data: bytes) -> bytes | None:
    """Return a JPEG with its end marker added, if only that is missing, else None.

    The decoder silently fills in missing data. So the image is also decoded with padding bytes appended: they change
    the pixels unless all data was there.
    """
    if not data.startswith(_JPEG_MAGIC):
        return None
    data = data.rstrip(b"\xff")
    try:
        pixels, progressive = _jpeg_pixels(data + _JPEG_END)
        whole = all(np.array_equal(pixels, _jpeg_pixels(data + pad + _JPEG_END)[0]) for pad in _PADDING)
    except Exception:  # noqa: BLE001, RUF100 - as in decode: it is not whole
        return None
    return data + _JPEG_END if whole and (not progressive or _has_all_scans(data)) else None


def _jpeg_pixels(data: bytes) -> tuple[np.ndarray, bool]:
    with Image.open(BytesIO(data), formats=("JPEG", "MPO")) as image:
        image.load()
        return np.asarray(image), "progressive" in image.info


def _has_all_scans(data: bytes) -> bool:
    """Return whether the scans of a progressive JPEG have all bits of all coefficients of each component."""
    components, exact, at = set[int](), set[tuple[int, int]](), data.find(_JPEG_SCAN)
    while at >= 0:
        count = data[at + 4]
        found, (first, last, bits) = data[at + 5 : at + 5 + 2 * count : 2], data[at + 5 + 2 * count :][:3]
        components.update(found)
        if not bits & 15:
            exact.update((component, k) for component in found for k in range(first, last + 1))
        at = data.find(_JPEG_SCAN, at + 2)
    return len(exact) == 64 * len(components)
