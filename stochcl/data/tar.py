"""Images in a tar, plain or compressed."""

from __future__ import annotations

import tarfile
import tempfile
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import IO, TYPE_CHECKING, Any, ClassVar

from stochcl.data.access import PROBE, RandomFile, read_error
from stochcl.data.names import DEFAULTS, FileFilter, Kind, SourceOptions, group_of, is_image_name
from stochcl.data.preprocess import identify
from stochcl.data.source import Entry, Failure, ImageSource, StreamSource, check_not_empty
from stochcl.data.tar_headers import (
    BLOCK,
    CHUNK,
    DAMAGE,
    Headers,
    Pieces,
    Stream,
    compression,
    decompressor,
    pieces_of,
    tar_name,
)
from stochcl.errors import ImageError, SourceError, StochclError
from stochcl.files import read_all, reading, write_all
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


EXPANSION_LIMIT = 100
"""Maximum size of the images in a compressed tar as a multiple of its own; images hardly compress."""

EXPANSION_FLOOR = 1024**3
"""Size that the images of any compressed tar may have, in bytes."""

RECENT_BYTES = 128 << 20
"""Bytes of a stream's last images that are kept for later hard links to them."""


class TarSource(ImageSource):
    """The images in a tar (also .tar.gz, .tar.bz2, .tar.xz, .tar.zst).

    Concatenated tars are all read, and the end mark may be missing, as in GNU tar. A hard link to an earlier image is
    that image.

    A plain tar is indexed in one pass over its headers and read in place. A compressed one can only be read front to
    back, but images are needed in the order of their names and more than once. So the indexing pass copies the images
    to an unnamed temporary file, which disappears with the source. Memory stays bounded, at the price of disk space
    of about the archive's size. An unpickled source makes its own copy.
    """

    kind: ClassVar[str] = "tar"
    path: Path

    def __init__(self, path: Path, options: SourceOptions = DEFAULTS) -> None:
        self.path, self._options = path, options
        self._file: RandomFile
        self._index()

    def _index(self) -> None:
        files = FileFilter(self._options)
        try:
            with (
                reading(self.path, "this tar"),
                self.path.open("rb") as file,
            ):  # gzip and bz2 also raise OSError on damage
                opener = compression(self.path)
                self._file = _Spool(self.path) if opener else RandomFile(self.path)
                found = _Index(self.path, files, self._file)
                found.run(Stream(opener(file)) if opener else Stream(file, file.seek))
        except StochclError:  # some are ValueErrors
            raise
        except DAMAGE as exc:
            raise SourceError(
                f"{escape_name(self.path)}: this tar is truncated or damaged "
                f"({escape_name(str(exc) or type(exc).__name__)}); copy it again or repack it."
            ) from exc
        self._places = self._enter(found.listed, found.rejected, files, "tar")
        self.told = () if found.ended else (_NO_END,)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if isinstance(self._file, _Spool):
            del state["_file"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_file" not in state:
            self._index()

    def _read(self, i: int) -> bytes:
        return read_pieces(self._file, self._places[i], self.entries[i].size)


_NO_END = "the tar does not end with its mark (tar accepts that); if what wrote it was interrupted, files are missing"


def _members(
    archive: Headers, files: FileFilter, linked: Callable[[str], tuple[int, Pieces]]
) -> Iterator[tuple[tarfile.TarInfo, Kind, str, int, Pieces | str]]:
    """Yield each member's header, kind, name, size, and its pieces or the reason why it is refused.

    ``linked`` returns size and pieces of a hard link's target, or raises ValueError.
    """
    while (member := archive.next()) is not None:
        if member.isdir():
            continue
        try:
            name = tar_name(member.name)
            if (kind := files.kind(name)) == "other":
                continue
            size, pieces = linked(member.linkname) if member.islnk() else (member.size, pieces_of(member))
        except ValueError as exc:
            if is_image_name(member.name):
                yield member, "image", member.name, 0, str(exc)
            continue
        yield member, kind, name, size, pieces


class _Index:
    """One pass over a tar's headers, which copies the images of a compressed tar to its spool."""

    def __init__(self, path: Path, files: FileFilter, file: RandomFile) -> None:
        self.listed: list[tuple[Entry, Pieces]] = []
        self.rejected: list[Failure] = []
        self.ended = False
        self._files, self._file = files, file
        self._mtime_ns = path.stat().st_mtime_ns
        self._earlier: dict[str, tuple[int, Pieces]] = {}

    def run(self, stream: Stream) -> None:
        headers = Headers(stream)
        for member, kind, name, size, found in _members(headers, self._files, self._linked):
            if isinstance(found, str):
                self.rejected.append(Failure(name, found))
                continue
            pieces = found
            if isinstance(self._file, _Spool) and not member.islnk():
                pieces = [(at, self._file.copy(stream, place, count), count) for at, place, count in found]
            read = partial(read_pieces, self._file, pieces, size)
            if self._files.takes(name, kind, read, partial(self._head, pieces)):
                self._earlier[name] = size, pieces
                self.listed.append((Entry(name, size, self._mtime_ns), pieces))
        self.ended = headers.ended

    def _head(self, pieces: Pieces) -> bytes:
        return self._file.read_at(pieces[0][1], min(PROBE, pieces[0][2])) if pieces else b""

    def _linked(self, linkname: str) -> tuple[int, Pieces]:
        found = self._earlier.get(tar_name(linkname))
        if found is None:
            raise ValueError(f"it is a link to {escape_name(linkname)}, which is not an image before it in the tar")
        return found


def read_pieces(file: RandomFile, pieces: Pieces, size: int) -> bytes:
    """Return the bytes of a tar member."""
    try:
        parts = [(at, file.read_at(place, count), count) for at, place, count in pieces]
    except OSError as exc:
        raise read_error(exc, "the tar") from exc
    if any(len(part) < count for _, part, count in parts):
        raise ImageError("the tar ends within this member")
    return _joined([(at, part) for at, part, _ in parts], size)


def _joined(parts: list[tuple[int, bytes]], size: int) -> bytes:
    if len(parts) == 1 and len(parts[0][1]) == size:
        return parts[0][1]
    data = bytearray(size)
    for at, part in parts:
        data[at : at + len(part)] = part
    return bytes(data)


class _Spool(RandomFile):
    """An unnamed temporary file, written once and then read at any offset."""

    def __init__(self, archive: Path) -> None:
        super().__init__(archive)
        self._limit = max(EXPANSION_FLOOR, EXPANSION_LIMIT * archive.stat().st_size)
        self._size = 0
        with self._explained():  # unbuffered, because reads bypass the buffer
            self._file = tempfile.TemporaryFile(prefix="stochcl-", buffering=0)  # noqa: SIM115 - lives as long as the source

    def copy(self, stream: Stream, place: int, size: int) -> int:
        """Copy ``size`` bytes at a place of the stream; return their offset here."""
        offset = self._size
        self._size += size
        if self._size > self._limit:
            raise SourceError(
                f"{escape_name(self.path)}: the images in this compressed tar take more than {self._limit:,} "
                "bytes, which is suspiciously more than its own size; give the folder or a plain tar."
            )
        for done in range(0, size, CHUNK):
            data = stream.exactly(place + done, min(CHUNK, size - done))
            with self._explained():
                write_all(self._file, data)
        return offset

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise SourceError(
                f"{escape_name(self.path)}: its images cannot be unpacked to a temporary file: {os_reason(exc)}; "
                "set TMPDIR to a folder with more space, or give the folder or a plain tar."
            ) from exc


class TarStream(StreamSource):
    """The images of a plain or compressed tar from a pipe, in order of arrival.

    Parameters
    ----------
    file : binary file object
        Readable; it is never sought.
    shown : str
        Its name in messages.
    options : SourceOptions
        With ``label_files``, the files of a sample must be adjacent, as in webdataset: its images are returned
        after all its files have arrived.
    """

    kind: ClassVar[str] = "tar"

    def __init__(self, file: IO[bytes], shown: str = "standard input", options: SourceOptions = DEFAULTS) -> None:
        super().__init__(shown)
        self._file, self._options = file, options
        self._recent = _Recent()

    def _images(self, batch_size: int) -> Iterator[tuple[str, bytes | str, str | None]]:
        count = 0
        try:
            for image in self._samples():
                yield image
                count += 1
        except StochclError:  # some are ValueErrors
            raise
        except (*DAMAGE, OSError) as exc:
            reason = os_reason(exc) if isinstance(exc, OSError) else str(exc) or type(exc).__name__
            after = f" after {count:,} images" if count else ""
            raise SourceError(
                f"{escape_name(self.path)}: the incoming tar breaks off or is damaged{after} ({escape_name(reason)})."
            ) from exc
        if not count:
            check_not_empty(self.path, [], [], "tar", self.others)

    def _samples(self) -> Iterator[tuple[str, bytes | str, str | None]]:
        """Yield each image's name, its file or the reason why it is refused, and its label."""
        files = FileFilter(self._options)
        self.others = files.others
        if not files.ending:
            yield from ((name, file, None) for name, _, file in self._members(files))
            return
        for _, sample in groupby(self._members(files), key=lambda member: group_of(member[0])):
            images, beside = [], FileFilter(self._options)
            for name, kind, file in sample:
                if kind == "label" and isinstance(file, bytes):
                    beside.add_label(name, partial(bytes, file))
                else:
                    images.append((name, file))
            yield from ((name, file, beside.label(name)) for name, file in images)

    def _members(self, files: FileFilter) -> Iterator[tuple[str, Kind, bytes | str]]:
        """Yield the name, kind and bytes of each image and label file."""
        stream = Stream(_opened(self._file))
        headers = Headers(stream)
        # All headers are read, because closing a pipe early would kill its writer.
        for member, kind, name, size, pieces in _members(headers, files, self._recent.place):
            if isinstance(pieces, str):
                yield name, kind, pieces
                continue
            data = (
                self._recent.read(member.linkname) if member.islnk()
                else _joined([(at, stream.exactly(place, count)) for at, place, count in pieces], size)
            )  # fmt: skip
            if kind != "unknown" or identify(data[:PROBE]):
                self._recent.keep(name, data)
                yield name, kind, data
        self.told = () if headers.ended else (_NO_END,)


class _Recent:
    """The last images of a stream, for later hard links to them."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._size = 0

    def keep(self, name: str, data: bytes) -> None:
        self._size += len(data) - len(self._files.pop(name, b""))
        self._files[name] = data
        while self._size > RECENT_BYTES:
            self._size -= len(self._files.pop(next(iter(self._files))))

    def place(self, linkname: str) -> tuple[int, Pieces]:
        """Return the size of a kept file, with no pieces; raise ValueError if it is not kept."""
        try:
            return len(self.read(linkname)), []
        except KeyError:
            raise ValueError(
                f"it is a hard link to {escape_name(linkname)}, which has gone by in the stream; read the tar from a "
                "file, or write it with `tar --hard-dereference`"
            ) from None

    def read(self, linkname: str) -> bytes:
        return self._files[tar_name(linkname)]


def _opened(file: IO[bytes]) -> Any:
    """Return a reader of the tar, which decompresses it if its first bytes say so."""
    head = read_all(file, BLOCK)
    if not head:
        raise tarfile.ReadError("nothing came in")
    raw, opener = _Prefixed(head, file), decompressor(head)
    return raw if opener is None else opener(raw)


class _Prefixed:
    """A stream whose first bytes have already been read."""

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        self._head, self._file = head, file

    def read(self, count: int) -> bytes:
        data, self._head = self._head[:count], self._head[count:]
        return data or self._file.read(count)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False
