"""Images in a zip, read in place."""

from __future__ import annotations

import bz2
import struct
import zipfile
import zlib
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple

from stochcl.data.access import RandomFile, RemoteFile, read_error
from stochcl.data.names import DEFAULTS, FileFilter, SourceOptions, is_image_name, member_name
from stochcl.data.preprocess import MAX_FILE_BYTES
from stochcl.data.source import Entry, Failure, ImageSource
from stochcl.errors import ImageError, SourceError
from stochcl.files import reading
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from pathlib import Path

# Local file header (APPNOTE 4.3.7): signature, then fields that the central directory repeats, then the
# lengths of the name and the extra field, which may differ from the central directory's.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ROOM = 512  # bytes for name and extra field, enough for most, so that one read gets a whole member

# Central directory (4.3.12): signature, flags, the lengths of the name, the extra field and the comment.
_CENTRAL_HEADER = struct.Struct("<8xH18xHHH12x")
_CENTRAL_SIGNATURE = b"PK\x01\x02"

_ENCRYPTED = 0x1
_UTF8 = 0x800
_DOS = (0, 10, 14)  # systems (FAT, NTFS, VFAT) whose backslashes separate folders
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


class _Member(NamedTuple):
    offset: int
    stored: int
    crc: int
    method: int


class ZipSource(ImageSource):
    """The images in a local or remote zip, read in place: nothing is unpacked, and threads read in parallel.

    The central directory is read once with :mod:`zipfile`; members are then read at their offsets and checked
    against their declared size and CRC-32, without the lock and the per-member overhead of ``ZipFile.open``.
    """

    kind: ClassVar[str] = "zip"

    def __init__(self, path: Path | str, options: SourceOptions = DEFAULTS) -> None:
        self.path = path
        self._file: RandomFile | RemoteFile = RemoteFile(path) if isinstance(path, str) else RandomFile(path)
        rejected, files = list[Failure](), FileFilter(options)
        listed: list[tuple[Entry, _Member]] = []
        size, mtime_ns = self._file.status()
        # zipfile decodes unflagged names as code page 437, which maps every byte. So their bytes are recovered here,
        # and decoded as UTF-8 where possible, regardless of the flag.
        named = [
            (i, i.orig_filename.encode("cp437").decode("utf-8", "surrogateescape"))
            for i in _central_directory(self._file)
        ]
        slashes = any("/" in stored for _, stored in named)
        for info, stored in named:
            if "\\" in stored and (not slashes or info.create_system in _DOS):
                stored = stored.replace("\\", "/")  # noqa: PLW2901 - as PowerShell writes folders
            if info.is_dir():
                continue
            try:
                name = member_name(stored)
                if (kind := files.kind(name)) == "other":
                    continue
                _check_member(info, size)
            except ValueError as exc:
                if is_image_name(stored):
                    rejected.append(Failure(stored, str(exc)))
                continue
            member = _Member(info.header_offset, info.compress_size, info.CRC, info.compress_type)
            if files.takes(name, kind, partial(self._read_member, member, info.file_size)):
                listed.append((Entry(name, info.file_size, mtime_ns), member))
        self._members = self._enter(listed, rejected, files, "zip")

    def _read(self, i: int) -> bytes:
        return self._read_member(self._members[i], self.entries[i].size)

    def _read_member(self, member: _Member, size: int) -> bytes:
        try:
            read = self._file.read_at(member.offset, _LOCAL_HEADER.size + _ROOM + member.stored)
            if len(read) < _LOCAL_HEADER.size:
                raise ImageError("the zip ends before this member")
            signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(read)
            if signature != _LOCAL_SIGNATURE:
                raise ImageError("the zip is damaged: there is no member where its directory says")
            start = _LOCAL_HEADER.size + name_bytes + extra_bytes
            data = read[start : start + member.stored]
            if len(data) < member.stored:
                data = self._file.read_at(member.offset + start, member.stored)
        except OSError as exc:
            raise read_error(exc, "the zip") from exc
        if len(data) < member.stored:
            raise ImageError("the zip ends within this member")
        return _unpacked(data, member, size)


def _central_directory(zipped: RandomFile | RemoteFile) -> list[zipfile.ZipInfo]:
    path = zipped.path
    try:
        with reading(path, "this zip"), zipped.opened() as file, zipfile.ZipFile(_Unflagged(file)) as archive:
            return archive.infolist()
    except SourceError:
        raise
    except Exception as exc:  # zipfile raises many kinds of error on damaged directories
        wrong, advice = "is truncated or damaged", "copy it again or repack it"
        if isinstance(zipped, RemoteFile):  # the server may not support ranges
            wrong, advice = "cannot be read in place", "copy it here first"
        raise SourceError(f"{escape_name(path)}: this zip {wrong} ({escape_name(str(exc))}); {advice}.") from exc


class _Unflagged:
    """A zip with its central directory's UTF-8 flags cleared, because zipfile fails at a wrong one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        if not data.startswith(_CENTRAL_SIGNATURE):
            return data
        cleared, at = bytearray(data), 0
        while data.startswith(_CENTRAL_SIGNATURE, at) and at + _CENTRAL_HEADER.size <= len(data):
            flags, *lengths = _CENTRAL_HEADER.unpack_from(data, at)
            cleared[at + 8 : at + 10] = (flags & ~_UTF8).to_bytes(2, "little")
            at += _CENTRAL_HEADER.size + sum(lengths)
        return bytes(cleared)


def _check_member(info: zipfile.ZipInfo, zip_bytes: int) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise ValueError("it is encrypted")
    if info.compress_type not in _METHODS:
        raise ValueError(f"its compression (zip method {info.compress_type}) is not read here; repack the zip")
    if max(info.file_size, info.compress_size) > MAX_FILE_BYTES:
        raise ValueError(f"it has {info.file_size:,} bytes, and the limit is {MAX_FILE_BYTES:,}")
    if not 0 <= info.header_offset <= zip_bytes - info.compress_size:
        raise ValueError("the zip is damaged: this member lies beyond its end")


def _unpacked(data: bytes, member: _Member, size: int) -> bytes:
    """Decompress and check, at most one byte beyond the declared size, so that a false size costs nothing."""
    try:
        if member.method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        elif member.method == zipfile.ZIP_BZIP2:
            data = bz2.BZ2Decompressor().decompress(data, size + 1)
    except (zlib.error, OSError, ValueError, EOFError) as exc:
        raise ImageError(f"the zip member is damaged ({exc})") from exc
    if len(data) > size:
        raise ImageError(f"the zip member holds more than the {size:,} bytes it declares")
    if len(data) < size:
        raise ImageError(f"the zip member holds {len(data):,} of the {size:,} bytes it declares")
    if zlib.crc32(data) != member.crc:
        raise ImageError("the zip member is damaged: its CRC-32 does not match")
    return data
