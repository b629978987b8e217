"""Blocks and segments that changed places, though all that they say of their sizes is the same: still an error."""

import io
from itertools import combinations

import pytest

from stochcl.compress import Archive, segment
from stochcl.errors import FormatError
from stochcl.framing import BLOCK
from tests.compress.making import make_codes, make_tables, write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "_BLOCK_BITS", 300)  # blocks of ten words, many of the same size
        path = tmp_path_factory.mktemp("swapped") / "a"
        write(path, make_codes(400, 8), make_tables(8), segment_rows=100)
    return path.read_bytes()


def places(data: bytes) -> list[tuple[int, int]]:
    """Beginning and end of every block."""
    found = []
    for offset, head in Archive(io.BytesIO(data))._index.segments:
        for start, words in zip(head.block_offsets.tolist(), head.words, strict=True):
            found.append((offset + start, offset + start + BLOCK.size + 4 * words))
    return found


def test_blocks_of_one_size_that_changed_places_are_found(data):
    swapped = 0
    for (a, b), (c, d) in combinations(places(data), 2):
        if b - a != d - c:
            continue
        changed = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
        archive = Archive(io.BytesIO(changed))
        with pytest.raises(FormatError, match=r"rows \d+ to \d+: (what a block decodes to is damaged|a block says)"):
            archive.verify()
        with pytest.raises(FormatError):
            archive[:]
        swapped += 1
    assert swapped > 5


def test_a_block_that_stands_in_the_place_of_another_is_found(data):
    for (a, b), (c, d) in combinations(places(data), 2):
        if b - a == d - c:
            with pytest.raises(FormatError):
                Archive(io.BytesIO(data[:c] + data[a:b] + data[d:])).verify()


def test_segments_of_one_size_that_changed_places_are_found(data):
    segments = [(offset, offset + head.size) for offset, head in Archive(io.BytesIO(data))._index.segments]
    sizes = [b - a for a, b in segments]
    assert len(set(sizes)) < len(sizes)
    for (a, b), (c, d) in combinations(segments, 2):
        if b - a == d - c:
            changed = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
            with pytest.raises(FormatError):
                Archive(io.BytesIO(changed)).verify()
