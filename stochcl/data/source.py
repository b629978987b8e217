"""What a source of images is: a list of entries that load as squares of pixels, or a stream of them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from stochcl.data.names import FileFilter, counted, may_be_16_bit, remark_on_others, sort_key
from stochcl.data.pixels import SAMPLED, SAMPLED_BYTES, common_depth, depth_used, quiet_pillow
from stochcl.data.preprocess import DamagedImage, Preprocess
from stochcl.errors import EnvironmentFault, ImageError, SourceError, UsageError
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    _Image = tuple[str, bytes | str, str | None]  # name, file or why there is none, label


Place = TypeVar("Place")


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
    damaged : tuple of Failure
        Which of the readable images are damaged, and how.
    """

    rows: range
    positions: tuple[int, ...]
    names: tuple[str, ...]
    images: NDArray[np.uint8]
    failures: tuple[Failure, ...]
    sizes: tuple[int, ...]
    labels: tuple[str, ...] | None = None
    damaged: tuple[Failure, ...] = ()

    @property
    def inputs(self) -> NDArray[np.uint8]:
        """What an encoder takes: the images."""
        return self.images


class Depths(ABC):
    """What images of a source use of 16 bits, decided once for all of them."""

    _depth: tuple[int, str] | None = None

    def settle(self, preprocess: Preprocess) -> Preprocess:
        """Return it with a depth of 16-bit images: its own, or else what images of the source use."""
        if preprocess.depth is not None:
            return preprocess
        if self._depth is None:
            self._depth = common_depth(self._sample(SAMPLED))
        return replace(preprocess, depth=self._depth[0])

    @abstractmethod
    def _sample(self, most: int) -> Iterator[bytes]:
        """Yield files that may be 16-bit images, which decide; none where there are no files."""


