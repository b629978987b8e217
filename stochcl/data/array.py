"""Images in a NumPy array file, and what every .npy file is checked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from stochcl.data.pixels import MAX_PIXELS
from stochcl.data.source import Entry, ImageSource
from stochcl.errors import ImageError, SourceError
from stochcl.files import LFS_ADVICE, is_lfs_pointer
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.data.preprocess import Preprocess
MAGIC = b"\x93NUMPY"
"""The bytes that a .npy file begins with."""

_WANTED = (
    "a .npy source is either embeddings (two-dimensional float16, float32 or float64, one row each) or "
    "images (four-dimensional uint8, N x height x width x 3 or x 1)"
)


class ArraySource(ImageSource):
    """Images in a .npy file: uint8, shape (N, H, W, 3) or (N, H, W, 1), memory-mapped.

    Images are named by their row, zero-padded, and have no label.
    """

    kind: ClassVar[str] = "array"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = map_array(path)
        rows, height, width = self._array.shape[:3]
        if height * width > MAX_PIXELS:
            msg = f"{escape_name(path)}: its images have {height} x {width} pixels, more than {MAX_PIXELS:,}."
            raise SourceError(msg)
        size, mtime_ns = math.prod(self._array.shape[1:]), path.stat().st_mtime_ns
        self.entries = [Entry(name, size, mtime_ns) for name in row_names(range(rows), rows)]
        self.rejected = []

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        pixels = np.ascontiguousarray(self._array[i])
        return preprocess.apply(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))

    def _read(self, i: int) -> bytes:
        raise ImageError(f"image {i} of an array is not a file")


def is_images(array: NDArray[Any]) -> bool:
    """Tell whether a mapped array holds images rather than embeddings."""
    return array.ndim == 4


def row_names(rows: Iterable[int], total: int) -> tuple[str, ...]:
    """Name rows by their number, padded so that the bytewise order is the order of the rows.

    Examples
    --------
    >>> row_names(range(8, 10), total=100)
    ('0000008', '0000009')
    """
    width = max(7, len(str(total - 1)))
    return tuple(f"{row:0{width}d}" for row in rows)


def map_array(path: Path) -> NDArray[Any]:
    """Map a .npy file into memory, read-only, after checking that it holds embeddings or images."""
    shown = escape_name(path)
    try:
        with path.open("rb") as file:
            if not (head := file.read(32)).startswith(MAGIC):  # numpy would take a zip, or offer to load a pickle
                if is_lfs_pointer(head):
                    raise SourceError(f"{shown}: {LFS_ADVICE}.")
                msg = f"{shown}: this is not a NumPy array, or its beginning is damaged; {_WANTED}."
                raise SourceError(msg)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except SourceError:
        raise
    except OSError as exc:
        raise SourceError(f"{shown}: this .npy file cannot be read: {os_reason(exc)}.") from exc
    except Exception as exc:  # the header is Python text, with every error that damaged text can cause
        if "Python objects" in str(exc):
            msg = f"{shown}: this array holds Python objects (a pickle), which are never loaded; {_WANTED}."
        else:
            msg = f"{shown}: this .npy file is truncated or damaged ({escape_name(str(exc))})."
        raise SourceError(msg) from exc
    _check(array, shown)
    return np.asarray(array)


def _check(array: NDArray[Any], shown: str) -> None:
    shape = " x ".join(str(n) for n in array.shape) or "no dimension"
    found = f"{shown}: this array is {array.dtype} of {shape}"
    embeddings = array.ndim == 2 and array.dtype.kind == "f" and array.dtype.itemsize <= 8
    images = array.ndim == 4 and array.dtype == np.uint8 and array.shape[3] in (1, 3)
    if not embeddings and not images:
        raise SourceError(f"{found}; {_WANTED}{_hint(array)}.")
    if 0 in array.shape:
        raise SourceError(f"{found}: it is empty.")


def _hint(array: NDArray[Any]) -> str:
    if array.ndim == 4 and array.dtype == np.uint8 and array.shape[1] in (1, 3):
        return "; transpose it with .transpose(0, 2, 3, 1)"
    if array.ndim == 4 and array.dtype != np.uint8:
        return "; images are uint8, 0 to 255"
    if array.ndim == 3 and array.dtype == np.uint8:
        return "; give grey images a last dimension with [..., None]"
    return ""


def refuse_npz(path: Path) -> SourceError:
    """Return the error for a .npz file, which holds several arrays and cannot be memory-mapped."""
    name = escape_name(path)
    return SourceError(
        f"{name}: a .npz file holds several arrays and cannot be read in place; save the array that "
        "you want as .npy with numpy.save."
    )
