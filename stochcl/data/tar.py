"""Images in a tar, plain or compressed, from a file or a pipe."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import tempfile
import zlib
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import IO, TYPE_CHECKING, Any, ClassVar

from stochcl.data.access import PROBE, RandomFile, read_error
from stochcl.data.names import DEFAULTS, FileFilter, Kind, SourceOptions, group_of, is_image_name, member_name
from stochcl.data.preprocess import MAX_FILE_BYTES, identify
from stochcl.data.source import Entry, Failure, ImageSource, StreamSource, check_not_empty
from stochcl.errors import ImageError, SourceError, StochclError, require
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

BLOCK = 512
"""Alignment of headers and data in a tar."""

MAX_HEADER = 16 * 1024**2  # longest single read for indexing: extended headers, which hold names
CHUNK = 1 << 20  # bytes of data read at a time
_ZSTD_FEED = 1 << 10  # compressed bytes fed at a time, which unpack to at most 32 MiB

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")

DAMAGE = (
    tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError, MemoryError, RecursionError
)  # fmt: skip


def decompressor(head: bytes) -> Callable[[Any], Any] | None:
    """Return the decompressor for a file or stream with this head, or None for a plain one."""
    openers: dict[bytes, Callable[[Any], Any]] = {
        b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
        b"BZh": bz2.BZ2File,
        b"\xfd7zXZ\0": lzma.LZMAFile,
        b"\x28\xb5\x2f\xfd": _Zstd,
    }
    return next((opener for magic, opener in openers.items() if head.startswith(magic)), None)


class _Zstd:
    """A Zstandard stream of any number of frames, read front to back; a truncated frame raises EOFError."""

    def __init__(self, raw: Any) -> None:
        zstandard = require("zstandard", "a .tar.zst file", "zstd")
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
    """Return whether the first 512 bytes are a tar header, by its magic, or for old tars its checksum.

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
"""Pieces of a member: for each its offset in the file, its offset in the archive, and its length."""


class Headers(tarfile.TarFile):
    """The headers of a tar or of several concatenated ones, with or without end marks."""

    def __init__(self, stream: Stream) -> None:
        self.ended = self._junk = self._begun = False
        super().__init__(fileobj=stream, encoding="utf-8")  # type: ignore[arg-type]
        self._begun = True

    def next(self) -> tarfile.TarInfo | None:
        """Return the next header, None at the end; damage that tarfile would take for the end is an error."""
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
                self.ended, self.pax_headers = True, {}
            except tarfile.EmptyHeaderError as exc:  # type: ignore[attr-defined]
                if not self.offset:
                    raise tarfile.ReadError("it is empty") from exc
                return None
            except tarfile.HeaderError as exc:
                if not self.ended:
                    raise tarfile.ReadError(str(exc)) from exc
                if isinstance(exc, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
                    return None
                self._junk = True  # anything may follow the end of a tar, except part of another
            else:
                if self._junk:
                    raise tarfile.ReadError("a header between the tars that are joined here is damaged")
                self.ended = False
                return member
            self.offset += BLOCK


def tar_name(stored: str) -> str:
    """Return a member's name without a leading ``/``; raises as ``member_name`` does."""
    return member_name(stored.lstrip("/"))


def pieces_of(member: tarfile.TarInfo) -> Pieces:
    """Return the pieces of a member, several for a sparse one; raise ValueError if it cannot be read."""
    if member.issym() or member.islnk():
        raise ValueError("it is a link, and links in a tar are not followed")
    if not member.isreg():
        raise ValueError("it is not a regular file")
    if member.size > MAX_FILE_BYTES:
        raise ValueError(f"it has {member.size:,} bytes, and the limit is {MAX_FILE_BYTES:,}")
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


class Stream:
    """A stream for tarfile that refuses reads and seeks no honest header needs.

    Without a ``seek`` of its own it reads ahead.
    """

    def __init__(self, raw: Any, seek: Callable[[int], object] | None = None) -> None:
        self._raw, self._seek, self._at = raw, seek, 0

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def read(self, count: int) -> bytes:
        """Return ``count`` bytes, fewer at the end."""
        if not 0 <= count <= MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {count:,} bytes")
        return self._read(count)

    def _read(self, count: int) -> bytes:
        data = read_all(self._raw, count)
        self._at += len(data)
        return data

    def seek(self, position: int) -> None:
        """Skip ahead to a position."""
        if position < self._at:
            raise tarfile.ReadError("a header points backwards")
        if self._seek is not None:
            self._seek(position)
            self._at = position
        while self._at < position:
            self.exactly(self._at, min(CHUNK, position - self._at))

    def exactly(self, position: int, count: int) -> bytes:
        """Return the bytes at a position ahead; raise ReadError if there are too few."""
        self.seek(position)
        data = self._read(count)
        if len(data) < count:
            raise tarfile.ReadError("unexpected end of data")
        return data


# Sources


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
            # gzip and bz2 also raise OSError on damage
            with reading(self.path, "this tar"), self.path.open("rb") as file:
                opener = decompressor(file.read(BLOCK))
                file.seek(0)
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
        RandomFile._open_files += 1

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
