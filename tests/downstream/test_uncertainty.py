import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from stochcl.downstream.uncertainty import (
    ATYPICAL,
    CONFIDENCE,
    ENTROPY,
    LENGTH,
    NEIGHBOURS,
    REFUSED,
    CodeBatch,
    UncertaintyScorer,
    auroc,
    difference,
    draw_refusal,
    refuse,
)
from stochcl.errors import OutputError, UsageError


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60))
def test_auroc_is_scikit_learns_ties_and_all(rows):
    positive, score = (np.array(column) for column in zip(*rows, strict=True))
    found = auroc(positive, score.astype(float))
    if positive.all() or not positive.any():
        assert found is None
        return
    assert found.value == pytest.approx(roc_auc_score(positive, score))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_interval_holds_the_truth_as_often_as_it_says(rng):
    # of unit normals a deviation of 1 apart, the area is Phi(1 / sqrt(2)) = 0.7602
    held, rounds = 0, 400
    for _ in range(rounds):
        positive = np.arange(150) < 60
        found = auroc(positive, rng.standard_normal(150) + positive)
        held += found.low <= 0.7602 <= found.high
    assert 0.92 < held / rounds < 0.98


def test_the_difference_is_paired(rng):
    positive = np.arange(400) < 150
    shared = rng.standard_normal(400) + positive
    first, second = shared + 0.1 * rng.standard_normal(400), shared + 0.1 * rng.standard_normal(400)
    value, low, high = difference(positive, first, second)
    a, b = auroc(positive, first), auroc(positive, second)
    assert value == pytest.approx(a.value - b.value)
    assert high - low < 0.3 * (a.high - a.low)  # what both have in common is no part of it
    assert low < value < high
    assert difference(positive[:150], first[:150], second[:150]) is None


def test_perfect_scores_are_not_taken_for_certain():
    found = auroc(np.array([True] * 5 + [False] * 50), np.array([1.0] * 5 + [0.0] * 50))
    assert found.value == found.high == 1
    assert found.low < 0.7
    assert auroc(np.array([True, False]), np.array([1.0, 0.0])).low < 0.5


def test_refusing_the_least_certain(rng):
    score = rng.random(1000)
    wrong = rng.random(1000) < score
    found = refuse(wrong, score)
    assert [kept.refused for kept in found] == list(REFUSED)
    for kept in found:
        held = np.argsort(score)[: kept.images]
        assert kept.images == round(1000 * (1 - kept.refused))
        assert kept.accuracy == pytest.approx(1 - wrong[held].mean())
        assert kept.low < kept.accuracy < kept.high
    assert found[-1].accuracy > found[0].accuracy + 0.3


def test_equal_scores_are_refused_by_chance_and_not_by_their_place():
    wrong = np.arange(1000) < 500  # with a stable order the first half would be kept
    (half,) = refuse(wrong, np.ones(1000), shares=(0.5,))
    assert 0.42 < half.accuracy < 0.58
    assert refuse(wrong, np.ones(1000), shares=(0.5,)) == (half,)
    assert refuse(wrong, np.ones(1000), seed=1, shares=(0.5,)) != (half,)


@pytest.fixture
def coded(rng):
    """Bits of two classes that differ in their first ten, with noise; and bits that are neither's."""

    def make(rows, noise=0.2, foreign=False):
        labels = np.arange(rows) % 2
        bits = rng.random((rows, 40)) < 0.5
        if not foreign:
            bits[:, :20] = (labels[:, None] == 1) ^ (rng.random((rows, 20)) < noise)
        symbols = bits.astype(np.uint8)
        return CodeBatch(symbols, symbols, rng.random(rows).astype(np.float32), None), np.where(labels, "b", "a")

    return make


def test_scores_of_what_is_between_classes_and_of_what_is_foreign(coded):
    doubter = UncertaintyScorer(*coded(300), binary=True)
    answers, inside = doubter.answers((known := coded(200))[0])
    assert (answers == known[1]).mean() > 0.95
    _, outside = doubter.answers(coded(200, foreign=True)[0])
    for name in (NEIGHBOURS, CONFIDENCE):
        found = auroc(np.arange(400) < 200, np.concatenate([outside[name], inside[name]]))
        assert found.low > 0.75
    assert set(inside) == {LENGTH, NEIGHBOURS, CONFIDENCE}
    assert ((inside[CONFIDENCE] >= 0) & (inside[CONFIDENCE] <= 0.5)).all()


@pytest.mark.parametrize("binary", [True, False])
def test_neighbours_are_those_of_a_search_by_hand(coded, binary):
    (rows, labels), (others, _) = coded(50), coded(7)
    _, scores = UncertaintyScorer(rows, labels, binary=binary).answers(others)
    distances = (others.symbols[:, None] != rows.symbols).sum(axis=2)
    np.testing.assert_allclose(scores[NEIGHBOURS], np.sort(distances)[:, :10].mean(axis=1))


def test_a_stored_entropy_is_a_score(coded):
    (rows, labels), (others, _) = coded(50), coded(7)
    entropy = np.arange(7, dtype=np.float32)
    sure = CodeBatch(others.x, others.symbols, others.lengths, entropy)
    _, scores = UncertaintyScorer(rows, labels, binary=True).answers(sure)
    np.testing.assert_array_equal(scores[ENTROPY], entropy)
    assert ATYPICAL not in scores  # nobody knows what is usual
    known = CodeBatch(rows.x, rows.symbols, rows.lengths, np.full(50, 4, np.float32))
    _, scores = UncertaintyScorer(known, labels, binary=True).answers(sure)
    np.testing.assert_array_equal(scores[ATYPICAL], [4, 3, 2, 1, 0, 1, 2])


def test_a_probe_without_probabilities_is_refused(coded):
    with pytest.raises(UsageError, match="svm: it gives no probabilities"):
        UncertaintyScorer(*coded(20), estimator="svm", binary=True)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_plot_is_a_picture(tmp_path, ending, rng):
    score = rng.random(100)
    curves = {"entropy": refuse(rng.random(100) < score, score), "other": refuse(rng.random(100) < 0.5, score)}
    draw_refusal(curves, tmp_path / f"a.{ending}", title="a title", chance=0.5)
    data = (tmp_path / f"a.{ending}").read_bytes()
    assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    if ending == "png":
        from PIL import Image

        grey = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
        assert (grey < 60).sum() > 500  # lines, and not only their bands


def test_a_plot_that_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a\.jpg: a plot is drawn as \.png"):
        draw_refusal({}, tmp_path / "a.jpg")
    with pytest.raises(OutputError, match="cannot be written"):
        draw_refusal({"a": refuse(np.ones(4, bool), np.ones(4))}, tmp_path / "no" / "a.png")
