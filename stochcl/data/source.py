"""What a source of images is: a list of entries, each of which loads as a square of pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stochcl.data.names import printable
from stochcl.errors import ImageError, SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from stochcl.data.preprocess import Preprocess

IMAGE_EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".gif",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
        ".jpx",
        ".avif",
        ".qoi",
        ".jxl",
        ".heic",
        ".heif",
        ".mpo",
    ]
)
"""Endings (lower case) of the files that are taken for images in a folder or archive; others are ignored."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source.

    Parameters
    ----------
    name : str
        POSIX path relative to the source; bytes that are not UTF-8 are surrogate escapes.
    size : int
        Bytes of the image file (of an archive member: uncompressed).
    mtime_ns : int
        When the file, or the archive it lies in, was last changed, in nanoseconds since 1970.
    """

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that cannot be read: its name, and why, as a clause."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class ImageBatch:
    """Consecutive images of a source, those that could be read and those that could not.

    Parameters
    ----------
    rows : range
        Positions in the source's entries that the batch covers.
    positions : tuple of int
        Those of the readable images. (Names do not tell them apart: an archive may hold one name twice.)
    names : tuple of str
        Names of the readable images.
    images : ndarray of uint8, shape (B, size, size, 3)
        The readable images, in the order of ``names``.
    failures : tuple of Failure
        The others.
    sizes : tuple of int
        Bytes of the readable images' files.
    labels : tuple of str, optional
        Labels of the readable images, where the source itself has them; not those that names carry.
    """

    rows: range
    positions: tuple[int, ...]
    names: tuple[str, ...]
    images: NDArray[np.uint8]
    failures: tuple[Failure, ...]
    sizes: tuple[int, ...]
    labels: tuple[str, ...] | None = None

    @property
    def source_bytes(self) -> int:
        """Sum of the sizes of the readable images' files."""
        return sum(self.sizes)


class ImageSource(ABC):
    """A folder, an archive or an array of images, read one at a time or in batches.

    The contract, for all of them:

    - ``entries`` are in bytewise order of their names; a list of files, and several sources, keep the order in
      which they are given. Equal names are kept, in the order they are stored. Listing reads no image.
    - ``rejected`` are images that are there but will not be opened, each with its reason: a broken link, an
      encrypted member, a name that climbs out of the archive. They are not among the entries.
    - ``load`` and ``batches`` may be called from several threads at once, and a source can be pickled: a
      process that receives it opens its own files.
    - An image that cannot be read is an ImageError from ``load`` and a Failure in ``batches``. A source that
      cannot be read at all is a SourceError.

    Only ``_read`` differs between the kinds (and ``_image`` where there is no file to decode).
    """

    kind: ClassVar[str]
    path: Path
    entries: Sequence[Entry]
    rejected: Sequence[Failure]

    def __len__(self) -> int:
        return len(self.entries)

    def keep_closed(self) -> None:  # noqa: B027 - most have nothing open
        """Open the archive whenever it is read, and not for as long as the source lives; there are too many."""

    def load(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        """Read and preprocess image ``i``, shape (size, size, 3), uint8.

        Raises
        ------
        ImageError
            If it cannot be read; the message names the source, the image and the reason.
        """
        name = self.entries[i].name
        try:
            return self._image(i, preprocess)
        except ImageError as exc:
            raise ImageError(f"{printable(self.path)}: {printable(name)}: {exc}") from exc

    def batches(
        self, preprocess: Preprocess, *, batch_size: int = 256, workers: int = 1, start: int = 0
    ) -> Iterator[ImageBatch]:
        """Iterate over the images in order, from entry ``start`` on, decoding ahead in threads.

        Parameters
        ----------
        preprocess : Preprocess
            What is done to each image.
        batch_size : int
            Entries that a batch covers; the last may cover fewer.
        workers : int
            Decoding threads. With 0 or 1 images are decoded in the calling thread.
        start : int
            Position of the first entry.

        Raises
        ------
        UsageError
            If a number is out of its range.
        """
        from stochcl.data.batches import decode_batches  # noqa: PLC0415, RUF100 - batches imports this module

        if batch_size < 1 or workers < 0 or start < 0:
            msg = f"batch_size={batch_size}, workers={workers}, start={start}: these count images and threads"
            raise UsageError(msg)
        return decode_batches(self, preprocess, batch_size, workers, start)

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        """Read and preprocess image ``i``; the message of an ImageError is the reason alone."""
        return preprocess.decode(self._read(i))

    @abstractmethod
    def _read(self, i: int) -> bytes:
        """Return the bytes of image file ``i``; the message of an ImageError is the reason alone."""


def is_image_name(name: str) -> bool:
    """Tell by its ending whether a name is taken for an image.

    Examples
    --------
    >>> [is_image_name(n) for n in ("a/b.JPG", "a/b.txt", "jpg")]
    [True, False, False]
    """
    stem, dot, ending = name.rpartition(".")
    return bool(dot) and bool(stem) and f".{ending.lower()}" in IMAGE_EXTENSIONS


def check_not_empty(path: Path, entries: Sequence[Entry], rejected: Sequence[Failure], what: str) -> None:
    """Raise SourceError, with the first reason, where a source has no image that could be read."""
    if entries:
        return
    shown = printable(path)
    if rejected:
        first = rejected[0]
        msg = (
            f"{shown}: none of the {len(rejected)} images in this {what} can be read; "
            f"the first is {printable(first.name)}: {first.reason}."
        )
        raise SourceError(msg)
    msg = (
        f"{shown}: this {what} holds no image; images are files whose names end in .jpg, .png, .webp, .tif "
        "and the like."
    )
    raise SourceError(msg)
