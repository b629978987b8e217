"""Bytes only: little-endian structures, varints, checksums and strings; no codes, no models."""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.errors import ChecksumMismatch, FormatError, LimitExceeded, Truncated

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray


MAGIC = b"\x89SCL\r\n\x1a\n"
"""First eight bytes of an archive: high bit, line ends and control-Z reveal a text-mode transfer."""

END_MAGIC = b"SCL\x89END\n"
"""Last eight bytes of a complete archive."""

VERSION = 4
"""Version of new archives. Rows appended to an older one keep its version."""

VERSIONS = (1, 2, 3, VERSION)
"""Supported versions. 2 deflates uncertainty, 3 the header and uses varints for numbers, 4 numbers the labels."""

PROLOGUE = struct.Struct("<8sHHII")
"""Magic, version, reserved (0), bytes of the header, CRC-32 of the fields before it and the header."""

CHUNK = struct.Struct("<4sQ")
"""Kind and payload size of each chunk after the header: ``TABL``, ``FITT``, ``SEGM`` or ``INDX``."""

HEAD = struct.Struct("<II")
"""Before a segment's head: its size and CRC-32, so that a segment can be verified without the index."""

SEGMENT = struct.Struct("<IIIBxHIIIIIIII")
"""Rows, rows per block, blocks, kind of entropy model, number of the fitted model; then size and CRC-32 of table,
names, labels, entropy.
"""

BLOCK = struct.Struct("<III")
"""Rows, 32-bit words, CRC-32 of the words; the CRC-32 of the packed rows is in the segment's head."""

INDEX = struct.Struct("<QQQQIIII")
"""Rows, source bytes, offset and size of the tables chunk (0, 0 if none), segments, size of the skipped list,
fitted models, retired parts.
"""

FITTED = struct.Struct("<QQ")
"""For each fitted model: offset and size of its chunk."""

RETIRED = struct.Struct("<QQI")
"""For each part retired by an append (an earlier index and trailer): offset, size, CRC-32."""

ENTRY = struct.Struct("<QQI")
"""For each segment: offset, size of its chunk, size of the head that follows."""

TRAILER = struct.Struct("<QQII8s")
"""Offset and size of the index chunk, its CRC-32, CRC-32 of the header as in the prologue, end magic."""

MAX_HEADER = 1 << 20
MAX_INPUT = 1 << 48
MAX_SOURCE = 1 << 60
MAX_NESTING = 32
MAX_TABLES = 1 << 28
MAX_TABLE = 1 << 26
MAX_FITTED = 1 << 16
MAX_RETIRED = 1 << 20
MAX_SEGMENT_ROWS = 1 << 18
MAX_BLOCK_DECISIONS = 1 << 22
MAX_BLOCK_VALUES = 1 << 23
MAX_ROWS = 1 << 40
MAX_SEGMENTS = 1 << 24
MAX_TEXT = 1 << 24
MAX_INFLATED_TEXT = 1 << 23
"""Limits on sizes in a file, checked before any memory is allocated.

A segment's rows and texts are limited because a small forged file inflates to the maximum, and each text is an
object of 50 bytes, however short.
"""


_VARINTS = 3  # first version with varints in its index and heads

_MANY = 64
"""Count from which numpy reads varints faster."""


def crc(*parts: bytes | memoryview) -> int:
    """Return the CRC-32 (as in zlib and PNG) of the concatenated parts."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def check_crc(expected: int, what: str, *parts: bytes | memoryview) -> None:
    """Raise ChecksumMismatch unless the parts have this CRC-32."""
    found = crc(*parts)
    if found != expected:
        raise ChecksumMismatch(f"{what} is damaged: its checksum is {found:08x}, not {expected:08x}")


def check_limit(value: int, limit: int, what: str) -> int:
    """Return ``value``; raise LimitExceeded if it is above ``limit``."""
    if value > limit:
        raise LimitExceeded(f"{what} is {value:,}, and more than {limit:,} is not allowed")
    return value


class ArrayReader:
    """Reads consecutive arrays from a byte string; ``what`` names it in errors."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.what, self.at = data, what, 0

    def take(self, dtype: str, *shape: int) -> NDArray[Any]:
        """Return the next array, in native byte order; raise Truncated if there are too few bytes."""
        count, kind = math.prod(shape), np.dtype(dtype)
        if len(self.data) < (needed := self.at + count * kind.itemsize):
            raise Truncated(f"{self.what} ends too early: it has {len(self.data):,} bytes, not {needed:,} or more")
        array = np.frombuffer(self.data, kind, count, self.at)
        self.at += array.nbytes
        return array.astype(kind.newbyteorder("=")).reshape(shape)

    def end(self) -> None:
        """Raise FormatError if bytes are left."""
        if self.at != len(self.data):
            raise FormatError(f"{self.what} has {len(self.data):,} bytes, not {self.at:,}")


def pack_varints(values: Iterable[int]) -> bytes:
    """Write non-negative integers, seven bits per byte, lowest first, the high bit set on all but the last.

    Examples
    --------
    >>> pack_varints([1, 300]).hex()
    '01ac02'
    """
    out = bytearray()
    for number in values:
        value = number
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def unpack_varints(data: bytes, count: int, start: int = 0) -> tuple[list[int], int]:
    """Read ``count`` varints from ``start``; return them and their end."""
    if count >= _MANY and (found := _unpack_many(data, count, start)) is not None:
        return found
    values = []
    position = start
    for _ in range(count):
        value = shift = 0
        while True:
            if position >= len(data):
                raise Truncated("a list of numbers ends too early")
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if not byte and shift:
                    raise FormatError("a number is written with more bytes than it needs")
                break
            shift += 7
            if shift > 56:
                raise FormatError("a number has more than 63 bits")
        values.append(value)
    return values, position


