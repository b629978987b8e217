"""Damaged and forged archives: a FormatError, whatever was done to them, and nothing else."""

import io
from contextlib import nullcontext, suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl import framing
from stochcl.compress import Archive, Writer
from stochcl.entropy.model import FITTED, NETWORK, OWN
from stochcl.errors import BadMagic, FormatError, Truncated, UnsupportedVersion
from tests.compress.golden import append
from tests.compress.making import make_chain, make_codes, make_header, make_names, make_network, make_tables, write


def read_all(data: bytes, tables=()) -> None:
    Archive(io.BytesIO(data), tables=tables).verify()


@pytest.fixture(
    scope="module",
    params=[
        "embedded",
        "outside",
        "own table",
        "network",
        "fitted",
        "appended",
        "categorical",
        "single",
        "version 1",
    ],
)
def small(request, tmp_path_factory):
    """A small archive with everything in it, and the tables it needs from outside."""
    if request.param == "categorical":
        path = tmp_path_factory.mktemp("small") / "a"
        write(path, make_codes(12, 3, 5, names=make_names(12)), make_tables(3, 5, width=2), segment_rows=7)
        return path.read_bytes(), ()
    if request.param in ("network", "fitted", "appended"):
        return with_network(tmp_path_factory.mktemp("small") / "a", request.param)
    own, one = request.param == "own table", request.param == "single"
    tables = make_tables(9 if own else 3, decoder=not own)
    rows = 90 if own else 12
    codes = make_codes(rows, tables.latents, names=make_names(rows), labels=["x", "yy"] * (rows // 2))
    codes = replace(codes, uncertainty=np.ones(rows, np.float32))
    if own:
        codes = replace(codes, packed=np.zeros_like(codes.packed))
    path = tmp_path_factory.mktemp("small") / "a"
    write(
        path,
        codes,
        tables,
        embed=not own and request.param != "outside",
        segment_rows=80 if own or one else 7,
        version=1 if request.param == "version 1" else 3,
    )
    with Archive(path, tables=[tables]) as archive:
        assert (archive._index.segments[0][1].model == OWN) == own
    return path.read_bytes(), () if not own and request.param != "outside" else (tables,)


def with_network(path, kind: str):
    """An archive that a network codes: that of the tables, or one of its own, of selected latents."""
    network = make_network(4, hidden=2)
    codes = make_chain(40, 4, names=make_names(40), labels=["x", "yy"] * 20, uncertainty=np.ones(40))
    if kind == "network":
        tables = make_tables(5, 2, network=make_network(5, hidden=3))
        write(path, codes, tables, segment_rows=30)
    elif kind == "fitted":
        tables = make_tables(6, 2)
        write(path, codes, tables, selection=(0, 2, 3, 5), fitted=[network], segment_rows=30)
    else:
        tables = make_tables(4, 2, network=network)
        write(path, codes[:30], tables)
        append(path, codes[30:], tables)
    with Archive(path) as archive:
        models = {head.model for _, head in archive._index.segments}
        assert models == ({FITTED} if kind == "fitted" else {NETWORK})
        np.testing.assert_array_equal(archive[:].packed, codes.packed)
    return path.read_bytes(), ()


def test_every_truncation_is_a_format_error(small):
    data, tables = small
    read_all(data, tables)
    with Archive(io.BytesIO(data), tables=tables) as archive:
        earlier = {start + size for start, size, _ in archive._index.retired}
    for end in range(len(data)):
        if earlier and end >= min(earlier):  # by design: what is left is the archive as it was before the append
            read_all(data[:end], tables)
            continue
        with pytest.raises(FormatError):
            read_all(data[:end], tables)


def flips(data: bytes):
    """Yield the data with every byte changed, one bit of it and all of them."""
    for i in range(len(data)):
        for change in (1 << i % 8, 0xFF):
            damaged = bytearray(data)
            damaged[i] ^= change
            yield bytes(damaged)


def test_every_flipped_byte_is_a_format_error(small):
    data, tables = small
    for damaged in flips(data):
        with pytest.raises(FormatError):
            read_all(damaged, tables)


def test_without_checksums_flipped_bytes_are_a_format_error_or_other_content(small, monkeypatch):
    """What an attacker writes has good checksums; it must meet a check and never an accident."""
    data, tables = small
    for room in ("framing", "compress.archive", "compress.segment", "entropy.tables"):
        monkeypatch.setattr(f"stochcl.{room}.check_crc", lambda expected, what, *parts: None)
    passed = 0
    for damaged in flips(data):
        try:
            read_all(damaged, tables)
        except FormatError:
            continue
        passed += 1
    assert 0 < passed < len(data)


def test_bytes_that_follow_are_a_format_error(small):
    data, tables = small
    for extra in (b"\1", b"SEG?", data[-32:], data):
        with pytest.raises(FormatError):
            read_all(data + extra, tables)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2000), st.binary(max_size=200))
def test_random_bytes_after_a_good_beginning_are_a_format_error(small, keep, tail):
    data, tables = small
    with Archive(io.BytesIO(data), tables=tables) as archive:
        first = min([start + size for start, size, _ in archive._index.retired], default=len(data))
    damaged = data[:keep] + tail + b"\xff"
    # What looks like an append that was interrupted is passed over.
    with pytest.raises(FormatError) if keep < first else suppress(FormatError):
        read_all(damaged, tables)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_random_bytes_after_the_magic_are_a_format_error(tail):
    with pytest.raises(FormatError):
        read_all(framing.MAGIC + tail)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_an_index_with_a_good_checksum_but_other_numbers_is_a_format_error(small, data):
    whole, tables = small
    start, size, _, header, magic = framing.TRAILER.unpack(whole[-framing.TRAILER.size :])
    index = bytearray(whole[start : start + size])
    at = data.draw(st.integers(0, len(index) - 1))
    index[at] ^= data.draw(st.integers(1, 255))
    forged = (
        whole[:start] + bytes(index) + framing.TRAILER.pack(start, size, framing.crc(bytes(index)), header, magic)
    )
    try:
        read_all(forged, tables)
    except FormatError:
        return
    # Nothing but the count of source bytes, which stands behind that of rows, may be changed without being noticed.
    first, size = (8, 8) if whole[8] == 1 else (1, 2)
    assert framing.CHUNK.size + first <= at < framing.CHUNK.size + first + size


def test_the_kinds_of_damage_have_their_errors(small):
    data, tables = small
    with pytest.raises(BadMagic, match="not an archive of codes"):
        read_all(b"PK\3\4" + data)
    with pytest.raises(UnsupportedVersion):
        read_all(data[:8] + bytes([framing.VERSION + 1]) + data[9:])
    with Archive(io.BytesIO(data), tables=tables) as archive:
        appended = bool(archive._index.retired)
    with nullcontext() if appended else pytest.raises(Truncated, match="cut short or not finished"):
        read_all(data[:-1], tables)


def test_a_partial_file_is_truncated(tmp_path):
    tables = make_tables(6)
    with Writer(tmp_path / "a", make_header(tables), tables, embed_tables=True, segment_rows=4) as writer:
        writer.add(make_codes(9, 6))
        with pytest.raises(Truncated, match=r"a\.partial: .*"):
            Archive(tmp_path / "a.partial")
    with Archive(tmp_path / "a") as archive:
        archive.verify()
