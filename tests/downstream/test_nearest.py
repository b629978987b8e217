"""Rows that come in parts: the nearest are those of all distances at once, whatever the parts and the memory."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.downstream import distances as nearest
from stochcl.downstream.distances import DISTANCES, Nearest, without_own


def by_definition(name, queries, rows):
    q, r = queries[:, None].astype(float), rows[None].astype(float)
    if name in ("hamming", "symbols"):
        return (q != r).sum(axis=2)
    if name == "levels":
        return np.abs(q - r).sum(axis=2)
    if name == "euclidean":
        return np.sqrt(((q - r) ** 2).sum(axis=2))
    lengths = np.linalg.norm(q, axis=2) * np.linalg.norm(r, axis=2)
    return 1 - (q * r).sum(axis=2) / np.where(lengths > 0, lengths, 1)


@settings(deadline=None)  # the first call imports scipy
@given(
    name=st.sampled_from(sorted(DISTANCES)),
    rows=st.integers(1, 40),
    width=st.integers(1, 130),
    count=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    memory=st.sampled_from([1, 5000, 10**6]),
    seed=st.integers(0, 99),
)
def test_the_nearest_are_those_of_all_distances(name, rows, width, count, cuts, memory, seed):
    rng = np.random.default_rng(seed)
    if name in ("cosine", "euclidean"):
        x, queries = rng.normal(size=(rows, width)).astype(np.float32), rng.normal(size=(7, width))
    else:
        x, queries = (rng.integers(0, 2 if name == "hamming" else 16, (n, width)) for n in (rows, 7))
    found = Nearest(queries, DISTANCES[name], count, memory=memory)
    places = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    for start, end in pairwise(places):
        found.add(x[start:end])
    distances, numbers = found.sorted()
    expected = by_definition(name, queries, x).round(6).astype(np.float32)
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :count], atol=3e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, numbers, 1), distances, atol=3e-6)
    if name not in ("cosine", "euclidean"):
        np.testing.assert_array_equal(numbers, np.argsort(expected, axis=1, kind="stable")[:, :count])


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_a_row_is_nearest_to_itself_and_its_copies_follow_in_order(name, rng, monkeypatch):
    monkeypatch.setattr(nearest, "_ROWS", 3)
    x = rng.integers(0, 2, (5, 40))
    x = np.concatenate([x, x, x]).astype(np.float32)
    found = Nearest(x[:5], DISTANCES[name], 3)
    found.add(x)
    distances, numbers = found.sorted()
    np.testing.assert_array_equal(numbers, np.arange(5)[:, None] + [0, 5, 10])
    np.testing.assert_allclose(distances, 0, atol=1e-5)


def test_a_row_of_zeros_and_one_that_is_not_finite_are_no_ones_neighbours_by_angle():
    rows = np.array([[0, 0], [np.inf, 1], [-1, 0], [1, 1]], np.float32)
    found = Nearest(np.array([[1.0, 0]]), DISTANCES["cosine"], 4)
    found.add(rows)
    distances, numbers = found.sorted()
    assert numbers.tolist() == [[3, 0, 2, 1]]
    assert distances[0, :3].tolist() == pytest.approx([1 - 0.5**0.5, 1, 2], abs=1e-6)
    assert np.isnan(distances[0, 3])


def test_the_query_itself_is_left_out_or_the_last_where_copies_hide_it():
    numbers = np.array([[0, 1, 2], [0, 1, 2]])
    distances = np.array([[0, 1, 2], [0, 0, 0]], np.float32)
    found = without_own(distances, numbers, np.array([0, 7]))
    assert found[0].tolist() == [[1, 2], [0, 0]]
    assert found[1].tolist() == [[1, 2], [0, 1]]


def test_no_more_rows_than_their_numbers_hold():
    found = Nearest(np.ones((1, 1)), DISTANCES["hamming"], 1)
    found.seen = (1 << 32) - 1
    found.add(np.ones((1, 1)))
    with pytest.raises(ValueError, match="4,294,967,296"):
        found.add(np.ones((1, 1)))
