"""The index, which is the authority on the position of everything in an archive."""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from stochcl import framing
from stochcl.compress.segment import SegmentHead
from stochcl.entropy.model import FITTED
from stochcl.errors import ChecksumMismatch, FormatError, Truncated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stochcl.compress.bytes import ByteReader

_CHUNKS = (b"TABL", b"FITT", b"SEGM", b"INDX")
_APPENDED = (b"SEGM", b"INDX", bytes(4))  # first bytes of an append; zeros after a power failure
_SHORT = 3  # first version whose index omits the head of a single segment
_CRC = struct.Struct("<I")
_MAX_SKIPPED = 1 << 25  # bytes of the inflated list of skipped images
_MAX_PAIR = 1 << 20  # bytes of one entry
_MAX_PAIRS = 1 << 20


@dataclass(frozen=True)
class Index:
    """The position of everything in an archive.

    ``segments`` are offsets and heads in row order. ``tables`` and ``fitted`` are offsets and sizes of chunks, (0, 0)
    for tables that are not in the archive. ``skipped`` is the packed list of images that could not be read, see
    :func:`pack_skipped`. ``start`` is the offset of the index. The trailer repeats ``header_crc``, so that the end of
    another archive is recognised. ``retired`` are offset, size and CRC-32 of earlier indexes, each replaced by an
    append; ``end_crc`` is this index's CRC-32 when it is retired.
    """

    rows: int
    source_bytes: int
    tables: tuple[int, int]
    segments: tuple[tuple[int, SegmentHead], ...]
    skipped: bytes
    start: int
    header_crc: int
    fitted: tuple[tuple[int, int], ...] = ()
    retired: tuple[tuple[int, int, int], ...] = ()
    version: int = framing.VERSION
    end_crc: int = field(default=0, compare=False)

    def check_layout(self, header_size: int) -> None:
        """Raise FormatError unless the parts of the file follow each other without gaps, segments in order."""
        position = header_size
        if self.tables[0] != (position if self.tables[1] else 0):
            raise FormatError(f"the tables cannot begin at byte {self.tables[0]:,}")
        position += self.tables[1]
        others = [(offset, size, "a fitted model") for offset, size in self.fitted]
        others += [(offset, size, "a retired part") for offset, size, _ in self.retired]
        others.sort(reverse=True)
        for offset, size, what in [*((o, head.size, "a segment") for o, head in self.segments), (self.start, 0, "")]:
            while others and others[-1][0] == position and others[-1][1]:
                position += others.pop()[1]
            if offset != position:
                raise FormatError(f"{what or 'the index'} begins at byte {offset:,}, not {position:,}")
            position += size
        if others:
            raise FormatError(f"{others[-1][2]} cannot begin at byte {others[-1][0]:,}")

    def to_bytes(self) -> bytes:
        """Return the index and trailer, the end of the file."""
        framing.check_limit(self.source_bytes, framing.MAX_SOURCE, "the number of bytes of the images' source")
        counts = len(self.segments), len(self.skipped), len(self.fitted), len(self.retired)
        numbers = partial(framing.pack_numbers, version=self.version)
        parts = [numbers(framing.INDEX, (self.rows, self.source_bytes, *self.tables, *counts)), self.skipped]
        parts += [numbers(framing.FITTED, entry) for entry in self.fitted]
        parts += [numbers(framing.RETIRED, entry) for entry in self.retired]
        short = _is_short(self.version, counts[0])
        for offset, head in self.segments:
            parts.append(numbers(framing.ENTRY, (offset, head.size, len(head.data))))
            parts.append(framing.crc(head.data).to_bytes(4, "little") if short else head.data)
        payload = b"".join(parts)
        chunk = framing.CHUNK.pack(b"INDX", len(payload)) + payload
        checksum = framing.crc(chunk)
        return chunk + framing.TRAILER.pack(self.start, len(chunk), checksum, self.header_crc, framing.END_MAGIC)


def header_crc(reader: ByteReader) -> int:
    """Return the CRC-32 of an archive's header from its prologue; the trailer repeats it."""
    return int.from_bytes(reader.read(framing.PROLOGUE.size - 4, 4), "little")


def version_of(reader: ByteReader) -> int:
    """Return the format version in an archive's prologue."""
    return int.from_bytes(reader.read(len(framing.MAGIC), 2), "little")


