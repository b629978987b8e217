import dataclasses
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stochcl.compress.header import DICTIONARY, Header
from stochcl.errors import BadMagic, FormatError, LimitExceeded, Truncated, UnsupportedVersion
from stochcl.files import is_lfs_pointer
from stochcl.framing import MAGIC, MAX_NESTING, PROLOGUE, crc
from tests.compress.making import make_header, make_tables

HEADER = dataclasses.replace(make_header(make_tables(6)), version=1)


def parse(data: bytes) -> Header:
    size = Header.size_of(data[: PROLOGUE.size])
    return Header.from_bytes(data[: PROLOGUE.size], data[PROLOGUE.size : PROLOGUE.size + size])


def with_values(**changes) -> bytes:
    values = json.loads(HEADER.to_bytes()[PROLOGUE.size :]) | changes
    return sealed(json.dumps(values).encode())


def sealed(text: bytes, version: int = 1) -> bytes:
    """Return a header of this text; of version 3 with hashes, and deflated."""
    if version == 3:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
        text = bytes(64) + deflater.compress(text) + deflater.flush()
    head = PROLOGUE.pack(MAGIC, version, 0, len(text), 0)[:-4]
    return head + crc(head, text).to_bytes(4, "little") + text


def plain(**changes) -> bytes:
    return json.dumps(json.loads(HEADER.to_bytes()[PROLOGUE.size :]) | changes).encode()


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_header_comes_back(version):
    header = dataclasses.replace(HEADER, version=version)
    found = parse(header.to_bytes())
    assert (found, found.version) == (header, version)


def test_a_header_of_version_3_is_small_and_bounded():
    data = dataclasses.replace(HEADER, version=3).to_bytes()
    assert len(data) < PROLOGUE.size + 64 + 60
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    bomb = bytes(64) + deflater.compress(b" " * (2 << 20)) + deflater.flush()
    head = PROLOGUE.pack(MAGIC, 3, 0, len(bomb), 0)[:-4]
    with pytest.raises(LimitExceeded, match="the header"):
        parse(head + crc(head, bomb).to_bytes(4, "little") + bomb)


def nested(levels: int) -> dict:
    value: dict = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("key", ["preprocess", "remark"])
def test_nesting_is_bounded_where_it_is_read_and_written(version, key):
    """What is nested deeper than the reader can recur could be read by one program and not written by another."""
    parse(sealed(plain(**{key: nested(MAX_NESTING - 1)}), version))
    for levels in (MAX_NESTING, 500):
        with pytest.raises(LimitExceeded, match="deep"):
            parse(sealed(plain(**{key: nested(levels)}), version))
    with pytest.raises(LimitExceeded, match="deep"):
        dataclasses.replace(HEADER, preprocess=nested(500), version=version).to_bytes()


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize(
    "text",
    [
        plain(selection=None),
        plain().decode().encode("utf-16"),
        plain().decode().encode("utf-32-le"),
        b"\xef\xbb\xbf" + plain(),
        plain(model="x").replace(b'"x"', '"é"'.encode()),
        plain().replace(b" ", b"\x0c"),
        plain() + b"{}",
    ],
    ids=["null", "utf-16", "utf-32", "mark", "utf-8", "form feed", "two"],
)
def test_what_is_json_elsewhere_is_refused(text, version):
    with pytest.raises(FormatError):
        parse(sealed(text, version))
    parse(sealed(plain(), version))


def test_a_selection_comes_back_and_is_left_out_where_there_is_none():
    chosen = dataclasses.replace(HEADER, latents=3, selection=(0, 2, 5))
    assert parse(chosen.to_bytes()) == chosen
    assert b"selection" not in HEADER.to_bytes()


@pytest.mark.parametrize(
    "selection", [[], [0, 1], [0, 1, 2, 3], [2, 1, 3], [1, 1, 2], [-1, 1, 2], [1, 2, 6], [0, 1, True], "012", {}]
)
def test_a_selection_that_is_not_one_is_refused(selection):
    with pytest.raises(FormatError, match="selection"):
        parse(with_values(latents=3, selection=selection))


def test_the_version_for_trying_out_is_refused():
    data = HEADER.to_bytes()
    with pytest.raises(UnsupportedVersion, match=r"version 0 .* this program reads 1 to 4; it is from before"):
        parse(data[:8] + bytes(2) + data[10:])


def test_what_a_later_version_adds_is_passed_over():
    assert parse(with_values(remark="from the future")) == HEADER


@pytest.mark.parametrize(
    "changes",
    [
        {"latents": 0},
        {"latents": 7},
        {"latents": "6"},
        {"latents": True},
        {"alphabet": 1},
        {"alphabet": 1 << 20},
        {"model": 7},
        {"model_sha256": "ab"},
        {"tables_sha256": "X" * 64},
        {"feature_dim": -1},
        {"feature_dim": (1 << 48) + 1},
        {"input_bytes": 10**400},
        {"preprocess": []},
        {"model_latents": 5000, "latents": 5},
    ],
)
def test_values_that_make_no_sense_are_refused(changes):
    with pytest.raises(FormatError):
        parse(with_values(**changes))


@pytest.mark.parametrize("key", ["latents", "model", "remark"])
def test_a_key_that_occurs_twice_is_refused(key):
    """Two readers could take one or the other."""
    text = HEADER.to_bytes()[PROLOGUE.size : -1] + f',"{key}":6,"{key}":6}}'.encode()
    with pytest.raises(FormatError, match="a key occurs twice"):
        parse(sealed(text))


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 30, str(1 << 64), "-9" * 9]
)
def test_a_number_that_is_not_finite_or_too_long_is_refused(value, version):
    text = HEADER.to_bytes()[PROLOGUE.size :].replace(b'"size":8', f'"size":{value}'.encode())
    with pytest.raises(FormatError):
        parse(sealed(text, version))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_is_not_written(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        dataclasses.replace(HEADER, preprocess={"size": float(value)}).to_bytes()


def test_a_header_is_bounded_when_it_is_written():
    with pytest.raises(LimitExceeded, match="the size of the header"):
        dataclasses.replace(HEADER, preprocess={"remark": "x" * (1 << 20)}).to_bytes()


def test_reserved_bits_are_zero():
    data = HEADER.to_bytes()
    with pytest.raises(FormatError, match="reserved bits of the prologue are 0x0100"):
        parse(data[:10] + b"\0\1" + data[12:])


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff"])
def test_what_is_not_a_json_object_is_refused(text):
    with pytest.raises(FormatError):
        parse(sealed(text))


def test_a_future_version_says_so():
    data = HEADER.to_bytes()
    with pytest.raises(UnsupportedVersion, match=r"version 7 .* this program reads 1 to 4; update stochcl"):
        parse(data[:8] + b"\7\0" + data[10:])


@given(st.binary(min_size=1, max_size=40).filter(lambda b: not MAGIC.startswith(b[:8]) and not is_lfs_pointer(b)))
def test_foreign_bytes_are_bad_magic(data):
    with pytest.raises(BadMagic):
        Header.size_of(data)


def test_an_empty_file_is_bad_magic_and_a_cut_prologue_truncated():
    with pytest.raises(BadMagic):
        Header.size_of(b"")
    with pytest.raises(Truncated):
        Header.size_of(HEADER.to_bytes()[:12])


def test_the_size_is_bounded():
    with pytest.raises(LimitExceeded):
        Header.size_of(PROLOGUE.pack(MAGIC, 1, 0, 1 << 30, 0))


def test_equal_headers_have_equal_bytes():
    assert dataclasses.replace(HEADER).to_bytes() == HEADER.to_bytes()
