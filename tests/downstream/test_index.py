"""An index keeps scikit-learn's conventions and finds what scikit-learn's search finds."""

import pickle

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.estimator_checks import parametrize_with_checks

from stochcl.downstream import CodeIndex


@parametrize_with_checks([CodeIndex(), CodeIndex(n_neighbors=2, metric="levels")])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("metric", "theirs"), [("cosine", "cosine"), ("euclidean", "euclidean"), ("levels", "manhattan")]
)
def test_the_same_as_scikit_learns_brute_force(metric, theirs):
    x = load_digits().data[:300]
    ours, _ = CodeIndex(5, metric=metric, working_memory=0.01).fit(x[:250]).kneighbors(x[250:])
    other, _ = NearestNeighbors(n_neighbors=5, metric=theirs, algorithm="brute").fit(x[:250]).kneighbors(x[250:])
    np.testing.assert_allclose(ours, other, atol=1e-4)


def test_the_metric_that_fits_is_taken():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (20, 9))
    assert CodeIndex().fit(bits.astype(np.uint8)).metric_ == "hamming"
    assert CodeIndex().fit(bits == 1).metric_ == "hamming"
    assert CodeIndex().fit(bits * 3).metric_ == "levels"
    assert CodeIndex().fit(bits.astype(np.float32)).metric_ == "cosine"


@pytest.mark.parametrize("metric", ["hamming", "symbols", "cosine"])
def test_rows_are_not_their_own_neighbours(metric):
    x = load_digits().data[:100] > 7
    index = CodeIndex(3, metric=metric).fit(x.astype(float))
    distances, rows = index.kneighbors()
    assert not (rows == np.arange(100)[:, None]).any()
    with_own, _ = index.kneighbors(x.astype(float), 4)
    np.testing.assert_allclose(distances, with_own[:, 1:], atol=1e-6)


def test_clone_pickle_joblib(tmp_path):
    x = (load_digits().data > 7).astype(np.uint8)
    index = CodeIndex(3).fit(x)
    joblib.dump(index, tmp_path / "i")
    for copy in (pickle.loads(pickle.dumps(index)), joblib.load(tmp_path / "i"), clone(index).fit(x)):
        np.testing.assert_array_equal(copy.kneighbors(x[:9])[1], index.kneighbors(x[:9])[1])


@pytest.mark.parametrize(
    ("changes", "x", "message"),
    [
        (
            {"metric": "nearness"},
            [[1]],
            "metric must be",
        ),
        ({"metric": "hamming"}, [[2]], "hamming compares bits"),
        ({"working_memory": 0}, [[1]], "working_memory"),
        ({"n_neighbors": 2}, [[1]], "n_neighbors"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, x, message):
    with pytest.raises(ValueError, match=message):
        CodeIndex(**changes).fit(x).kneighbors(x)
