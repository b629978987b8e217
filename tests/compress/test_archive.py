import io
import multiprocessing
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stochcl.compress.archive
from stochcl.compress import Archive
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import INDEPENDENT, NETWORK, OWN
from stochcl.entropy.tables import Tables
from stochcl.errors import ChecksumMismatch, ModelMismatch, SourceError, UsageError
from stochcl.framing import BLOCK
from tests.compress.making import make_chain, make_codes, make_names, make_network, make_tables, write

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
    chosen = data.draw(st.one_of(rows, st.slices(3000), st.lists(rows, max_size=20)))
    expected = codes[chosen]
    with Archive(path) as archive:
        found = archive[chosen]
    np.testing.assert_array_equal(found.packed, expected.packed)
    assert found.names == expected.names


def test_a_mask_and_a_numpy_integer_choose_rows(big):
    path, codes = big
    mask = np.arange(3000) % 701 == 3
    with Archive(path) as archive:
        np.testing.assert_array_equal(archive[mask].packed, codes[mask].packed)
        np.testing.assert_array_equal(archive[np.int16(-2)].packed, codes[-2].packed)
        np.testing.assert_array_equal(archive[np.array([7, 5], np.uint8)].packed, codes[[7, 5]].packed)


@pytest.mark.parametrize(
    "row", [3000, -3001, [5, 3000], 1 << 70, [[1, 2]], [0.5], ["a"], np.ones(2999, bool)], ids=repr
)
def test_a_row_that_is_not_there_is_an_index_error(big, row):
    with Archive(big[0]) as archive, pytest.raises(IndexError):
        archive[row]


def test_names_are_not_read_for_symbols(big, monkeypatch):
    with Archive(big[0]) as archive:
        monkeypatch.setattr(archive, "_texts", lambda which: pytest.fail("names were read"))
        archive.to_numpy()
        archive.to_vectors()


def test_what_one_row_costs_does_not_depend_on_how_many_there_are(big, monkeypatch):
    with Archive(big[0]) as archive:
        archive[0]  # reads the tables and the names, once
        monkeypatch.setattr(np, "arange", lambda *args: pytest.fail("all rows were numbered"))
        np.testing.assert_array_equal(archive[5].packed, big[1].packed[[5]])


def test_one_row_reads_one_block(big, monkeypatch):
    with Archive(big[0]) as archive:
        names = archive.names
        assert names is not None
        read = []
        real = archive._reader.read
        monkeypatch.setattr(archive._reader, "read", lambda offset, size: read.append(size) or real(offset, size))
        archive[2345]
        assert sum(read) < 0.3 * archive.size


