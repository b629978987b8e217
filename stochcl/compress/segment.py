"""One segment: rows coded with one entropy model, in blocks, with their names; and limits on the work of decoding."""

from __future__ import annotations

import io
import math
import os
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from stochcl import framing
from stochcl.codes import Codes, bits_per_symbol
from stochcl.compress.bytes import ByteReader
from stochcl.compress.columns import NUMBERED, pack_labels, pack_uncertainty, unpack_labels, unpack_uncertainty
from stochcl.entropy import model as entropy_model
from stochcl.entropy.ans import decode_blocks, encode_block
from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import FITTED, INDEPENDENT, NETWORK, OWN, Candidate, EntropyModel, pack_model, unpack_model
from stochcl.entropy.vectors import ResidualDecoder
from stochcl.errors import FormatError, LimitExceeded
from stochcl.framing import BLOCK, CHUNK, HEAD, check_crc, check_limit, crc
from stochcl.lazy import cached_property

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from stochcl.compress.header import Header
    from stochcl.entropy.vectors import VectorDecoder


KIND = b"SEGM"
PARTS = ("table", "names", "labels", "entropy")
"""The parts of a segment beside its blocks, in file order."""

_BLOCK_BITS = 1 << 16  # target payload of a block: streams cost 32 to 51 bits each, so 0.07 %
_WORD_BITS = 32
_CHEAPEST = 3.5e-4  # bits of the most probable decision, -log2(4095/4096)


@dataclass(frozen=True)
class Part:
    """Size and CRC-32 of one part of a segment."""

    size: int
    crc: int

    @classmethod
    def of(cls, data: bytes) -> Part:
        """Return the size and checksum of these bytes."""
        return cls(len(data), crc(data) if data else 0)


