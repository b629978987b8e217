import io
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.compress import Archive, framing
from stochcl.errors import (
    BadMagic,
    ChecksumMismatch,
    FormatError,
    ModelMismatch,
    SourceError,
    Truncated,
    UnsupportedVersion,
    UsageError,
)
from tests.compress.making import make_codes, make_names, make_tables, write

texts = st.binary(min_size=1, max_size=300).map(lambda b: b.replace(b"\0", b"x").decode("utf-8", "surrogateescape"))


@settings(deadline=None, max_examples=40)
@given(
    alphabet=st.sampled_from([2, 3, 16, 256, 300]),
    latents=st.integers(1, 9),
    names=st.lists(texts, max_size=30),
    kept=st.integers(1, 9),
    segment=st.integers(1, 12),
)
def test_what_was_written_is_read(tmp_path_factory, alphabet, latents, names, kept, segment):
    path = tmp_path_factory.mktemp("archive") / "a"
    tables = make_tables(latents, alphabet)
    codes = make_codes(len(names), min(kept, latents), alphabet, names=names)
    write(path, codes, tables, segment_rows=segment)
    with Archive(path) as archive:
        archive.verify()
        np.testing.assert_array_equal(archive.to_numpy(), codes.symbols())
        np.testing.assert_array_equal(archive.to_vectors(), tables.decoder.decode(codes.symbols()))
        assert archive.names == (tuple(names) or None)
        assert sum(archive.parts().values()) == archive.size == path.stat().st_size


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """An archive of several segments of several blocks, and its codes."""
    codes = make_codes(3000, 100, names=make_names(3000))
    return write(tmp_path_factory.mktemp("big") / "a", codes, make_tables(100), segment_rows=1300), codes


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_rows_are_those_of_the_whole(big, data):
    path, codes = big
    rows = st.integers(-3000, 2999)
    chosen = data.draw(st.one_of(rows, st.slices(3000), st.lists(rows, min_size=1, max_size=20)))
    expected = codes[chosen]
    with Archive(path) as archive:
        found = archive[chosen]
    np.testing.assert_array_equal(found.packed, expected.packed)
    assert found.names == expected.names


@pytest.mark.parametrize("row", [3000, -3001, [5, 3000]])
def test_a_row_that_is_not_there_is_an_index_error(big, row):
    with Archive(big[0]) as archive, pytest.raises(IndexError):
        archive[row]


def test_one_row_reads_one_block(big, monkeypatch):
    with Archive(big[0]) as archive:
        names = archive.names
        assert names is not None
        read = []
        real = archive._reader.read
        monkeypatch.setattr(archive._reader, "read", lambda offset, size: read.append(size) or real(offset, size))
        archive[2345]
        assert sum(read) < 0.3 * archive.size


def test_prefixes_are_those_of_the_symbols(big):
    path, codes = big
    with Archive(path) as archive:
        np.testing.assert_array_equal(archive.to_numpy(17), codes.symbols()[:, :17])
        np.testing.assert_allclose(
            archive.to_vectors(17), archive.tables.decoder.decode(codes.symbols()[:, :17]), rtol=1e-6
        )
        with pytest.raises(UsageError, match="100 latents, not 101"):
            archive.to_numpy(101)


def test_an_archive_can_be_pickled_and_used_from_threads_and_processes(big):
    path, codes = big
    with Archive(path) as archive:
        again = pickle.loads(pickle.dumps(archive))
        np.testing.assert_array_equal(again[-1].packed, codes[-1].packed)
        again.close()
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: archive[i].packed, range(0, 3000, 97)))
        np.testing.assert_array_equal(np.concatenate(found), codes[::97].packed)
        with multiprocessing.get_context("fork").Pool(2) as processes:
            found = processes.map(archive.__getitem__, [1, 2000])
        np.testing.assert_array_equal(found[1].packed, codes[2000].packed)


def test_a_file_object_is_read_but_not_pickled(big):
    data = io.BytesIO(big[0].read_bytes())
    archive = Archive(data)
    np.testing.assert_array_equal(archive[5:9].packed, big[1][5:9].packed)
    with pytest.raises(TypeError, match="by its path"):
        pickle.dumps(archive)


def test_labels_are_the_first_folders_unless_they_are_stored(tmp_path):
    tables = make_tables(4)
    for names, labels, expected in [
        (["a/1", "b/c/2"], None, ("a", "b")),
        (["1", "2"], None, None),
        (["a/1", "2"], ["x", "y"], ("x", "y")),
    ]:
        path = write(tmp_path / "a", make_codes(2, 4, names=names, labels=labels), tables, force=True)
        with Archive(path) as archive:
            assert archive.labels == expected
            assert archive[1].labels == (None if expected is None else expected[1:])


