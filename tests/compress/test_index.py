"""Forged indices: every number in them is checked against the others, and against the file."""

import io
import json
import struct
import zlib

import numpy as np
import pytest

from stochcl import framing
from stochcl.compress import Archive
from stochcl.compress.index import Index
from stochcl.compress.segment import Part, SegmentHead
from stochcl.errors import ChecksumMismatch, FormatError, LimitExceeded, Truncated
from stochcl.framing import CHUNK, ENTRY, INDEX, SEGMENT, TRAILER
from tests.compress.making import make_codes, make_names, make_tables, write

TABLES = make_tables(3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    codes = make_codes(12, 3, names=make_names(12), labels=["x"] * 12, uncertainty=np.ones(12))
    return write(tmp_path_factory.mktemp("index") / "a", codes, TABLES, segment_rows=7, version=1).read_bytes()


def forge(data: bytes, change) -> bytes:
    """Let ``change`` edit the index's payload, and seal it again."""
    start, size, _, header, magic = TRAILER.unpack(data[-TRAILER.size :])
    payload = change(bytearray(data[start + CHUNK.size : start + size]))
    chunk = CHUNK.pack(b"INDX", len(payload)) + payload
    return data[:start] + chunk + TRAILER.pack(start, len(chunk), framing.crc(chunk), header, magic)


def put(layout: str, at: int, *values):
    """Return a change that puts values at an offset."""

    def change(payload: bytearray) -> bytearray:
        struct.pack_into(layout, payload, at, *values)
        return payload

    return change


def opening(data: bytes) -> Archive:
    return Archive(io.BytesIO(data))


def test_an_index_that_nobody_changed_is_read(data):
    opening(forge(data, bytes)).verify()


HEAD = INDEX.size + ENTRY.size  # of the first segment


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (put("<Q", 0, 13), FormatError, "do not have the 13 rows"),
        (put("<Q", 0, 1 << 41), LimitExceeded, "the number of rows"),
        (put("<Q", 16, 1), FormatError, "tables cannot begin at byte 1"),
        (put("<QQ", 16, 0, 0), FormatError, "a segment begins at byte"),
        (put("<I", 32, 1), FormatError, "bytes follow the last entry"),
        (put("<I", 32, 3), Truncated, "an entry of the index"),
        (put("<I", 32, 1 << 25), LimitExceeded, "the number of segments"),
        (put("<I", 36, 1 << 20), Truncated, "skipped images ends too early"),
        (put("<Q", INDEX.size, 0), FormatError, "a segment begins at byte 0"),
        (put("<Q", INDEX.size + 8, 7), FormatError, "a segment has 7 bytes in the index"),
        (put("<I", INDEX.size + 16, 1 << 20), Truncated, "an entry of the index"),
        (put("<I", INDEX.size + 16, 10), Truncated, "a segment's head ends too early"),
        (put("<I", HEAD, 0), FormatError, "makes no sense"),
        (put("<I", HEAD, (1 << 18) + 1), LimitExceeded, "the number of a segment's rows"),
        (put("<I", HEAD + 4, 0), FormatError, "makes no sense"),
        (put("<I", HEAD + 8, 2), FormatError, "makes no sense"),
        (put("<B", HEAD + 12, 4), FormatError, "cannot have the entropy model 4, number 0"),
        (put("<H", HEAD + 14, 1), FormatError, "cannot have the entropy model 0, number 1"),
        (put("<B", HEAD + 12, 3), FormatError, "uses the fitted model 0 of 0"),
        (put("<I", 40, 1), FormatError, "fitted model cannot begin at byte|begins at byte|ends too early"),
        (put("<I", 40, 1 << 16), Truncated, "the list of fitted models ends too early"),
        (put("<I", 40, (1 << 16) + 1), LimitExceeded, "the number of fitted models"),
        (put("<I", 44, 1 << 20), Truncated, "the list of retired parts ends too early"),
        (put("<I", 44, (1 << 20) + 1), LimitExceeded, "the number of retired parts"),
        (put("<B", HEAD + 12, 1), FormatError, "is used but not there"),
        (put("<B", HEAD + 13, 1), FormatError, "not written as it should be"),
        (put("<I", HEAD + 24, 1), FormatError, "a segment has"),
        (put("<II", HEAD + 24, 0, 0), FormatError, "a segment has"),
        (put("<I", HEAD + 40, 13), FormatError, "uncertainty of 7 rows has 13 bytes, not two a row"),
        (put("<5B", HEAD + SEGMENT.size, *[0xFF] * 5), FormatError, "ends too early"),
        (put("<B", HEAD + SEGMENT.size, 0xFF), FormatError, "a segment's head has 53 bytes, not 57"),
        (lambda payload: payload + b"\0", FormatError, "1 bytes follow the last entry"),
        (lambda payload: payload[:-1], Truncated, "ends too early"),
        (lambda payload: payload[:20], Truncated, "the index ends too early|before its index"),
    ],
)
def test_numbers_that_cannot_be_true_are_refused(data, change, error, message):
    with pytest.raises(error, match=message):
        opening(forge(data, change))


def test_what_the_index_says_is_what_the_segment_says(data):
    """Another checksum of the first segment's names: consistent in itself, but two readings of one file."""
    with pytest.raises(FormatError, match=r"segment at byte .* is not what the index says"):
        opening(forge(data, put("<I", HEAD + 28, 1))).verify()


