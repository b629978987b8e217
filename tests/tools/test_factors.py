"""MIG and DCI against scores worked out by hand, and the pairing of latents of two models."""

import sys
from pathlib import Path

import numpy as np
import pytest

from stochcl.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from factors import (
    best_latents,
    completenesses,
    correlations,
    dci,
    disentanglement,
    entropy,
    gaps,
    in_bins,
    information,
    match,
    mutual_information,
)


def grid(*sizes):
    """All combinations of factors, each as often: factors that are independent exactly."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*map(np.arange, sizes), indexing="ij")], axis=1)


def test_bins_hold_equal_counts_and_equal_numbers_stay_together():
    values = np.random.default_rng(0).normal(size=(1000, 2))
    found = in_bins(values, 4)
    assert found.shape == (1000, 2)
    assert [np.bincount(column).tolist() for column in found.T] == [[250] * 4] * 2
    assert set(in_bins(np.array([1.0, 1.0, 1.0, 2.0]), 2)[:3]) == {1}
    with pytest.raises(UsageError, match="2 bins or more"):
        in_bins(values, 1)


def test_information_of_a_table_that_can_be_worked_out_by_hand():
    # P(z, v) = 3/8, 1/8; 1/8, 3/8: I = 3/4 log 3/2 + 1/4 log 1/2
    z = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    v = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert mutual_information(z[:, None], v)[0] == pytest.approx(expected)
    assert information(z[:, None], v[:, None])[0, 0] == pytest.approx(expected / np.log(2))
    assert entropy(np.array([0, 0, 1, 1])) == pytest.approx(np.log(2))


def test_information_does_not_depend_on_how_many_latents_are_taken_at_a_time(monkeypatch):
    rng = np.random.default_rng(1)
    symbols, classes = rng.integers(0, 5, (200, 30)), rng.integers(0, 3, 200)
    whole = mutual_information(symbols, classes)
    monkeypatch.setattr("factors._BLOCK", 200)
    np.testing.assert_allclose(mutual_information(symbols, classes), whole)
    swapped = [mutual_information(classes[:, None], symbols[:, j])[0] for j in range(30)]
    np.testing.assert_allclose(swapped, whole)  # it is symmetric


def test_a_latent_for_each_factor_has_a_gap_of_one_and_codes_of_nothing_of_zero():
    factors = grid(4, 3, 5)
    np.testing.assert_allclose(gaps(information(factors, factors)), 1)
    other = grid(60, 2)[:, 1:]  # goes with no factor
    told = information(other, np.repeat(factors, 2, axis=0))
    np.testing.assert_allclose(gaps(np.concatenate([told, told])), 0, atol=1e-12)
    twice = information(np.concatenate([factors, factors], axis=1), factors)
    np.testing.assert_allclose(gaps(twice), 0, atol=1e-12)  # two latents say the same


def test_a_bit_of_many_bins_has_the_gap_that_its_one_bit_allows():
    factor = np.repeat(np.arange(20), 10)[:, None]
    assert gaps(information(factor // 10, factor))[0] == pytest.approx(np.log(2) / np.log(20))


def test_what_cannot_be_told_is_refused():
    with pytest.raises(UsageError, match="never varies"):
        information(np.zeros((4, 2), int), np.zeros((4, 1), int))
    with pytest.raises(UsageError, match="do not belong together"):
        information(np.zeros((4, 2), int), np.zeros((5, 1), int))
    with pytest.raises(UsageError, match="no kind of importance 'tree'"):
        dci((np.eye(4), np.eye(4)), (np.eye(4), np.eye(4)), classes=(False,) * 4, kind="tree")


def test_scores_of_importances_that_can_be_worked_out_by_hand():
    third = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    # the first latent is pure, the second spreads over two of three: 1 - log 2 / log 3; both matter as much
    assert disentanglement(third) == pytest.approx((1 + 1 - np.log(2) / np.log(3)) / 2)
    np.testing.assert_allclose(completenesses(third), 1)
    weighed = np.array([[3.0, 0.0], [0.5, 0.5]])  # 3 of 4 parts of what matters are pure
    assert disentanglement(weighed) == pytest.approx(0.75)
    assert disentanglement(np.zeros((3, 2))) == 0
    assert completenesses(np.zeros((3, 2))).tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["lasso", "forest"])
def test_codes_that_are_the_factors_score_one(kind):
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, 2, 600), rng.normal(size=600), rng.normal(size=600)], axis=1)
    train, test = (factors[:400], factors[:400]), (factors[400:], factors[400:])
    found = dci(train, test, classes=(True, False, False), kind=kind)
    assert found.disentanglement > 0.95
    assert found.completeness > 0.95
    assert min(found.informativeness) > 0.95
    np.testing.assert_allclose(found.importance.sum(axis=0), 1)
    assert found.importance.argmax(axis=0).tolist() == [0, 1, 2]


def test_factors_that_are_mixed_are_informative_and_not_disentangled():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(600, 2))
    codes = factors @ np.array([[1.0, 1.0], [1.0, -1.0]])
    found = dci((codes[:400], factors[:400]), (codes[400:], factors[400:]), classes=(False, False))
    assert min(found.informativeness) > 0.99
    assert found.disentanglement < 0.05
    assert found.completeness < 0.05


def test_codes_of_nothing_score_nothing():
    rng = np.random.default_rng(0)
    codes, factors = rng.normal(size=(600, 8)), rng.normal(size=(600, 2))
    found = dci((codes[:400], factors[:400]), (codes[400:], factors[400:]), classes=(False, False))
    assert max(found.informativeness) < 0.05
    constant = np.ones((600, 8))
    found = dci((constant[:400], factors[:400]), (constant[400:], factors[400:]), classes=(False, False))
    assert (found.disentanglement, found.completeness, found.importance.sum()) == (0, 0, 0)


@pytest.fixture
def codes():
    """Bits that cut two factors at eight places each, and the factors' bins."""
    factors = np.random.default_rng(0).uniform(size=(2000, 2))
    cuts = np.linspace(0.1, 0.9, 8)
    bits = np.concatenate([factors[:, :1] > cuts, factors[:, 1:] > cuts], axis=1).astype(np.int64)
    return bits, in_bins(factors)