class Counting(io.BytesIO):
    """A file that counts the bytes which are read from it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("kind", ["independent", "network", "own table"])
def test_one_row_takes_header_tables_index_and_one_block(tmp_path, kind):
    """Not a byte of another block, of names, labels, or of a segment that it is not in."""
    extra = {"names": make_names(60_000)}
    if kind == "network":
        codes, network = make_chain(60_000, 24, **extra), make_network(24, hidden=10)
        tables = Tables((24,), IndependentModel.fit(codes[:500]), None, network)
    else:
        codes = make_codes(60_000, 24, **extra)
        fitted = codes if kind == "independent" else make_chain(9, 24)
        tables = Tables((24,), IndependentModel.fit(fitted))
    path = write(tmp_path / "a", codes, tables, segment_rows=20_000)
    file = Counting(path.read_bytes())
    archive = Archive(file)
    head = archive._index.segments[1][1]
    assert len(head.words) > 1
    assert head.model == {"independent": INDEPENDENT, "network": NETWORK, "own table": OWN}[kind]
    row = 20_000 + head.rows_per_block + 5
    np.testing.assert_array_equal(archive[row].packed, codes[row].packed)
    parts = archive.parts()
    block = 4 * head.words[1] + BLOCK.size
    own = len(head.start) + head.table.size if kind == "own table" else 0
    # what an archive has beside its codes, tables and names, and the prologue a second time
    assert file.count <= parts["header"] + archive._index.tables[1] + parts["index"] + block + own + 64
    assert file.count < 0.2 * archive.size
    before = file.count
    assert archive[row].names == (codes.names[row],)
    assert file.count - before <= head.names.size + len(head.start)


def test_opening_takes_memory_for_blocks_and_not_for_rows(tmp_path):
    codes = make_codes(200_000, 8, names=make_names(200_000))
    path = write(tmp_path / "a", codes, make_tables(8))
    tracemalloc.start()
    try:
        with Archive(path) as archive:
            archive[123_456]
            blocks = sum(len(head.words) for _, head in archive._index.segments)
            largest = max(head.rows_per_block for _, head in archive._index.segments)
            taken, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 300_000 + 300 * blocks + largest
    assert most < 1_000_000 + 100 * largest


@pytest.mark.parametrize(("rows", "blocks"), [(7, 1), (100, 2), (3000, 64), (5000, 3), (1, 64)])
def test_shuffled_rows_come_once_each(big, rows, blocks):
    path, codes = big
    with Archive(path) as archive:
        parts = list(archive.iter_shuffled(5, rows, blocks=blocks))
        again = list(archive.iter_shuffled(5, rows, blocks=blocks))
        other = next(archive.iter_shuffled(6, rows, blocks=blocks))
    assert all(len(part) == rows for part in parts[:-1])
    names = [name for part in parts for name in part.names]
    assert sorted(names) == sorted(codes.names)
    assert names == [name for part in again for name in part.names]
    assert names != list(codes.names)
    assert other.names != parts[0].names
    place = {name: i for i, name in enumerate(codes.names)}
    for part in parts[:: max(1, len(parts) // 20)]:
        np.testing.assert_array_equal(part.packed, codes.packed[[place[name] for name in part.names]])


def test_shuffling_decodes_every_block_once(big, monkeypatch):
    path, _ = big
    monkeypatch.setattr(stochcl.compress.archive, "_CACHED_BYTES", 1)
    with Archive(path) as archive:
        decoded, real = [], archive._decode
        monkeypatch.setattr(archive, "_decode", lambda group: decoded.extend(group) or real(group))
        for _ in archive.iter_shuffled(0, 10, blocks=2):
            pass
        assert len(decoded) == len(set(decoded)) == archive._first_blocks[-1]
        with pytest.raises(UsageError):
            next(archive.iter_shuffled(0, 0))


def test_blocks_are_shuffled_and_rows_within_a_window_too(big):
    path, codes = big
    place = {name: i for i, name in enumerate(codes.names)}
    with Archive(path) as archive:
        first = [int(archive._rows_of_blocks(np.array([block]))[0]) for block in range(archive._first_blocks[-1])]
        rows = np.array([place[name] for part in archive.iter_shuffled(0, 1000, blocks=1) for name in part.names])
    assert len(first) > 3
    blocks = np.searchsorted(first, rows, side="right") - 1
    starts = np.flatnonzero(np.diff(blocks, prepend=-1))
    assert len(starts) == len(first)  # a window of one block: one block after the other,
    assert list(blocks[starts]) != sorted(blocks[starts])  # not in the order of the file,
    for block in range(len(first)):  # and no block's rows in theirs
        inside = rows[blocks == block]
        assert list(inside) != sorted(inside)


def test_an_empty_archive_is_shuffled_too(tmp_path):
    with Archive(write(tmp_path / "a", make_codes(0, 5), make_tables(5))) as archive:
        assert list(archive.iter_shuffled(0)) == []


def test_blocks_that_are_forgotten_are_read_again(big, monkeypatch):
    path, codes = big
    monkeypatch.setattr(stochcl.compress.archive, "_CACHED_BYTES", 2)
    with Archive(path) as archive:
        for row in (0, 2999, 1500, 0, 700, 2999, 0):
            np.testing.assert_array_equal(archive[row].packed, codes[row].packed)
        assert len(archive._cache) == 1


def test_prefixes_are_those_of_the_symbols(big):
    path, codes = big
    with Archive(path) as archive:
        np.testing.assert_array_equal(archive.to_numpy(17), codes.symbols()[:, :17])
        np.testing.assert_allclose(
            archive.to_vectors(17), archive.tables.decoder.decode(codes.symbols()[:, :17]), rtol=1e-6
        )
        with pytest.raises(UsageError, match="ask for 1 to 100, not 101"):
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
            # to know that no row has a folder, all names would have to be read for one row
            assert archive[1].labels == (("",) if expected is None else expected[1:])


def test_tables_are_found_outside(tmp_path, monkeypatch):
    tables = make_tables(6)
    path = write(tmp_path / "a", make_codes(9, 6), tables, embed=False)
    with Archive(path) as archive, pytest.raises(ModelMismatch, match=r"a: the decoder .*STOCHCL_MODELS"):
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


def test_messages_name_the_file_and_the_rows(big, tmp_path):
    data = bytearray(big[0].read_bytes())
    with Archive(big[0]) as archive:
        offset, head = archive._index.segments[1]
        data[offset + int(head.block_offsets[0]) + 40] ^= 1
    path = tmp_path / "damaged"
    path.write_bytes(data)
    with Archive(path) as archive:
        archive[:1300]  # the first segment is as it was
        with pytest.raises(ChecksumMismatch, match=r"damaged: rows 1,300 to .*: block 0"):
            archive[1300]


def test_what_is_not_there_or_not_a_file_is_a_source_error(tmp_path):
    with pytest.raises(SourceError, match="there is no such file"):
        Archive(tmp_path / "missing")
    with pytest.raises(SourceError, match="this is a folder"):
        Archive(tmp_path)
