"""Images that come one after the other, from a pipe or a table: read once, in their order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from stochcl.data.source import Entry, Failure, ImageBatch, ImageSource, decode_ahead
from stochcl.errors import ImageError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from stochcl.data.preprocess import Preprocess


BATCH_BYTES = 32 << 20  # of image files in a batch, or fewer images than asked for; three batches wait at a time


class Loaded(ImageSource):
    """Some images whose files are in memory, or whose reason for not being there is."""

    kind: ClassVar[str] = "loaded"
    rejected: Sequence[Failure] = ()

    def __init__(self, path: Path) -> None:
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


class StreamSource(ABC):
    """Images that are known when they come: no listing, no length; batches as those of :class:`ImageSource`.

    Rows stand in the order in which they come. What is refused is a failure of its batch, at its place. Where the
    stream breaks, the images before are given first, and then the error is raised.
    """

    kind: ClassVar[str]
    path: Path
    rejected: tuple[Failure, ...] = ()

    @abstractmethod
    def _images(self, batch_size: int) -> Iterator[tuple[str, bytes | str, str | None]]:
        """Yield of each image its name, its file or why there is none, and its label; SourceError where it breaks."""

    def __len__(self) -> int:
        """Images in all, or 0 where that is not known."""
        return 0

    def batches(self, preprocess: Preprocess, *, batch_size: int = 256, workers: int = 1) -> Iterator[ImageBatch]:
        """Iterate over the images as they come, decoding ahead in threads."""
        broken: list[SourceError] = []
        waiting: list[Loaded] = []

        def parts() -> Iterator[tuple[ImageSource, range]]:
            part = Loaded(self.path)
            try:
                for image in self._images(batch_size):
                    part.enter(*image)
                    if len(part) == batch_size or part.bytes >= BATCH_BYTES:
                        waiting.append(part)
                        yield part, range(len(part))
                        part = Loaded(self.path)
            except SourceError as exc:
                broken.append(exc)
            if len(part):
                waiting.append(part)
                yield part, range(len(part))

        start = 0
        for batch in decode_ahead(parts(), preprocess, workers):
            part = waiting.pop(0)
            labels = None if part.labels is None else tuple(part.labels[i] for i in batch.positions)
            rows = range(start, start + len(batch.rows))
            yield replace(batch, rows=rows, positions=tuple(start + i for i in batch.positions), labels=labels)
            start = rows.stop
        if broken:
            raise broken[0]
