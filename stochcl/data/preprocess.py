"""From the bytes of an image file to the square of pixels that an encoder sees."""

from __future__ import annotations

import re
import struct
import threading
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from stochcl.data.pixels import FULL_DEPTH, LEAST_DEPTH, MAX_PIXELS, OWN_DEPTH, dark_colours, to_eight_bits
from stochcl.data.repair import ended_jpeg, lean_png, what_is_needed
from stochcl.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


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
    """An image that is damaged, with the pixels that could be read of it all the same."""

    def __init__(self, reason: str, pixels: NDArray[np.uint8]) -> None:
        super().__init__(reason)
        self.pixels = pixels


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
    depth : int, optional
        Significant bits of 16-bit greyscale images that do not state them: what is white. 0 gives each image those
        of its own greatest value; None lets the source decide, by the greatest value of some of its images, where it
        has such images, and is else 0.
    max_pixels : int
        Larger images are not decoded.

    Raises
    ------
    ValueError
        If ``size``, ``fit`` or ``depth`` is not one of these.
    """

    size: int
    fit: Fit = "crop"
    depth: int | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE:
            msg = f"an image is preprocessed to 1 to {MAX_SIZE} pixels a side, not {self.size}"
            raise ValueError(msg)
        if self.fit not in FITS:
            msg = f"fit is one of {', '.join(FITS)}, not {self.fit!r}"
            raise ValueError(msg)
        if self.depth not in (None, OWN_DEPTH) and not LEAST_DEPTH <= self.depth <= FULL_DEPTH:
            msg = f"16-bit images have {LEAST_DEPTH} to {FULL_DEPTH} significant bits, not {self.depth}"
            raise ValueError(msg)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode an image file, shape (size, size, 3), uint8; the first frame where there are several.

        Raises
        ------
        DamagedImage
            If it is damaged and can be read all the same: the error has the pixels.
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
        except Image.DecompressionBombError:  # Pillow's own limit is the process's, and may stay as it is
            if self.max_pixels <= MAX_PIXELS:
                raise
        for factory, accept in (Image.OPEN[kind] for kind in _formats()):
            if accept is None or accept(data[:16]) is True:
                with suppress(SyntaxError, IndexError, TypeError, struct.error):
                    return factory(BytesIO(data), "")
        raise UnidentifiedImageError

    def convert(self, image: Image.Image) -> NDArray[np.uint8]:
        """Bring a Pillow image, whose file may not have been decoded yet, to shape (size, size, 3), uint8."""
        with self._explained(), quiet_pillow():
            self._check_pixels(image)
            return self.apply(image)

    def apply(self, image: Image.Image, data: bytes = b"") -> NDArray[np.uint8]:
        """Bring a Pillow image, of a file of these bytes, to shape (size, size, 3), uint8."""
        image.load()
        # The crop is exactly central and the result square, so turning it upright can wait.
        small = self._resize(to_eight_bits(image, self.depth or OWN_DEPTH, data))
        turn = _TRANSPOSED.get(_orientation(image))
        upright = _on_white(small if turn is None else small.transpose(turn))
        return np.array(self._letterbox(upright) if self.fit == "pad" else upright)

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

    def _check_pixels(self, image: Image.Image) -> None:
        width, height = image.size
        if width * height > self.max_pixels:
            raise ImageError(
                f"it has {width} x {height} pixels, and more than {self.max_pixels:,} are not decoded; --max-pixels "
                "allows more"
            )
        if width < 1 or height < 1:
            raise ImageError(f"it has {width} x {height} pixels")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in an ImageError what Pillow found wrong."""
        try:
            yield
        except ImageError:
            raise
        except UnidentifiedImageError as exc:
            raise ImageError("it is not an image in a format that is read here, or its beginning is damaged") from exc
        except Image.DecompressionBombError as exc:
            raise ImageError(
                f"it has more than {self.max_pixels:,} pixels, which are not decoded; --max-pixels allows more"
            ) from exc
        except MemoryError as exc:
            raise ImageError("there is not enough memory to decode it") from exc
        except Exception as exc:  # Pillow's decoders raise many kinds of error on damaged data
            raise ImageError(f"the image is truncated or damaged ({_sentence(exc)})") from exc


def identify(data: bytes) -> bool:
    """Tell whether data begins like an image of a format that is read here."""
    if data.startswith(_TIFF_MAGICS):  # whose size may stand at its end
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
    """Return the EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001, RUF100 - damaged metadata does not make the pixels unreadable
        return 1
    return value if isinstance(value, int) else 1


def _sentence(exc: BaseException) -> str:
    text = " ".join(str(exc).split())
    return text[:200] or type(exc).__name__


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401 - which registers itself
    return tuple(name for name in _FORMATS if name in Image.OPEN)
