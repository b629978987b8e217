import io
import struct
import zlib
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl import framing
from stochcl.codes import Codes
from stochcl.compress.bytes import ByteReader
from stochcl.compress.segment import Part, SegmentHead, StoredSegment, read_blocks, read_head, write_segment
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import FITTED, INDEPENDENT, NETWORK, OWN, Candidate, pack_model, unpack_model
from stochcl.errors import ChecksumMismatch, FormatError, LimitExceeded, Truncated
from stochcl.framing import BLOCK, CHUNK, HEAD, MAX_SEGMENT_ROWS, MAX_TABLE, SEGMENT, crc, pack_varints
from tests.compress.making import make_chain, make_codes, make_names, make_network

NOTHING = Part(0, 0)
ABSENT = (NOTHING,) * 4
EVEN = IndependentModel(np.full((8, 1), 2048, np.uint16))


def make_head(rows, per_block, words, model=INDEPENDENT, parts=ABSENT, number=0):
    return SegmentHead(rows, per_block, words, tuple(range(len(words))), model, *parts, number)


def segment_of(codes, *models):
    return write_segment(codes, [Candidate(model) for model in models])


def stored(data, head, number=0):
    """A segment in a file that has these bytes from this block on."""
    return StoredSegment(ByteReader(io.BytesIO(bytes(head.block_offsets[number]) + data)), 0, head)


def read_block(data, head, number, model):
    return read_blocks([(stored(data, head, number), number)], model)[0]