@dataclass(frozen=True)
class SegmentHead:
    """The head before a segment's parts, which the index repeats.

    All blocks but the last have the same number of rows. ``words`` are the 32-bit words of each block's stream.
    ``crcs`` are of each block's packed rows; they are here and not in the blocks, to detect swapped blocks.
    ``number`` is the index of the fitted model, else 0.
    """

    rows: int
    rows_per_block: int
    words: tuple[int, ...]
    crcs: tuple[int, ...]
    model: int
    table: Part
    names: Part
    labels: Part
    entropy: Part
    number: int = 0
    version: int = framing.VERSION

    @cached_property
    def data(self) -> bytes:
        """The head's bytes: fixed fields, the words of each block as varints, the checksums of their rows."""
        return self._fixed + framing.pack_varints(self.words) + struct.pack(f"<{len(self.crcs)}I", *self.crcs)

    @property
    def _fixed(self) -> bytes:
        parts = [value for part in self.parts for value in (part.size, part.crc)]
        fixed = self.rows, self.rows_per_block, len(self.words), self.model, self.number, *parts
        return framing.pack_numbers(framing.SEGMENT, fixed, self.version)

    @property
    def parts(self) -> tuple[Part, Part, Part, Part]:
        """Table, names, labels and entropy, in file order."""
        return self.table, self.names, self.labels, self.entropy

    @property
    def payload(self) -> int:
        """Bytes of the blocks, including their heads."""
        return sum(self.words) * 4 + len(self.words) * BLOCK.size

    @property
    def size(self) -> int:
        """Size of the segment's chunk in bytes."""
        return self.parts_at + sum(part.size for part in self.parts) + self.payload

    @property
    def parts_at(self) -> int:
        """Offset of the parts from the start of the chunk."""
        return CHUNK.size + HEAD.size + len(self.data)

    @property
    def start(self) -> bytes:
        """The chunk's bytes before its parts: kind, size, and the head with its own size and checksum."""
        return CHUNK.pack(KIND, self.size - CHUNK.size) + HEAD.pack(len(self.data), crc(self.data)) + self.data

    @cached_property
    def block_offsets(self) -> NDArray[np.int64]:
        """Offset of each block from the start of the chunk, shape (blocks,)."""
        start = self.size - self.payload
        sizes = np.asarray(self.words, np.int64) * 4 + BLOCK.size
        return start + np.cumsum(sizes) - sizes

    def rows_of(self, block: int) -> int:
        """Return the number of rows of a block."""
        return min(self.rows_per_block, self.rows - block * self.rows_per_block)

    def with_parts(self, parts: Sequence[bytes], number: int) -> SegmentHead:
        """Return this head with other parts and model number."""
        table, names, labels, entropy = map(Part.of, parts)
        return replace(self, table=table, names=names, labels=labels, entropy=entropy, number=number)

    @classmethod
    def parse(cls, data: bytes, decisions_per_row: int, version: int) -> SegmentHead:
        """Parse and check a head of this format version."""
        ((rows, per_block, blocks, model, number, *sizes),), start = framing.unpack_numbers(
            framing.SEGMENT, data, 0, "a segment's head", version
        )
        check_limit(rows, framing.MAX_SEGMENT_ROWS, "the number of a segment's rows")
        if not rows or not per_block or blocks != -(-rows // per_block):
            raise FormatError(f"a segment of {rows} rows in {blocks} blocks of {per_block} makes no sense")
        if model not in (INDEPENDENT, OWN, NETWORK, FITTED) or (number and model != FITTED):
            raise FormatError(f"a segment cannot have the entropy model {model}, number {number}")
        check_limit(min(rows, per_block) * decisions_per_row, framing.MAX_BLOCK_DECISIONS, "the size of a block")
        if len(data) < start + 5 * blocks:
            raise FormatError("a segment's head is shorter than its list of blocks")
        words, end = framing.unpack_varints(data, blocks, start)
        if end + 4 * blocks != len(data):
            raise FormatError(f"a segment's head has {len(data)} bytes, not {end + 4 * blocks}")
        crcs = struct.unpack_from(f"<{blocks}I", data, end)
        parts = [Part(size, checksum) for size, checksum in zip(sizes[::2], sizes[1::2], strict=True)]
        table, names, labels, entropy = parts
        head = cls(rows, per_block, tuple(words), crcs, model, table, names, labels, entropy, number, version)
        if (model == OWN) != (head.table.size > 0):
            raise FormatError("a segment's table is there although it is not used, or is used but not there")
        if version == 1 and head.entropy.size not in (0, 2 * rows):
            raise FormatError(f"the uncertainty of {rows} rows has {head.entropy.size} bytes, not two a row")
        if any(part.crc and not part.size for part in parts):
            raise FormatError("a segment's head has the checksum of a part that is not there")
        if head._fixed != data[:start]:  # varints have only one form
            raise FormatError("a segment's head is not written as it should be")
        head.__dict__["data"] = data  # equal to what would be written again
        # Near-constant codes are cheap, but not free.
        for count, held in ((min(words[:-1], default=1 << 62), per_block), (words[-1], head.rows_of(blocks - 1))):
            if held * decisions_per_row * _CHEAPEST > (count + 2) * _WORD_BITS:
                raise FormatError(f"{count} words cannot hold the {held:,} rows of a block")
        return head


def read_head(data: bytes, decisions_per_row: int, version: int) -> SegmentHead:
    """Read the head at the start of a segment's chunk, without the index."""
    kind, length = framing.unpack(CHUNK, data, 0, "a segment")
    if kind != KIND:
        raise FormatError("a segment does not begin here")
    size, checksum = framing.unpack(HEAD, data, CHUNK.size, "a segment")
    start = CHUNK.size + HEAD.size
    head = data[start : start + size]
    check_crc(checksum, "a segment's head", head)
    parsed = SegmentHead.parse(head, decisions_per_row, version)
    if parsed.size != length + CHUNK.size:
        raise FormatError(f"a segment says that it has {length:,} bytes, and its parts {parsed.size - CHUNK.size:,}")
    return parsed


def write_segment(
    codes: Codes, candidates: Sequence[Candidate], version: int = framing.VERSION
) -> tuple[SegmentHead, bytes]:
    """Code rows with the cheapest of the given models or with a table of their own."""
    own = IndependentModel.fit(codes)
    best, bits, indices, table = Candidate(own, OWN), math.inf, None, b""
    for candidate in candidates:
        spent, levels = candidate.cost(codes)
        if spent < bits:
            best, bits, indices = candidate, spent, levels
    if (own_bits := own.ideal_bits(codes)) < bits and own_bits + 8 * len(packed := pack_model(own)) < bits:
        best, bits, indices, table = Candidate(own, OWN), own_bits, None, packed
    rows_per_block = _rows_per_block(bits / len(codes), best.model)
    blocks, words, crcs = [], [], []
    for start in range(0, len(codes), rows_per_block):
        rows = slice(start, start + rows_per_block)
        part = codes[rows]
        stream = encode_block(part, best.model, None if indices is None else indices[:, rows])
        payload = stream.astype("<u4").tobytes()
        words.append(len(stream))
        crcs.append(crc(part.packed.tobytes()))
        blocks.append(BLOCK.pack(len(part), words[-1], crc(payload)) + payload)
    parts = [
        table,
        framing.pack_texts(codes.names) if codes.names is not None else b"",
        pack_labels(codes.labels, version) if codes.labels is not None else b"",
        pack_uncertainty(codes.uncertainty, version) if codes.uncertainty is not None else b"",
    ]
    stated, names, labels, entropy = map(Part.of, parts)
    head = SegmentHead(
        len(codes), rows_per_block, tuple(words), tuple(crcs), best.kind, stated, names, labels, entropy, best.number,
        version,
    )  # fmt: skip
    return head, b"".join([head.start, *parts, *blocks])


def _rows_per_block(bits_per_row: float, model: EntropyModel) -> int:
    rows = round(_BLOCK_BITS / max(bits_per_row, 1e-3))
    most = framing.MAX_BLOCK_DECISIONS // (model.latents * bits_per_symbol(model.alphabet))
    return max(1, min(rows, most, framing.MAX_BLOCK_VALUES // values_per_row(model), 1 << 20))


def values_per_row(model: EntropyModel) -> int:
    """Return the numbers that decoding keeps per row: its decisions, and the hidden units of a network."""
    decisions = model.latents * bits_per_symbol(model.alphabet)
    return decisions + (len(model.degrees) if isinstance(model, AutoregressiveModel) else 0)


@dataclass(frozen=True)
class StoredSegment:
    """One segment in a file; everything read from it is checked against its head."""

    reader: ByteReader
    offset: int
    head: SegmentHead

    def _shown(self, what: str) -> str:
        return f"{what} of the segment at byte {self.offset:,}"

    def check_head(self) -> None:
        """Raise FormatError unless the segment begins with this head."""
        start = self.head.start
        if self.reader.read(self.offset, len(start)) != start:
            raise FormatError(f"the segment at byte {self.offset:,} is not what the index says")

    def range_of(self, which: str) -> tuple[int, int]:
        """Return the start and end of a part in the file."""
        place = PARTS.index(which)
        start = self.offset + self.head.parts_at + sum(part.size for part in self.head.parts[:place])
        return start, start + self.head.parts[place].size

    def part(self, which: str) -> bytes:
        """Read one part; empty if it is not stored."""
        start, end = self.range_of(which)
        data = self.reader.read(start, end - start)
        check_crc(getattr(self.head, which).crc, self._shown(f"the {which}"), data)
        return data

    def texts(self, which: str) -> tuple[str, ...] | None:
        """Read the names or labels; None if they are not stored."""
        data, rows, shown = self.part(which), self.head.rows, self._shown(f"the {which}")
        if not data:
            return None
        if which == "labels":
            return unpack_labels(data, rows, self.head.version, shown)
        return framing.unpack_texts(data, rows, shown)

    def uncertainty(self) -> NDArray[np.float32] | None:
        """Read the rows' entropies; None if they are not stored."""
        data, head = self.part("entropy"), self.head
        return unpack_uncertainty(data, head.rows, head.version, self._shown("the uncertainty")) if data else None

    def beside(self) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None, NDArray[np.float32] | None]:
        """Check the head, and read names, labels and uncertainty, each None if it is not stored."""
        self.check_head()
        return self.texts("names"), self.texts("labels"), self.uncertainty()

    def block(self, number: int) -> bytes:
        """Read one block with its own head."""
        expected = self.head.rows_of(number), self.head.words[number]
        start = self.offset + int(self.head.block_offsets[number])
        data = self.reader.read(start, BLOCK.size + 4 * expected[1])
        rows, words, checksum = BLOCK.unpack_from(data)
        if (rows, words) != expected:
            raise FormatError(
                f"a block says that it has {rows} rows in {words} words, and the index {expected[0]} rows in "
                f"{expected[1]} words"
            )
        check_crc(checksum, self._shown(f"block {number}"), data[BLOCK.size :])
        return data

    def raw(self) -> RawSegment:
        """Read and check the whole segment, except its table and what its blocks decode to."""
        self.beside()
        table, names, labels, entropy = (self.part(which) for which in PARTS)
        blocks = b"".join(self.block(number) for number in range(len(self.head.words)))
        return RawSegment(self.head, (table, names, labels, entropy), blocks)


def read_blocks(blocks: Sequence[tuple[StoredSegment, int]], model: EntropyModel) -> list[NDArray[np.uint8]]:
    """Decode (segment, block number) pairs of one model to packed rows."""
    streams, rows, values = [], [], values_per_row(model)
    for segment, number in blocks:
        rows.append(segment.head.rows_of(number))
        # A few words can claim many rows, each of which needs memory for all hidden units.
        check_limit(rows[-1] * values, framing.MAX_BLOCK_VALUES, "the size of a block, with its network,")
        streams.append(np.frombuffer(segment.block(number)[BLOCK.size :], "<u4").astype(np.uint32))
    decoded = decode_blocks(streams, rows, model)
    for packed, (segment, number) in zip(decoded, blocks, strict=True):
        check_crc(segment.head.crcs[number], "what a block decodes to", packed.tobytes())
    return decoded


@dataclass(frozen=True)
class RawSegment:
    """One segment's bytes: table, names, labels and entropy, empty if not stored, and all blocks."""

    head: SegmentHead
    parts: tuple[bytes, bytes, bytes, bytes]
    blocks: bytes

    @property
    def chunk(self) -> bytes:
        """The bytes of the segment's chunk."""
        return b"".join([self.head.start, *self.parts, self.blocks])

    @property
    def has(self) -> tuple[bool, bool, bool]:
        """Whether its rows have names, labels and uncertainty."""
        return bool(self.parts[1]), bool(self.parts[2]), bool(self.parts[3])

    def having(self, *, number: int | None = None, **parts: bytes) -> RawSegment:
        """Return the segment with other packed names, labels or entropy (empty: none), or model number."""
        data = dict(zip(PARTS, self.parts, strict=True)) | parts
        head = self.head.with_parts(list(data.values()), self.head.number if number is None else number)
        return RawSegment(head, (data["table"], data["names"], data["labels"], data["entropy"]), self.blocks)


def as_version(segment: RawSegment, version: int) -> RawSegment:
    """Return a segment in another version of the format."""
    head, (_, _, labels, entropy) = segment.head, segment.parts
    if head.version == version:
        return segment
    if labels and head.version < NUMBERED:
        segment = segment.having(labels=pack_labels(unpack_labels(labels, head.rows, head.version), version))
    if entropy and head.version == 1:
        values = unpack_uncertainty(entropy, head.rows, head.version)
        segment = segment.having(entropy=pack_uncertainty(values, version))
    return replace(segment, head=replace(segment.head, version=version))


def decode_segment(chunk: bytes, head: SegmentHead, header: Header, candidates: Sequence[Candidate]) -> Codes:
    """Decode a segment's chunk with its model, and read what is stored beside the rows."""
    segment = StoredSegment(ByteReader(io.BytesIO(chunk)), 0, head)
    if head.model == OWN:
        models = [unpack_model(segment.part("table"), header.latents, header.alphabet)]
    else:
        models = [c.model for c in candidates if (c.kind, c.number) == (head.model, head.number)]
    if not models:
        raise FormatError(f"a segment is coded with the model {head.model}, number {head.number}, which is not there")
    packed = [read_blocks([(segment, number)], models[0])[0] for number in range(len(head.words))]
    return header.codes(np.concatenate(packed), *segment.beside())


# Limits on the work and memory that an archive may need for its size: a small file can hold hours of work.
# Such a file is legitimate (identical rows cost almost nothing), so these are limits of the reader, not of the
# format; docs/FORMAT.md lists them. Work is counted in units of about 1/32 ns of one core: numpy and constriction
# take 8 ns for a decision of independent symbols, and 20 ns + 0.03 ns a weight for one of a network.

TRUSTED = "STOCHCL_TRUSTED"
"""Environment variable that lifts the limits for all archives of a process and its children."""

_WORK, _WORK_PER_BYTE = 1 << 40, 1 << 18  # half a minute, plus 8 seconds per megabyte of the file
_MEMORY, _MEMORY_PER_BYTE = 1 << 33, 1 << 12
_DECISION = 1 << 8
_TEXT = 1 << 15
_ADVICE = (
    "; if you trust who made it, open it with trusted=True, set $STOCHCL_TRUSTED to 1, or call the command as "
    "`stochcl --trusted ...`"
)


class Limits:
    """Limits for an archive of ``size`` bytes; none if ``trusted``.

    The environment variable sets the default of ``trusted``.
    """

    def __init__(self, size: int, trusted: bool | None = None) -> None:
        self._trusted = os.environ.get(TRUSTED, "") not in ("", "0") if trusted is None else trusted
        self._work, self._memory = _WORK + _WORK_PER_BYTE * size, _MEMORY + _MEMORY_PER_BYTE * size
        self._spent = 0
        self._counted: set[int] = set()

    def share(self, parts: int) -> None:
        """Divide the fixed part of the work limit among the shards of a folder."""
        self._work -= _WORK - _WORK // parts

    def check_heads(self, heads: Iterable[SegmentHead], decisions: int) -> None:
        """Raise LimitExceeded if segments take too long with any model."""
        texts = sum(head.rows * ((head.names.size > 0) + (head.labels.size > 0)) for head in heads)
        self._check_work(_DECISION * decisions * sum(head.rows for head in heads) + _TEXT * texts, "decoding it")

    def count(self, segment: int, head: SegmentHead, decisions: int, model: EntropyModel) -> None:
        """Count the work of decoding a segment, once; raise LimitExceeded before it is too much.

        A model stored in the archive counts for each of its segments, because it may not stay cached.
        """
        if segment not in self._counted:
            read = entropy_model.size_in_memory(model) if head.model in (OWN, FITTED) else 0
            spent = self._spent + head.rows * work_of_row(decisions, model) + _DECISION * read
            self._check_work(spent, "decoding it")
            self._counted.add(segment)
            self._spent = spent

    def check_vectors(self, rows: int, decoder: VectorDecoder | ResidualDecoder) -> None:
        """Raise LimitExceeded if decoding the vectors of these rows takes too long."""
        if isinstance(decoder, ResidualDecoder):
            products = decoder.words[0].shape[1] * (len(decoder.words) + decoder.dim)
        else:
            products = sum(weight.size for weight, _ in decoder.layers)
        self._check_work(rows * products, "making its vectors")

    def check_memory(self, rows: int, decoder: VectorDecoder | ResidualDecoder) -> None:
        """Raise LimitExceeded if an array of these rows' vectors takes too much memory."""
        size = 4 * rows * decoder.dim
        if size > self._memory and not self._trusted:
            raise LimitExceeded(
                f"its vectors are {size:,} bytes, and more than {self._memory:,} are not allowed for a file of its "
                f"size; take them in parts{_ADVICE}"
            )

    def _check_work(self, work: int, what: str) -> None:
        if work > self._work and not self._trusted:
            raise LimitExceeded(f"{what} takes {work / self._work:,.1f} times as long as is allowed{_ADVICE}")


def work_of_row(decisions: int, model: EntropyModel) -> int:
    """Return the work of decoding one row: its decisions, plus the units of a network."""
    if not isinstance(model, AutoregressiveModel):
        return _DECISION * decisions
    hidden = len(model.degrees)
    return decisions * (2 * _DECISION + decisions + 2 * hidden) + 128 * hidden
