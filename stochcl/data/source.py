"""The base of image sources: a list of entries that load as squares of pixels, or a stream of images."""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from stochcl.data.names import FileFilter, counted, may_be_16_bit, remark_on_others, sort_key
from stochcl.data.pixels import SAMPLED, SAMPLED_BYTES, common_depth, depth_used, quiet_pillow
from stochcl.data.preprocess import DamagedImage, Preprocess
from stochcl.errors import EnvironmentFault, ImageError, SourceError, UsageError
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
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
        Modification time of the file or its archive, in nanoseconds since 1970.
    """

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that cannot be read: its name, and the reason as a clause."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class ImageBatch:
    """Consecutive images of a source, split into readable ones and failures.

    Parameters
    ----------
    rows : range
        Positions in the source's entries that the batch covers.
    positions : tuple of int
        Positions of the readable images. (Names are ambiguous: an archive may hold one name twice.)
    names : tuple of str
        Names of the readable images.
    images : ndarray of uint8, shape (B, size, size, 3)
        The readable images, in the order of ``names``.
    failures : tuple of Failure
        The other images.
    sizes : tuple of int
        Bytes of the readable images' files.
    labels : tuple of str, optional
        Labels of the readable images, if the source has them; labels from names are not included.
    damaged : tuple of Failure
        Readable images that are damaged, and how.
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
        """Input for an encoder: the images."""
        return self.images


def digest(kind: str, facts: Iterable[object]) -> str:
    """Return a digest of a source's kind and of facts that change with its content."""
    found = hashlib.sha256(kind.encode())
    for fact in facts:
        found.update(json.dumps(fact).encode() + b"\n")
    return found.hexdigest()


class Source(ABC):
    """The base of images, in a list or a stream; decides once how many of 16 bits they use."""

    kind: ClassVar[str]
    unit: ClassVar[str] = "image"
    """The noun for a row."""
    path: Path | str
    rejected: Sequence[Failure] = ()
    others: Counter[str] | None = None
    """Counts of files that were not taken as images, by ending."""
    told: Sequence[str] = ()
    """Remarks from listing the source."""
    read_once: bool = False
    """Whether the source cannot be read again, so that nothing is to resume."""
    has_names: bool = True
    """Whether rows have names other than their numbers."""
    _depth: tuple[int, str] | None = None

    def settle(self, preprocess: Preprocess) -> Preprocess:
        """Return ``preprocess`` with its own depth of 16-bit images, or else the source's."""
        if preprocess.depth is not None:
            return preprocess
        if self._depth is None:
            self._depth = common_depth(self._sample(SAMPLED))
        return replace(preprocess, depth=self._depth[0])

    @abstractmethod
    def _sample(self, most: int) -> Iterator[bytes]:
        """Yield files that may be 16-bit images, to decide the depth; none if there are no files."""

    def remarks(self) -> list[str]:
        """Return remarks about the source as it was read."""
        depth = "" if self._depth is None else self._depth[1]
        return [line for line in (depth, remark_on_others(self.others, self._unlabelled()), *self.told) if line]

    @abstractmethod
    def _unlabelled(self) -> int:
        """Return the number of images that were listed or read without a label."""

    @property
    def mtime_ns(self) -> int:
        """Time of the last change of any of the files, in nanoseconds; 0 if unknown."""
        return 0

    def listing(self) -> str:
        """Return a digest of names, sizes, times and rejected images; empty if the source cannot be read again."""
        return ""


