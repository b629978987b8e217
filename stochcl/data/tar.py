"""Images in a tar, plain or compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import tempfile
import zlib
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from stochcl.data.names import is_hidden, member_name, sort_key
from stochcl.data.preprocess import MAX_FILE_BYTES
from stochcl.data.source import (
    Entry,
    Failure,
    ImageBatch,
    ImageSource,
    RandomFile,
    check_not_empty,
    decode_ahead,
    is_image_name,
    read_error,
)
from stochcl.errors import ImageError, MissingExtraError, SourceError
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stochcl.data.preprocess import Preprocess


BLOCK = 512
"""Unit of a tar: headers and data begin at its multiples."""

EXPANSION_LIMIT = 100
"""How many times its own size the images of a compressed tar may take; images hardly compress at all."""

EXPANSION_FLOOR = 1024**3
"""Bytes that the images of a compressed tar may take, however small it is."""

MAX_HEADER = 16 * 1024**2  # longest single read that indexing needs: extended headers, which hold names
_CHUNK = 1 << 20

_ZSTD_FEED = 1 << 10  # compressed bytes taken at a time: they unpack to 32 MiB at most

DAMAGE = (
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
)


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
                found.run(Forward(opener(file)) if opener else _Bounded(file))
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


def compression(path: Path) -> Callable[[IO[bytes]], Any] | None:
    """Return what decompresses a file that is open, known by its first bytes; None where it is plain."""
    with path.open("rb") as file:
        return decompressor(file.read(6))


def decompressor(head: bytes) -> Callable[[Any], Any] | None:
    """Return what decompresses a stream that begins like this; None where it is plain."""
    openers: dict[bytes, Callable[[Any], Any]] = {
        b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
        b"BZh": bz2.BZ2File,
        b"\xfd7zXZ\0": lzma.LZMAFile,
        b"\x28\xb5\x2f\xfd": _Zstd,
    }
    return next((opener for magic, opener in openers.items() if head.startswith(magic)), None)


class _Zstd:
    """A Zstandard stream of any number of frames, read from front to back; a frame that is cut off is damage."""

    def __init__(self, raw: Any) -> None:
        try:
            import zstandard
        except ImportError as exc:
            msg = "a .tar.zst file needs zstandard, which is not installed; run: pip install 'stochcl[zstd]'."
            raise MissingExtraError(msg) from exc
        self._raw, self._error = raw, zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._ready, self._waiting = b"", b""

    def read(self, count: int) -> bytes:
        while not self._ready:
            data = self._waiting or self._raw.read(_ZSTD_FEED)
            if not data:
                if self._frame is not None:
                    raise EOFError("the compressed stream ends too early")
                return b""
            self._frame, self._waiting = self._frame or self._new(), b""
            try:
                self._ready = self._frame.decompress(data)
            except self._error as exc:
                raise tarfile.ReadError(str(exc)) from exc
            if self._frame.eof:
                self._frame, self._waiting = None, self._frame.unused_data
        data, self._ready = self._ready[:count], self._ready[count:]
        return data


def looks_like_tar(head: bytes) -> bool:
    """Tell whether the first 512 bytes are a tar header: its magic, or for old tars its checksum.

    Examples
    --------
    >>> [looks_like_tar(head) for head in (tarfile.TarInfo("a.png").tobuf(), bytes(512), b"GIF89a")]
    [True, False, False]
    """
    try:
        tarfile.TarInfo.frombuf(head[:BLOCK], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


Pieces = list[tuple[int, int, int]]
"""Where the bytes of a member are: for each piece its place in the file, its place in the archive, and its length."""


class Headers(tarfile.TarFile):
    """The headers of a tar, of all that are joined one behind the other, with or without the marks that end them."""

    def __init__(self, stream: _Bounded | Forward) -> None:
        self._ended = self._junk = self._begun = False
        super().__init__(fileobj=stream, encoding="utf-8")  # type: ignore[arg-type]
        self._begun = True

    def next(self) -> tarfile.TarInfo | None:
        """Return the next header, None at the end; what tarfile would take for an end is damage."""
        if not self._begun:  # TarFile's own __init__ looks for the first
            return None
        self.members: list[tarfile.TarInfo] = []  # tarfile would keep every header
        stream: Any = self.fileobj
        if self.offset != stream.tell():
            stream.seek(self.offset - 1)
            if not stream.read(1):
                raise tarfile.ReadError("unexpected end of data")
        while True:
            try:
                member = self.tarinfo.fromtarfile(self)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                self._ended, self.pax_headers = True, {}
            except tarfile.EmptyHeaderError as exc:  # type: ignore[attr-defined]
                if not self.offset:
                    raise tarfile.ReadError("it is empty") from exc
                return None
            except tarfile.HeaderError as exc:
                if not self._ended:
                    raise tarfile.ReadError(str(exc)) from exc
                if isinstance(exc, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
                    return None
                self._junk = True  # behind the end of a tar anything may stand, but not a part of another
            else:
                if self._junk:
                    raise tarfile.ReadError("a header between the tars that are joined here is damaged")
                self._ended = False
                return member
            self.offset += BLOCK


class _Index:
    """One pass over a tar's headers, copying the images to ``spool`` where there is one."""

    def __init__(self, path: Path, spool: _Spool | None) -> None:
        self.listed: list[tuple[Entry, Pieces]] = []
        self.rejected: list[Failure] = []
        self._spool = spool
        self._mtime_ns = path.stat().st_mtime_ns
        self._earlier: dict[str, tuple[int, Pieces]] = {}

    def run(self, stream: _Bounded | Forward) -> None:
        archive = Headers(stream)
        while (member := archive.next()) is not None:
            self._enter(member, stream)
        if self._spool is not None:
            self._spool.finish()

    def _enter(self, member: tarfile.TarInfo, stream: _Bounded | Forward) -> None:
        if member.isdir() or not is_image_name(member.name):
            return
        try:
            name = tar_name(member.name)
            if is_hidden(name):
                return
            if member.islnk():
                size, pieces = self._linked(member)
            else:
                size, pieces = member.size, pieces_of(member)
        except ValueError as exc:
            self.rejected.append(Failure(member.name, str(exc)))
            return
        if self._spool is not None and not member.islnk():
            pieces = [(at, self._spool.copy(stream, place, count), count) for at, place, count in pieces]
        self._earlier[name] = size, pieces
        self.listed.append((Entry(name, size, self._mtime_ns), pieces))

    def _linked(self, member: tarfile.TarInfo) -> tuple[int, Pieces]:
        found = self._earlier.get(tar_name(member.linkname))
        if found is None:
            raise ValueError(
                f"it is a link to {escape_name(member.linkname)}, which is no image before it in the tar"
            )
        return found


