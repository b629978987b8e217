import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.compress import Archive, Writer
from stochcl.compress import edit as moving
from stochcl.compress.append import Appender
from stochcl.compress.columns import pack_uncertainty, unpack_uncertainty
from stochcl.compress.salvage import salvage
from stochcl.compress.transcode import Transcoding
from stochcl.errors import FormatError
from stochcl.framing import pack_varints
from tests import independent_reader
from tests.compress.making import make_codes, make_header, make_names, make_tables, noise

ROWS, LATENTS = 90, 12
TABLES = make_tables(LATENTS)
ENTROPY = (300 + 40 * noise(ROWS, 1)[:, 0] ** 2).astype(np.float32)
CODES = make_codes(ROWS, LATENTS, names=make_names(ROWS), uncertainty=ENTROPY)

bits = st.floats(0, 4096, width=32)


def written(path, codes=CODES, version=2, **options):
    """Write codes to an archive of this version."""
    header = replace(make_header(TABLES, codes.latents), version=version)
    with Writer(path, header, TABLES, embed_tables=True, **options) as writer:
        writer.add(codes)
    return path


def stored(path, **options):
    with Archive(path, **options) as archive:
        archive.verify()
        return archive.uncertainty


@given(st.lists(bits, min_size=1, max_size=300))
def test_values_come_back_to_half_a_step_of_a_256th_of_their_range(values):
    given_ = np.array(values, np.float32)
    found = unpack_uncertainty(pack_uncertainty(given_, 2), len(given_), 2)
    assert found.dtype == np.float32
    step = max(2.0**-8, 2 * np.ptp(given_.astype(np.float64)) / 254)
    assert np.abs(found.astype(np.float64) - given_).max() <= step / 2


@given(st.lists(bits, min_size=1, max_size=100), st.data())
def test_what_was_read_and_any_choice_of_it_comes_back_exactly(values, data):
    found = unpack_uncertainty(pack_uncertainty(np.array(values, np.float32), 2), len(values), 2)
    chosen = found[data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1))]
    np.testing.assert_array_equal(unpack_uncertainty(pack_uncertainty(chosen, 2), len(chosen), 2), chosen)


def test_it_costs_a_byte_a_row_or_less_and_nothing_where_all_are_alike():
    many = (300 + 40 * noise(10_000, 1)[:, 0] ** 2).astype(np.float32)
    assert 0.5 * len(many) < len(pack_uncertainty(many, 2)) < len(many)
    assert len(pack_uncertainty(np.full(10_000, 4.5, np.float32), 2)) < 50


@pytest.mark.parametrize("wrong", [-0.5, np.nan, np.inf, 70_000])
def test_what_is_no_entropy_is_refused(wrong):
    with pytest.raises(ValueError, match="an entropy in bits"):
        pack_uncertainty(np.array([1, wrong], np.float32), 2)


@given(st.binary(max_size=60), st.integers(1, 50))
def test_foreign_bytes_are_a_format_error(data, rows):
    try:
        found = unpack_uncertainty(data, rows, 2)
    except FormatError:
        return
    assert len(found) == rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no bytes"),
        (b"\0", "ends too early"),
        (struct.pack("<b", -9) + b"\0" + zlib.compress(b"ab"), "makes no sense"),
        (struct.pack("<b", 13) + b"\0" + zlib.compress(b"ab"), "makes no sense"),
        (b"\0" + pack_varints([(1 << 16) + 1]) + zlib.compress(b"ab"), "makes no sense"),
        (b"\0\0" + zlib.compress(b"abc"), "more than 2 is not allowed"),
        (b"\0\0" + zlib.compress(b"a"), "inflate to 1 bytes, not 2"),
        (b"\0\0" + zlib.compress(b"ab")[:-1], "do not end where they should"),
        (b"\0\0" + zlib.compress(bytes(1 << 24)), "more than 2 is not allowed"),
    ],
)
def test_what_makes_no_sense_is_refused(data, message):
    with pytest.raises(FormatError, match=message):
        unpack_uncertainty(data, 2, 2)


def test_an_archive_gives_it_for_all_rows_and_any_and_counts_it_apart(tmp_path):
    path = written(tmp_path / "a", segment_rows=40)
    found = stored(path)
    np.testing.assert_allclose(found, ENTROPY, atol=0.13)
    with Archive(path) as archive:
        np.testing.assert_array_equal(archive[[7, 80, 41]].uncertainty, found[[7, 80, 41]])
        parts = archive.parts()
        assert sum(parts.values()) == archive.size
        assert parts["uncertainty"] == sum(head.entropy.size for _, head in archive._index.segments) > 0
    assert independent_reader.Archive(path.read_bytes()).uncertainty == found.tolist()


