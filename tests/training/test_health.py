from dataclasses import replace

import numpy as np
import pytest

from stochcl.codes import Codes
from stochcl.training.monitor import DEAD_BITS, code_health, health_warnings, marginal_entropies

ROWS = 4000


def make(symbols, alphabet=2, entropy=None):
    uncertainty = None if entropy is None else np.full(len(symbols), entropy, np.float32)
    return Codes.from_symbols(symbols, alphabet=alphabet, uncertainty=uncertainty)


def fair(rows=ROWS, latents=6, alphabet=2, seed=0):
    return np.random.default_rng(seed).integers(0, alphabet, (rows, latents))


@pytest.mark.parametrize("alphabet", [2, 3, 8, 300])
def test_marginal_entropies_are_those_of_the_symbols(alphabet):
    rng = np.random.default_rng(1)
    symbols = (rng.random((500, 4)) ** [1, 2, 8, 400] * alphabet).astype(int)
    expected = []
    for column in symbols.T:
        p = np.bincount(column) / 500
        expected.append(-(p[p > 0] * np.log2(p[p > 0])).sum())
    np.testing.assert_allclose(marginal_entropies(make(symbols, alphabet)), expected, atol=1e-9)


def test_a_lively_code_is_described_and_nothing_is_said_against_it():
    health = code_health(make(fair(), entropy=1.5), "bernoulli")
    assert (health["rows"], health["latents"], health["used"], health["dead"]) == (ROWS, 6, 6, 0)
    assert health["bits"] == pytest.approx(6, abs=0.01)
    assert health["distinct"] == 64
    assert health["correlation"] < 0.05
    assert (health["entropy"], health["certainty"]) == (1.5, 0.75)
    assert health_warnings(health) == ()


def test_latents_that_hardly_ever_change_are_dead():
    symbols = fair()
    symbols[:, 2] = 1
    symbols[:, 4] = np.arange(ROWS) % 250 == 0  # 0.4 %
    symbols[:, 5] = np.arange(ROWS) % 100 == 0  # 1 %
    health = code_health(make(symbols), "bernoulli")
    assert (health["used"], health["dead"]) == (4, 2)
    assert marginal_entropies(make(symbols))[4] < DEAD_BITS < marginal_entropies(make(symbols))[5]
    assert health["entropy"] is health["certainty"] is None
    assert health_warnings(health) == ()


def test_a_collapsed_code_is_said_to_be_one():
    symbols = np.zeros((ROWS, 300), int)
    symbols[: ROWS // 10, 0] = 1
    (said,) = health_warnings(code_health(make(symbols, entropy=3.0), "bernoulli"))
    assert said.startswith("warning: the code has collapsed: its 300 latents together say 0.47 bits of an input")
    assert "2 different codes stand for 4,000 inputs" in said


def test_a_code_that_is_mostly_dead_is_said_to_be_one():
    symbols = np.zeros((ROWS, 100), int)
    symbols[:, :6] = fair()
    (said,) = health_warnings(code_health(make(symbols), "bernoulli"))
    assert said.startswith("warning: 94 of 100 latents are dead")
    symbols[:, 6:12] = fair(seed=1)
    assert health_warnings(code_health(make(symbols), "bernoulli")) == ()


@pytest.mark.parametrize(("family", "alphabet"), [("bernoulli", 2), ("gaussian", 9), ("categorical", 9)])
def test_latents_that_repeat_each_other_are_found_whatever_the_family(family, alphabet):
    symbols = fair(latents=1, alphabet=alphabet).repeat(8, axis=1)
    # To the other end: a correlation of -1. Categories under other names: another order, and the same.
    symbols[:, 4:] = alphabet - 1 - symbols[:, 4:]
    health = code_health(make(symbols, alphabet), family)
    assert health["correlation"] == pytest.approx(1, abs=1e-4 if family != "categorical" else 0.3)
    if family != "categorical":
        assert health_warnings(health)[0].startswith("warning: the latents repeat each other")
    assert code_health(make(fair(alphabet=alphabet), alphabet), family)["correlation"] < 0.05


def test_categories_have_no_order():
    symbols = np.random.default_rng(2).choice(5, (ROWS, 1), p=[0.4, 0.3, 0.1, 0.1, 0.1])
    other = np.array([3, 0, 4, 1, 2])[symbols]
    health = code_health(make(np.concatenate([symbols, other], axis=1), 5), "categorical")
    assert health["correlation"] == 1


def test_coin_tosses_are_said_to_be_undecided():
    codes = make(fair(), entropy=5.7)
    (said,) = health_warnings(code_health(codes, "bernoulli"))
    assert said.startswith("warning: the posterior is undecided: its entropy is 6 bits an input")
    sure = replace(codes, uncertainty=codes.uncertainty - 3)
    assert health_warnings(code_health(sure, "bernoulli")) == ()


def test_of_few_rows_nothing_is_said():
    health = code_health(make(np.zeros((49, 8), int)), "bernoulli")
    assert health["used"] == 0
    assert health_warnings(health) == ()
    assert health_warnings(code_health(make(np.zeros((50, 8), int)), "bernoulli"))
    empty = code_health(make(np.zeros((0, 8), int), entropy=0.0), "bernoulli")
    assert (empty["rows"], empty["used"], empty["distinct"], empty["correlation"]) == (0, 0, 0, 0)
