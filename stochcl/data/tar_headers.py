"""Headers and streams of a tar, plain or compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any

from stochcl.data.names import member_name
from stochcl.data.preprocess import MAX_FILE_BYTES
from stochcl.errors import require
from stochcl.files import read_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


BLOCK = 512
"""Alignment of headers and data in a tar."""

MAX_HEADER = 16 * 1024**2  # longest single read for indexing: extended headers, which hold names
CHUNK = 1 << 20  # bytes of data read at a time
_ZSTD_FEED = 1 << 10  # compressed bytes fed at a time, which unpack to at most 32 MiB

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")

DAMAGE = (
    tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError, MemoryError, RecursionError
)  # fmt: skip


def compression(path: Path) -> Callable[[IO[bytes]], Any] | None:
    """Return the decompressor for a file, by its first bytes, or None for a plain one."""
    with path.open("rb") as file:
        return decompressor(file.read(6))


def decompressor(head: bytes) -> Callable[[Any], Any] | None:
    """Return the decompressor for a stream with this head, or None for a plain one."""
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
