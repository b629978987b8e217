import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import Codes
from stochcl.compress import IndependentModel
from stochcl.compress.framing import BLOCK, CHUNK
from stochcl.compress.segment import (
    OWN,
    PREFIX,
    Part,
    SegmentHead,
    pack_table,
    read_block,
    unpack_table,
    write_segment,
)
from stochcl.errors import ChecksumMismatch, FormatError, LimitExceeded, Truncated
from tests.compress.making import make_codes, make_names

NOTHING = Part(0, 0)
ABSENT = (NOTHING,) * 4
EVEN = IndependentModel(np.full((8, 1), 2048, np.uint16))


@given(st.data(), st.integers(1, 1 << 24), st.integers(1, 1 << 24))
def test_a_head_comes_back(data, rows, per_block):
    per_block = max(per_block, -(-rows // 50))
    blocks = -(-rows // per_block)
    words = data.draw(st.lists(st.integers(1 << 10, 1 << 40), min_size=blocks, max_size=blocks))
    parts = [
        data.draw(st.one_of(st.just(NOTHING), st.builds(Part, size, st.integers(0, 2**32 - 1))))
        for size in [st.integers(1, 2**32 - 1)] * 3 + [st.just(2 * rows)]
    ]
    head = SegmentHead(rows, per_block, tuple(words), OWN if parts[0].size else PREFIX, *parts)
    assert SegmentHead.parse(head.data, 2) == head
    assert head.size == head.payload + sum(part.size for part in parts) + len(head.data) + CHUNK.size
    assert sum(head.rows_of(block) for block in range(blocks)) == rows


def test_blocks_are_where_the_head_says():
    head, chunk = write_segment(
        make_codes(2000, 100, names=make_names(2000)), IndependentModel.fit(make_codes(9, 100))
    )
    assert len(head.words) > 2
    assert len(chunk) == head.size
    for block, offset in enumerate(head.block_offsets.tolist()):
        assert BLOCK.unpack_from(chunk, offset)[:2] == (head.rows_of(block), head.words[block])
    assert offset + BLOCK.size + 4 * head.words[-1] == len(chunk)


def test_few_words_cannot_claim_many_rows():
    head = SegmentHead(1 << 20, 1 << 20, (3,), PREFIX, *ABSENT)
    with pytest.raises(FormatError, match="3 words cannot hold the 1,048,576 rows of a block"):
        SegmentHead.parse(head.data, 64)


def test_a_block_is_bounded():
    head = SegmentHead(1 << 20, 1 << 20, (1 << 30,), PREFIX, *ABSENT)
    SegmentHead.parse(head.data, 64)
    with pytest.raises(LimitExceeded, match="the size of a block"):
        SegmentHead.parse(head.data, 65)


@pytest.mark.parametrize("alphabet", [2, 7])
@pytest.mark.parametrize("value", [0, 1])
def test_the_writer_keeps_to_the_bounds_that_the_reader_has(value, alphabet):
    codes = Codes.from_symbols(np.full((200_000, 12), value, np.uint8), alphabet=alphabet)
    fitted = IndependentModel.fit(codes)
    even = IndependentModel.nearest(np.full(fitted.ones.shape, 0.5), alphabet)
    for model in (fitted, even):
        head, chunk = write_segment(codes, model)
        assert SegmentHead.parse(head.data, codes.decisions_per_row) == head
        used = model if head.model == PREFIX else fitted
        start = int(head.block_offsets[0])
        packed = read_block(chunk[start : start + BLOCK.size + 4 * head.words[0]], head, 0, used)
        np.testing.assert_array_equal(packed, codes.packed[: len(packed)])


@pytest.mark.parametrize("per_block", [0, 1 << 31])
def test_rows_a_block_are_at_least_one(per_block):
    head = SegmentHead(5, per_block, (9,), PREFIX, *ABSENT)
    if per_block:
        assert SegmentHead.parse(head.data, 8).rows_of(0) == 5
    else:
        with pytest.raises(FormatError, match="makes no sense"):
            SegmentHead.parse(head.data, 8)


def test_every_truncation_of_a_head_is_a_format_error():
    head = SegmentHead(500, 100, (300, 200, 1, 2, 3), PREFIX, *ABSENT)
    for end in range(len(head.data)):
        with pytest.raises(FormatError):
            SegmentHead.parse(head.data[:end], 8)
    with pytest.raises(FormatError, match="a segment's head has"):
        SegmentHead.parse(head.data + b"\0", 8)


def test_a_number_of_words_that_is_not_written_shortest_is_refused():
    head = SegmentHead(5, 5, (5,), PREFIX, *ABSENT)
    assert head.data.endswith(b"\x05")
    with pytest.raises(FormatError, match="more bytes than it needs"):
        SegmentHead.parse(head.data[:-1] + b"\x85\0", 8)


@pytest.fixture(scope="module")
def block():
    """One block's bytes and the head of its segment."""
    codes = make_codes(20, 8)
    head, chunk = write_segment(codes, EVEN)
    assert head.model == PREFIX
    return chunk[int(head.block_offsets[0]) :], head, codes


def test_a_block_comes_back(block):
    data, head, codes = block
    np.testing.assert_array_equal(read_block(data, head, 0, EVEN), codes.packed)


def test_a_block_that_disagrees_with_the_index_is_refused(block):
    data, head, _ = block
    for layout in (1, 0), (0, 1):
        rows, words, *rest = BLOCK.unpack_from(data)
        changed = BLOCK.pack(rows + layout[0], words + layout[1], *rest) + data[BLOCK.size :]
        with pytest.raises(FormatError, match=r"a block says that it has .* and the index 20 rows"):
            read_block(changed, head, 0, EVEN)
    with pytest.raises(Truncated):
        read_block(data[:10], head, 0, EVEN)


def test_what_decodes_to_other_rows_is_found_out(block):
    """Another table with the same words: the checksum over the words cannot see it."""
    data, head, _ = block
    other = IndependentModel(np.array([[2048]] * 7 + [[2049]], np.uint16))
    with pytest.raises(ChecksumMismatch):
        read_block(data, head, 0, other)
    forged = bytearray(data)
    forged[12] ^= 1  # the checksum over the rows
    with pytest.raises(ChecksumMismatch, match="what a block decodes to is damaged"):
        read_block(bytes(forged), head, 0, EVEN)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 40), st.sampled_from([2, 3, 16]), st.floats(0.02, 0.98))
def test_a_segment_takes_the_cheaper_table(rows, latents, alphabet, p):
    """Its own exactly when that repays itself, so never more than either way takes, but for a stream's end."""
    codes = make_codes(rows, latents, alphabet)
    given_model = IndependentModel.nearest(np.full((latents, (1 << (alphabet - 1).bit_length()) - 1), p), alphabet)
    own = IndependentModel.fit(codes)
    head, chunk = write_segment(codes, given_model)
    repays = own.ideal_bits(codes) + 8 * len(pack_table(own)) < given_model.ideal_bits(codes)
    assert head.model == (OWN if repays else PREFIX)
    assert head.table.size == (len(pack_table(own)) if repays else 0)
    with_own = write_segment(codes, own)[0].payload + len(pack_table(own))
    assert head.payload + head.table.size <= with_own + 64 * len(head.words)
    assert 8 * sum(4 * words for words in head.words) <= given_model.ideal_bits(codes) + 64 * len(head.words)
    assert len(chunk) == head.size


def test_a_megabyte_of_payload_is_within_a_thousandth_of_the_ideal():
    codes = make_codes(5500, 2048)
    model = IndependentModel.fit(make_codes(1000, 2048, seed=5))
    head, _ = write_segment(codes, model)
    used = model if head.model == PREFIX else IndependentModel.fit(codes)
    ideal = used.ideal_bits(codes)
    payload = 32 * sum(head.words)
    assert payload >= 8_000_000
    assert ideal < payload <= 1.001 * ideal
    assert 8 * head.payload <= 1.004 * ideal  # with the blocks' heads
    assert max(head.words) * 32 < 1.05 * 65_536


def test_a_table_of_a_segment_comes_back_or_is_refused():
    model = IndependentModel.fit(make_codes(50, 6, 3))
    data = pack_table(model)
    np.testing.assert_array_equal(unpack_table(data, 6, 3).ones, model.ones)
    for latents, alphabet in (5, 3), (6, 4):
        with pytest.raises(FormatError, match="for other latents"):
            unpack_table(data, latents, alphabet)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            unpack_table(data[:end], 6, 3)
    with pytest.raises(LimitExceeded, match="the size of a segment's table"):
        unpack_table(zlib.compress(bytes(1 << 23)), 6, 3)
