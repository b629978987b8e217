"""What decoded rows are scored by, against plain computations; and what their codes cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stochcl.benchmarks import probes
from stochcl.benchmarks.probes import Judge, average_precision
from stochcl.codes import Codes


@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 12))))
@settings(deadline=None, max_examples=60)
def test_average_precision_is_what_its_definition_says(relevant):
    for row, found in zip(relevant, average_precision(relevant), strict=True):
        ranks = np.flatnonzero(row) + 1
        expected = np.mean([row[:rank].mean() for rank in ranks]) if len(ranks) else 0
        assert found == pytest.approx(expected)


def test_average_precision_agrees_with_scikit_learn(rng):
    from sklearn.metrics import average_precision_score

    relevant = rng.random((20, 50)) < 0.3
    for row, found in zip(relevant, average_precision(relevant), strict=True):
        assert found == pytest.approx(average_precision_score(row, -np.arange(50)))


def test_wide_rows_are_not_coded_with_networks():
    codes = Codes.from_symbols(np.zeros((2, 200), int), alphabet=256)
    assert probes.codings_of(codes, probes.CODINGS) == ("packed", "independent")
    assert probes.codings_of(codes, ("packed", "linear")) == ("packed", "independent")  # the best that it can have
    assert probes.codings_of(codes.prefix(128), probes.CODINGS) == probes.CODINGS


def test_a_file_costs_what_its_codes_do_under_a_model_of_other_rows():
    rng = np.random.default_rng(0)
    fitting, codes = (Codes.from_symbols(np.repeat(rng.random((4000, 16)) < 0.2, 2, axis=1)) for _ in range(2))
    sizes = {coding: probes.price(fitting, codes, coding) for coding in probes.CODINGS[:3]}
    entropy = -(0.2 * np.log2(0.2) + 0.8 * np.log2(0.8)) * 16  # every bit is there twice
    assert sizes["packed"] == (4000 * 4, 0)
    assert sizes["independent"][0] * 8 / 4000 == pytest.approx(2 * entropy, rel=0.08)  # a header and an index besides
    assert sizes["linear"][0] < 0.85 * sizes["independent"][0]
    assert sizes["linear"][1] > sizes["independent"][1] > 0


def test_a_penalty_is_chosen_without_the_test_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 40)).astype(np.float32)
    y = (x[:, 0] + 0.3 * rng.normal(size=300) > 0).astype(int)
    right, penalty = probes.answers("logistic", x[:200], y[:200], x[200:], y[200:])
    assert right.mean() > 0.8
    again, same = probes.answers("logistic", x[:200], y[:200], x[200:], 1 - y[200:])
    assert (again == ~right).all()
    assert same == penalty
    noise = rng.integers(0, 2, 200)  # nothing to learn: the strongest penalty does best, or as well
    assert probes.answers("logistic", x[:200], noise, x[200:], y[200:])[1] >= penalty


def test_neighbours_are_those_of_sorted_distances(monkeypatch):
    monkeypatch.setattr(probes, "_BLOCK", 7)
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    queries = np.arange(0, 60, 3)
    distances = np.linalg.norm(x[queries, None] - x[None], axis=2)
    distances[np.arange(20), queries] = np.inf
    found = probes.neighbours(x[queries], x, queries)
    assert (np.sort(found) == np.sort(np.argsort(distances)[:, :10])).all()
    assert (probes.recalls(found, found[:, ::-1]) == 1).all()
    assert probes.recalls(np.arange(20).reshape(2, 10), np.arange(5, 25).reshape(2, 10)).tolist() == [0.5, 0.5]


def test_the_mean_errs_by_one():
    x = np.random.default_rng(0).normal(3, 1, (50, 4)).astype(np.float32)
    mean = np.full(4, 3, np.float32)
    assert probes.relative_error(x, np.broadcast_to(mean, x.shape), mean) == pytest.approx(1)
    assert probes.relative_error(x, x, mean) == 0


@pytest.mark.parametrize("probe", probes.PROBES)
def test_every_probe_tells_classes_apart(probe, rng):
    y = np.arange(300) % 3
    x = (np.eye(3)[y] * 4 + rng.normal(size=(300, 3))).astype(np.float32)
    right, chosen = probes.answers(probe, x[:200], y[:200], x[200:], y[200:], seed=0)
    assert right.shape == (100,)
    assert right.mean() > 0.9
    assert chosen in (*probes.PENALTIES, *probes.NEAREST)
    shuffled = rng.permutation(y)
    assert probes.answers(probe, x[:200], shuffled[:200], x[200:], shuffled[200:])[0].mean() < 0.6


def judge(train_labels, test_labels, test, **options):
    return Judge(np.asarray(train_labels), np.asarray(test_labels), test.mean(axis=0), test, **options)


def test_retrieval_is_that_of_sorted_distances(rng, monkeypatch):
    monkeypatch.setattr(probes, "RETRIEVED", 8)
    train, test = rng.integers(0, 4, (30, 3)), rng.integers(0, 4, (20, 3))
    labels, wanted = rng.integers(0, 2, 30).astype(str), rng.integers(0, 2, 20).astype(str)
    one = judge(labels, wanted, test.astype(np.float32), metrics=("map@1000",))
    facts, values = one.scores(train, test, "levels")
    order = np.random.default_rng([0, 41]).permutation(30)
    distances = np.abs(test[:, None] - train[order][None]).sum(axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :8]
    expected = average_precision(labels[order][nearest] == wanted[:, None])
    assert values["map"] == pytest.approx(expected)
    assert facts["map_low"] <= facts["map"] <= facts["map_high"]


def test_equal_distances_do_not_favour_the_class_that_stands_first():
    labels = np.repeat(["a", "b", "c", "d"], 500)
    one = judge(labels, ["a"], np.zeros((1, 8), np.float32), metrics=("map@1000",))
    facts, _ = one.scores(np.zeros((2000, 8)), np.zeros((1, 8)), "hamming")
    assert facts["map"] == pytest.approx(0.25, abs=0.08)


def test_recall_asks_with_floats_where_it_can(rng):
    test = rng.normal(size=(100, 6)).astype(np.float32)
    one = judge([], [], test, metrics=("recall@10",), most_queries=40)
    exact, values = one.scores(test, test)
    assert (exact["recall"], exact["recall_symmetric"], exact["relative_error"]) == (1, 1, 0)
    assert values["recall"].shape == (40,)
    rough = np.round(test)
    facts, values = one.scores(rough, rough)
    assert facts["recall_symmetric"] < facts["recall"] < 1
    assert facts["recall"] == pytest.approx(values["recall"].mean(), abs=1e-4)
    narrow, _ = one.scores(rough[:, :3], rough[:, :3])
    assert narrow["relative_error"] is None
    assert narrow["recall"] == narrow["recall_symmetric"] < facts["recall"]