def tar_name(stored: str) -> str:
    """Return the name of a member as tar has it, without a leading ``/``; errors as those of ``member_name``."""
    return member_name(stored.lstrip("/"))


def pieces_of(member: tarfile.TarInfo) -> Pieces:
    """Return where the bytes of a member are, several pieces of a sparse one; ValueError where it is not read."""
    if member.issym() or member.islnk():
        raise ValueError("it is a link, and links in a tar are not followed")
    if not member.isreg():
        raise ValueError("it is not a regular file")
    if member.size > MAX_FILE_BYTES:
        raise ValueError(f"it has {member.size:,} bytes, and more than {MAX_FILE_BYTES:,} are not read")
    if not member.issparse():
        return [(0, member.offset_data, member.size)]
    pieces, place = [], member.offset_data
    for at, count in getattr(member, "sparse", ()):
        if at < 0 or count < 0 or at + count > member.size:
            raise ValueError("it is sparse, and its map is damaged")
        if count:
            pieces.append((at, place, count))
        place += count
    return pieces


class _Bounded:
    """A stream for tarfile that refuses to read more at once than any honest header holds."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.seek = raw.seek
        self.tell = raw.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {count:,} bytes")
        return self._raw.read(count)


class Forward:
    """A stream as tarfile wants it, which reads on for what lies ahead and refuses what no honest header asks for."""

    def __init__(self, raw: Any) -> None:
        self._raw, self._at = raw, 0

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def read(self, count: int) -> bytes:
        """Return so many bytes, fewer at the end."""
        if not 0 <= count <= MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {count:,} bytes")
        return self._read(count)

    def _read(self, count: int) -> bytes:
        parts = []
        while count and (data := self._raw.read(count)):
            parts.append(data)
            count -= len(data)
            self._at += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, position: int) -> None:
        """Read on to a position ahead."""
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


class _Spool(RandomFile):
    """A temporary file without a name, written once and then read at any offset."""

    def __init__(self, archive: Path) -> None:
        super().__init__(archive)
        self._limit = max(EXPANSION_FLOOR, EXPANSION_LIMIT * archive.stat().st_size)
        self._size = 0
        with self._explained():
            self._file = tempfile.TemporaryFile(prefix="stochcl-")  # noqa: SIM115 - lives as long as the source

    def copy(self, stream: _Bounded | Forward, place: int, size: int) -> int:
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


BATCH_BYTES = 32 << 20  # of image files in a batch, or fewer images than asked for; three batches wait at a time
_GONE_BY = (
    "it is a hard link to {}, which has gone by in the stream; read the tar from a file, or write it with "
    "--hard-dereference"
)


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
        """Iterate over the images as they come, decoding ahead in threads."""
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
        shown = escape_name(self.path)
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
            reason = os_reason(exc) if isinstance(exc, OSError) else str(exc) or type(exc).__name__
            after = f" after {count:,} images" if count else ""
            raise SourceError(
                f"{shown}: the tar that comes in breaks off or is damaged{after} ({escape_name(reason)})."
            ) from exc
        if len(part):
            yield part
        elif not count:
            raise SourceError(
                f"{shown}: the tar holds no image; images are files whose names end in .jpg, .png and the like."
            )

    def _members(self) -> Iterator[tuple[str, bytes | str]]:
        """Yield each image's name with its file, or with why it is refused."""
        stream = Forward(_opened(self._file))
        archive = Headers(stream)  # which reads to the end: a pipe that is closed before kills who writes to it
        while (member := archive.next()) is not None:
            if member.isdir() or not is_image_name(member.name):
                continue
            try:
                name = tar_name(member.name)
                if is_hidden(name):
                    continue
                if member.islnk():
                    raise ValueError(_GONE_BY.format(escape_name(member.linkname)))
                pieces = pieces_of(member)
            except ValueError as exc:
                yield member.name, str(exc)
                continue
            if len(pieces) == 1 and pieces[0][2] == member.size:
                yield name, stream.exactly(*pieces[0][1:])
                continue
            data = bytearray(member.size)
            for at, place, count in pieces:
                data[at : at + count] = stream.exactly(place, count)
            yield name, bytes(data)


def _opened(file: IO[bytes]) -> Any:
    """Return what reads the tar, decompressed where its first bytes say that it is compressed."""
    head = b""
    while len(head) < BLOCK and (data := file.read(BLOCK - len(head))):
        head += data
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
