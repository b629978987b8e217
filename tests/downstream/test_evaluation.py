import json
import warnings

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stochcl.downstream import ESTIMATORS, evaluate, evaluate_split
from stochcl.downstream.evaluation import Evaluation
from stochcl.downstream.probes import make_estimator
from stochcl.errors import LabelsError, UsageError

X, Y = load_digits(return_X_y=True)
X, Y = X[:500], Y[:500]
LABELS = Y.astype(str)
BITS = (X > 7).astype(np.uint8)


def test_the_score_is_the_one_that_scikit_learn_gives():
    folds = StratifiedKFold(5, shuffle=True, random_state=3)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=500, tol=1e-3))
    expected = cross_val_score(pipeline, X, LABELS, cv=folds)
    found = evaluate(X, LABELS, seed=3)
    np.testing.assert_allclose(found.folds, expected, atol=1e-6)
    assert found.score == pytest.approx(np.average(expected), abs=1e-3)
    assert (found.n_train, found.n_test) == (400, 500)


@pytest.mark.parametrize("name", ESTIMATORS["classification"])
def test_every_classifier_beats_the_majority(name):
    found = evaluate(BITS[:200], LABELS[:200], estimator=name, folds=2)
    assert found.estimator == name
    assert found.score > found.baseline + 0.3
    assert found.interval[0] < found.score < found.interval[1]
    assert np.sum(found.confusion) == 200
    assert np.trace(found.confusion) == round(found.score * 200)


@pytest.mark.parametrize("name", ESTIMATORS["regression"])
def test_every_regressor_beats_the_mean(name):
    found = evaluate(X[:300], Y[:300], task="regression", estimator=name, folds=3)
    assert found.score > 0.4 > found.baseline
    assert 0 < found.mae < found.rmse


def test_a_held_out_part_is_of_the_size_asked_for_and_stratified():
    found = evaluate(X, LABELS, test_size=0.2)
    assert (found.n_train, found.n_test) == (400, 100)
    assert [sum(row) for row in found.confusion] == pytest.approx([10] * 10, abs=1)


def test_a_split_trains_on_one_part_and_scores_on_the_other():
    found = evaluate_split(X[:400], LABELS[:400], X[400:], LABELS[400:])
    assert (found.n_train, found.n_test) == (400, 100)
    assert found.score > 0.8
    with pytest.raises(UsageError, match="64 wide and test rows 10"):
        evaluate_split(X, LABELS, X[:, :10], LABELS)


def test_equal_seeds_give_equal_scores_and_others_others():
    first, again, other = (evaluate(X, LABELS, seed=seed).folds for seed in (0, 0, 1))
    assert first == again != other


def test_rows_without_a_label_are_left_out_and_counted():
    labels = LABELS.copy()
    labels[:7] = ""
    found = evaluate(X, labels)
    assert found.n_test == 493
    assert "left out 7 rows without a label" in found.notes
    numbers = Y.astype(float)
    numbers[3] = np.nan
    assert evaluate(X, numbers, task="regression").n_test == 499


def test_small_classes_mean_fewer_folds_and_a_note():
    found = evaluate(X[:23], ["a"] * 20 + ["b"] * 3)
    assert len(found.folds) == 3
    assert any("3 folds instead of 5" in note for note in found.notes)


def test_a_few_rows_are_enough_for_every_estimator_but_are_few():
    for name in ESTIMATORS["classification"]:
        assert evaluate(BITS[:4], ["a", "a", "b", "b"], estimator=name).n_test == 4
    for name in ESTIMATORS["regression"]:
        found = evaluate(BITS[:3], [1, 2, 3], task="regression", estimator=name)
        assert found.n_test == 3
        assert found.interval is None
        assert found.to_json()["folds"] == [None] * 3  # the R2 of a single row


