"""Nearest neighbours by Hamming distance: scikit-learn's own checks, and the same answers as its brute force."""

import pickle

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from stochcl.downstream import HammingKNeighborsClassifier, HammingKNeighborsRegressor
from stochcl.downstream.distances import nearest, pack_bits


@parametrize_with_checks(
    [
        HammingKNeighborsClassifier(),
        HammingKNeighborsRegressor(),
        HammingKNeighborsClassifier(n_neighbors=3, weights="distance"),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 130),
    count=st.integers(1, 5),
    memory=st.sampled_from([1, 3000, 10**6]),
    seed=st.integers(0, 99),
)
def test_the_search_is_that_of_all_distances(rows, width, count, memory, seed):
    rng = np.random.default_rng(seed)
    bits = rng.random((rows, width)) < 0.5
    queries = rng.random((7, width)) < 0.5
    count = min(count, rows)
    distances, numbers = nearest(pack_bits(queries), pack_bits(bits), count, memory=memory)
    expected = (queries[:, None] ^ bits[None]).sum(axis=2)
    order = np.argsort(expected, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(numbers, order)
    np.testing.assert_array_equal(distances, np.take_along_axis(expected, order, 1))


def test_training_rows_are_compared_in_parts(monkeypatch):
    bits = pack_bits(np.random.default_rng(0).random((50, 70)) < 0.5)
    whole = nearest(bits, bits, 4)
    monkeypatch.setattr("stochcl.downstream.distances._ROWS", 7)
    for one, other in zip(whole, nearest(bits, bits, 4), strict=True):
        np.testing.assert_array_equal(one, other)


def test_regression_is_scikit_learns_on_the_same_neighbours():
    # An odd number of bits and one neighbour from far: no ties that the two would break in different ways.
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2, (200, 300)), rng.normal(size=(200, 2))
    ours = HammingKNeighborsRegressor(n_neighbors=1).fit(x[:150], y[:150]).predict(x[:150])
    np.testing.assert_allclose(ours, KNeighborsRegressor(1, metric="hamming").fit(x[:150], y[:150]).predict(x[:150]))


def test_a_bit_that_is_mostly_one_still_tells_rows_apart():
    x = np.array([[1], [1], [1], [0]])
    found = HammingKNeighborsClassifier(n_neighbors=1).fit(x, ["a", "a", "a", "b"])
    assert found.predict(x).tolist() == ["a", "a", "a", "b"]


def test_digits_are_told_apart_and_survive_pickle_joblib_clone(tmp_path):
    x, y = load_digits(return_X_y=True)
    found = HammingKNeighborsClassifier(n_neighbors=5).fit(x[:1200], y[:1200])
    assert found.score(x[1200:], y[1200:]) > 0.85
    joblib.dump(found, tmp_path / "knn")
    for copy in (pickle.loads(pickle.dumps(found)), joblib.load(tmp_path / "knn")):
        np.testing.assert_array_equal(copy.predict(x), found.predict(x))
    assert not hasattr(clone(found), "packed_")


def test_in_a_pipeline_and_a_grid_search():
    x, y = load_digits(return_X_y=True)
    pipe = make_pipeline(StandardScaler(), HammingKNeighborsClassifier())
    search = GridSearchCV(pipe, {"hammingkneighborsclassifier__n_neighbors": [1, 5]}, cv=2).fit(x[:300], y[:300])
    assert search.best_score_ > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"n_neighbors": 5}, "n_samples = 4"),
        ({"weights": "own"}, "weights"),
        ({"working_memory": 0}, "working_memory"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        HammingKNeighborsClassifier(**{"n_neighbors": 1} | changes).fit(np.eye(4), [0, 1, 0, 1])
