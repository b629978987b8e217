"""Finding the chunks of a damaged file."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stochcl import framing
from stochcl.compress.index import has_trailer, version_of
from stochcl.compress.segment import SegmentHead, read_head
from stochcl.entropy.tables import Tables
from stochcl.errors import FormatError
from stochcl.framing import CHUNK, HEAD, TRAILER, crc

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stochcl.compress.bytes import ByteReader

_WINDOW = 1 << 20  # bytes searched at a time
_KINDS = re.compile(rb"SEGM|FITT|INDX")
_MOST_OF_HEAD = 13 * (framing.MAX_SEGMENT_ROWS + 5)  # for a block, a varint of nine bytes and a checksum


@dataclass(frozen=True)
class Found:
    """A chunk whose beginning is sound: where, its bytes with what belongs to it, and a segment's head."""

    offset: int
    size: int
    kind: bytes
    head: SegmentHead | None = None


class Scanner:
    """Finds intact chunks in a damaged file, by the checksum that each has.

    ``known`` has heads by their offsets, from an intact index; they stand in for damaged ones.
    """

    def __init__(self, reader: ByteReader, decisions_per_row: int, known: Mapping[int, SegmentHead]) -> None:
        self._reader, self._width, self._known = reader, decisions_per_row, known
        self._version = version_of(reader)

    def chunks(self, start: int) -> Iterator[Found]:
        """Yield all chunks from here to the end of the file, in order; a segment may be damaged behind its head."""
        at = start
        while at < self._reader.size:
            found = self.at(at)
            if found is None:
                at = self.next(at + 1)
                continue
            yield found
            end = at + found.size
            # Where nothing begins behind it, bytes may be missing within it, and the next begins earlier.
            at = end if end == self._reader.size or self.at(end) is not None else self.next(at + 1)

    def next(self, start: int) -> int:
        """Return where the next chunk begins, or the end of the file."""
        size = self._reader.size
        stop = min((offset for offset in self._known if offset >= start), default=size)
        for low in range(start, stop, _WINDOW):
            window = self._reader.read(low, min(_WINDOW + CHUNK.size, size - low))
            for match in _KINDS.finditer(window, 0, _WINDOW + CHUNK.size):
                at = low + match.start()
                if at >= stop:
                    return stop
                if self.at(at) is not None:
                    return at
        return stop

    def at(self, offset: int) -> Found | None:
        """Return the chunk that begins here, or None if none does that is sound."""
        if (head := self._head(offset)) is not None:
            return Found(offset, head.size, b"SEGM", head)
        if (size := self._sealed(offset, b"FITT")) is not None:
            return Found(offset, size, b"FITT")
        if (size := self._index(offset)) is not None:
            return Found(offset, size, b"INDX")
        return None

    def tables(self, start: int, sha256: str) -> tuple[Tables | None, int]:
        """Return the tables whose chunk begins here, if they have this hash, and where it ends."""
        ends = [self.next(start)]  # or the chunk's own idea of its end
        if self._reader.size - start >= CHUNK.size:
            kind, length = CHUNK.unpack(self._reader.read(start, CHUNK.size))
            ends = [start + CHUNK.size + length, *ends] if kind == b"TABL" else ends
        for end in ends:
            if start + CHUNK.size < end <= min(self._reader.size, start + CHUNK.size + framing.MAX_TABLES):
                with suppress(FormatError):
                    found = Tables.from_bytes(self._reader.read(start + CHUNK.size, end - start - CHUNK.size))
                    if found.sha256 == sha256:
                        return found, end
        return None, start

    def _head(self, at: int) -> SegmentHead | None:
        fixed = CHUNK.size + HEAD.size
        room = self._reader.size - at - fixed
        if room > 0:
            data = self._reader.read(at, fixed)
            size = HEAD.unpack_from(data, CHUNK.size)[0]
            if data.startswith(b"SEGM") and size <= min(room, _MOST_OF_HEAD):
                with suppress(FormatError):
                    return read_head(data + self._reader.read(at + fixed, size), self._width, self._version)
        return self._known.get(at)

    def _sealed(self, at: int, kind: bytes) -> int | None:
        """Return the bytes of a fitted model's chunk here."""
        size = self._size(at, kind)
        if size is None or not CHUNK.size + 4 <= size <= framing.MAX_TABLE:
            return None
        data = self._reader.read(at + CHUNK.size, size - CHUNK.size)
        return size if crc(data[4:]) == int.from_bytes(data[:4], "little") else None

    def _index(self, at: int) -> int | None:
        """Return the bytes of an index here and its trailer: the last one, or one before an append."""
        size = self._size(at, b"INDX")
        if size is None or at + size + TRAILER.size > self._reader.size:
            return None
        return size + TRAILER.size if has_trailer(self._reader, at, size) else None

    def _size(self, at: int, kind: bytes) -> int | None:
        """Return the bytes of the chunk here, if it is of this kind and lies within the file."""
        if at + CHUNK.size > self._reader.size:
            return None
        found, length = CHUNK.unpack(self._reader.read(at, CHUNK.size))
        whole: int = CHUNK.size + length
        return whole if found == kind and at + whole <= self._reader.size else None