class ImageSource(Source):
    """A folder, an archive or an array of images, read one at a time or in batches.

    All sources share this contract:

    - ``entries`` are in bytewise order of their names; a list of files, or several sources, keep the given order.
      Equal names are kept, in stored order. Listing reads no image.
    - ``rejected`` are images that will not be opened, each with its reason: a broken link, an encrypted member, a
      name that climbs out of the archive. They are not among the entries.
    - ``load`` and ``batches`` may be called from several threads at once, and a source can be pickled: a process
      that receives it opens its own files.
    - An image that cannot be read is an ImageError from ``load`` and a Failure in ``batches``. A source that
      cannot be read at all is a SourceError; if the disk, the network or the file table fails, or a listed file is
      gone, both raise EnvironmentFault.

    Subclasses implement only ``_read`` (and ``_image`` if there is no file to decode).
    """

    entries: Sequence[Entry]
    labels: Sequence[str] | None = None
    """The label of each entry, if the source has labels."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> list[str]:
        """The names of the entries."""
        return [entry.name for entry in self.entries]

    @property
    def mtime_ns(self) -> int:  # noqa: D102
        return max((entry.mtime_ns for entry in self.entries), default=0)

    def _unlabelled(self) -> int:
        return 0 if self.labels else len(self)

    def listing(self) -> str:
        """Return a digest of names, sizes, times and rejected images."""
        entries = ([entry.name, entry.size, entry.mtime_ns] for entry in self.entries)
        rejected = ([failure.name, failure.reason] for failure in self.rejected)
        return digest(self.kind, chain(entries, rejected, [] if self.labels is None else [list(self.labels)]))

    def at(self, rows: Iterable[int]) -> SubsetSource:
        """Return a source of some of these images, by position."""
        return SubsetSource(self, [int(row) for row in rows])

    def without(self, names: Iterable[str]) -> SubsetSource:
        """Return a source of the images with other names; each name removes as many as it occurs in ``names``."""
        there, rows = Counter(names), []
        for row, entry in enumerate(self.entries):
            if there[entry.name] > 0:
                there[entry.name] -= 1
            else:
                rows.append(row)
        return self.at(rows)

    def _sample(self, most: int) -> Iterator[bytes]:
        """Yield files that may be 16-bit images, evenly spread over the source."""
        if type(self)._image is not ImageSource._image:
            return
        found, size = [i for i, entry in enumerate(self.entries) if may_be_16_bit(entry.name)], 0
        for i in found[:: max(1, -(-len(found) // most))]:
            size += self.entries[i].size
            if size > SAMPLED_BYTES * most // SAMPLED:
                return
            with suppress(ImageError, EnvironmentFault):  # reading the image later raises it
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
        """Set the entries from a listing, sorted by name; return the places in that order."""
        listed.sort(key=lambda pair: sort_key(pair[0].name))
        self.entries = [entry for entry, _ in listed]
        self.rejected = sorted(rejected, key=lambda failure: sort_key(failure.name))
        self.others = files.others
        check_not_empty(self.path, self.entries, self.rejected, what, files.others)
        self.labels = files.labels(self.path, self.names)
        return [place for _, place in listed]

    def _fault(self, i: int, exc: EnvironmentFault) -> EnvironmentFault:
        """Return the error that ends reading the source at this image."""
        return EnvironmentFault(
            f"{escape_name(self.path)}: {escape_name(self.entries[i].name)}: {exc}; this is no fault of the image, "
            "so reading stops here."
        )

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        """Read and preprocess image ``i``; the message of an ImageError is only the reason."""
        return preprocess.decode(self._read(i))

    @abstractmethod
    def _read(self, i: int) -> bytes:
        """Return the bytes of image file ``i``; the message of an ImageError is only the reason."""


def check_not_empty(
    path: Path | str, entries: Sequence[Entry], rejected: Sequence[Failure], what: str,
    others: Counter[str] | None = None,
) -> None:  # fmt: skip
    """Raise SourceError, with the first reason, if a source has no readable image."""
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
"""Batches decoded ahead of the consumer's; bounds memory."""

_CHUNK = 16  # images per task: few enough to share a batch, enough to hide the queue's overhead


_Reasons = dict[int, tuple[str, bool]]  # an image's fault, and whether the image is still readable