@pytest.mark.parametrize("by", ["information", "correlation"])
def test_the_same_latents_in_another_order_are_found_again(codes, by):
    bits, factors = codes
    order = np.random.default_rng(1).permutation(16)
    other = 1 - bits[:, order]  # the sign of a bit means nothing
    told = information(bits, factors), information(other, factors)
    found = match(told, correlations(bits, other), by=by)
    assert found.same == 1
    assert found.chance == pytest.approx(0.5)
    assert found.correlation == pytest.approx(1)
    assert found.chance_correlation < 0.4
    assert (order[found.pairs[:, 1]] == found.pairs[:, 0]).all()


def test_latents_that_have_nothing_in_common_are_matched_by_chance_and_it_shows(codes):
    bits, factors = codes
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 2, bits.shape)
    found = match((information(bits, factors), information(noise, factors)), correlations(bits, noise))
    assert found.correlation < 0.05
    assert found.to_json()["correlation"] == round(found.correlation, 4)


def test_more_latents_than_partners_leave_some_alone(codes):
    bits, factors = codes
    told = information(bits, factors)
    found = match((told[:5], told), correlations(bits[:, :5], bits))
    assert found.pairs.tolist() == [[i, i] for i in range(5)]
    with pytest.raises(UsageError, match="information or correlation"):
        match((told, told), correlations(bits, bits), by="name")


def test_a_latent_that_never_changes_is_correlated_with_nothing():
    assert correlations(np.ones((4, 1), int), np.array([[0], [1], [0], [1]])).tolist() == [[0.0]]


def test_best_latents_are_alike_where_they_say_as_much(codes):
    bits, factors = codes
    told = information(bits, factors)
    weaker = told * np.array([1.0, 0.5])
    first, second = best_latents([told, weaker, told], ("x", "y"))
    assert (first["ratio"], first["alike"]) == (1, True)
    assert (second["ratio"], second["alike"]) == (pytest.approx(0.5, abs=1e-3), False)
    assert first["latents"][0] in range(8)
    assert second["latents"][0] in range(8, 16)