def test_names_are_in_all_segments_or_in_none(data):
    """A segment without names beside one with names would leave the names that are there unchecked."""
    names = struct.unpack_from("<I", data, data.index(b"SEGM") + CHUNK.size + framing.HEAD.size + 24)[0]

    def change(payload: bytearray) -> bytearray:
        size = struct.unpack_from("<Q", payload, INDEX.size + 8)[0]
        struct.pack_into("<Q", payload, INDEX.size + 8, size - names)
        struct.pack_into("<II", payload, HEAD + 24, 0, 0)
        return payload

    with pytest.raises(FormatError, match="some segments have names and others have none"):
        opening(forge(data, change))


def test_a_part_that_is_not_there_has_no_checksum(tmp_path):
    data = write(tmp_path / "a", make_codes(12, 3), TABLES, version=1).read_bytes()
    with pytest.raises(FormatError, match="checksum of a part that is not there"):
        opening(forge(data, put("<I", HEAD + 28, 7)))


def layout(**changes) -> Index:
    """An index of two segments with a fitted model before each and a retired part between them."""
    head = SegmentHead(5, 5, (9,), (0,), 0, *(Part(0, 0),) * 4)
    values = {
        "rows": 10,
        "source_bytes": 0,
        "tables": (100, 20),
        "segments": ((130, head), (130 + head.size + 70 + 6, head)),
        "skipped": (),
        "start": 130 + 2 * head.size + 70 + 6,
        "header_crc": 0,
        "fitted": ((130 + head.size + 70, 6), (120, 10)),
        "retired": ((130 + head.size, 70, 0),),
    }
    return Index(**values | changes)


def test_fitted_models_and_retired_parts_stand_anywhere_but_without_a_gap():
    index = layout()
    index.check_layout(100)
    for changes in (
        {"fitted": index.fitted[:1]},
        {"fitted": index.fitted[::-1][:1]},
        {"fitted": (*index.fitted, index.fitted[0])},
        {"fitted": (*index.fitted, (index.start, 0))},
        {"fitted": (index.fitted[0], (120, 0), (120, 10))},
        {"fitted": (index.fitted[0], (119, 11))},
        {"fitted": (index.fitted[0], (120, 11))},
        {"fitted": (index.fitted[0], (1 << 60, 10))},
        {"fitted": (index.fitted[0], (120, (1 << 64) - 1))},
        {"retired": ()},
        {"retired": index.retired * 2},
        {"retired": ((index.retired[0][0], 69, 0),)},
        {"retired": ((index.retired[0][0] + 1, 70, 0),)},
        {"retired": (*index.retired, (index.start, 5, 0))},
        {"segments": index.segments[::-1]},
        {"start": index.start + 1},
        {"tables": (0, 0)},
        {"tables": (100, 21)},
    ):
        with pytest.raises(FormatError, match="begin"):
            layout(**changes).check_layout(100)


@pytest.mark.parametrize(
    "value",
    [
        b"not JSON", b"{}", b"[1]", b"null", b'{"ab": 1}', b'["ab"]', b'[["a", "b", "c"]]', b'[["a", 1]]',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_list_of_skipped_images_is_one_of_names_and_reasons(data, value):
    packed = zlib.compress(value)

    def change(payload: bytearray) -> bytes:
        struct.pack_into("<I", payload, 36, len(packed))
        return bytes(payload[: INDEX.size]) + packed + bytes(payload[INDEX.size :])

    with pytest.raises(FormatError, match="skipped images"):
        _ = opening(forge(data, change)).skipped


def test_skipped_images_of_any_name_are_read(data):
    skipped = [["caf\udce9\n.png", "it is empty"], ["", ""]]
    packed = zlib.compress(json.dumps(skipped).encode())

    def change(payload: bytearray) -> bytes:
        struct.pack_into("<I", payload, 36, len(packed))
        return bytes(payload[: INDEX.size]) + packed + bytes(payload[INDEX.size :])

    assert opening(forge(data, change)).skipped == [tuple(pair) for pair in skipped]


@pytest.mark.parametrize(("layout", "at"), [("<Q", 0), ("<Q", 8)])
@pytest.mark.parametrize("size", [0, 1, 1 << 62, (1 << 64) - 1])
def test_a_trailer_that_points_outside_the_file_or_between_chunks_is_refused(data, layout, at, size):
    trailer = put(layout, at, size)(bytearray(data[-TRAILER.size :]))
    with pytest.raises(FormatError, match="the trailer puts the index at bytes"):
        opening(data[: -TRAILER.size] + bytes(trailer))


def test_a_gap_before_the_index_is_refused(data):
    start, size, checksum, header, magic = TRAILER.unpack(data[-TRAILER.size :])
    trailer = TRAILER.pack(start + 5, size, checksum, header, magic)
    with pytest.raises(FormatError, match=r"the index begins at byte .*, not"):
        opening(data[:start] + b"extra" + data[start : start + size] + trailer)


def test_the_end_of_another_archive_is_refused(data, tmp_path):
    codes = make_codes(0, 3)
    tables = make_tables(3)
    empty, other = (
        write(tmp_path / name, part, tables, version=1).read_bytes()
        for name, part in (("empty", codes), ("other", codes.prefix(2)))
    )
    start = TRAILER.unpack(empty[-TRAILER.size :])[0]
    assert start == TRAILER.unpack(other[-TRAILER.size :])[0]  # all fits but the header
    with pytest.raises(ChecksumMismatch, match="its end is another archive's"):
        opening(other[:start] + empty[start:])


def test_a_trailer_that_points_at_something_else_is_refused(data):
    start, size, _, header, magic = TRAILER.unpack(data[-TRAILER.size :])
    start, size = start - 1, size + 1
    checksum = framing.crc(data[start : start + size])
    with pytest.raises(FormatError, match="does not point at an index"):
        opening(data[: -TRAILER.size] + TRAILER.pack(start, size, checksum, header, magic))
