"""From the bytes of an image file to the square of pixels that an encoder sees."""

from __future__ import annotations

import re
import struct
import threading
import warnings
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from stochcl.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


_NEAREST_MODE = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # RGB for all others


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert a loaded image to mode L, RGB, LA or RGBA, 8 bits a channel, without changing its size.

    16-bit greyscale is scaled (65535 becomes 255), never clipped. 32-bit integers within 0..65535 are taken
    as 16-bit, floats within 0..1 or 0..255 as such; others are stretched from their own least to their
    greatest value. A transparent colour becomes alpha. Colour profiles are ignored.
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


# As warnings.filterwarnings would make it; the comment makes the pattern, and so the filter, ours alone.
_FILTER = ("ignore", None, Warning, re.compile(r"PIL\.(?#stochcl)"), 0)

_lock = threading.Lock()
_threads = 0
_this_thread = threading.local()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore warnings raised inside Pillow within this block; blocks may be nested.

    ``warnings.catch_warnings`` saves and restores the whole list of filters, which threads do to each other's
    harm. Here the first thread in adds one filter and the last thread out removes that one. An inner block
    costs next to nothing, so that a loop over small images (100 microseconds each) can stand in an outer one.
    """
    if getattr(_this_thread, "quiet", False):
        yield
        return
    _this_thread.quiet = True
    _enter()
    try:
        yield
    finally:
        _this_thread.quiet = False
        _leave()


def _enter() -> None:
    global _threads  # noqa: PLW0603 - the list of filters is the process's, and so is the count
    with _lock:
        _threads += 1
        if _threads == 1:
            cast("list[Any]", warnings.filters).insert(0, _FILTER)


def _leave() -> None:
    global _threads  # noqa: PLW0603
    with _lock:
        _threads -= 1
        filters = cast("list[Any]", warnings.filters)
        if _threads == 0 and _FILTER in filters:
            filters.remove(_FILTER)


Fit = Literal["crop", "pad", "stretch"]

FITS: tuple[str, ...] = get_args(Fit)
"""What may happen to an image that is not square."""

MAX_PIXELS = 178_956_970
"""Largest image that is decoded, in pixels: where Pillow, too, speaks of a decompression bomb."""

MAX_FILE_BYTES = 512 * 1024**2
"""Largest image file, or archive member, that is read."""

MAX_SIZE = 4096
"""Largest side of a preprocessed image, in pixels."""

PAD_GREY = 128
"""The grey of the borders that ``fit="pad"`` adds."""

RESAMPLING = "bicubic"
"""How images are resized; antialiased when they shrink."""

# A reduction by whole factors (JPEG's own scaled decoding, then box averages) comes first and leaves at least
# this many times the final size to the bicubic filter. Pillow calls 3 nearly indistinguishable from a fair
# resampling; for JPEG, whose scaled decoding is itself band-limited, 2 is.
_REDUCING_GAP = 3.0
_DRAFT_GAP = 2.0

_FORMATS = [
    "JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI", "JXL", "HEIF",
]  # fmt: skip
# none that runs a program (EPS runs Ghostscript) or only holds a reference to an image,
# and none that is known by no magic number and so sees an image in any bytes (TGA)

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_JXL_MAGICS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_KEPT = (b"tRNS", b"eXIf")  # of the chunks that a reader may ignore: transparency and orientation

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


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image of any shape becomes ``size`` x ``size`` RGB pixels.

    The image is turned upright as its EXIF orientation says, resized (bicubic, antialiased), and transparency
    is laid on white.

    Parameters
    ----------
    size : int
        Side of the result, in pixels.
    fit : {"crop", "pad", "stretch"}
        ``crop`` resizes the short side to ``size`` and keeps the centre; ``pad`` resizes the long side and
        fills up with grey (``PAD_GREY``); ``stretch`` resizes both sides and changes the aspect.

    Raises
    ------
    ValueError
        If ``size`` or ``fit`` is not one of these.
    """

    size: int
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE:
            msg = f"an image is preprocessed to 1 to {MAX_SIZE} pixels a side, not {self.size}"
            raise ValueError(msg)
        if self.fit not in FITS:
            msg = f"fit is one of {', '.join(FITS)}, not {self.fit!r}"
            raise ValueError(msg)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode an image file, shape (size, size, 3), uint8; the first frame where there are several."""
        if not data:
            raise ImageError("the file is empty (0 bytes)")
        try:
            return self._decode_file(data)
        except ImageError as exc:
            if (needed := _missing_plugin(data)) is not None:
                raise ImageError(needed) from exc
            lean = _lean_png(data)
            if lean is None:
                raise
            with suppress(ImageError):
                return self._decode_file(lean)
            raise

    def _decode_file(self, data: bytes) -> NDArray[np.uint8]:
        with _explained(), quiet_pillow(), Image.open(BytesIO(data), formats=_formats()) as image:
            return self._decode_opened(image)

    def convert(self, image: Image.Image) -> NDArray[np.uint8]:
        """Bring a Pillow image, whose file may not have been decoded yet, to shape (size, size, 3), uint8."""
        with _explained(), quiet_pillow():
            _check_pixels(image)
            return self.apply(image)

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Bring a Pillow image to shape (size, size, 3), uint8."""
        image.load()
        # The crop is exactly central and the result square, so turning it upright can wait.
        small = self._resize(to_eight_bits(image))
        turn = _TRANSPOSED.get(_orientation(image))
        upright = _on_white(small if turn is None else small.transpose(turn))
        return np.array(self._letterbox(upright) if self.fit == "pad" else upright)

    def _decode_opened(self, image: Image.Image) -> NDArray[np.uint8]:
        _check_pixels(image)
        image.draft(None, self._scaled(*image.size, self.size * _DRAFT_GAP))
        return self.apply(image)

    def _scaled(self, width: int, height: int, size: float) -> tuple[int, int]:
        """Return the size that the whole image takes when the result's side is ``size``."""
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

    def _letterbox(self, image: Image.Image) -> Image.Image:
        canvas = Image.new("RGB", (self.size, self.size), (PAD_GREY,) * 3)
        canvas.paste(image, ((self.size - image.width) // 2, (self.size - image.height) // 2))
        return canvas


def _check_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"it has {width} x {height} pixels, and more than {MAX_PIXELS:,} are not decoded")
    if width < 1 or height < 1:
        raise ImageError(f"it has {width} x {height} pixels")


@contextmanager
def _explained() -> Iterator[None]:
    """Say in an ImageError what Pillow found wrong."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        raise ImageError("it is not an image in a format that is read here, or its beginning is damaged") from exc
    except Image.DecompressionBombError as exc:
        raise ImageError(f"it has more than {MAX_PIXELS:,} pixels") from exc
    except MemoryError as exc:
        raise ImageError("there is not enough memory to decode it") from exc
    except Exception as exc:  # Pillow's decoders raise many kinds of error on damaged data
        raise ImageError(f"the image is truncated or damaged ({_sentence(exc)})") from exc


def identify(data: bytes) -> bool:
    """Tell whether data begins like an image of a format that is read here."""
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
    """Return the EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001, RUF100 - damaged metadata does not make the pixels unreadable
        return 1
    return value if isinstance(value, int) else 1


def _sentence(exc: BaseException) -> str:
    text = " ".join(str(exc).split())
    return text[:200] or type(exc).__name__


def _missing_plugin(data: bytes) -> str | None:
    """Say what to install for an image of a format that a plug-in of Pillow reads, None for others."""
    heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS
    for there, name, kind, plugin in (
        (heif, "HEIC", "HEIF", "pillow-heif"),
        (data.startswith(_JXL_MAGICS), "JPEG XL", "JXL", "pillow-jxl-plugin"),
    ):
        if there and kind not in _formats():
            return f"it is a {name} image, which needs {plugin}, not installed here; run: pip install {plugin}"
    return None


def _lean_png(data: bytes) -> bytes | None:
    """Return a PNG with nothing but what its pixels need, for texts and profiles must not cost them.

    None where it is no PNG, or holds nothing else.
    """
    if not data.startswith(_PNG_MAGIC):
        return None
    parts, at, left_out = [_PNG_MAGIC], len(_PNG_MAGIC), False
    while at + 12 <= len(data):
        length, kind = _PNG_CHUNK.unpack_from(data, at)
        chunk, at = data[at : at + 12 + length], at + 12 + length
        critical = not kind[0] & 0x20
        sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if critical or (kind in _PNG_KEPT and sound):
            parts.append(chunk)
        else:
            left_out = True
    return b"".join(parts) if left_out else None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401 - which registers itself
    return tuple(name for name in _FORMATS if name in Image.OPEN)
