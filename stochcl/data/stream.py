"""Images that come one after the other, from a pipe or a table: read once, in their order."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from stochcl.data.names import may_be_16_bit, remark_on_others
from stochcl.data.pixels import depth_used
from stochcl.data.source import Depths, Entry, Failure, ImageBatch, ImageSource, decode_ahead
from stochcl.errors import ImageError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from stochcl.data.preprocess import Preprocess

    _Image = tuple[str, bytes | str, str | None]  # name, file or why there is none, label

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