def read_index(reader: ByteReader, header_size: int, decisions_per_row: int) -> Index:
    """Read and check the trailer and the index."""
    if reader.size < header_size + framing.CHUNK.size + framing.TRAILER.size:
        raise Truncated("the file ends before its index")
    trailer = reader.read(reader.size - framing.TRAILER.size, framing.TRAILER.size)
    start, size, checksum, of_header, magic = framing.TRAILER.unpack(trailer)
    if magic != framing.END_MAGIC:
        raise Truncated("the file does not end as a complete archive does; it was cut short or not finished")
    if of_header != header_crc(reader):
        msg = f"its end is another archive's: that has a header with the checksum {of_header:08x}"
        raise ChecksumMismatch(f"{msg}, and this one {header_crc(reader):08x}")
    if start < header_size or size < framing.CHUNK.size or start + size != reader.size - framing.TRAILER.size:
        raise FormatError(f"the trailer puts the index at bytes {start:,} to {start + size:,}, which cannot be")
    chunk = reader.read(start, size)
    framing.check_crc(checksum, "the index", chunk)
    kind, length = framing.CHUNK.unpack_from(chunk)
    if kind != b"INDX" or length != size - framing.CHUNK.size:
        raise FormatError("the trailer does not point at an index")
    index = _parse(chunk[framing.CHUNK.size :], reader, start, of_header, decisions_per_row)
    index.check_layout(header_size)
    return replace(index, end_crc=zlib.crc32(trailer, checksum))


def _is_short(version: int, segments: int) -> bool:
    """Return whether the index holds a checksum in place of the segment's head, as it does for a single segment."""
    return version >= _SHORT and segments == 1


def check_earlier(reader: ByteReader, index: Index, header_size: int, decisions_per_row: int) -> None:
    """Raise FormatError unless each retired part is the end of an earlier state of this archive."""
    shorter = reader.again()
    try:
        for number, (offset, size, checksum) in enumerate(index.retired):
            what = f"an earlier index, at byte {offset:,},"
            framing.check_crc(checksum, what, reader.read(offset, size))
            shorter.size = offset + size
            earlier = read_index(shorter, header_size, decisions_per_row)
            kept = earlier.tables, earlier.fitted, earlier.retired, earlier.segments
            now = index.tables, index.fitted, index.retired[:number], index.segments[: len(earlier.segments)]
            if earlier.start != offset or kept != now:
                raise FormatError(f"{what} is not that of an archive to which the later rows were appended")
            for _ in iterate_skipped(earlier.skipped):
                pass
    finally:
        shorter.close()


def cut_to_end(reader: ByteReader, header_size: int) -> int:
    """Shorten a reader to the last complete archive in its file; return the number of bytes after it.

    These bytes come from a running or interrupted append and are not part of the archive. Without a complete
    archive, the reader is unchanged.
    """
    if reader.size < header_size + framing.TRAILER.size:
        return 0
    if reader.read(reader.size - len(framing.END_MAGIC), len(framing.END_MAGIC)) == framing.END_MAGIC:
        return 0
    ends = complete_ends(reader, header_size, strict=True)
    if not ends:
        return 0
    end = ends[-1]
    if not any(kind.startswith(reader.read(end, min(4, reader.size - end))) for kind in _APPENDED):
        raise FormatError(f"{reader.size - end:,} bytes follow the archive that no append has written")
    left, reader.size = reader.size - end, end
    return left


def has_trailer(reader: ByteReader, start: int, size: int) -> bool:
    """Return whether this index is followed by its own trailer."""
    trailer = reader.read(start + size, framing.TRAILER.size)
    if not trailer.endswith(framing.END_MAGIC):
        return False
    checksum = framing.crc(reader.read(start, size))
    return trailer == framing.TRAILER.pack(start, size, checksum, header_crc(reader), framing.END_MAGIC)


def complete_ends(reader: ByteReader, header_size: int, *, strict: bool = False) -> list[int]:
    """Return the ends of all complete archives at the start of a file, each an earlier state of the next.

    Only the kind and size of each chunk are read, and each index whole. A damaged last trailer is an error if
    ``strict``.
    """
    position, ends = header_size, list[int]()
    while position + framing.CHUNK.size <= reader.size:
        kind, length = framing.CHUNK.unpack(reader.read(position, framing.CHUNK.size))
        size = framing.CHUNK.size + length
        if kind not in _CHUNKS or position + size > reader.size:
            break
        start, position = position, position + size
        if kind != b"INDX":
            continue
        position += framing.TRAILER.size
        if position > reader.size:
            break
        if not has_trailer(reader, start, size):
            written = any(reader.read(start + size, framing.TRAILER.size))  # otherwise only zeros were allocated
            if strict and position == reader.size and ends and written:
                raise ChecksumMismatch("the trailer is damaged; `stochcl verify --repair` undoes the last append")
            break
        ends.append(position)
    return ends


