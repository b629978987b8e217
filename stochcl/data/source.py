"""What a source of images is: a list of entries, each of which loads as a square of pixels."""

from __future__ import annotations

import errno
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stochcl.data.preprocess import quiet_pillow
from stochcl.errors import EnvironmentFault, ImageError, SourceError, UsageError
from stochcl.files import pread_all, read_all
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.data.preprocess import Preprocess


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
      cannot be read at all is a SourceError; where the disk, the network or the file table fails, or a listed file
      is gone, both raise EnvironmentFault.

    Only ``_read`` differs between the kinds (and ``_image`` where there is no file to decode).
    """

    kind: ClassVar[str]
    path: Path
    entries: Sequence[Entry]
    rejected: Sequence[Failure]

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        """Read and preprocess image ``i``, shape (size, size, 3), uint8."""
        name = self.entries[i].name
        try:
            return self._image(i, preprocess)
        except ImageError as exc:
            raise ImageError(f"{escape_name(self.path)}: {escape_name(name)}: {exc}") from exc
        except EnvironmentFault as exc:
            raise self._fault(i, exc) from exc

    def batches(
        self, preprocess: Preprocess, *, batch_size: int = 256, workers: int = 1, start: int = 0
    ) -> Iterator[ImageBatch]:
        """Iterate over the images in order, from entry ``start`` on, decoding ahead in threads."""
        if batch_size < 1 or workers < 0 or start < 0:
            given = f"{batch_size}, {workers} and {start}"
            raise UsageError(f"batch_size must be at least 1, workers and start at least 0; got {given}.")
        end = len(self)
        parts = ((self, range(a, min(a + batch_size, end))) for a in range(start, end, batch_size))
        return decode_ahead(parts, preprocess, workers)

    def _fault(self, i: int, exc: EnvironmentFault) -> EnvironmentFault:
        """Return the error that ends the reading of the source at this image."""
        return EnvironmentFault(
            f"{escape_name(self.path)}: {escape_name(self.entries[i].name)}: {exc}; this is no fault of the image, "
            "so reading stops here."
        )

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        """Read and preprocess image ``i``; the message of an ImageError is the reason alone."""
        return preprocess.decode(self._read(i))

    @abstractmethod
    def _read(self, i: int) -> bytes:
        """Return the bytes of image file ``i``; the message of an ImageError is the reason alone."""


def check_not_empty(path: Path, entries: Sequence[Entry], rejected: Sequence[Failure], what: str) -> None:
    """Raise SourceError, with the first reason, where a source has no image that could be read."""
    if entries:
        return
    shown = escape_name(path)
    if rejected:
        first = rejected[0]
        msg = (
            f"{shown}: none of the {len(rejected)} images in this {what} can be read; "
            f"the first is {escape_name(first.name)}: {first.reason}."
        )
        raise SourceError(msg)
    msg = (
        f"{shown}: this {what} holds no image; images are files whose names end in .jpg, .png, .webp, .tif "
        "and the like."
    )
    raise SourceError(msg)


# O_NONBLOCK: should a name turn into a pipe between listing and opening, opening must not wait for a writer.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_OF_ONE_FILE = frozenset([errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL])
_MOST_OPEN = 256  # archives that a process keeps open


def is_environment_fault(exc: OSError) -> bool:
    """Tell whether an error is of the disk, network or file table, or a file that is gone, rather than of one file.

    Examples
    --------
    >>> is_environment_fault(OSError(24, "Too many open files")), is_environment_fault(PermissionError(13, "no"))
    (True, False)
    """
    return exc.errno is not None and exc.errno not in _OF_ONE_FILE


def read_error(exc: OSError, what: str = "it") -> ImageError | EnvironmentFault:
    """Return the error for a listed image whose file or archive cannot be read; its message is the reason alone."""
    kind = EnvironmentFault if is_environment_fault(exc) else ImageError
    return kind(f"{what} cannot be read: {os_reason(exc)}")


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file whole."""
    try:
        return _read_regular(path, limit)
    except OSError as exc:
        raise ImageError(f"it cannot be read: {os_reason(exc)}") from exc