@given(st.data(), st.integers(1, MAX_SEGMENT_ROWS), st.integers(1, MAX_SEGMENT_ROWS))
def test_a_head_comes_back(data, rows, per_block):
    per_block = max(per_block, -(-rows // 50))
    blocks = -(-rows // per_block)
    words = data.draw(st.lists(st.integers(1 << 10, 1 << 40), min_size=blocks, max_size=blocks))
    parts = [
        data.draw(st.one_of(st.just(NOTHING), st.builds(Part, size, st.integers(0, 2**32 - 1))))
        for size in [st.integers(1, 2**32 - 1)] * 3 + [st.just(2 * rows)]
    ]
    crcs = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=blocks, max_size=blocks))
    model = OWN if parts[0].size else data.draw(st.sampled_from([INDEPENDENT, NETWORK, FITTED]))
    number = data.draw(st.integers(0, 2**16 - 1)) if model == FITTED else 0
    head = SegmentHead(rows, per_block, tuple(words), tuple(crcs), model, *parts, number)
    assert SegmentHead.parse(head.data, 2, head.version) == head
    assert head.parts_at == CHUNK.size + HEAD.size + len(head.data) == len(head.start)
    assert head.size == head.payload + sum(part.size for part in parts) + head.parts_at
    assert sum(head.rows_of(block) for block in range(blocks)) == rows


def test_blocks_are_where_the_head_says():
    head, chunk = segment_of(make_codes(2000, 100, names=make_names(2000)), IndependentModel.fit(make_codes(9, 100)))
    assert len(head.words) > 2
    assert len(chunk) == head.size
    for block, offset in enumerate(head.block_offsets.tolist()):
        assert BLOCK.unpack_from(chunk, offset)[:2] == (head.rows_of(block), head.words[block])
    assert offset + BLOCK.size + 4 * head.words[-1] == len(chunk)


def test_few_words_cannot_claim_many_rows():
    head = make_head(1 << 18, 1 << 18, (3,))
    with pytest.raises(FormatError, match="3 words cannot hold the 262,144 rows of a block"):
        SegmentHead.parse(head.data, 16, head.version)


def test_a_block_is_bounded():
    head = make_head(1 << 18, 1 << 18, (1 << 30,))
    SegmentHead.parse(head.data, 16, head.version)
    with pytest.raises(LimitExceeded, match="the size of a block"):
        SegmentHead.parse(head.data, 17, head.version)


@pytest.mark.parametrize("alphabet", [2, 7])
@pytest.mark.parametrize("value", [0, 1])
def test_the_writer_keeps_to_the_bounds_that_the_reader_has(value, alphabet):
    codes = Codes.from_symbols(np.full((70_000, 12), value, np.uint8), alphabet=alphabet)
    fitted = IndependentModel.fit(codes)
    even = IndependentModel.nearest(np.full(fitted.ones.shape, 0.5), alphabet)
    for model in (fitted, even):
        head, chunk = segment_of(codes, model)
        assert SegmentHead.parse(head.data, codes.decisions_per_row, head.version) == head
        used = model if head.model == INDEPENDENT else fitted
        start = int(head.block_offsets[0])
        packed = read_block(chunk[start : start + BLOCK.size + 4 * head.words[0]], head, 0, used)
        np.testing.assert_array_equal(packed, codes.packed[: len(packed)])


@pytest.mark.parametrize("per_block", [0, 1 << 31])
def test_rows_a_block_are_at_least_one(per_block):
    head = make_head(5, per_block, (9,))
    if per_block:
        assert SegmentHead.parse(head.data, 8, head.version).rows_of(0) == 5
    else:
        with pytest.raises(FormatError, match="makes no sense"):
            SegmentHead.parse(head.data, 8, head.version)


def test_every_truncation_of_a_head_is_a_format_error():
    head = make_head(500, 100, (300, 200, 1, 2, 3))
    for end in range(len(head.data)):
        with pytest.raises(FormatError):
            SegmentHead.parse(head.data[:end], 8, head.version)
    with pytest.raises(FormatError, match="a segment's head has"):
        SegmentHead.parse(head.data + b"\0", 8, head.version)


def test_a_number_of_words_that_is_not_written_shortest_is_refused():
    head = make_head(5, 5, (5,))
    assert head.data.endswith(b"\x05" + bytes(4))
    with pytest.raises(FormatError, match="more bytes than it needs"):
        SegmentHead.parse(head.data[:-5] + b"\x85\0" + bytes(4), 8, head.version)


@pytest.fixture(scope="module")
def block():
    """One block's bytes and the head of its segment."""
    codes = make_codes(20, 8)
    head, chunk = segment_of(codes, EVEN)
    assert head.model == INDEPENDENT
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
    forged = replace(head, crcs=(head.crcs[0] ^ 1,))
    with pytest.raises(ChecksumMismatch, match="what a block decodes to is damaged"):
        read_block(data, forged, 0, EVEN)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 40), st.sampled_from([2, 3, 16]), st.floats(0.02, 0.98))
def test_a_segment_takes_the_cheaper_table(rows, latents, alphabet, p):
    """Its own exactly when that repays itself, so never more than either way takes, but for a stream's end."""
    codes = make_codes(rows, latents, alphabet)
    given_model = IndependentModel.nearest(np.full((latents, (1 << (alphabet - 1).bit_length()) - 1), p), alphabet)
    own = IndependentModel.fit(codes)
    head, chunk = segment_of(codes, given_model)
    repays = own.ideal_bits(codes) + 8 * len(pack_model(own)) < given_model.ideal_bits(codes)
    assert head.model == (OWN if repays else INDEPENDENT)
    assert head.table.size == (len(pack_model(own)) if repays else 0)
    with_own = segment_of(codes, own)[0].payload + len(pack_model(own))
    assert head.payload + head.table.size <= with_own + 64 * len(head.words)
    assert 8 * sum(4 * words for words in head.words) <= given_model.ideal_bits(codes) + 64 * len(head.words)
    assert len(chunk) == head.size


