"""What stands between a segment's head and its blocks: table, names, labels, uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochcl.compress.framing import check_crc, unpack_texts
from stochcl.errors import FormatError

if TYPE_CHECKING:
    from stochcl.compress.index import Index
    from stochcl.compress.reader import ByteReader

_PARTS = ("table", "names", "labels", "entropy")


def check_head(reader: ByteReader, index: Index, segment: int) -> None:
    """Raise FormatError unless a segment begins as the index says."""
    offset, head = index.segments[segment]
    start = head.start
    if reader.read(offset, len(start)) != start:
        raise FormatError(f"the segment at byte {offset:,} is not what the index says")


def read_part(reader: ByteReader, index: Index, segment: int, which: str) -> bytes:
    """Read and check one part of a segment: table, names, labels or entropy.

    Raises
    ------
    FormatError
        If it is damaged, or the segment is not what the index says.
    """
    check_head(reader, index, segment)
    offset, head = index.segments[segment]
    before = _PARTS[: _PARTS.index(which)]
    part = getattr(head, which)
    data = reader.read(offset + head.parts_at + sum(getattr(head, name).size for name in before), part.size)
    check_crc(part.crc, f"the {which} of segment {segment}", data)
    return data


def read_texts(reader: ByteReader, index: Index, segment: int, which: str) -> tuple[str, ...]:
    """Read the names or labels of a segment's rows.

    Raises
    ------
    FormatError
        If they are damaged.
    """
    data = read_part(reader, index, segment, which)
    return unpack_texts(data, index.segments[segment][1].rows, f"the {which} of segment {segment}")
