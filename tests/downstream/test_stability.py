import numpy as np
import pytest

from stochcl.downstream.disentanglement import in_bins, information
from stochcl.downstream.stability import best_latents, correlations, match
from stochcl.errors import UsageError


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
