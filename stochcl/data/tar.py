"""Images in a tar, plain or compressed."""

from __future__ import annotations

import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from stochcl.data.names import is_hidden, is_image_name, sort_key
from stochcl.data.source import (
    Entry,
    Failure,
    ImageSource,
    RandomFile,
    check_not_empty,
    read_error,
)
from stochcl.data.stream import StreamSource
from stochcl.data.tar_headers import (
    BLOCK,
    DAMAGE,
    Bounded,
    Forward,
    Headers,
    Pieces,
    compression,
    decompressor,
    pieces_of,
    tar_name,
)
from stochcl.errors import ImageError, MissingExtraError, SourceError
from stochcl.files import read_all
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


EXPANSION_LIMIT = 100
"""How many times its own size the images of a compressed tar may take; images hardly compress at all."""

EXPANSION_FLOOR = 1024**3
"""Bytes that the images of a compressed tar may take, however small it is."""

_CHUNK = 1 << 20


class TarSource(ImageSource):
    """The images in a tar (also .tar.gz, .tar.bz2, .tar.xz, .tar.zst).

    Tars that were joined one behind the other are all read, and a tar need not end with its mark, as GNU tar has it.
    A hard link is the image that it links to, if that came before.

    A plain tar is indexed in one pass over its headers and read in place. A compressed one can only be read
    from front to back, but images are wanted in the order of their names and more than once: so the one pass
    that indexes it copies the images, as they come, to a temporary file that has no name and is gone with the
    source. Memory stays bounded whatever the archive holds; the price is disk space of about the archive's
    size, since images hardly compress. A source that is unpickled elsewhere makes its own copy.
    """

    kind: ClassVar[str] = "tar"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: RandomFile
        self._index()

    def _index(self) -> None:
        try:
            with self.path.open("rb") as file:
                opener = compression(self.path)
                spool = _Spool(self.path) if opener else None
                found = _Index(self.path, spool)
                found.run(Forward(opener(file)) if opener else Bounded(file))
        except MissingExtraError:  # a ValueError, too
            raise
        except DAMAGE as exc:
            raise SourceError(
                f"{escape_name(self.path)}: this tar is truncated or damaged "
                f"({escape_name(str(exc) or type(exc).__name__)}); copy it again or repack it."
            ) from exc
        except OSError as exc:  # gzip and bz2 report damage as OSError, too
            raise SourceError(f"{escape_name(self.path)}: this tar cannot be read: {os_reason(exc)}.") from exc
        found.listed.sort(key=lambda pair: sort_key(pair[0].name))
        self.entries = [entry for entry, _ in found.listed]
        self._places = [pieces for _, pieces in found.listed]
        self.rejected = sorted(found.rejected, key=lambda f: sort_key(f.name))
        self._file = spool or RandomFile(self.path)
        check_not_empty(self.path, self.entries, self.rejected, "tar")

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
        size = self.entries[i].size
        try:
            parts = [(at, self._file.read_at(place, count), count) for at, place, count in self._places[i]]
        except OSError as exc:
            raise read_error(exc, "the tar") from exc
        if any(len(part) < count for _, part, count in parts):
            raise ImageError("the tar ends within this member")
        if len(parts) == 1 and len(parts[0][1]) == size:
            return parts[0][1]
        data = bytearray(size)
        for at, part, _ in parts:
            data[at : at + len(part)] = part
        return bytes(data)


def _image_members(
    archive: Headers, linked: Callable[[str], tuple[int, Pieces]]
) -> Iterator[tuple[tarfile.TarInfo, str, int, Pieces | str]]:
    """Yield of each image its header, name, size, and where its bytes are or why it is refused.

    ``linked`` gives size and places of what a hard link names, or raises ValueError.
    """
    while (member := archive.next()) is not None:
        if member.isdir() or not is_image_name(member.name):
            continue
        try:
            name = tar_name(member.name)
            if is_hidden(name):
                continue
            size, pieces = linked(member.linkname) if member.islnk() else (member.size, pieces_of(member))
        except ValueError as exc:
            yield member, member.name, 0, str(exc)
            continue
        yield member, name, size, pieces