def _unpack_many(data: bytes, count: int, start: int) -> tuple[list[int], int] | None:
    """Read varints with numpy, in a fifth of the time; None if one is wrong, to be found one by one."""
    if len(data) < start + count:
        return None
    window = np.frombuffer(data, np.uint8, min(len(data) - start, 9 * count), start)
    ends = np.flatnonzero(window < 0x80)[:count]
    if len(ends) < count:
        return None
    sizes = np.diff(ends, prepend=-1)
    if sizes.max() > 9 or (window[ends[sizes > 1]] == 0).any():
        return None
    values = window[ends].astype(np.int64)
    for place in range(1, int(sizes.max())):  # from the last byte, the most significant, to the first
        longer = np.flatnonzero(sizes > place)
        values[longer] = values[longer] << 7 | (window[ends[longer] - place] & 0x7F)
    return values.tolist(), start + int(ends[-1]) + 1


def unpack(layout: struct.Struct, data: bytes, offset: int, what: str) -> tuple[Any, ...]:
    """Read a structure at an offset; raise Truncated if the data ends inside it."""
    if offset < 0 or len(data) < offset + layout.size:
        raise Truncated(f"{what} ends too early: {len(data) - offset:,} bytes of {layout.size}")
    return layout.unpack_from(data, offset)


def pack_numbers(layout: struct.Struct, values: Sequence[int], version: int) -> bytes:
    """Write numbers of an index or head, as this structure, or as varints from version 3 on."""
    return pack_varints(values) if version >= _VARINTS else layout.pack(*values)


def unpack_numbers(
    layout: struct.Struct, data: bytes, offset: int, what: str, version: int, count: int = 1
) -> tuple[list[tuple[int, ...]], int]:
    """Read ``count`` tuples that :func:`pack_numbers` wrote; return them and their end."""
    if version < _VARINTS:
        end = offset + layout.size * count
        if len(data) < end:
            raise Truncated(f"{what} ends too early: {len(data) - offset:,} bytes of {end - offset:,}")
        return list(layout.iter_unpack(data[offset:end])), end
    width = len(layout.unpack(bytes(layout.size)))
    values, end = unpack_varints(data, width * count, offset)
    rows = list(zip(*[iter(values)] * width, strict=True))
    try:
        for row in rows:
            layout.pack(*row)
    except struct.error as exc:
        raise FormatError(f"{what} has a number that is larger than it can be ({exc})") from exc
    return rows, end


def pack_texts(texts: Sequence[str]) -> bytes:
    """Write strings, without the prefixes that they share with their predecessors, deflated.

    The layout is a varint, the size before deflation, then the deflated bytes: for each string the number of bytes
    shared with its predecessor, then for each string the number of added bytes, both as varints, then the added
    bytes. Strings are UTF-8, with surrogate escapes for other bytes.
    """
    shared, added, rest = [], [], bytearray()
    before = b""
    for text in texts:
        data = text.encode("utf-8", "surrogateescape")
        same = _common(before, data)
        shared.append(same)
        added.append(len(data) - same)
        rest += data[same:]
        before = data
    check_limit(sum(shared) + len(rest), MAX_TEXT, "the length of all texts")
    raw = pack_varints(shared) + pack_varints(added) + bytes(rest)
    check_limit(len(raw), MAX_INFLATED_TEXT, "the length of all texts, each without what it shares,")
    return pack_varints([len(raw)]) + zlib.compress(raw, 9)


def _common(a: bytes, b: bytes) -> int:
    """Return the length of two strings' common prefix."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def unpack_texts(data: bytes, count: int, what: str) -> tuple[str, ...]:
    """Read ``count`` strings that :func:`pack_texts` wrote."""
    (length,), start = unpack_varints(data, 1)
    check_limit(length, MAX_INFLATED_TEXT, f"the length of {what}, each without what it shares,")
    raw = inflate(data[start:], length, what)
    shared, position = unpack_varints(raw, count)
    added, position = unpack_varints(raw, count, position)
    if position + sum(added) != len(raw):
        raise FormatError(f"{what} have {len(raw) - position:,} bytes, not {sum(added):,}")
    check_limit(sum(shared) + sum(added), MAX_TEXT, f"the length of {what}")
    texts = []
    before = b""
    for same, more in zip(shared, added, strict=True):
        if same > len(before):
            raise FormatError(f"{what}: one shares {same} bytes with a predecessor of {len(before)}")
        before = before[:same] + raw[position : position + more]
        position += more
        texts.append(before.decode("utf-8", "surrogateescape"))
    return tuple(texts)


def inflate(data: bytes, length: int, what: str) -> bytes:
    """Inflate to exactly ``length`` bytes."""
    raw = inflate_any(data, length, what)
    if len(raw) != length:
        raise FormatError(f"{what} inflate to {len(raw):,} bytes, not {length:,}")
    return raw


def inflate_any(data: bytes, limit: int, what: str, dictionary: bytes = b"") -> bytes:
    """Inflate to any size up to ``limit``.

    Data deflated with a preset dictionary has neither zlib's header nor its checksum.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, dictionary) if dictionary else zlib.decompressobj()
    try:
        raw = inflater.decompress(data, limit + 1)
    except zlib.error as exc:
        raise FormatError(f"{what} cannot be inflated: {exc}") from exc
    check_limit(len(raw), limit, f"the size of {what}")
    if not inflater.eof or inflater.unused_data:
        raise FormatError(f"{what} do not end where they should")
    return raw