def _parse(data: bytes, reader: ByteReader, start: int, of_header: int, decisions_per_row: int) -> Index:
    version = version_of(reader)
    numbers = partial(framing.unpack_numbers, data=data, version=version)
    (counts,), position = numbers(framing.INDEX, offset=0, what="the index")
    rows, source_bytes, *tables, count, skipped_size, models, parts = counts
    for value, limit, what in (
        (rows, framing.MAX_ROWS, "rows"),
        (source_bytes, framing.MAX_SOURCE, "bytes of the images' source"),
        (count, framing.MAX_SEGMENTS, "segments"),
        (models, framing.MAX_FITTED, "fitted models"),
        (parts, framing.MAX_RETIRED, "retired parts"),
    ):
        framing.check_limit(value, limit, f"the number of {what}")
    skipped = data[position : position + skipped_size]
    if len(skipped) < skipped_size:
        raise Truncated("the list of skipped images ends too early")
    position += skipped_size
    fitted, position = numbers(framing.FITTED, offset=position, what="the list of fitted models", count=models)
    retired, position = numbers(framing.RETIRED, offset=position, what="the list of retired parts", count=parts)
    segments = []
    for _ in range(count):
        ((offset, size, head_size),), position = numbers(framing.ENTRY, offset=position, what="an entry of the index")
        if _is_short(version, count):
            (checksum,) = framing.unpack(_CRC, data, position, "an entry of the index")
            position += _CRC.size
            head_data = reader.read(offset + framing.CHUNK.size + framing.HEAD.size, head_size)
            framing.check_crc(checksum, "the head of the segment", head_data)
        else:
            head_data = data[position : position + head_size]
            position += head_size
        if len(head_data) < head_size:
            raise Truncated("an entry of the index ends too early")
        head = SegmentHead.parse(head_data, decisions_per_row, version)
        if size != head.size:
            raise FormatError(f"a segment has {size:,} bytes in the index, and its parts {head.size:,}")
        if head.model == FITTED and head.number >= models:
            raise FormatError(f"a segment uses the fitted model {head.number} of {models}")
        segments.append((offset, head))
    if position != len(data):
        raise FormatError(f"{len(data) - position:,} bytes follow the last entry of the index")
    for part in ("names", "labels", "entropy"):
        if len({getattr(head, part).size > 0 for _, head in segments}) > 1:
            raise FormatError(f"some segments have {part} and others have none")
    if sum(head.rows for _, head in segments) != rows:
        raise FormatError(f"the segments do not have the {rows:,} rows that the index says")
    return Index(
        rows, source_bytes, (tables[0], tables[1]), tuple(segments), skipped, start, of_header,
        tuple((at, size) for at, size in fitted), tuple((at, size, c) for at, size, c in retired), version,
    )  # fmt: skip


def pack_skipped(skipped: Sequence[tuple[str, str]]) -> bytes:
    """Write names and reasons of skipped images; the last entry counts what exceeds the limit."""
    if not skipped:
        return b""
    texts, size = [json.dumps(pair) for pair in skipped], 2
    for number, text in enumerate(texts):
        size += len(text) + 2
        if size > _MAX_SKIPPED - 100 or number == _MAX_PAIRS - 1 < len(texts) - 1:
            texts[number:] = [json.dumps(("...", f"{len(texts) - number:,} more could not be read"))]
            break
    return zlib.compress(f"[{', '.join(texts)}]".encode("ascii"), 9)


_STRING = rb'"(?:[^"\\\x00-\x1f\x80-\xff]++|\\.)*+"'
_SPACE = b"[ \t\n\r]*+"
_PAIR = re.compile(_SPACE + _SPACE.join([rb"(\[", _STRING, b",", _STRING, rb"\])", rb"([,\]])"]))


def iterate_skipped(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield names and reasons of skipped images one at a time, because a list takes twenty times their bytes."""
    if not data:
        return
    text = framing.inflate_any(data, _MAX_SKIPPED, "the list of skipped images").strip(b" \t\n\r")
    count, at, end = 0, 1, b"," if text.startswith(b"[") else b""
    while end == b"," and (match := _PAIR.match(text, at)):
        try:
            name, reason = json.loads(match[1])
        except ValueError as exc:
            raise FormatError(f"the list of skipped images is not JSON ({exc})") from exc
        if len(match[1]) > _MAX_PAIR:
            raise FormatError(f"an entry of the list of skipped images has more than {_MAX_PAIR:,} bytes")
        count += 1
        framing.check_limit(count, _MAX_PAIRS, "the number of skipped images")
        yield name, reason
        at, end = match.end(), match[2]
    if not (end == b"]" and at == len(text)) and not re.fullmatch(rb"\[%s\]" % _SPACE, text):
        raise FormatError("the list of skipped images is not a JSON list of names and reasons")