def test_a_megabyte_of_payload_is_within_a_thousandth_of_the_ideal():
    codes = make_codes(5500, 2048)
    model = IndependentModel.fit(make_codes(1000, 2048, seed=5))
    head, _ = segment_of(codes, model)
    used = model if head.model == INDEPENDENT else IndependentModel.fit(codes)
    ideal = used.ideal_bits(codes)
    payload = 32 * sum(head.words)
    assert payload >= 8_000_000
    assert ideal < payload <= 1.001 * ideal
    assert 8 * head.payload <= 1.004 * ideal  # with the blocks' heads
    assert max(head.words) * 32 < 1.05 * 65_536


@pytest.mark.parametrize("make", [make_network, lambda *shape: make_network(*shape, 4), None])
def test_a_model_comes_back_or_is_refused(make):
    model = make(6, 3) if make else IndependentModel.fit(make_codes(50, 6, 3))
    data = pack_model(model)
    assert unpack_model(data, 6, 3).to_bytes() == model.to_bytes()
    for latents, alphabet in (5, 3), (6, 4):
        with pytest.raises(FormatError, match="for other latents"):
            unpack_model(data, latents, alphabet)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            unpack_model(data[:end], 6, 3)
    for raw in zlib.compress(zlib.decompress(data)[:-1]), zlib.compress(zlib.decompress(data) + b"\0"):
        with pytest.raises(FormatError):
            unpack_model(raw, 6, 3)


def test_a_model_of_a_kind_that_is_not_known_or_too_large_is_refused():
    with pytest.raises(FormatError, match="no kind of entropy model called 'later'"):
        unpack_model(zlib.compress(b"later".ljust(16, b"\0")), 6, 3)
    with pytest.raises(FormatError, match="no kind"):
        unpack_model(zlib.compress(b"independent"), 6, 3)
    with pytest.raises(LimitExceeded, match="the size of an entropy model"):
        unpack_model(zlib.compress(bytes(MAX_TABLE + 1), 1), 6, 3)


@pytest.mark.parametrize(("model", "number"), [(4, 0), (255, 0), (INDEPENDENT, 1), (NETWORK, 1), (OWN, 1)])
def test_an_entropy_model_that_cannot_be_is_refused(model, number):
    head = make_head(5, 5, (9,), model, number=number)
    with pytest.raises(FormatError, match=f"cannot have the entropy model {model}, number {number}"):
        SegmentHead.parse(head.data, 8, head.version)


def test_a_segment_takes_the_cheapest_of_all_models():
    network, codes = make_network(12), make_chain(300, 12)
    poor, good = IndependentModel.nearest(np.full((12, 1), 0.99)), IndependentModel.fit(codes)
    candidates = [Candidate(poor), Candidate(good, FITTED, 0), Candidate(network, NETWORK)]
    for count, expected in (2, FITTED), (3, NETWORK):
        head, chunk = write_segment(codes, candidates[:count])
        assert (head.model, head.number) == (expected, 0)
        assert 32 * sum(head.words) <= candidates[count - 1].model.ideal_bits(codes) + 64 * len(head.words)
    decoded = read_block(chunk[int(head.block_offsets[0]) :], head, 0, network)
    np.testing.assert_array_equal(decoded, codes.packed)
    assert write_segment(codes, [*candidates[:1], Candidate(network, FITTED, 7), *candidates[1:]])[0].number == 7


def test_no_network_makes_a_segment_dearer_than_independent_symbols():
    """The guarantee: what a bad network would cost is never paid."""
    codes = make_codes(200, 12)
    independent = IndependentModel.fit(codes)
    alone, _ = segment_of(codes, independent)
    head, _ = write_segment(codes, [Candidate(independent), Candidate(make_network(12), NETWORK)])
    assert head == alone


def test_blocks_that_one_model_codes_are_read_together():
    codes, network = make_chain(12_000, 20), make_network(20)
    head, chunk = write_segment(codes, [Candidate(network, NETWORK)])
    assert len(head.words) > 1
    offsets = [*head.block_offsets.tolist(), head.size]
    data = [chunk[a:b] for a, b in pairwise(offsets)]
    for order, sound in ((data, True), (data[::-1], False)):
        segment = stored(b"".join(order), head)
        with nullcontext() if sound else pytest.raises(FormatError):
            blocks = read_blocks([(segment, number) for number in range(len(data))], network)
            np.testing.assert_array_equal(np.concatenate(blocks), codes.packed)


