import sys
import types

import numpy as np
import pytest
from sklearn.base import is_classifier, is_regressor

from stochcl.downstream import ESTIMATORS, TASKS, make_estimator
from stochcl.errors import UsageError


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, names in ESTIMATORS.items() for name in names])
def test_every_estimator_is_of_its_kind(task, name):
    found, estimator = make_estimator(name, task)
    assert found == name
    assert (is_classifier if task == "classification" else is_regressor)(estimator)


@pytest.mark.parametrize(("task", "name"), [("classification", "logistic"), ("regression", "ridge")])
def test_auto_is_the_first(task, name):
    assert make_estimator("auto", task)[0] == name == next(iter(ESTIMATORS[task]))


@pytest.mark.parametrize("task", TASKS)
def test_neighbours_of_symbols_go_by_hamming_distance(task):
    assert make_estimator("knn", task, symbols=True)[1].metric == "hamming"
    assert make_estimator("knn", task, symbols=False)[1].metric == "cosine"


@pytest.mark.parametrize("task", TASKS)
def test_bits_have_the_same_neighbours_by_a_faster_way(task, rng):
    x = rng.integers(0, 2, (300, 65)).astype(np.float32)
    fast = make_estimator("knn", task, symbols=True, binary=True)[1].fit(x, np.arange(300) % 2)
    slow = make_estimator("knn", task, symbols=True)[1].fit(x, np.arange(300) % 2)
    assert type(fast) is not type(slow)
    test = rng.integers(0, 2, (50, 65)).astype(np.float32)
    # in float64, for the last digit: fractions of 65 are no binary fractions
    np.testing.assert_allclose(fast.kneighbors(test)[0], slow.kneighbors(test)[0] * 65, rtol=1e-6)
    assert (fast.kneighbors(test)[0] % 1 == 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_there_are_never_more_neighbours_than_rows(task):
    assert make_estimator("knn", task, rows=7)[1].n_neighbors == 7
    assert make_estimator("knn", task, rows=700)[1].n_neighbors == 20


def test_what_logistic_regression_learns_hardly_depends_on_how_often_rows_are_repeated(rng):
    x = rng.normal(size=(600, 5)).astype(np.float32)
    y = np.where(x[:, 0] + rng.normal(size=600) > 0, "a", "b")
    once = make_estimator("logistic", "classification", rows=600)[1].fit(x, y)
    often = make_estimator("logistic", "classification", rows=6000)[1].fit(np.tile(x, (10, 1)), np.tile(y, 10))
    np.testing.assert_allclose(once[-1].coef_, often[-1].coef_, atol=0.01)


def test_logistic_regression_stays_in_float32(rng):
    x = rng.normal(size=(60, 5)).astype(np.float32)
    assert make_estimator("logistic", "classification")[1].fit(x, np.arange(60) % 2)[-1].coef_.dtype == np.float32


def test_scaling_is_fitted_with_the_probe(rng):
    x = rng.normal(5, 3, size=(60, 5))
    for name, task in [("logistic", "classification"), ("svm", "classification"), ("ridge", "regression")]:
        probe = make_estimator(name, task)[1].fit(x, np.arange(60) % 2)
        np.testing.assert_allclose(probe[0].mean_, x.mean(axis=0))


def test_a_class_is_named_by_its_path_and_given_the_seed():
    name, estimator = make_estimator("sklearn.naive_bayes.GaussianNB", "classification")
    assert type(estimator).__name__ == "GaussianNB"
    assert name == "sklearn.naive_bayes.GaussianNB"
    _, tree = make_estimator("sklearn.tree.DecisionTreeRegressor", "regression", seed=7)
    assert tree.random_state == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nearest", "there are logistic, svm, knn, boosting, or name"),
        ("", "there is no classification estimator ''"),
        ("sklearn.nothing.Here", "there is no such class"),
        ("sklearn.linear_model.Nothing", "there is no such class"),
        (".relative", "there is no such class"),
        ("sklearn..Ridge", "there is no such class"),
        ("os.getcwd", "not a scikit-learn estimator"),
        ("pathlib.Path", "not a scikit-learn estimator"),
        ("sklearn.linear_model.Ridge", "not an estimator for classification"),
        ("sklearn.multioutput.ClassifierChain", "cannot be made without parameters"),
        ("bad\n.name", r"'bad\\n.name'"),
    ],
)
def test_an_unknown_estimator_says_what_there_is(name, message):
    with pytest.raises(UsageError, match=message):
        make_estimator(name, "classification")


def test_a_regression_needs_a_regressor():
    with pytest.raises(UsageError, match="not an estimator for regression"):
        make_estimator("sklearn.svm.SVC", "regression")
    with pytest.raises(UsageError, match="there are ridge, knn, boosting"):
        make_estimator("logistic", "regression")
    with pytest.raises(UsageError, match="there is no task 'clustering'"):
        make_estimator("auto", "clustering")


def test_a_module_that_fails_to_import_is_said_in_a_sentence(monkeypatch, tmp_path):
    (tmp_path / "exploding_probe.py").write_text("raise RuntimeError('boom')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="there is no such class \\(boom\\)"):
        make_estimator("exploding_probe.Probe", "classification")
    monkeypatch.setitem(sys.modules, "empty_probe", types.ModuleType("empty_probe"))
    with pytest.raises(UsageError, match="there is no such class"):
        make_estimator("empty_probe.Probe", "classification")
