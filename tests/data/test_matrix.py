"""Embedding matrices: batches of finite float32 rows, whatever float they are stored in."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.data import Failure, MatrixSource, open_source, open_sources
from stochcl.data.array import map_array
from stochcl.errors import SourceError, UsageError


@pytest.fixture
def saved(tmp_path):
    def write(array):
        path = tmp_path / "m.npy"
        np.save(path, array)
        return path

    return write


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_come_back_as_float32(saved, dtype, order):
    array = np.array(np.random.default_rng(0).normal(size=(50, 7)), dtype=dtype, order=order)
    path = saved(array)
    source = open_source(path)
    assert isinstance(source, MatrixSource)
    assert (source.kind, len(source), source.dim) == ("matrix", 50, 7)
    assert (source.size, source.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    batches = list(source.batches(batch_size=16))
    joined = np.concatenate([b.vectors for b in batches])
    assert joined.dtype == np.float32
    assert joined.dtype.isnative
    assert np.array_equal(joined, array.astype(np.float32))
    assert tuple(n for b in batches for n in b.names) == source.names == tuple(f"{i:07d}" for i in range(50))
    assert [b.rows for b in batches] == [range(16), range(16, 32), range(32, 48), range(48, 50)]
    assert sum(sum(b.sizes) for b in batches) == array.nbytes
    assert all(b.vectors.flags.c_contiguous and b.vectors.flags.owndata for b in batches)


@given(
    rows=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    start=st.integers(0, 45),
    bad=st.dictionaries(st.integers(0, 39), st.sampled_from([np.nan, np.inf, -np.inf, 1e300])),
)
@settings(deadline=None, max_examples=50)
def test_rows_that_are_not_finite_are_named(tmp_path_factory, rows, batch_size, start, bad):
    array = np.ones((rows, 3))
    for row, value in bad.items():
        array[row % rows, row % 3] = value
    path = tmp_path_factory.mktemp("m") / "m.npy"
    np.save(path, array)
    batches = list(open_source(path).batches(batch_size, start))
    wrong = {row % rows for row in bad}
    assert [n for b in batches for n in b.names] == [f"{i:07d}" for i in range(start, rows) if i not in wrong]
    assert [f.name for b in batches for f in b.failures] == [f"{i:07d}" for i in sorted(wrong) if i >= start]
    assert all(np.isfinite(b.vectors).all() and b.vectors.shape == (len(b.names), 3) for b in batches)
    assert all(isinstance(f, Failure) and "finite" in f.reason for b in batches for f in b.failures)


def test_a_matrix_is_mapped_not_read(saved):
    base = map_array(saved(np.ones((10, 2), np.float32)))
    while not isinstance(base, np.memmap):
        base = base.base
    assert not base.flags.writeable


def test_matrices_pickle_and_remember_only_the_path(saved):
    source = open_source(saved(np.ones((100_000, 4), np.float32)))
    stored = pickle.dumps(source)
    assert len(stored) < 1000
    assert len(pickle.loads(stored)) == 100_000


def test_positions_are_those_of_finite_rows(saved):
    array = np.ones((9, 2), np.float32)
    array[[0, 5]] = np.nan
    batches = list(open_source(saved(array)).batches(4))
    assert [b.positions for b in batches] == [(1, 2, 3), (4, 6, 7), (8,)]


def test_rows_without_some_names(saved):
    array = np.arange(40, dtype=np.float32).reshape(20, 2)
    array[12] = np.inf
    source = open_source(saved(array)).without([f"{row:07d}" for row in range(10)] + ["0000015", "999", "a.png"])
    left = [10, 11, 13, 14, 16, 17, 18, 19]
    assert (len(source), source.total) == (9, 20)
    for again in (source, pickle.loads(pickle.dumps(source))):
        batches = list(again.batches(4, start=1))
        assert [b.rows for b in batches] == [range(1, 5), range(5, 9)]
        assert [b.positions for b in batches] == [(1, 3, 4), (5, 6, 7, 8)]
        assert np.array_equal(np.concatenate([b.vectors for b in batches]), array[left[1:]])
        assert [f.name for b in batches for f in b.failures] == ["0000012"]
    assert source.names == tuple(f"{row:07d}" for row in sorted([*left, 12]))


def test_a_file_that_changes_while_it_is_read_is_refused(saved):
    source = open_source(saved(np.ones((30, 2), np.float32)))
    batches = source.batches(8)
    next(batches)
    saved(np.ones((29, 2), np.float32))
    with pytest.raises(SourceError, match="changed while it was read"):
        next(batches)
    source.path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        next(source.batches(8))


def test_numbers_out_of_range(saved):
    source = open_source(saved(np.ones((3, 2), np.float32)))
    for numbers in ({"batch_size": 0}, {"start": -1}):
        with pytest.raises(UsageError, match="at least 1"):
            source.batches(**numbers)


def test_images_are_not_embeddings(saved):
    with pytest.raises(SourceError, match="holds images"):
        MatrixSource(saved(np.zeros((1, 2, 2, 3), np.uint8)))


def test_several_matrices_are_read_in_order(saved, tmp_path, rng):
    whole = rng.normal(size=(50, 4)).astype(np.float32)
    whole[7, 1] = np.nan
    paths = [tmp_path / f"{name}.npy" for name in "cab"]
    for path, part in zip(paths, np.split(whole, [20, 21]), strict=True):
        np.save(path, part)
    one = open_source(saved(whole))
    source = pickle.loads(pickle.dumps(open_sources(paths)))
    assert (len(source), source.total, source.dim) == (50, 50, 4)
    assert source.names == one.names
    for start in (0, 13):
        found, wanted = (list(each.batches(8, start)) for each in (source, one))
        assert [b.names for b in found] == [b.names for b in wanted]
        assert [b.failures for b in found] == [b.failures for b in wanted]
        assert all(np.array_equal(a.vectors, b.vectors) for a, b in zip(found, wanted, strict=True))
    rows = np.array([3, 19, 20, 21, 49])
    np.testing.assert_array_equal(source.at(rows).take(rows), whole[rows])
    assert len(source.without(["0000020", "3"])) == 48
    assert source.listing() != open_sources(paths[::-1]).listing()
    np.save(tmp_path / "wide.npy", np.zeros((2, 5), np.float32))
    np.save(tmp_path / "double.npy", np.zeros((2, 4)))
    for other in ("wide", "double"):
        with pytest.raises(UsageError, match="files of one kind"):
            open_sources([*paths, tmp_path / f"{other}.npy"])
