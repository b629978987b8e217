"""Images in a zip, read in place."""

from __future__ import annotations

import bz2
import struct
import zipfile
import zlib
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple

from stochcl.data.access import RandomFile, read_error
from stochcl.data.names import (
    DEFAULTS,
    FileFilter,
    SourceOptions,
    is_hidden,
    is_image_name,
    member_name,
    read_or_nothing,
    sort_key,
)
from stochcl.data.preprocess import MAX_FILE_BYTES, identify
from stochcl.data.source import Entry, Failure, ImageSource, check_not_empty
from stochcl.errors import ImageError, SourceError
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from pathlib import Path

# Local file header (APPNOTE 4.3.7): signature, then fields that the central directory repeats, then the
# lengths of the name and the extra field, which may differ from the central directory's.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_SIGNATURE = b"PK\x03\x04"

# Central directory (4.3.12): signature, flags, the lengths of the name, the extra field and the comment.
_CENTRAL_HEADER = struct.Struct("<8xH18xHHH12x")
_CENTRAL_SIGNATURE = b"PK\x01\x02"

_ENCRYPTED = 0x1
_UTF8 = 0x800
_DOS = (0, 10, 14)  # systems (FAT, NTFS, VFAT) where a backslash separates folders and is no letter of a name
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


class _Member(NamedTuple):
    offset: int
    stored: int
    crc: int
    method: int


class ZipSource(ImageSource):
    """The images in a zip, in place: nothing is unpacked to disk, and threads read side by side.

    The central directory is read once with :mod:`zipfile`; members are then read at their offsets and checked
    against their declared size and CRC-32, without the lock and the per-member overhead of ``ZipFile.open``.
    """

    kind: ClassVar[str] = "zip"

    def __init__(self, path: Path, options: SourceOptions = DEFAULTS) -> None:
        self.path = path
        self._file = RandomFile(path)
        rejected, files = list[Failure](), FileFilter(options)
        listed: list[tuple[Entry, _Member]] = []
        status = path.stat()
        members = _central_directory(path)
        named = [(info, _stored_name(info)) for info in members]
        slashes = any("/" in stored for _, stored in named)
        for info, stored in named:
            if "\\" in stored and (not slashes or info.create_system in _DOS):
                stored = stored.replace("\\", "/")  # noqa: PLW2901 - as PowerShell writes folders
            if info.is_dir():
                continue
            try:
                name = member_name(stored)
                if is_hidden(name) or (kind := files.kind(name)) == "other":
                    continue
                _check_member(info, status.st_size)
            except ValueError as exc:
                if is_image_name(stored):
                    rejected.append(Failure(stored, str(exc)))
                continue
            member = _Member(info.header_offset, info.compress_size, info.CRC, info.compress_type)
            read = partial(self._read_member, member, info.file_size)
            if kind == "label":
                files.add_label(name, read)
            elif kind == "image" or identify(read_or_nothing(read)):
                listed.append((Entry(name, info.file_size, status.st_mtime_ns), member))
        listed.sort(key=lambda pair: sort_key(pair[0].name))
        self.entries = [entry for entry, _ in listed]
        self._members = [member for _, member in listed]
        self.rejected = sorted(rejected, key=lambda f: sort_key(f.name))
        self.others = files.others
        check_not_empty(path, self.entries, self.rejected, "zip", files.others)
        self.labels = files.labels(path, self.entries)

    def _read(self, i: int) -> bytes:
        return self._read_member(self._members[i], self.entries[i].size)

    def _read_member(self, member: _Member, size: int) -> bytes:
        try:
            header = self._file.read_at(member.offset, _LOCAL_HEADER.size)
            if len(header) < _LOCAL_HEADER.size:
                raise ImageError("the zip ends before this member")
            signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
            if signature != _LOCAL_SIGNATURE:
                raise ImageError("the zip is damaged: there is no member where its directory says")
            start = member.offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
            data = self._file.read_at(start, member.stored)
        except OSError as exc:
            raise read_error(exc, "the zip") from exc
        if len(data) < member.stored:
            raise ImageError("the zip ends within this member")
        return _checked(_unpacked(data, member.method, size), size, member.crc)


def _central_directory(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(_Unflagged(file)) as archive:
            return archive.infolist()
    except OSError as exc:
        raise SourceError(f"{escape_name(path)}: this zip cannot be read: {os_reason(exc)}.") from exc
    except Exception as exc:  # zipfile raises many kinds of error on damaged directories
        msg = (
            f"{escape_name(path)}: this zip is truncated or damaged ({escape_name(str(exc))}); "
            "copy it again or repack it."
        )
        raise SourceError(msg) from exc


class _Unflagged:
    """A zip whose central directory claims no name to be UTF-8: zipfile gives up at the first that is not."""

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


def _stored_name(info: zipfile.ZipInfo) -> str:
    """Return the member's name as it is stored: UTF-8 where the bytes are, whatever the flag says."""
    # Unflagged names are code page 437 to zipfile, which maps every byte: so the bytes can be had back.
    return info.orig_filename.encode("cp437").decode("utf-8", "surrogateescape")


def _check_member(info: zipfile.ZipInfo, zip_bytes: int) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise ValueError("it is encrypted")
    if info.compress_type not in _METHODS:
        raise ValueError(f"its compression (zip method {info.compress_type}) is not read here; repack the zip")
    if max(info.file_size, info.compress_size) > MAX_FILE_BYTES:
        raise ValueError(f"it has {info.file_size:,} bytes, and more than {MAX_FILE_BYTES:,} are not read")
    if not 0 <= info.header_offset <= zip_bytes - info.compress_size:
        raise ValueError("the zip is damaged: this member lies beyond its end")


def _unpacked(data: bytes, method: int, size: int) -> bytes:
    """Decompress at most one byte more than the declared size, so that a lie costs nothing."""
    try:
        if method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        if method == zipfile.ZIP_BZIP2:
            return bz2.BZ2Decompressor().decompress(data, size + 1)
    except (zlib.error, OSError, ValueError, EOFError) as exc:
        raise ImageError(f"the zip member is damaged ({exc})") from exc
    return data


def _checked(data: bytes, size: int, crc: int) -> bytes:
    if len(data) > size:
        raise ImageError(f"the zip member holds more than the {size:,} bytes it declares")
    if len(data) < size:
        raise ImageError(f"the zip member holds {len(data):,} of the {size:,} bytes it declares")
    if zlib.crc32(data) != crc:
        raise ImageError("the zip member is damaged: its CRC-32 does not match")
    return data
