"""Images that come one after the other and are read once: a tar through a pipe."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from stochcl.data.batches import decode_ahead
from stochcl.data.files import why
from stochcl.data.names import is_hidden, member_name, printable
from stochcl.data.source import Entry, Failure, ImageBatch, ImageSource, is_image_name
from stochcl.data.tar import BLOCK, DAMAGE, MAX_HEADER, check_member
from stochcl.errors import ImageError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stochcl.data.preprocess import Preprocess

BATCH_BYTES = 32 << 20  # of image files in a batch, or fewer images than asked for; three batches wait at a time
_CHUNK = 1 << 20

_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}


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

    def enter(self, name: str, file: bytes | str, label: str | None = None) -> None:
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
    def _parts(self, batch_size: int) -> Iterator[Loaded]:
        """Yield the images in parts of at most so many; raise SourceError where it breaks."""

    def __len__(self) -> int:
        """Images in all, or 0 where that is not known."""
        return 0

    def batches(self, preprocess: Preprocess, *, batch_size: int = 256, workers: int = 1) -> Iterator[ImageBatch]:
        """Iterate over the images as they come, decoding ahead in threads.

        Raises
        ------
        SourceError
            If the stream ends too early or is damaged; after the images before.
        """
        broken: list[SourceError] = []
        waiting: list[Loaded] = []

        def parts() -> Iterator[tuple[ImageSource, range]]:
            try:
                for part in self._parts(batch_size):
                    waiting.append(part)
                    yield part, range(len(part))
            except SourceError as exc:
                broken.append(exc)

        start = 0
        for batch in decode_ahead(parts(), preprocess, workers):
            part = waiting.pop(0)
            labels = None if part.labels is None else tuple(part.labels[i] for i in batch.positions)
            rows = range(start, start + len(batch.rows))
            yield replace(batch, rows=rows, positions=tuple(start + i for i in batch.positions), labels=labels)
            start = rows.stop
        if broken:
            raise broken[0]


class TarStream(StreamSource):
    """The images of a tar that comes through a pipe, plain or compressed, in the order in which they come.

    Parameters
    ----------
    file : binary file object
        That reads; nothing is sought in it.
    shown : str
        What to call it.
    """

    kind: ClassVar[str] = "tar"

    def __init__(self, file: IO[bytes], shown: str = "standard input") -> None:
        self.path = Path(shown)
        self._file = file

    def _parts(self, batch_size: int) -> Iterator[Loaded]:
        shown = printable(self.path)
        part, count = Loaded(self.path), 0
        try:
            for name, file in self._members():
                part.enter(name, file)
                if len(part) == batch_size or part.bytes >= BATCH_BYTES:
                    count += len(part)
                    yield part
                    part = Loaded(self.path)
        except (*DAMAGE, OSError) as exc:
            if len(part):
                count += len(part)
                yield part
            reason = why(exc) if isinstance(exc, OSError) else str(exc) or type(exc).__name__
            after = f" after {count:,} images" if count else ""
            raise SourceError(
                f"{shown}: the tar that comes in breaks off or is damaged{after} ({printable(reason)})."
            ) from exc
        if len(part):
            yield part
        elif not count:
            raise SourceError(
                f"{shown}: the tar holds no image; images are files whose names end in .jpg, .png and the like."
            )

    def _members(self) -> Iterator[tuple[str, bytes | str]]:
        """Yield each image's name with its file, or with why it is refused."""
        stream = _Forward(_opened(self._file))
        with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                archive.members = []  # tarfile keeps every header that it has read
                if member.isdir() or not is_image_name(member.name):
                    continue
                try:
                    name = member_name(member.name)
                    if is_hidden(name):
                        continue
                    check_member(member)
                except ValueError as exc:
                    yield member.name, str(exc)
                    continue
                yield name, stream.exactly(member.offset_data, member.size)
            # tarfile takes a damaged header, or the end of the file, for the end of the archive.
            if stream.last != bytes(BLOCK):
                raise tarfile.ReadError("it does not end with the mark that ends a tar")
        stream.drain()  # a pipe that is closed before its end kills who writes to it


def _opened(file: IO[bytes]) -> Any:
    """Return what reads the tar, decompressed where its first bytes say that it is compressed."""
    head = b""
    while len(head) < BLOCK and (data := file.read(BLOCK - len(head))):
        head += data
    if not head:
        raise tarfile.ReadError("nothing came in")
    raw = _Prefixed(head, file)
    return next((opener(raw) for magic, opener in _OPENERS.items() if head.startswith(magic)), raw)


class _Prefixed:
    """A stream, some first bytes of which have been read already."""

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self._head, self._file = head, file

    def read(self, count: int = -1) -> bytes:
        if not self._head:
            return self._file.read(count)
        if count < 0:
            data, self._head = self._head + self._file.read(), b""
            return data
        data, self._head = self._head[:count], self._head[count:]
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


class _Forward:
    """A stream as tarfile wants it, which reads on for what lies ahead and refuses what no honest header asks for."""

    def __init__(self, raw: Any) -> None:
        self._raw, self._at, self.last = raw, 0, b""

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {count:,} bytes")
        self.last = self._read(count)
        return self.last

    def _read(self, count: int) -> bytes:
        parts = []
        while count and (data := self._raw.read(count)):
            parts.append(data)
            count -= len(data)
            self._at += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, position: int) -> None:
        if position < self._at:
            raise tarfile.ReadError("a header points backwards")
        while self._at < position:
            if not self._read(min(_CHUNK, position - self._at)):
                raise tarfile.ReadError("unexpected end of data")

    def exactly(self, position: int, count: int) -> bytes:
        """Return what lies at a position ahead."""
        self.seek(position)
        data = self._read(count)
        if len(data) < count:
            raise tarfile.ReadError("unexpected end of data")
        return data

    def drain(self) -> None:
        """Read what follows the archive: padding, and a compression's own checksum."""
        while self._raw.read(_CHUNK):
            pass
