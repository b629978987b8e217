"""Samples of a matrix: finite rows, spread over all of it, seeded, and disjoint from those held out."""

import numpy as np
import pytest

from stochcl.data import MatrixSource
from stochcl.data.array import sample_rows
from stochcl.errors import SourceError


@pytest.fixture
def saved(tmp_path):
    def write(array):
        np.save(tmp_path / "m.npy", array)
        return MatrixSource(tmp_path / "m.npy")

    return write


def numbered(rows, dtype=np.float32):
    """A matrix whose first column is the row's number."""
    return np.stack([np.arange(rows), np.ones(rows)], axis=1).astype(dtype)


def numbers(part):
    return part[:, 0].astype(int)


@pytest.mark.parametrize("mapped", [True, False])
def test_rows_are_spread_evenly_and_held_out_rows_are_others(saved, mapped):
    matrix = numbered(10_000)
    train, held = sample_rows(saved(matrix) if mapped else matrix, most=1000, seed=3)
    assert (len(train), len(held), train.dtype, held.dtype) == (900, 100, np.float32, np.float32)
    rows = np.sort(np.concatenate([numbers(train), numbers(held)]))
    assert (rows // 10 == np.arange(1000)).all()  # one of each ten
    assert (np.diff(numbers(train)) > 0).all()
    assert numbers(held).min() < 2000
    assert numbers(held).max() > 8000


def test_the_seed_decides(saved):
    source = saved(numbered(5000))
    first, again, other = (sample_rows(source, most=500, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def test_a_small_matrix_is_taken_whole(saved):
    train, held = sample_rows(saved(numbered(57, np.float16)))
    assert len(held) == 5
    assert sorted([*numbers(train), *numbers(held)]) == list(range(57))
    train, held = sample_rows(saved(numbered(9)))
    assert (len(train), held.shape) == (9, (0, 2))


def test_long_rows_are_taken_in_smaller_numbers(saved, monkeypatch):
    monkeypatch.setattr("stochcl.data.array.MOST_BYTES", 8 * 300)
    train, held = sample_rows(saved(numbered(5000)))
    assert (len(train), len(held)) == (270, 30)


def test_rows_that_are_not_finite_are_left_out_and_replaced_where_there_are_others(saved):
    matrix = numbered(20_000, np.float64)
    matrix[::2, 1] = [np.nan, np.inf, -np.inf, 1e300] * 2500
    train, held = sample_rows(saved(matrix), most=1000, seed=0)
    assert np.isfinite(train).all()
    assert len(train) + len(held) > 990  # half of what is drawn is missing, again and again
    assert (np.diff(numbers(train)) > 0).all()
    assert (numbers(train) % 2 == 1).all()
    train, held = sample_rows(saved(matrix[:100]), seed=0)
    assert len(train) + len(held) == 50
    assert 0 < len(held) <= 10


def test_a_matrix_without_a_finite_row_is_refused(saved):
    with pytest.raises(SourceError, match="nothing to train on"):
        sample_rows(saved(np.full((30, 2), np.nan, np.float32)))


def test_few_rows_are_read_at_a_time_and_in_order(saved, monkeypatch):
    source = saved(numbered(30_000))
    asked = []
    take = MatrixSource.take
    monkeypatch.setattr(MatrixSource, "take", lambda self, rows: asked.append(rows) or take(self, rows))
    sample_rows(source, most=10_000)
    assert max(map(len, asked)) <= 4096
    assert (np.diff(np.concatenate(asked)) > 0).all()
