import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.downstream.metrics import make_splits
from stochcl.errors import LabelsError, UsageError


@st.composite
def problems(draw):
    task = draw(st.sampled_from(["classification", "regression"]))
    sizes = draw(st.lists(st.integers(2, 12), min_size=2, max_size=4))
    y = np.repeat(np.array(list("abcd"))[: len(sizes)], sizes)
    y = y if task == "classification" else np.arange(float(len(y)))
    groups = None
    if draw(st.booleans()):
        groups = np.array(draw(st.lists(st.integers(0, 5), min_size=len(y), max_size=len(y))))
        groups[:2] = 0, 1
    return y, task, groups


@settings(deadline=None)  # the first call imports scikit-learn
@given(problems(), st.integers(2, 7), st.integers(0, 3))
def test_folds_score_every_row_once_and_never_one_that_they_train_on(problem, folds, seed):
    y, task, groups = problem
    splits, notes = make_splits(y, task, seed=seed, folds=folds, groups=groups)
    assert sorted(np.concatenate([test for _, test in splits])) == list(range(len(y)))
    for train, test in splits:
        assert sorted([*train, *test]) == list(range(len(y)))
        if groups is not None:
            assert not set(groups[train]) & set(groups[test])
    if groups is None:
        assert len(splits) == folds or (len(splits) < folds and f"{len(splits)} folds instead of {folds}" in notes[0])


@given(problems(), st.integers(0, 3))
def test_no_group_is_on_both_sides_of_a_held_out_part(problem, seed):
    y, task, groups = problem
    ((train, test),), _ = make_splits(y, task, seed=seed, folds=5, test_size=0.5, groups=groups)
    assert sorted([*train, *test]) == list(range(len(y)))
    if groups is not None:
        assert not set(groups[train]) & set(groups[test])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_seed_decides(task, grouped):
    y = np.array(list("ab") * 20) if task == "classification" else np.arange(40.0)
    groups = np.arange(40) // 2 if grouped else None
    first, again, other = (
        [test.tolist() for _, test in make_splits(y, task, seed=seed, folds=4, groups=groups)[0]]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first[0] != list(range(10))


def test_classes_keep_their_shares():
    y = np.array(["a"] * 30 + ["b"] * 10)
    for train, test in make_splits(y, "classification", seed=0, folds=5)[0]:
        assert (y[train] == "b").sum() == 8
        assert (y[test] == "b").sum() == 2
    (_, test), *_ = make_splits(y, "classification", seed=0, folds=5, test_size=0.2)[0]
    assert (y[test] == "b").sum() == 2


@pytest.mark.parametrize(
    ("y", "groups", "note"),
    [
        (["a"] * 9 + ["b"] * 3, None, "3 folds instead of 5, because the smallest class has 3 rows"),
        ([1.0, 2.0, 3.0, 4.0], None, "4 folds instead of 5, because there are 4 rows with a label"),
        (["a", "b"] * 6, [0, 1, 2] * 4, "3 folds instead of 5, because there are 3 groups"),
    ],
)
def test_fewer_folds_are_said(y, groups, note):
    task = "classification" if isinstance(y[0], str) else "regression"
    groups = groups if groups is None else np.array(groups)
    assert make_splits(np.array(y), task, seed=0, folds=5, groups=groups)[1] == [note]


def test_what_cannot_be_split_is_refused():
    with pytest.raises(LabelsError, match="class 'b' has a single row"):
        make_splits(np.array(["a", "a", "b"]), "classification", seed=0, folds=2)
    with pytest.raises(UsageError, match="all rows are in one group"):
        make_splits(np.arange(3.0), "regression", seed=0, folds=2, groups=np.zeros(3, int))
    with pytest.raises(LabelsError, match=r"6 labelled rows cannot be split: .*classes.*\w\.$"):
        make_splits(np.array(list("aabbcc")), "classification", seed=0, folds=2, test_size=0.1)