class ImageSource(Depths):
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
    path: Path | str
    entries: Sequence[Entry]
    rejected: Sequence[Failure]
    labels: Sequence[str] | None = None
    """A label of each entry, where the source itself has them."""
    others: Counter[str] | None = None
    """Files that were not taken for images, by the ending of their names."""
    told: Sequence[str] = ()
    """What was noticed when it was listed."""

    def __len__(self) -> int:
        return len(self.entries)

    def remarks(self) -> list[str]:
        """Return what should be said of the source as it was read."""
        depth = "" if self._depth is None else self._depth[1]
        others = remark_on_others(self.others, 0 if self.labels else len(self))
        return [line for line in (depth, others, *self.told) if line]

    def _sample(self, most: int) -> Iterator[bytes]:
        """Yield files that may be 16-bit images, evenly spread over the source."""
        if type(self)._image is not ImageSource._image:
            return
        found, size = [i for i, entry in enumerate(self.entries) if may_be_16_bit(entry.name)], 0
        for i in found[:: max(1, -(-len(found) // most))]:
            size += self.entries[i].size
            if size > SAMPLED_BYTES * most // SAMPLED:
                return
            with suppress(ImageError, EnvironmentFault):  # which reading it in earnest raises
                yield self._read(i)

    def load(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        """Read and preprocess image ``i``, shape (size, size, 3), uint8."""
        name = self.entries[i].name
        try:
            return self._image(i, self.settle(preprocess))
        except DamagedImage as exc:
            return exc.pixels
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
        return decode_ahead(parts, self.settle(preprocess), workers)

    def _enter(
        self, listed: list[tuple[Entry, Place]], rejected: list[Failure], files: FileFilter, what: str
    ) -> list[Place]:
        """Take over what a listing has found, in the order of its names; return the places."""
        listed.sort(key=lambda pair: sort_key(pair[0].name))
        self.entries = [entry for entry, _ in listed]
        self.rejected = sorted(rejected, key=lambda failure: sort_key(failure.name))
        self.others = files.others
        check_not_empty(self.path, self.entries, self.rejected, what, files.others)
        self.labels = files.labels(self.path, [entry.name for entry in self.entries])
        return [place for _, place in listed]

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


def check_not_empty(
    path: Path | str, entries: Sequence[Entry], rejected: Sequence[Failure], what: str,
    others: Counter[str] | None = None,
) -> None:  # fmt: skip
    """Raise SourceError, with the first reason, where a source has no image that could be read."""
    if entries:
        return
    if rejected:
        raise SourceError(
            f"{escape_name(path)}: none of the {len(rejected)} images in this {what} can be read; "
            f"the first is {escape_name(rejected[0].name)}: {rejected[0].reason}."
        )
    there = f", but {counted(others)}: --any-name looks into them" if others else ""
    raise SourceError(
        f"{escape_name(path)}: this {what} holds no image; images are files whose names end in .jpg, .png, .webp, "
        f".tif and the like{there}."
    )


LOOK_AHEAD = 2
"""Batches that are decoded ahead of the one the consumer holds; memory is bounded by it."""

_CHUNK = 16  # images that a thread takes at a time: few enough to share a batch, enough to hide the queue


_Reasons = dict[int, tuple[str, bool]]  # what is wrong with an image, and whether it was read all the same


def decode_ahead(
    parts: Iterator[tuple[ImageSource, range]], preprocess: Preprocess, workers: int
) -> Iterator[ImageBatch]:
    """Yield a batch for each part, some rows of a source, whose images are decoded in threads ahead of it."""
    stop = threading.Event()

    def empty(rows: range) -> NDArray[np.uint8]:
        return np.empty((len(rows), preprocess.size, preprocess.size, 3), dtype=np.uint8)

    if workers <= 1:
        for source, rows in parts:
            images = empty(rows)
            yield _finish(source, rows, images, _fill(source, preprocess, rows, images, stop))
        return

    def submit(count: int) -> None:
        for source, rows in islice(parts, count):
            images = empty(rows)
            futures = [
                executor.submit(_fill, source, preprocess, rows[a : a + _CHUNK], images[a : a + _CHUNK], stop)
                for a in range(0, len(rows), _CHUNK)
            ]
            pending.append((source, rows, images, futures))

    executor = ThreadPoolExecutor(workers, thread_name_prefix="stochcl-decode")
    pending: deque[tuple[ImageSource, range, NDArray[np.uint8], list[Future[_Reasons]]]] = deque()
    try:
        submit(LOOK_AHEAD + 1)
        while pending:
            source, rows, images, futures = pending.popleft()
            reasons = {row: reason for future in futures for row, reason in future.result().items()}
            yield _finish(source, rows, images, reasons)
            del source, images, futures
            submit(1)
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _fill(
    source: ImageSource, preprocess: Preprocess, rows: range, images: NDArray[np.uint8], stop: threading.Event
) -> _Reasons:
    """Decode ``rows`` into ``images`` and return what is wrong with some."""
    reasons: _Reasons = {}
    with quiet_pillow():
        for k, i in enumerate(rows):
            if stop.is_set():  # nobody waits for the rest
                break
            try:
                images[k] = source._image(i, preprocess)
            except DamagedImage as exc:
                images[k], reasons[i] = exc.pixels, (str(exc), True)
            except ImageError as exc:
                reasons[i] = str(exc), False
            except EnvironmentFault as exc:
                raise source._fault(i, exc) from exc
    return reasons


def _finish(source: ImageSource, rows: range, images: NDArray[np.uint8], reasons: _Reasons) -> ImageBatch:
    told = [(Failure(source.entries[i].name, reasons[i][0]), i) for i in sorted(reasons)]
    lost = {i for i, (_, readable) in reasons.items() if not readable}
    positions = tuple(i for i in rows if i not in lost)
    if lost:
        images = images[np.array(positions, dtype=np.intp) - rows.start]
    readable = [source.entries[i] for i in positions]
    return ImageBatch(
        rows=rows, positions=positions, names=tuple(entry.name for entry in readable), images=images,
        failures=tuple(failure for failure, i in told if i in lost), sizes=tuple(entry.size for entry in readable),
        labels=None if source.labels is None else tuple(source.labels[i] for i in positions),
        damaged=tuple(failure for failure, i in told if i not in lost),
    )  # fmt: skip


BATCH_BYTES = 32 << 20  # of image files in a batch, or fewer images than asked for; three batches wait at a time


class Loaded(ImageSource):
    """Some images whose files are in memory, or whose reason for not being there is."""

    kind: ClassVar[str] = "loaded"
    rejected: Sequence[Failure] = ()

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.labels: list[str] | None = None
        self.bytes = 0
        self._files: list[bytes | str] = []

    def enter(self, name: str, file: bytes | str, label: str | None) -> None:
        """Add an image: the bytes of its file, or why there are none."""
        size = len(file) if isinstance(file, bytes) else 0
        self.entries.append(Entry(name, size, 0))
        self._files.append(file)
        self.bytes += size
        if label is not None:
            self.labels = self.labels or []
            self.labels.append(label)

    def _read(self, i: int) -> bytes:
        file = self._files[i]
        if isinstance(file, str):
            raise ImageError(file)
        return file


class StreamSource(Depths):
    """Images that are known when they come: no listing, no length; batches as those of :class:`ImageSource`.

    Rows stand in the order in which they come. What is refused is a failure of its batch, at its place. Where the
    stream breaks, the images before are given first, and then the error is raised.
    """

    kind: ClassVar[str]
    path: Path | str
    rejected: tuple[Failure, ...] = ()

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.others: Counter[str] = Counter()
        self.told: Sequence[str] = ()
        self._ahead: list[_Image] = []  # read to decide on the depth, and not given yet
        self._rest: Iterator[_Image] | None = None
        self._unlabelled = 0
        self._broken: SourceError | None = None

    def _sample(self, most: int) -> Iterator[bytes]:
        """Yield the 16-bit images that the stream begins with; what others wait for is one image that is not."""
        self._rest, size = self._images(most), 0
        try:
            for name, file, label in self._rest:
                self._ahead.append((name, file, label))
                size += len(file)
                if isinstance(file, str) or not may_be_16_bit(name) or depth_used(file) is None:
                    return
                yield file
                if len(self._ahead) == most or size >= BATCH_BYTES:
                    return
        except SourceError as exc:
            self._broken = exc

    def _all_images(self, batch_size: int) -> Iterator[_Image]:
        ahead, self._ahead = self._ahead, []
        yield from ahead
        if self._broken is not None:
            raise self._broken
        yield from self._images(batch_size) if self._rest is None else self._rest

    def remarks(self) -> list[str]:
        """Return what should be said of the source once it was read."""
        depth = "" if self._depth is None else self._depth[1]
        others = remark_on_others(self.others, self._unlabelled)
        return [line for line in (depth, others, *self.told) if line]

    @abstractmethod
    def _images(self, batch_size: int) -> Iterator[tuple[str, bytes | str, str | None]]:
        """Yield of each image its name, its file or why there is none, and its label; SourceError where it breaks."""

    def __len__(self) -> int:
        """Images in all, or 0 where that is not known."""
        return 0

    def batches(self, preprocess: Preprocess, *, batch_size: int = 256, workers: int = 1) -> Iterator[ImageBatch]:
        """Iterate over the images as they come, decoding ahead in threads."""
        preprocess = self.settle(preprocess)
        broken: list[SourceError] = []

        def parts() -> Iterator[tuple[ImageSource, range]]:
            part = Loaded(self.path)
            try:
                for image in self._all_images(batch_size):
                    part.enter(*image)
                    if len(part) == batch_size or part.bytes >= BATCH_BYTES:
                        yield part, range(len(part))
                        part = Loaded(self.path)
            except SourceError as exc:
                broken.append(exc)
            if len(part):
                yield part, range(len(part))

        start = 0
        for batch in decode_ahead(parts(), preprocess, workers):
            rows = range(start, start + len(batch.rows))
            self._unlabelled += len(batch.rows) if batch.labels is None else 0
            yield replace(batch, rows=rows, positions=tuple(start + i for i in batch.positions))
            start = rows.stop
        if broken:
            raise broken[0]