def test_a_wide_network_has_smaller_blocks(monkeypatch):
    """Every row takes memory for all units of a network, and words that say nothing can claim many rows."""
    codes, network = make_chain(500, 12), make_network(12, hidden=88)
    candidates = [Candidate(IndependentModel.fit(codes)), Candidate(network, NETWORK)]
    whole, chunk = write_segment(codes, candidates)
    assert (whole.model, len(whole.words)) == (NETWORK, 1)
    monkeypatch.setattr(framing, "MAX_BLOCK_VALUES", 100 * 200)
    assert write_segment(codes, candidates)[0].rows_per_block == 200
    with pytest.raises(LimitExceeded, match="the size of a block, with its network"):
        read_block(chunk[int(whole.block_offsets[0]) :], whole, 0, network)


def test_blocks_of_one_size_that_changed_places_are_found_out():
    """Each is sound in itself, and even its number of words may be the other's."""
    halves = [segment_of(make_codes(10, 8, seed=seed), EVEN) for seed in (0, 1)]
    first, second = (chunk[int(head.block_offsets[0]) :] for head, chunk in halves)
    assert len(first) == len(second)
    (one, _), (other, _) = halves
    head = replace(one, rows=20, rows_per_block=10, words=one.words + other.words, crcs=one.crcs + other.crcs)
    segment = stored(first + second, head)
    read_blocks([(segment, 0), (segment, 1)], EVEN)
    segment = stored(second + first, head)
    with pytest.raises(ChecksumMismatch, match="what a block decodes to"):
        read_blocks([(segment, 0), (segment, 1)], EVEN)


def test_the_head_is_found_without_the_index():
    codes = make_codes(50, 8, names=make_names(50))
    head, chunk = segment_of(codes, EVEN)
    assert read_head(chunk, 8, head.version) == head
    for end in range(head.parts_at):
        with pytest.raises(FormatError):
            read_head(chunk[:end], 8, head.version)
    for i in range(head.parts_at):
        damaged = bytearray(chunk)
        damaged[i] ^= 0x10
        with pytest.raises(FormatError):
            read_head(bytes(damaged), 8, head.version)


@pytest.mark.parametrize("layout", [(0, "<4s", b"INDX"), (4, "<Q", 77)])
def test_a_chunk_that_is_no_segment_or_of_another_size_is_refused(layout):
    head, chunk = segment_of(make_codes(50, 8), EVEN)
    at, form, value = layout
    data = bytearray(chunk)
    struct.pack_into(form, data, at, value)
    with pytest.raises(FormatError, match=r"does not begin here|says that it has 77 bytes"):
        read_head(bytes(data), 8, head.version)


def test_the_reserved_byte_of_a_head_is_zero():
    head = replace(make_head(5, 5, (9,)), version=1)
    data = bytearray(head.data)
    data[13] = 1
    with pytest.raises(FormatError, match="not written as it should be"):
        SegmentHead.parse(bytes(data), 8, 1)
    assert SEGMENT.size == 48
    assert head.start[CHUNK.size :][: HEAD.size] == HEAD.pack(len(head.data), crc(head.data))


def test_a_number_of_a_head_fits_its_field():
    """Varints could say more than a field holds, and a second reader might cut them."""
    head = make_head(5, 5, (9,))
    assert len(head.data) < len(replace(head, version=1).data) / 2
    for wide in (1 << 32, 1 << 62):
        with pytest.raises(FormatError, match="larger than it can be"):
            SegmentHead.parse(head.data[:1] + pack_varints([wide]) + head.data[2:], 8, head.version)