def test_tables_are_found_outside(tmp_path, monkeypatch):
    tables = make_tables(6)
    path = write(tmp_path / "a", make_codes(9, 6), tables, embed=False)
    with Archive(path) as archive, pytest.raises(ModelMismatch, match=r"a: the decoding tables .*STOCHCL_MODELS"):
        archive.to_numpy()
    with Archive(path, tables=[tables]) as archive:
        assert archive.external_bytes == len(tables.data)
        assert archive.parts()["tables"] == 0
        archive.verify()
    with Archive(path, tables=[make_tables(5)]) as archive, pytest.raises(ModelMismatch):
        archive.verify()


def test_without_a_decoder_there_are_symbols_only(tmp_path):
    path = write(tmp_path / "a", make_codes(9, 6, 5), make_tables(6, 5, decoder=False))
    with Archive(path) as archive:
        assert not archive.has_decoder
        assert archive.to_numpy().shape == (9, 6)
        with pytest.raises(UsageError, match="no vector decoder"):
            archive.to_vectors()


# Damage


def read_all(data: bytes, tables=()) -> None:
    Archive(io.BytesIO(data), tables=tables).verify()


@pytest.fixture(scope="module", params=["embedded", "outside", "own table"])
def small(request, tmp_path_factory):
    """A small archive with everything in it, and the tables it needs from outside."""
    tables = make_tables(3)
    codes = make_codes(12, 3, names=make_names(12), labels=["x", "yy"] * 6, uncertainty=np.ones(12))
    if request.param == "own table":
        codes = codes[np.zeros(2000, int)]
    path = tmp_path_factory.mktemp("small") / "a"
    write(path, codes, tables, embed=request.param == "embedded", segment_rows=1000 if len(codes) > 12 else 7)
    return path.read_bytes(), () if request.param == "embedded" else (tables,)


def test_every_truncation_is_a_format_error(small):
    data, tables = small
    read_all(data, tables)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            read_all(data[:end], tables)


def test_every_flipped_byte_is_a_format_error(small):
    data, tables = small
    for i in range(len(data)):
        damaged = bytearray(data)
        damaged[i] ^= 1 << i % 8
        with pytest.raises((FormatError, ModelMismatch)):
            read_all(bytes(damaged), tables)


def test_bytes_that_follow_are_a_format_error(small):
    data, tables = small
    for extra in (b"\0", data[-32:], data):
        with pytest.raises(FormatError):
            read_all(data + extra, tables)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 60))
def test_random_bytes_after_a_good_beginning_are_a_format_error(tail, keep):
    with pytest.raises(FormatError):
        read_all(framing.MAGIC[:keep] + tail)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_an_index_with_a_good_checksum_but_other_numbers_is_a_format_error(small, data):
    whole, tables = small
    start, size, _, magic = framing.TRAILER.unpack(whole[-framing.TRAILER.size :])
    index = bytearray(whole[start : start + size])
    at = data.draw(st.integers(0, len(index) - 1))
    index[at] ^= data.draw(st.integers(1, 255))
    forged = whole[:start] + bytes(index) + framing.TRAILER.pack(start, size, framing.crc(bytes(index)), magic)
    try:
        read_all(forged, tables)
    except FormatError:
        return
    # Nothing but the count of source bytes may be changed without being noticed.
    assert framing.CHUNK.size + 8 <= at < framing.CHUNK.size + 16


def test_the_kinds_of_damage_have_their_errors(small):
    data, tables = small
    with pytest.raises(BadMagic, match="not an archive of codes"):
        read_all(b"PK\3\4" + data)
    with pytest.raises(UnsupportedVersion):
        read_all(data[:8] + b"\1" + data[9:])
    with pytest.raises(Truncated, match="cut short or not finished"):
        read_all(data[:-1], tables)


def test_a_partial_file_is_truncated(tmp_path):
    path = write(tmp_path / "a", make_codes(9, 6), make_tables(6))
    data = path.read_bytes()
    start = framing.TRAILER.unpack(data[-framing.TRAILER.size :])[0]
    with pytest.raises(Truncated):
        read_all(data[:start])


def test_messages_name_the_file_and_the_rows(big, tmp_path):
    data = bytearray(big[0].read_bytes())
    with Archive(big[0]) as archive:
        offset, head = archive._index.segments[1]
        data[offset + int(head.block_offsets[0]) + 40] ^= 1
    path = tmp_path / "damaged"
    path.write_bytes(data)
    with Archive(path) as archive:
        archive[:1300]  # the first segment is as it was
        with pytest.raises(ChecksumMismatch, match=r"damaged: rows 1,300 to .*: a block is damaged"):
            archive[1300]


def test_what_is_not_there_or_not_a_file_is_a_source_error(tmp_path):
    with pytest.raises(SourceError, match="there is no such file"):
        Archive(tmp_path / "missing")
    with pytest.raises(SourceError, match="directory"):
        Archive(tmp_path)