def read_listed(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file that a listing has found, as :func:`read_regular` does."""
    try:
        return _read_regular(path, limit)
    except OSError as exc:
        raise read_error(exc) from exc


def _read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    descriptor = os.open(path, _OPEN_FLAGS)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("it is not a regular file")
        if status.st_size > limit:
            raise ImageError(f"it has {status.st_size:,} bytes, and more than {limit:,} are not read")
        data = read_all(file, status.st_size + 1)
        if len(data) > status.st_size:  # the file has grown: go on to its end
            data += read_all(file, limit + 1 - len(data))
        if len(data) > limit:
            raise ImageError(f"it has more than {limit:,} bytes, which are not read")
        return data


class RandomFile:
    """A file that any thread may read at any offset, opened when first needed; pickles as its path.

    It stays open, unless too many others do: then it is opened for every read.
    """

    _open_files: ClassVar[int] = 0
    _count_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: Any = None
        self._counted = False

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def read_at(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes at ``offset``, fewer where the file ends before."""
        file = self._file or self._open()
        if file is None:
            with self.path.open("rb") as once:
                once.seek(offset)
                return once.read(count)
        if not hasattr(os, "pread"):
            with self._lock:
                file.seek(offset)
                return bytes(file.read(count))
        return pread_all(file.fileno(), offset, count)

    def _open(self) -> Any:
        """Open the file to stay open; return None where too many are."""
        with self._lock:
            if self._file is None and self._count():
                try:
                    self._file = self.path.open("rb", buffering=0)
                except OSError:
                    self._uncount()
                    raise
            return self._file

    def _count(self) -> bool:
        with RandomFile._count_lock:
            self._counted = RandomFile._open_files < most_open()
            RandomFile._open_files += self._counted
        return self._counted

    def _uncount(self) -> None:
        RandomFile._open_files -= self._counted  # no lock: this may run in the collector, in any thread
        self._counted = False

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()
            self._uncount()


def most_open() -> int:
    """Return how many archives may stay open: a quarter of the files that the system allows this process."""
    try:
        import resource
    except ImportError:  # Windows
        return _MOST_OPEN
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_OPEN if allowed == resource.RLIM_INFINITY else min(_MOST_OPEN, allowed // 4)


LOOK_AHEAD = 2
"""Batches that are decoded ahead of the one the consumer holds; memory is bounded by it."""

_CHUNK = 16  # images that a thread takes at a time: few enough to share a batch, enough to hide the queue


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    source: ImageSource
    rows: range
    images: NDArray[np.uint8]
    parts: list[Future[dict[int, str]]]


def decode_ahead(
    parts: Iterator[tuple[ImageSource, range]], preprocess: Preprocess, workers: int
) -> Iterator[ImageBatch]:
    """Yield a batch for each part, some rows of a source, whose images are decoded in threads ahead of it."""
    stop = threading.Event()
    if workers <= 1:
        for source, rows in parts:
            images = _allocate(rows, preprocess)
            yield _finish(source, rows, images, _fill(source, preprocess, rows, images, stop))
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="stochcl-decode")
    try:
        pending: deque[_Pending] = deque()
        for source, rows in islice(parts, LOOK_AHEAD + 1):
            pending.append(_submit(executor, source, preprocess, rows, stop))
        while pending:
            batch = pending.popleft()
            reasons: dict[int, str] = {}
            for part in batch.parts:
                reasons |= part.result()
            yield _finish(batch.source, batch.rows, batch.images, reasons)
            del batch
            for source, rows in islice(parts, 1):
                pending.append(_submit(executor, source, preprocess, rows, stop))
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _allocate(rows: range, preprocess: Preprocess) -> NDArray[np.uint8]:
    return np.empty((len(rows), preprocess.size, preprocess.size, 3), dtype=np.uint8)


def _submit(
    executor: ThreadPoolExecutor, source: ImageSource, preprocess: Preprocess, rows: range, stop: threading.Event
) -> _Pending:
    images = _allocate(rows, preprocess)
    parts = [
        executor.submit(_fill, source, preprocess, rows[a : a + _CHUNK], images[a : a + _CHUNK], stop)
        for a in range(0, len(rows), _CHUNK)
    ]
    return _Pending(source, rows, images, parts)


def _fill(
    source: ImageSource, preprocess: Preprocess, rows: range, images: NDArray[np.uint8], stop: threading.Event
) -> dict[int, str]:
    """Decode ``rows`` into ``images`` and return the reasons of those that could not be."""
    reasons: dict[int, str] = {}
    with quiet_pillow():
        for k, i in enumerate(rows):
            if stop.is_set():  # nobody waits for the rest
                break
            try:
                images[k] = source._image(i, preprocess)
            except ImageError as exc:
                reasons[i] = str(exc)
            except EnvironmentFault as exc:
                raise source._fault(i, exc) from exc
    return reasons


def _finish(source: ImageSource, rows: range, images: NDArray[np.uint8], reasons: dict[int, str]) -> ImageBatch:
    positions = tuple(i for i in rows if i not in reasons)
    if reasons:
        images = images[np.array(positions, dtype=np.intp) - rows.start]
    readable = [source.entries[i] for i in positions]
    return ImageBatch(
        rows=rows,
        positions=positions,
        names=tuple(entry.name for entry in readable),
        images=images,
        failures=tuple(Failure(source.entries[i].name, reasons[i]) for i in sorted(reasons)),
        sizes=tuple(entry.size for entry in readable),
    )
