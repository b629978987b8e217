"""The selector keeps scikit-learn's conventions, and does not pay twice for one thing."""

import pickle

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from stochcl.downstream import LatentSelector
from stochcl.downstream.selection import order_of_words
from stochcl.entropy.vectors import ResidualDecoder


@parametrize_with_checks([LatentSelector(), LatentSelector(categorical=True)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def bits():
    x, y = load_digits(return_X_y=True)
    return (x > 7).astype(np.uint8), y


def test_a_copy_is_chosen_last_and_the_order_is_nested(bits):
    x, y = bits
    x = x[:, x.std(axis=0) > 0.1]
    doubled = np.concatenate([x, x], axis=1)
    order = LatentSelector(20, ridge=1e-4).fit(doubled, y).order_
    assert len(set((order % x.shape[1]).tolist())) == 20
    np.testing.assert_array_equal(LatentSelector(5, ridge=1e-4).fit(doubled, y).order_, order[:5])


def test_the_gains_are_those_of_least_squares(rng):
    x = rng.normal(size=(500, 4))
    y = x @ [1.0, 0, -2, 0] + rng.normal(size=500)
    found = LatentSelector(2, ridge=1e-9).fit(x, y)
    assert found.order_.tolist() == [2, 0]
    design = np.c_[np.ones(500), x[:, [2, 0]]]
    error = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert found.gains_.sum() == pytest.approx(1 - error.var() / y.var(), rel=1e-6)


def test_chosen_pixels_beat_random_ones(bits):
    x, y = bits
    probe = LogisticRegression(max_iter=300)
    chosen = LatentSelector(10).fit(x[:900], y[:900]).transform(x)
    scores = [probe.fit(chosen[:900], y[:900]).score(chosen[900:], y[900:])]
    for seed in range(3):
        some = x[:, np.random.default_rng(seed).permutation(64)[:10]]
        scores.append(probe.fit(some[:900], y[:900]).score(some[900:], y[900:]))
    assert scores[0] > max(scores[1:]) + 0.05


def test_categories_are_chosen_by_what_they_say_whatever_their_numbers(rng):
    classes = rng.integers(0, 4, 2000)
    x = rng.integers(0, 4, (2000, 6))
    x[:, 4] = np.array([0, 3, 1, 2])[classes]  # says all, and next to nothing along its numbers
    x[:, 5] = np.array([2, 0, 3, 1])[classes]  # says it again
    x[:, 2] = np.where(rng.random(2000) < 0.5, x[:, 2], classes)
    found = LatentSelector(6, ridge=1e-3, categorical=True).fit(x, [5, 7, 7, 5] @ np.eye(4)[:, classes])
    assert set(found.order_[:1].tolist()) <= {4, 5}
    assert found.gains_[0] == pytest.approx(1, abs=0.02)
    assert found.gains_[1:].max() < 0.02
    numbers = LatentSelector(6, ridge=1e-3).fit(x, [5, 7, 7, 5] @ np.eye(4)[:, classes])
    assert numbers.gains_[0] < 0.5


def test_bits_as_categories_are_chosen_as_bits(bits):
    x, y = bits
    x = x[:, x.std(axis=0) > 0.2]
    one, other = (LatentSelector(8, ridge=1e-6, categorical=c).fit(x, y) for c in (False, True))
    np.testing.assert_array_equal(one.order_, other.order_)
    np.testing.assert_allclose(one.gains_, other.gains_, rtol=1e-3)


def test_several_targets_at_once(rng):
    x = rng.normal(size=(200, 6))
    assert set(LatentSelector(2).fit(x, x[:, [1, 4]]).order_.tolist()) == {1, 4}


def test_pipeline_grid_search_clone_pickle_joblib(bits, tmp_path):
    x, y = bits[0][:400], bits[1][:400].astype(str)
    pipe = make_pipeline(LatentSelector(), LogisticRegression(max_iter=300))
    search = GridSearchCV(pipe, {"latentselector__latents": [2, 20]}, cv=2).fit(x, y)
    assert search.best_params_ == {"latentselector__latents": 20}
    found = search.best_estimator_[0]
    joblib.dump(found, tmp_path / "s")
    for copy in (pickle.loads(pickle.dumps(found)), joblib.load(tmp_path / "s"), clone(found).fit(x, y)):
        np.testing.assert_array_equal(copy.transform(x), found.transform(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": 0}, "1 to the 64 that there are, not 0"),
        ({"latents": 65}, "not 65"),
        ({"ridge": 0}, "ridge is more"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_fit(bits, changes, message):
    with pytest.raises(ValueError, match=message):
        LatentSelector(**changes).fit(*bits)


def residual_codes(rows=600, seed=0):
    """Names of two stages of two bits, and four signs: the class is the first name and the last sign."""
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, 2, (rows, 8)).astype(np.uint8)
    words = [rng.normal(0, scale, (4, 5)) for scale in (3, 1)]
    words += [np.stack([-sign, sign]) for sign in 0.3 * rng.normal(0, 1, (4, 5))]
    return symbols, 4 * symbols[:, 0] + 2 * symbols[:, 1] + symbols[:, 7], ResidualDecoder.of_stages(words)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8])
def test_names_stay_whole_and_signs_follow_by_what_they_add(count):
    symbols, y, decoder = residual_codes()
    order, gains = order_of_words(symbols, y, decoder, count)
    assert order.tolist()[:4] == list(range(4))[:count]
    assert len(order) == len(gains) == count == len(set(order.tolist()))
    assert (gains >= 0).all()
    if count > 4:
        assert order[4] == 7
        assert gains[4] > 10 * gains[5:].max(initial=0)


def test_of_signs_alone_the_best_come_first():
    rng = np.random.default_rng(1)
    symbols = rng.integers(0, 2, (400, 6)).astype(np.uint8)
    decoder = ResidualDecoder.of_stages([np.stack([-v, v]) for v in rng.normal(0, 1, (6, 4))])
    order, _ = order_of_words(symbols, symbols[:, 3] + 2 * symbols[:, 5], decoder, 2)
    assert set(order.tolist()) == {3, 5}