class _Index:
    """One pass over a tar's headers, copying the images to ``spool`` where there is one."""

    def __init__(self, path: Path, spool: _Spool | None) -> None:
        self.listed: list[tuple[Entry, Pieces]] = []
        self.rejected: list[Failure] = []
        self._spool = spool
        self._mtime_ns = path.stat().st_mtime_ns
        self._earlier: dict[str, tuple[int, Pieces]] = {}

    def run(self, stream: Bounded | Forward) -> None:
        for member, name, size, found in _image_members(Headers(stream), self._linked):
            if isinstance(found, str):
                self.rejected.append(Failure(name, found))
                continue
            pieces = found
            if self._spool is not None and not member.islnk():
                pieces = [(at, self._spool.copy(stream, place, count), count) for at, place, count in found]
            self._earlier[name] = size, pieces
            self.listed.append((Entry(name, size, self._mtime_ns), pieces))
        if self._spool is not None:
            self._spool.finish()

    def _linked(self, linkname: str) -> tuple[int, Pieces]:
        found = self._earlier.get(tar_name(linkname))
        if found is None:
            raise ValueError(f"it is a link to {escape_name(linkname)}, which is no image before it in the tar")
        return found


class _Spool(RandomFile):
    """A temporary file without a name, written once and then read at any offset."""

    def __init__(self, archive: Path) -> None:
        super().__init__(archive)
        self._limit = max(EXPANSION_FLOOR, EXPANSION_LIMIT * archive.stat().st_size)
        self._size = 0
        with self._explained():
            self._file = tempfile.TemporaryFile(prefix="stochcl-")  # noqa: SIM115 - lives as long as the source

    def copy(self, stream: Bounded | Forward, place: int, size: int) -> int:
        """Copy ``size`` bytes at a place of the stream; return the offset they have here."""
        stream.seek(place)
        offset = self._size
        self._size += size
        if self._size > self._limit:
            msg = (
                f"{escape_name(self.path)}: the images in this compressed tar take more than {self._limit:,} "
                "bytes, which is suspiciously more than its own size; give the folder or a plain tar."
            )
            raise SourceError(msg)
        while size:
            data = stream.read(min(size, _CHUNK))
            if not data:
                raise tarfile.ReadError("unexpected end of data")
            with self._explained():
                self._file.write(data)
            size -= len(data)
        return offset

    def finish(self) -> None:
        """Hand what is still buffered to the file, which is read past the buffer."""
        with self._explained():
            self._file.flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            msg = (
                f"{escape_name(self.path)}: its images cannot be unpacked to a temporary file: {os_reason(exc)}; "
                "set TMPDIR to a folder with more space, or give the folder or a plain tar."
            )
            raise SourceError(msg) from exc


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

    def _images(self, batch_size: int) -> Iterator[tuple[str, bytes | str, str | None]]:
        shown, count = escape_name(self.path), 0
        try:
            for name, file in self._members():
                yield name, file, None
                count += 1
        except MissingExtraError:  # a ValueError, too
            raise
        except (*DAMAGE, OSError) as exc:
            reason = os_reason(exc) if isinstance(exc, OSError) else str(exc) or type(exc).__name__
            after = f" after {count:,} images" if count else ""
            raise SourceError(
                f"{shown}: the tar that comes in breaks off or is damaged{after} ({escape_name(reason)})."
            ) from exc
        if not count:
            raise SourceError(
                f"{shown}: the tar holds no image; images are files whose names end in .jpg, .png and the like."
            )

    def _members(self) -> Iterator[tuple[str, bytes | str]]:
        """Yield each image's name with its file, or with why it is refused."""
        stream = Forward(_opened(self._file))
        # Headers are read to the end: closing a pipe early would kill its writer.
        for _, name, size, pieces in _image_members(Headers(stream), _gone_by):
            if isinstance(pieces, str):
                yield name, pieces
            elif len(pieces) == 1 and pieces[0][2] == size:
                yield name, stream.exactly(*pieces[0][1:])
            else:
                data = bytearray(size)
                for at, place, count in pieces:
                    data[at : at + count] = stream.exactly(place, count)
                yield name, bytes(data)


def _gone_by(linkname: str) -> tuple[int, Pieces]:
    raise ValueError(
        f"it is a hard link to {escape_name(linkname)}, which has gone by in the stream; read the tar from a file, "
        "or write it with --hard-dereference"
    )


def _opened(file: IO[bytes]) -> Any:
    """Return what reads the tar, decompressed where its first bytes say that it is compressed."""
    head = read_all(file, BLOCK)
    if not head:
        raise tarfile.ReadError("nothing came in")
    raw, opener = _Prefixed(head, file), decompressor(head)
    return raw if opener is None else opener(raw)


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
