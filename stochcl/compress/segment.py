"""One segment: the rows that are coded with one entropy model, in blocks, with their names."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from stochcl.compress import framing
from stochcl.compress.coder import decode_block, encode_block
from stochcl.compress.framing import (
    BLOCK,
    CHUNK,
    MAX_TABLE,
    SEGMENT,
    check_crc,
    check_limit,
    crc,
    inflate_any,
    pack_texts,
    pack_varints,
    unpack,
    unpack_varints,
)
from stochcl.compress.independent import IndependentModel
from stochcl.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.codes import Codes

KIND = b"SEGM"
PREFIX, OWN = 0, 1  # entropy model: the tables' first latents, or a table in the segment

_BLOCK_BITS = 1 << 16  # payload that a block aims at: streams cost 32 to 51 bits each, so 0.07 %
_WORD_BITS = 32
_CHEAPEST = 3.5e-4  # bits that the most probable decision costs, -log2(4095/4096)


@dataclass(frozen=True)
class Part:
    """Bytes of a segment beside its blocks: how many, and their CRC-32."""

    size: int
    crc: int


@dataclass(frozen=True)
class SegmentHead:
    """What stands before a segment's parts, and again in the index.

    Parameters
    ----------
    rows, rows_per_block : int
        All blocks but the last have the same number of rows.
    words : tuple of int
        32-bit words of each block's stream.
    model : int
        PREFIX or OWN.
    table, names, labels, entropy : Part
        Of size 0 where there is none.
    """

    rows: int
    rows_per_block: int
    words: tuple[int, ...]
    model: int
    table: Part
    names: Part
    labels: Part
    entropy: Part

    @cached_property
    def data(self) -> bytes:
        """The head's bytes: fixed fields, then the words of each block as varints."""
        parts = [value for part in self.parts for value in (part.size, part.crc)]
        fixed = SEGMENT.pack(self.rows, self.rows_per_block, len(self.words), self.model, *parts)
        return fixed + pack_varints(self.words)

    @property
    def parts(self) -> tuple[Part, Part, Part, Part]:
        """Table, names, labels and entropy, in the order in which they stand in the file."""
        return self.table, self.names, self.labels, self.entropy

    @property
    def payload(self) -> int:
        """Bytes of the blocks, their heads included."""
        return sum(self.words) * 4 + len(self.words) * BLOCK.size

    @property
    def size(self) -> int:
        """Bytes of the segment's chunk."""
        return CHUNK.size + len(self.data) + sum(part.size for part in self.parts) + self.payload

    @cached_property
    def block_offsets(self) -> NDArray[np.int64]:
        """Where each block begins, in bytes from the segment's chunk, shape (blocks,)."""
        start = self.size - self.payload
        sizes = np.asarray(self.words, np.int64) * 4 + BLOCK.size
        return start + np.cumsum(sizes) - sizes

    def rows_of(self, block: int) -> int:
        """Return how many rows a block has."""
        return min(self.rows_per_block, self.rows - block * self.rows_per_block)

    @classmethod
    def parse(cls, data: bytes, decisions_per_row: int) -> SegmentHead:
        """Read a head and check that its numbers can be true.

        Raises
        ------
        FormatError
            If they cannot.
        """
        rows, per_block, blocks, model, *sizes = unpack(SEGMENT, data, 0, "a segment's head")
        check_limit(rows, framing.MAX_SEGMENT_ROWS, "the number of a segment's rows")
        if not rows or not per_block or blocks != -(-rows // per_block) or model not in (PREFIX, OWN):
            raise FormatError(f"a segment of {rows} rows in {blocks} blocks of {per_block} makes no sense")
        check_limit(min(rows, per_block) * decisions_per_row, framing.MAX_BLOCK_DECISIONS, "the size of a block")
        if len(data) < SEGMENT.size + blocks:
            raise FormatError("a segment's head is shorter than its list of blocks")
        words, end = unpack_varints(data, blocks, SEGMENT.size)
        if end != len(data):
            raise FormatError(f"a segment's head has {len(data)} bytes, not {end}")
        parts = [Part(size, checksum) for size, checksum in zip(sizes[::2], sizes[1::2], strict=True)]
        head = cls(rows, per_block, tuple(words), model, *parts)
        if (model == OWN) != (head.table.size > 0):
            raise FormatError("a segment's table is there although it is not used, or is used but not there")
        if head.entropy.size not in (0, 2 * rows):
            raise FormatError(f"the uncertainty of {rows} rows has {head.entropy.size} bytes, not two a row")
        if any(part.crc and not part.size for part in parts):
            raise FormatError("a segment's head has the checksum of a part that is not there")
        if head.data != data:
            raise FormatError("a segment's head is not written as it should be")
        for block, count in enumerate(words):  # near-constant codes are cheap, but not for nothing
            if head.rows_of(block) * decisions_per_row * _CHEAPEST > (count + 2) * _WORD_BITS:
                raise FormatError(f"{count} words cannot hold the {head.rows_of(block):,} rows of a block")
        return head


def pack_table(model: IndependentModel) -> bytes:
    """Write a segment's own table: the model's bytes, deflated."""
    return zlib.compress(model.to_bytes(), 9)


def unpack_table(data: bytes, latents: int, alphabet: int) -> IndependentModel:
    """Read what :func:`pack_table` wrote.

    Raises
    ------
    FormatError
        If it is not that, or for codes of another shape.
    """
    model = IndependentModel.from_bytes(inflate_any(data, MAX_TABLE, "a segment's table"))
    if (model.latents, model.alphabet) != (latents, alphabet):
        raise FormatError("a segment's table is for other latents")
    return model


def write_segment(codes: Codes, model: IndependentModel) -> tuple[SegmentHead, bytes]:
    """Code rows with the cheaper of the model's table and their own.

    Parameters
    ----------
    codes : Codes
        At least one row. Names, labels and uncertainty are written where they are there.
    model : IndependentModel
        The tables' model, cut to the codes' width.

    Returns
    -------
    SegmentHead, bytes
        The head, and the whole chunk.
    """
    own = IndependentModel.fit(codes)
    table = pack_table(own)
    bits = model.ideal_bits(codes)
    own_bits = own.ideal_bits(codes)
    if own_bits + 8 * len(table) < bits:
        model, bits, kind = own, own_bits, OWN
    else:
        table, kind = b"", PREFIX
    rows_per_block = _rows_per_block(bits / len(codes), codes.decisions_per_row)
    blocks, words = [], []
    for start in range(0, len(codes), rows_per_block):
        part = codes[start : start + rows_per_block]
        payload = encode_block(part, model).astype("<u4").tobytes()
        words.append(len(payload) // 4)
        blocks.append(BLOCK.pack(len(part), words[-1], crc(payload), crc(part.packed.tobytes())) + payload)
    parts = [
        table,
        pack_texts(codes.names) if codes.names is not None else b"",
        pack_texts(codes.labels) if codes.labels is not None else b"",
        codes.uncertainty.astype("<f2").tobytes() if codes.uncertainty is not None else b"",
    ]
    head = SegmentHead(
        len(codes), rows_per_block, tuple(words), kind, *(Part(len(p), crc(p) if p else 0) for p in parts)
    )
    return head, b"".join([CHUNK.pack(KIND, head.size - CHUNK.size), head.data, *parts, *blocks])


def _rows_per_block(bits_per_row: float, decisions_per_row: int) -> int:
    rows = round(_BLOCK_BITS / max(bits_per_row, 1e-3))
    return max(1, min(rows, framing.MAX_BLOCK_DECISIONS // decisions_per_row, 1 << 20))


def read_block(data: bytes, head: SegmentHead, block: int, model: IndependentModel) -> NDArray[np.uint8]:
    """Decode one block, its own head included, to packed rows.

    Raises
    ------
    FormatError
        If its head disagrees with the index, or a checksum does.
    """
    rows, words, payload_crc, rows_crc = unpack(BLOCK, data, 0, "a block's head")
    if (rows, words) != (head.rows_of(block), head.words[block]):
        msg = (
            f"a block says that it has {rows} rows in {words} words, and the index {head.rows_of(block)} rows "
            f"in {head.words[block]} words"
        )
        raise FormatError(msg)
    payload = data[BLOCK.size :]
    check_crc(payload_crc, "a block", payload)
    packed = decode_block(np.frombuffer(payload, "<u4").astype(np.uint32), rows, model)
    check_crc(rows_crc, "what a block decodes to", packed.tobytes())
    return packed
