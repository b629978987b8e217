import math

import numpy as np
import pytest
from sklearn.metrics import r2_score

from stochcl.downstream import metrics


def test_r_squared_is_that_of_scikit_learn(rng):
    truth = rng.normal(3, 2, 50)
    answer = truth + rng.normal(size=50)
    assert metrics.r_squared(truth, answer) == pytest.approx(r2_score(truth, answer))
    assert math.isnan(metrics.r_squared(np.full(4, 0.1), np.zeros(4)))


@pytest.mark.parametrize(
    ("right", "total", "interval"),
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilsons_interval_is_the_published_one(right, total, interval):
    assert metrics.wilson(right, total) == pytest.approx(interval, abs=5e-5)


def test_wilsons_interval_holds_the_proportion_and_stays_between_0_and_1():
    for total in range(1, 120):  # from 1.0 the formula's upper bound is 1 less one rounding for some totals
        for right in range(total + 1):
            low, high = metrics.wilson(right, total)
            assert 0 <= low <= right / total <= high <= 1


def test_the_bootstrap_covers_the_r_squared_of_the_population(rng):
    # truth has variance 4 + 1, of which the answer knows 4
    covered = 0
    for seed in range(60):
        answer = rng.normal(7, 2, 200)
        low, high = metrics.bootstrap_r_squared(answer + rng.normal(size=200), answer, seed)
        assert low < high
        covered += low < 0.8 < high
    assert covered >= 50


def test_the_bootstrap_does_not_depend_on_where_values_lie(rng):
    truth = rng.normal(size=100)
    answer = truth + rng.normal(size=100)
    near = metrics.bootstrap_r_squared(truth, answer, 0)
    assert metrics.bootstrap_r_squared(truth + 1e6, answer + 1e6, 0) == pytest.approx(near, rel=1e-6)
    assert metrics.bootstrap_r_squared(truth, answer, 1) != near


def test_a_few_rows_have_no_interval():
    assert metrics.bootstrap_r_squared(np.arange(9.0), np.zeros(9), 0) is None
    assert metrics.bootstrap_r_squared(np.r_[np.zeros(9), 1.0], np.zeros(10), 0) is None
