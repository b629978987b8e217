"""Segments as they stand in an archive: read, checked, and changed at their edges without being coded again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from stochcl.codes import Codes
from stochcl.compress.framing import BLOCK, check_crc, crc, unpack, unpack_texts
from stochcl.compress.segment import Part, SegmentHead
from stochcl.compress.uncertainty import pack_uncertainty, unpack_uncertainty
from stochcl.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stochcl.compress.archive import Archive
    from stochcl.compress.reader import ByteReader

_NAMES = ("the table", "the names", "the labels", "the uncertainty")


@dataclass(frozen=True)
class RawSegment:
    """One segment's bytes.

    Parameters
    ----------
    head : SegmentHead
    parts : (bytes, bytes, bytes, bytes)
        Table, names, labels and uncertainty; empty where there are none.
    blocks : bytes
        All blocks, one after the other.
    """

    head: SegmentHead
    parts: tuple[bytes, bytes, bytes, bytes]
    blocks: bytes

    @property
    def chunk(self) -> bytes:
        """The bytes of its chunk."""
        return b"".join([self.head.start, *self.parts, self.blocks])

    @property
    def has(self) -> tuple[bool, bool, bool]:
        """Whether its rows have names, labels and uncertainty."""
        return bool(self.parts[1]), bool(self.parts[2]), bool(self.parts[3])

    def having(
        self,
        *,
        names: bytes | None = None,
        labels: bytes | None = None,
        entropy: bytes | None = None,
        number: int | None = None,
    ) -> RawSegment:
        """Return the segment with other names, labels, uncertainty (packed; empty: none), or number of its model."""
        table, old_names, old_labels, old_entropy = self.parts
        names = old_names if names is None else names
        labels = old_labels if labels is None else labels
        entropy = old_entropy if entropy is None else entropy
        head = replace(
            self.head,
            names=Part(len(names), crc(names) if names else 0),
            labels=Part(len(labels), crc(labels) if labels else 0),
            entropy=Part(len(entropy), crc(entropy) if entropy else 0),
            number=self.head.number if number is None else number,
        )
        return RawSegment(head, (table, names, labels, entropy), self.blocks)


def as_version(segment: RawSegment, old: int, new: int) -> RawSegment:
    """Return a segment of one version of the format as another has it.

    Raises
    ------
    FormatError
        If its uncertainty is none.
    """
    if old == new or not segment.parts[3]:
        return segment
    values = unpack_uncertainty(segment.parts[3], segment.head.rows, old)
    try:
        return segment.having(entropy=pack_uncertainty(values, new))
    except ValueError as exc:
        raise FormatError(f"a segment's uncertainty makes no sense: {exc}") from exc


def read_segment(reader: ByteReader, offset: int, head: SegmentHead) -> RawSegment:
    """Read a segment, and check everything of it but what its blocks decode to.

    Raises
    ------
    FormatError
        If it is not what the index says, or damaged.
    """
    parts = read_parts(reader, offset, head)
    blocks = reader.read(offset + head.size - head.payload, head.payload)
    at = 0
    for number, words in enumerate(head.words):
        rows, stated, payload_crc = unpack(BLOCK, blocks, at, "a block's head")
        if (rows, stated) != (head.rows_of(number), words):
            raise FormatError(f"a block of the segment at byte {offset:,} is not what the index says")
        end = at + BLOCK.size + 4 * words
        check_crc(payload_crc, f"block {number} of the segment at byte {offset:,}", blocks[at + BLOCK.size : end])
        at = end
    return RawSegment(head, parts, blocks)


def read_parts(reader: ByteReader, offset: int, head: SegmentHead) -> tuple[bytes, bytes, bytes, bytes]:
    """Read a segment's table, names, labels and uncertainty, and check them.

    Raises
    ------
    FormatError
        If they are not what the index says, or damaged.
    """
    start = head.start
    if reader.read(offset, len(start)) != start:
        raise FormatError(f"the segment at byte {offset:,} is not what the index says")
    at, parts = offset + head.parts_at, []
    for what, part in zip(_NAMES, head.parts, strict=True):
        data = reader.read(at, part.size)
        check_crc(part.crc, f"{what} of the segment at byte {offset:,}", data)
        parts.append(data)
        at += part.size
    table, names, labels, entropy = parts
    return table, names, labels, entropy


def stored_names(archive: Archive, segment: int) -> tuple[str, ...]:
    """Return the names of one segment's rows, none if they were left out; all others stay on the disk."""
    offset, head = archive._index.segments[segment]
    with archive._named():
        names = read_parts(archive._reader, offset, head)[1]
        return unpack_texts(names, head.rows, f"the names of segment {segment}") if names else ()


def stored_codes(archive: Archive, first: int = 0, last: int | None = None, rows: int = 16_384) -> Iterator[Codes]:
    """Yield rows of an archive in order, so many at a time, with what is stored beside them and nothing else.

    (An archive's own rows have labels also where only their names tell them.) Memory is a segment's.
    """
    last = len(archive) if last is None else last
    low = 0
    for segment, (offset, head) in enumerate(archive._index.segments):
        high = low + head.rows
        a, b = max(low, first), min(high, last)
        if a < b:
            with archive._named():
                _, names, labels, entropy = read_parts(archive._reader, offset, head)
                texts = [
                    unpack_texts(data, head.rows, f"the {what} of segment {segment}") if data else None
                    for data, what in ((names, "names"), (labels, "labels"))
                ]
                uncertainty = unpack_uncertainty(entropy, head.rows, archive.header.version) if entropy else None
            for start in range(a, b, rows):
                stop = min(start + rows, b)
                here = slice(start - low, stop - low)
                yield Codes(
                    archive._packed(np.arange(start, stop)),
                    archive.header.latents,
                    archive.header.alphabet,
                    names=None if texts[0] is None else texts[0][here],
                    labels=None if texts[1] is None else texts[1][here],
                    uncertainty=None if uncertainty is None else uncertainty[here],
                )
        low = high