def test_rows_of_a_group_stay_together():
    # every row is there twice, and labels are random: only who has seen the twin knows better than chance
    rng = np.random.default_rng(0)
    twins, labels = np.repeat(rng.normal(size=(100, 30)), 2, axis=0), np.repeat(rng.choice(["a", "b"], 100), 2)
    forest = "sklearn.ensemble.ExtraTreesClassifier"
    assert evaluate(twins, labels, estimator=forest, folds=2).score > 0.7
    apart = evaluate(twins, labels, estimator=forest, folds=2, groups=[f"twin {i // 2}" for i in range(200)])
    assert 0.35 < apart.score < 0.65
    labels[:3] = ""
    assert evaluate(twins, labels, folds=2, groups=np.arange(200) // 2).n_test == 197
    with pytest.raises(UsageError, match="200 rows, but groups have shape"):
        evaluate(twins, labels, groups=[1, 2])


def test_a_fit_that_stops_early_is_noted_and_warns_nobody(monkeypatch):
    def short(*given):
        return LogisticRegression(max_iter=1)

    monkeypatch.setitem(ESTIMATORS["classification"], "short", short)
    found = evaluate(X, LABELS, estimator="short", folds=2)
    assert [note for note in found.notes if "short stopped before it had converged" in note] == list(found.notes)


class Odd(ClassifierMixin, BaseEstimator):
    """Warns, and answers with what it was made with."""

    def __init__(self, answer="a"):
        self.answer = answer

    def fit(self, x, y):
        warnings.warn("odd things\nhappen", UserWarning, stacklevel=1)
        self.classes_ = np.unique(y)
        return self

    def predict(self, x):
        return self.answer(x) if callable(self.answer) else np.full(len(x), self.answer)


def test_other_warnings_become_notes_once(monkeypatch):
    monkeypatch.setitem(ESTIMATORS["classification"], "odd", lambda *given: Odd())
    found = evaluate(X, LABELS, estimator="odd")
    assert found.notes == ("odd warned: odd things",)
    assert found.score == 0
    assert "a" in found.classes


@pytest.mark.parametrize("answer", [lambda x: x, lambda x: np.full(len(x), np.nan), lambda x: np.zeros(1)])
def test_answers_that_make_no_sense_are_refused(monkeypatch, answer):
    monkeypatch.setitem(ESTIMATORS["classification"], "odd", lambda *given: Odd(answer))
    with pytest.raises(UsageError, match="odd does not predict one finite value"):
        evaluate(X, LABELS, estimator="odd")


def test_an_estimator_that_does_not_suit_the_codes_is_said_in_a_sentence():
    with pytest.raises(UsageError, match=r"MultinomialNB cannot be trained on these codes: Negative values.*\.$"):
        evaluate(-X, LABELS, estimator="sklearn.naive_bayes.MultinomialNB")


def test_neighbours_of_integers_go_by_hamming_distance_and_of_floats_by_cosine():
    x, y = np.array([[1, 1, 1], [9, 0, 2]] * 30, dtype=np.uint8), ["flat", "steep"] * 30
    test = np.array([[3, 4, 2]], dtype=np.uint8)  # shares a symbol with the steep ones, points where the flat ones do
    assert evaluate_split(x, y, test, ["steep"], estimator="knn").score == 1
    assert evaluate_split(x.astype(float), y, test.astype(float), ["flat"], estimator="knn").score == 1


def test_a_class_that_was_not_trained_on_counts_as_wrong():
    known = Y[:400] < 8
    found = evaluate_split(X[:400][known], LABELS[:400][known], X[400:], LABELS[400:])
    assert any("2 classes have no row to train on and count as wrong: '8', '9'" in note for note in found.notes)
    assert found.score < (Y[400:] < 8).mean()
    assert found.classes == tuple("0123456789")
    assert np.sum(found.confusion, axis=0)[8:].tolist() == [0, 0]


def test_rows_to_score_on_may_be_of_one_class_but_not_of_one_number():
    assert evaluate_split(X, LABELS, X[Y == 3], LABELS[Y == 3]).score > 0.9
    with pytest.raises(LabelsError, match="R2 is undefined"):
        evaluate_split(X, Y, X[Y == 3], Y[Y == 3], task="regression")
    with pytest.raises(LabelsError, match="none of the rows to score on has a label"):
        evaluate_split(X, LABELS, X[:2], ["", ""])


def test_the_confusion_matrix_of_very_many_classes_is_left_out():
    labels = np.repeat([f"c{i}" for i in range(1001)], 2)
    found = evaluate(np.zeros((2002, 1)), labels, estimator="sklearn.dummy.DummyClassifier")
    assert found.confusion == ()
    assert any("1,001 classes was left out" in note for note in found.notes)


def test_a_row_is_called_by_its_name():
    x = X.copy()
    x[5, 3] = np.inf
    with pytest.raises(UsageError, match=r"row 5 \('dog/5.png'\)"):
        evaluate(x, LABELS, names=[f"dog/{i}.png" for i in range(500)])


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_figures_are_json_and_lines_have_units(task):
    found = evaluate(X, Y, task=task, folds=2)
    assert json.loads(json.dumps(found.to_json()))["task"] == task
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["folds"] == list(found.folds)
    text = found.summary()
    assert ("accuracy" in text) == (task == "classification") == ("R2" not in text)
    assert "500 rows, cross-validated in 2 folds" in text
    assert "95 % interval" in text
    assert found.interval[0] < found.score < found.interval[1]


@pytest.mark.parametrize(
    ("labels", "task", "error", "message"),
    [
        (LABELS[:9], "classification", LabelsError, "500 rows and 9 labels"),
        (["a"] * 500, "classification", LabelsError, "fewer than two"),
        ([""] * 500, "classification", LabelsError, "fewer than two"),
        (["a", "b"] * 250, "regression", LabelsError, "needs numbers"),
        ([1.0, np.inf] * 250, "regression", LabelsError, "infinite"),
        (LABELS, "clustering", UsageError, "no task"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(labels, task, error, message):
    with pytest.raises(error, match=message):
        evaluate(X, labels, task=task)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(UsageError, match="between 0 and 1"):
        evaluate(X, LABELS, test_size=1.5)
    with pytest.raises(UsageError, match="at least 2 folds"):
        evaluate(X, LABELS, folds=1)
    with pytest.raises(UsageError, match="not finite"):
        evaluate(np.full((500, 2), np.nan), LABELS)
    with pytest.raises(UsageError, match="shape"):
        evaluate(X[0], LABELS)


@pytest.mark.parametrize(
    "codes", [BITS, BITS.astype(bool), X.astype(np.uint8), X], ids=["bits", "bool", "symbols", "floats"]
)
def test_a_probe_is_told_whether_its_rows_are_bits(codes, monkeypatch):
    told = []

    def spy(*args, **given):
        told.append((given["symbols"], given["binary"]))
        return make_estimator(*args, **given)

    monkeypatch.setattr("stochcl.downstream.evaluation.make_estimator", spy)
    evaluate(codes, LABELS, estimator="knn", folds=2)
    evaluate_split(codes, LABELS, codes[:100], LABELS[:100], estimator="knn")
    symbols = codes.dtype.kind in "bu"
    assert told == [(symbols, symbols and bool((codes <= 1).all()))] * 3


def test_classes_are_printed_in_their_own_letters_and_told_apart():
    long = "a" * 25
    classes = ("日本", f"{long}1", f"{long}2", "tab\there")
    found = Evaluation(
        "classification", "logistic", 9, 9, 0.5, None, 0.3, classes=classes, confusion=((1, 0, 0, 0),) * 4
    )
    lines = found.lines()[-4:]
    assert lines[0].startswith("    日本" + " " * 22)
    assert [line.split()[0] for line in lines] == ["日本", f"{long}1", f"{long}2", "tab\\there"]