def decode_ahead(
    parts: Iterator[tuple[ImageSource, range]], preprocess: Preprocess, workers: int
) -> Iterator[ImageBatch]:
    """Yield a batch for each (source, rows) pair, decoding ahead in threads."""
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
    """Decode ``rows`` into ``images``, and return the faults by row."""
    reasons: _Reasons = {}
    with quiet_pillow():
        for k, i in enumerate(rows):
            if stop.is_set():  # nobody needs the rest
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


BATCH_BYTES = 32 << 20  # of image files per batch, which may shorten it; three batches wait at a time


class Loaded(ImageSource):
    """Images whose files are in memory, or whose error is."""

    kind: ClassVar[str] = "loaded"

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.labels: list[str] | None = None
        self.bytes = 0
        self._files: list[bytes | str] = []

    def enter(self, name: str, file: bytes | str, label: str | None) -> None:
        """Add an image: the bytes of its file, or the reason why there are none."""
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


class SubsetSource(ImageSource):
    """Some images of another source, by position, in its order; rejects the same images."""

    kind = "subset"

    def __init__(self, source: ImageSource, rows: Sequence[int]) -> None:
        self._source, self._rows = source, rows
        self.path = source.path
        self.entries = [source.entries[row] for row in rows]
        self.rejected = source.rejected
        self.labels = None if source.labels is None else [source.labels[row] for row in rows]
        self.told, self.others = source.told, source.others

    def settle(self, preprocess: Preprocess) -> Preprocess:
        """Return ``preprocess`` with the depth shared by all images of the other source."""
        return self._source.settle(preprocess)

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        return self._source._image(self._rows[i], preprocess)

    def _read(self, i: int) -> bytes:
        return self._source._read(self._rows[i])


class StreamSource(Source):
    """Images that arrive in a stream, without listing or length; batches as from :class:`ImageSource`.

    Rows are in order of arrival. A refused image is a failure in its batch, at its position. If the stream breaks,
    the images before the break are returned first, and then the error is raised. Only a source that is not
    ``read_once`` can be read from a later image on.
    """

    read_once: bool = True

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.others: Counter[str] = Counter()
        self._ahead: list[_Image] = []  # read to decide the depth, and not returned yet
        self._rest: Iterator[_Image] | None = None
        self._broken: SourceError | None = None
        self._without_label = 0

    def _unlabelled(self) -> int:
        return self._without_label

    def _sample(self, most: int) -> Iterator[bytes]:
        """Yield the 16-bit images at the start of the stream; the first image of another kind ends them."""
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

    @abstractmethod
    def _images(self, batch_size: int) -> Iterator[tuple[str, bytes | str, str | None]]:
        """Yield each image's name, its file or why there is none, and its label; raise SourceError at a break."""

    def __len__(self) -> int:
        """Return the number of images, or 0 if unknown."""
        return 0

    def batches(
        self, preprocess: Preprocess, *, batch_size: int = 256, workers: int = 1, start: int = 0
    ) -> Iterator[ImageBatch]:
        """Iterate over the images as they arrive, from image ``start`` on, decoding ahead in threads."""
        preprocess = self.settle(preprocess)
        broken: list[SourceError] = []

        def parts() -> Iterator[tuple[ImageSource, range]]:
            part = Loaded(self.path)
            try:
                for image in islice(self._all_images(batch_size), start, None):
                    part.enter(*image)
                    if len(part) == batch_size or part.bytes >= BATCH_BYTES:
                        yield part, range(len(part))
                        part = Loaded(self.path)
            except SourceError as exc:
                broken.append(exc)
            if len(part):
                yield part, range(len(part))

        for batch in decode_ahead(parts(), preprocess, workers):
            rows = range(start, start + len(batch.rows))
            self._without_label += len(batch.rows) if batch.labels is None else 0
            yield replace(batch, rows=rows, positions=tuple(start + i for i in batch.positions))
            start = rows.stop
        if broken:
            raise broken[0]