def test_without_it_the_file_is_of_version_1_and_as_ever(tmp_path):
    bare = replace(CODES, uncertainty=None)
    plain = written(tmp_path / "a", bare, version=1)
    left_out = written(tmp_path / "b", CODES, version=1, uncertainty=False)
    assert plain.read_bytes() == left_out.read_bytes()
    assert plain.read_bytes()[8] == 1
    assert stored(plain) is None


def test_it_survives_append_split_merge_and_any_width(tmp_path):
    path, whole = written(tmp_path / "a", CODES[:50]), tmp_path / "whole"
    with Appender(path, segment_rows=30) as out:
        out.add(CODES[50:])
    found = stored(path)
    np.testing.assert_allclose(found, ENTROPY, atol=0.13)
    with Archive(path) as archive:
        moving.split(archive, tmp_path / "b", 0, 33)
        moving.split(archive, tmp_path / "c", 33, ROWS)
        for width in (1, 5, LATENTS):
            Transcoding(archive, embed=True).write(tmp_path / f"{width}", width)
            np.testing.assert_allclose(stored(tmp_path / f"{width}"), found, atol=0.13)
        Transcoding(archive, embed=True, uncertainty=False).write(tmp_path / "none", LATENTS)
    assert stored(tmp_path / "none") is None
    with Archive(tmp_path / "b") as first, Archive(tmp_path / "c") as second:
        moving.check_alike([first, second], ["b", "c"])
        moving.merge([first, second], whole)
    np.testing.assert_array_equal(stored(whole), found)


def test_archives_of_both_versions_are_joined_as_version_2(tmp_path):
    old, new = written(tmp_path / "old", CODES[:40], version=1), written(tmp_path / "new", CODES[40:])
    for order in ([old, new], [new, old]):
        with Archive(order[0]) as first, Archive(order[1]) as second:
            moving.merge([first, second], tmp_path / "both", force=True)
            expected = np.concatenate([first.uncertainty, second.uncertainty])
        np.testing.assert_allclose(stored(tmp_path / "both"), expected, atol=0.13)
        assert (tmp_path / "both").read_bytes()[8] == 2


def test_every_damage_of_it_is_a_format_error_and_salvage_keeps_the_codes(tmp_path):
    path = written(tmp_path / "a", CODES[:30], segment_rows=15)
    data = path.read_bytes()
    with Archive(path) as archive:
        offset, head = archive._index.segments[1]
        start = offset + head.parts_at + head.table.size + head.names.size + head.labels.size
    for i in range(head.entropy.size):
        damaged = bytearray(data)
        damaged[start + i] ^= 1 << i % 8
        with pytest.raises(FormatError):
            Archive(io.BytesIO(bytes(damaged))).verify()
        with (
            Archive(io.BytesIO(bytes(damaged))) as archive,
            pytest.raises(FormatError, match="the entropy of"),
        ):
            _ = archive.uncertainty
    (tmp_path / "damaged").write_bytes(damaged)
    salvage(tmp_path / "damaged", tmp_path / "saved")
    with Archive(tmp_path / "saved") as saved:
        np.testing.assert_array_equal(saved.to_numpy(), CODES[:30].symbols())
        assert saved.uncertainty is None


def test_a_block_that_is_damaged_takes_only_its_own_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("stochcl.compress.segment._BLOCK_BITS", 200)
    path = written(tmp_path / "a")
    with Archive(path) as archive:
        offset, head = archive._index.segments[0]
        found, rows = archive.uncertainty, head.rows_per_block
        at = offset + int(head.block_offsets[1]) + 12
    assert len(head.words) > 2
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)
    salvage(path, tmp_path / "saved")
    np.testing.assert_array_equal(stored(tmp_path / "saved"), np.delete(found, slice(rows, 2 * rows)))


@settings(deadline=None, max_examples=30)
@given(st.lists(bits, min_size=1, max_size=40), st.integers(1, 15))
def test_the_written_down_format_is_enough_to_read_it(tmp_path_factory, values, segment_rows):
    codes = make_codes(len(values), LATENTS, uncertainty=np.array(values, np.float32))
    path = written(tmp_path_factory.mktemp("any") / "a", codes, segment_rows=segment_rows)
    assert independent_reader.Archive(path.read_bytes()).uncertainty == stored(path).tolist()
