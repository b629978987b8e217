"""What is said of latents is what other libraries say, and what was planted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats.contingency import association
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mutual_info_score

from stochcl.downstream import interpretation as of
from stochcl.entropy.vectors import VectorDecoder


def make_decoder(weights):
    """A linear decoder of bits: weights of shape (D, V)."""
    d, v = weights.shape
    layer = (weights.T.astype(np.float16), np.zeros(v, np.float16))
    return VectorDecoder(np.full(d, 0.5, np.float32), np.ones(d, np.float32), (layer,))


@pytest.fixture
def bits(rng):
    """Bits, the second of which is the first but for one row in ten, and the last of which never changes."""
    x = rng.integers(0, 2, (600, 6))
    x[:, 1] = np.where(rng.random(600) < 0.1, 1 - x[:, 0], x[:, 0])
    x[:, 5] = 1
    return x.astype(np.uint8)


@pytest.fixture
def categories(rng):
    x = rng.integers(0, 5, (600, 4))
    x[:, 1] = np.where(rng.random(600) < 0.3, x[:, 1], (x[:, 0] + 2) % 5)
    return x.astype(np.uint8)


# Statistics


def test_entropies_are_those_of_the_counts(bits):
    counts = of.value_counts(bits, 2)
    assert counts.sum(axis=1).tolist() == [600] * 6
    expected = [mutual_info_score(column, column) / np.log(2) for column in bits.T]
    np.testing.assert_allclose(of.entropies(counts), expected, atol=1e-12)


def test_correlations_are_numpys(bits):
    found = of.associations(of.Sample(bits, "bits"))
    np.testing.assert_allclose(found[:5, :5], np.corrcoef(bits[:, :5].T), atol=1e-6)
    assert (found[5] == 0).all()  # what never changes goes with nothing
    some = np.array([0, 3])
    np.testing.assert_allclose(of.associations(of.Sample(bits, "bits"), some), found[np.ix_(some, some)], atol=1e-6)


def test_cramers_v_is_scipys(categories):
    x = np.concatenate([categories, np.full((600, 1), 3)], axis=1)
    found = of.associations(of.Sample(x, "categories"))
    for i in range(4):
        for j in range(4):
            table = np.zeros((5, 5), int)
            np.add.at(table, (x[:, i], x[:, j]), 1)
            assert found[i, j] == pytest.approx(association(table), abs=1e-9)
    assert (found[4] == 0).all()


def test_weights_are_the_r2_of_one_latent(bits, rng):
    sample = of.Sample(bits, "bits", make_decoder(rng.normal(size=(6, 3))))
    expected = [
        LinearRegression().fit(column[:, None], sample.x).predict(column[:, None]).var(axis=0).sum()
        / sample.x.var(axis=0).sum()
        for column in bits.T
    ]
    np.testing.assert_allclose(of.weights(sample), expected, atol=1e-5)
    assert not of.weights(of.Sample(bits, "bits")).any()


def test_of_categories_weights_are_those_of_their_indicators(categories, rng):
    sample = of.Sample(categories, "categories")
    object.__setattr__(sample, "decoder", "any")
    object.__setattr__(sample, "x", rng.normal(size=(600, 3)).astype(np.float32) + categories[:, :1] % 2)
    expected = []
    for column in categories.T:
        shown = np.eye(5)[column]
        expected.append(
            LinearRegression().fit(shown, sample.x).predict(shown).var(axis=0).sum() / sample.x.var(axis=0).sum()
        )
    np.testing.assert_allclose(of.weights(sample), expected, atol=1e-5)


def test_the_strongest_do_not_say_the_same(bits):
    near = of.associations(of.Sample(bits, "bits"))
    scores = np.array([5, 4, 1, 2, 3, 0.0])
    assert of.strongest(scores, near, 3).tolist() == [0, 4, 3]
    assert of.strongest(scores, near, 9).tolist() == [0, 4, 3, 2, 5, 1]


# Information


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), values=st.integers(2, 6), classes=st.integers(2, 5))
def test_information_is_scikit_learns_less_its_bias(seed, values, classes):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, 200)
    x = np.where(rng.random((200, 2)) < [0.2, 0.9], rng.integers(0, values, (200, 2)), y[:, None] % values)
    found = of.mutual_information(x, y.astype(str), ordered=False)
    for column, bits in zip(x.T, found.bits, strict=True):
        bias = (len(np.unique(column)) - 1) * (len(np.unique(y)) - 1) / (2 * 200 * np.log(2))
        assert bits == pytest.approx(max(0, mutual_info_score(column, y) / np.log(2) - bias), abs=1e-9)
    assert found.label_bits == pytest.approx(mutual_info_score(y, y) / np.log(2))


def test_chance_says_nothing_and_a_plant_does(rng):
    x, y = rng.integers(0, 2, (500, 200)), rng.integers(0, 10, 500)
    x[:, 7] = y > 4
    found = of.mutual_information(x, y, ordered=True)
    assert np.flatnonzero(found.bits > found.chance).tolist() == [7]
    assert found.bits[7] == pytest.approx(1, abs=0.05)


def test_numbers_are_cut_at_their_quantiles(rng):
    y = rng.normal(size=2000)
    x = np.stack([np.clip(40 * y + 200, 0, 400), rng.integers(0, 400, 2000)], axis=1).astype(int)
    found = of.mutual_information(x, y, ordered=True)
    assert found.label_bits == pytest.approx(np.log2(10), abs=0.01)
    assert found.bits[0] > 2.5
    assert found.bits[1] < found.chance


# Flips


def test_a_bit_is_flipped_to_the_other(bits):
    sample = of.Sample(bits, "bits")
    flipped = sample.flipped(2)
    assert (flipped[:, 2] == 1 - bits[:, 2]).all()
    assert (np.delete(flipped, 2, axis=1) == np.delete(bits, 2, axis=1)).all()
    assert (sample.symbols == bits).all()


def test_levels_go_to_their_far_end_and_categories_to_the_most_frequent(categories):
    levels = np.arange(100)[:, None]
    sample = of.Sample(levels, "levels")
    assert sample.ends(0) == (10, 89)
    assert sample.flipped(0)[[0, 30, 70, 99], 0].tolist() == [89, 89, 10, 10]
    x = np.array([[2], [2], [2], [0], [0], [4]])
    assert of.Sample(x, "categories").flipped(0)[:, 0].tolist() == [0, 0, 0, 2, 2, 2]
    assert of.Sample(x[:1], "categories").flipped(0).tolist() == [[2]]  # the one value that there is
    assert of.Sample(x[:1], "levels").ends(0) == (2, 2)


def test_a_flip_does_what_the_decoder_says(bits):
    weights = np.zeros((6, 3))
    weights[0, 0], weights[2, 1], weights[3, 2] = 4, 1, 0.2  # the others are deaf
    sample = of.Sample(bits, "bits", make_decoder(weights))

    def probe(x):
        return np.stack([x[:, 0] > 0, x[:, 0] <= 0], axis=1).astype(float)

    rows, known = np.arange(0, 600, 7), np.arange(600)
    flips = of.Flips(sample, rows, known, probe)
    first, deaf, weak = (flips.of(column) for column in (0, 4, 3))
    assert (first.changed, deaf.changed, weak.changed) == (1, 0, 0)
    assert (deaf.moved, deaf.kept) == (0, 1)
    assert first.moved > 0.5 > weak.moved > 0
    assert first.means.tolist() == [[0, 1], [1, 0]]
    example = first.example
    assert example.to == ("off" if bits[example.row, 0] else "on")
    assert example.answers.tolist() == ([[1, 0], [0, 1]] if bits[example.row, 0] else [[0, 1], [1, 0]])
    assert {int(bits[row, 0]) for row in example.before} == {int(bits[example.row, 0])}
    assert {int(bits[row, 0]) for row in example.after} == {1 - int(bits[example.row, 0])}
    assert example.row not in example.before
    assert len({one.example.row for one in (first, deaf, weak)}) == 3


def test_without_a_decoder_symbols_are_compared(bits, categories):
    for x, kind in ((bits, "bits"), (categories, "categories"), (categories, "levels")):
        one = of.Flips(of.Sample(x, kind), np.arange(20), np.arange(0, 600, 2)).of(0)
        assert one.moved >= 1
        assert one.changed is None
        assert one.means is None
        assert (one.example.before % 2 == 0).all()  # of those that are known


def test_a_single_row_has_no_neighbours():
    one = of.Flips(of.Sample(np.ones((1, 2), np.uint8), "bits"), np.arange(1), np.arange(1)).of(0)
    assert one.example.before.tolist() == one.example.after.tolist() == []
    assert one.kept == 1


# Sides and the map


def test_sides_are_of_their_value_and_typical_rows_come_first(bits, rng):
    sample = of.Sample(bits, "bits", make_decoder(rng.normal(size=(6, 4))))
    on, off = of.activation_examples(sample, 0, typical=5, random=3, y=np.where(bits[:, 1] == 1, "cat", "dog"))
    for side, value in ((on, 1), (off, 0)):
        rows = np.r_[side.typical, side.random]
        assert (bits[rows, 0] == value).all()
        assert len(set(rows.tolist())) == 8
    assert on.share + off.share == pytest.approx(1)
    along = sample.x[bits[:, 0] == 1].mean(axis=0) - sample.x[bits[:, 0] == 0].mean(axis=0)
    assert (sample.x[on.typical] @ along).min() >= (sample.x[on.random] @ along).max()
    (name, here, usual), *_ = on.classes
    assert (name, round(here, 1)) == ("cat", 0.9)
    assert usual == pytest.approx((bits[:, 1] == 1).mean())
    assert of.activation_examples(sample, 0, typical=5, random=3)[0].random.tolist() == on.random.tolist()
    y = np.where(rng.random(600) < 0.1, np.nan, 2.0 * bits[:, 0])
    on, off = of.activation_examples(sample, 0, typical=5, random=3, y=y)
    assert (on.means[0], off.means[0], on.classes) == (2, 0, ())
    assert on.means[1] == pytest.approx(np.nanmean(y))


def test_sides_of_levels_are_their_ends_and_of_categories_the_most_frequent(categories):
    high, low = of.activation_examples(of.Sample(np.arange(100)[:, None], "levels"), 0, typical=50, random=2)
    assert sorted(high.typical.tolist()) == list(range(89, 100))
    assert sorted(low.typical.tolist()) == list(range(11))
    found = of.activation_examples(of.Sample(categories, "categories"), 0, typical=3, random=2)
    assert len(found) == 4
    shares = [side.share for side in found]
    assert shares == sorted(shares, reverse=True)
    one, none = of.activation_examples(of.Sample(np.ones((3, 1), int), "bits"), 0, typical=2, random=2)
    assert (one.share, none.share, len(none.typical)) == (1, 0, 0)


def test_the_map_is_scikit_learns(rng):
    x = rng.normal(size=(50, 6)) * [1, 5, 2, 1, 1, 1]
    (points, shares), pca = of.project(x), PCA(2)
    expected = pca.fit_transform(x)
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_)
    assert of.project(np.ones((3, 1)))[0].tolist() == [[0, 0]] * 3
