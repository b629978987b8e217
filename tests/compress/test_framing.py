import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stochcl import framing
from stochcl.errors import ChecksumMismatch, FormatError, LimitExceeded, Truncated
from stochcl.framing import inflate, pack_texts, pack_varints, unpack_texts, unpack_varints

# Any bytes but NUL, as names of files have them.
texts = st.binary(max_size=60).map(lambda b: b.replace(b"\0", b"x").decode("utf-8", "surrogateescape"))

MANY = bytes(100)
"""A hundred varints, which are read all at once."""


@given(st.lists(st.integers(0, 2**62)))
def test_varints_come_back(values):
    data = pack_varints(values)
    assert unpack_varints(data, len(values)) == (values, len(data))
    many, data = values * framing._MANY, b"before" + data * framing._MANY
    assert unpack_varints(data + b"after", len(many), 6) == (many, len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 3])
def test_a_varint_that_ends_too_early_is_truncated(data):
    with pytest.raises(Truncated):
        unpack_varints(data, 1)
    with pytest.raises(Truncated):
        unpack_varints(MANY + data, 101)


@pytest.mark.parametrize("data", [b"\x80\0", b"\xff\x80\0"])
def test_a_varint_is_as_short_as_it_can_be(data):
    for before, after in ((b"", b""), (MANY, b""), (b"", MANY)):
        with pytest.raises(FormatError, match="more bytes than it needs"):
            unpack_varints(before + data + after, len(before + after) + 1)


def test_a_varint_beyond_63_bits_is_refused():
    for before, after in ((b"", b""), (MANY, b""), (b"", MANY)):
        with pytest.raises(FormatError, match="more than 63 bits"):
            unpack_varints(before + b"\xff" * 9 + b"\x01" + after, len(before + after) + 1)


@given(st.lists(texts))
def test_texts_come_back(values):
    assert unpack_texts(pack_texts(values), len(values), "names") == tuple(values)


def test_texts_share_what_they_begin_with():
    names = [f"a/rather/long/folder/image_{i:05d}.jpg" for i in range(1000)]
    assert len(pack_texts(names)) < 0.1 * sum(map(len, names))


def test_a_text_that_shares_more_than_there_is_is_refused():
    raw = pack_varints([3, 1]) + b"a"
    with pytest.raises(FormatError, match="shares 3 bytes"):
        unpack_texts(pack_varints([len(raw)]) + zlib.compress(raw), 1, "names")


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_texts_is_refused(count):
    with pytest.raises(FormatError):
        unpack_texts(pack_texts(["a", "b", "cd"]), count, "names")


def test_inflating_stops_at_the_length_that_was_promised():
    bomb = zlib.compress(b"\0" * 10_000_000)
    with pytest.raises(LimitExceeded):
        inflate(bomb, 100, "names")


@pytest.mark.parametrize("data", [b"", b"not deflated", zlib.compress(b"abc")[:-1], zlib.compress(b"abc") + b"x"])
def test_what_does_not_inflate_whole_is_refused(data):
    with pytest.raises(FormatError):
        inflate(data, 3, "names")


def test_checksums_are_those_of_zlib():
    assert framing.crc(b"1234", b"56789") == 0xCBF43926
    framing.check_crc(0xCBF43926, "it", b"123456789")
    with pytest.raises(ChecksumMismatch, match="it is damaged: its checksum is cbf43926, not 00000000"):
        framing.check_crc(0, "it", b"123456789")


def test_the_structures_have_the_sizes_that_the_format_says():
    sizes = {
        name: getattr(framing, name).size
        for name in (
            "PROLOGUE", "CHUNK", "HEAD", "SEGMENT", "BLOCK", "INDEX", "FITTED", "RETIRED", "ENTRY", "TRAILER"
        )
    }  # fmt: skip
    assert sizes == {
        "PROLOGUE": 20, "CHUNK": 12, "HEAD": 8, "SEGMENT": 48, "BLOCK": 12, "INDEX": 48, "FITTED": 16, "RETIRED": 20,
        "ENTRY": 20, "TRAILER": 32,
    }  # fmt: skip


def test_texts_are_bounded_altogether(monkeypatch):
    """Ten bytes say `as the one before` for a name of a megabyte; so a short list could fill any memory."""
    names = ["x" * 1000] * 50
    data = pack_texts(names)
    assert unpack_texts(data, 50, "names") == tuple(names)
    monkeypatch.setattr(framing, "MAX_TEXT", 49_999)
    with pytest.raises(LimitExceeded, match="the length of names is 50,000"):
        unpack_texts(data, 50, "names")
    with pytest.raises(LimitExceeded, match="the length of all texts is 50,000"):
        pack_texts(names)


def test_texts_are_bounded_without_what_they_share(monkeypatch):
    """A text is an object, however short: a million empty ones deflate to two kilobytes."""
    names = ["ab"] * 100
    data = pack_texts(names)
    monkeypatch.setattr(framing, "MAX_INFLATED_TEXT", 201)
    with pytest.raises(LimitExceeded, match="each without what it shares, is 202"):
        unpack_texts(data, 100, "names")
    with pytest.raises(LimitExceeded, match="each without what it shares, is 202"):
        pack_texts(names)


def test_a_very_long_text_and_equal_and_empty_ones_come_back():
    names = ["", "", "a/" + "x" * 70_000, "a/" + "x" * 70_000, "a/" + "x" * 69_999 + "y", "\udcff\udcfe/ä", ""]
    assert unpack_texts(pack_texts(names), len(names), "names") == tuple(names)
