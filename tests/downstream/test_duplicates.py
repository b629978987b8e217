"""Near duplicates: what is found is right, nearly all is found, in whatever parts, and the same every time."""

import numpy as np
import pytest

from stochcl.downstream import duplicates
from stochcl.downstream.duplicates import find_duplicates
from stochcl.errors import UsageError

BITS, WIDTH = 64, 48


@pytest.fixture
def decode(rng):
    weights = rng.normal(size=(BITS, WIDTH)).astype(np.float32)
    return lambda packed: np.unpackbits(packed, axis=1)[:, :BITS].astype(np.float32) @ weights - weights.sum(0) / 2


@pytest.fixture
def codes(rng):
    """Rows of 40 clusters; the last 200 copy others but for two bits, and the 50 before them copy others wholly."""
    bits = rng.integers(0, 2, (40, BITS))[rng.integers(0, 40, 2000)] ^ (rng.random((2000, BITS)) < 0.2)
    near = bits[rng.choice(1700, 200, replace=False)]
    for column in rng.integers(0, BITS, (2, 200)):
        near[np.arange(200), column] ^= 1
    bits[1800:], bits[1750:1800] = near, bits[:50]
    return np.packbits(bits, axis=1)


def exactly(packed, decode, threshold):
    """All pairs of different codes, of all rows."""
    vectors = decode(packed)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors @ vectors.T
    equal = (packed[:, None] == packed).all(axis=2)
    a, b = np.nonzero(np.triu((cosine >= threshold) & ~equal, 1))
    first = equal.argmax(axis=1)
    return {
        (i, j): cosine[i, j] for i, j in zip(a.tolist(), b.tolist(), strict=True) if (first[i], first[j]) == (i, j)
    }


@pytest.mark.parametrize("threshold", [0.92, 0.7])
def test_found_pairs_are_right_and_nearly_all_are_found(codes, decode, threshold):
    found = find_duplicates(codes, decode, threshold)
    expected = exactly(codes, decode, threshold)
    equal = (codes[found.first] == codes[found.second]).all(axis=1)
    near = dict(zip(zip(found.first[~equal].tolist(), found.second[~equal].tolist(), strict=True),
                    found.similarity[~equal].tolist(), strict=True))  # fmt: skip
    assert near.keys() <= expected.keys()
    assert len(near) >= 0.99 * len(expected) > 50
    np.testing.assert_allclose(list(near.values()), [expected[pair] for pair in near], atol=1e-5)
    assert set(zip(range(50), range(1750, 1800), strict=True)) <= set(zip(found.first, found.second, strict=True))
    assert (found.similarity[equal] == 1).all()
    assert sorted(zip(found.first, found.second, strict=True)) == list(zip(found.first, found.second, strict=True))
    assert (found.first < found.second).all()


def test_parts_and_runs_find_the_same(codes, decode, monkeypatch):
    whole = find_duplicates(codes, decode, 0.8, seed=3)
    again = find_duplicates(codes, decode, 0.8, seed=3)
    monkeypatch.setattr(duplicates, "_ROWS", 37)
    monkeypatch.setattr(duplicates, "_PENDING", 10)
    parts = find_duplicates(codes, decode, 0.8, seed=3)
    for one, two, three in zip(whole, again, parts, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, three, atol=1e-6)


def test_equal_codes_need_no_decoder_and_each_is_paired_with_the_first():
    packed = np.array([[7], [9], [7], [7], [9], [1]], np.uint8)
    found = find_duplicates(packed, None, 1)
    assert found.first.tolist() == [0, 0, 1]
    assert found.second.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    "packed", [np.empty((0, 8), np.uint8), np.zeros((1, 8), np.uint8), np.eye(8, dtype=np.uint8)]
)
def test_few_rows_or_none(packed, decode):
    assert len(find_duplicates(packed, decode, 0.99999).first) == 0


def test_vectors_that_are_not_finite_are_near_none(codes):
    assert (
        find_duplicates(codes, lambda rows: np.full((len(rows), 5), np.inf, np.float32), 0.5).similarity == 1
    ).all()


def test_too_many_pairs_are_refused(codes, decode, monkeypatch):
    monkeypatch.setattr(duplicates, "_MOST", 20)
    with pytest.raises(UsageError, match="raise the threshold"):
        find_duplicates(codes, decode, 0.5)
