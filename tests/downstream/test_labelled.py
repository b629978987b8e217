import numpy as np
import pytest

from stochcl.downstream.metrics import labelled
from stochcl.errors import LabelsError, UsageError

X = np.arange(8, dtype=np.float32).reshape(4, 2)


@pytest.mark.parametrize(
    ("given", "kept", "symbols"),
    [("f4", "f4", False), ("f8", "f8", False), ("f2", "f4", False), ("u1", "f4", True), ("i8", "f4", True)],
)
def test_floats_stay_what_they_are_and_integers_are_symbols(given, kept, symbols):
    rows = labelled(X.astype(given), list("abab"), "classification")
    assert rows.x.dtype == np.dtype(kept)
    assert rows.symbols == symbols
    np.testing.assert_array_equal(rows.x, X)


def test_rows_that_all_have_labels_are_not_copied():
    assert labelled(X, list("abab"), "classification").x is X


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "", "b", "c"],
        ["a", " ", "b", "c"],
        ["a", None, "b", "c"],
        ["a", float("nan"), "b", "c"],
        np.array(["a", np.float32("nan"), "b", "c"], dtype=object),
        np.array(["a", "", "b", "c"]),
        np.array([b"a", b"", b"b", b"c"]),
    ],
)
def test_what_is_no_label_of_a_class(labels):
    rows = labelled(X, labels, "classification")
    assert rows.y.tolist() == ["a", "b", "c"]
    assert rows.kept.tolist() == [True, False, True, True]
    assert rows.left_out == 1
    np.testing.assert_array_equal(rows.x, X[[0, 2, 3]])


def test_a_class_may_be_called_nan_or_not_be_text():
    assert labelled(X, ["nan", "b", "b", "nan"], "classification").y.tolist() == ["nan", "b", "b", "nan"]
    assert labelled(X, [1, 0, 1, 0], "classification").y.tolist() == ["1", "0", "1", "0"]
    assert labelled(X, np.array([1, np.nan, 1, 0]), "classification").y.tolist() == ["1", "1", "0"]
    assert labelled(X, [b"caf\xc3\xa9", b"\xff", b"", b"a"], "classification").y.tolist() == ["café", "\udcff", "a"]


@pytest.mark.parametrize("labels", [[1, None, 2.5, "3"], ["1", "", "2.5", "3"], ["1", "nan", "2.5", "3"]])
def test_numbers_may_be_written_as_text(labels):
    rows = labelled(X, labels, "regression")
    assert rows.y.tolist() == [1.0, 2.5, 3.0]
    assert rows.y.dtype == np.float64
    assert rows.left_out == 1


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        ("abc", "classification", "labels have shape"),
        (["a"], "classification", "4 rows and 1 labels"),
        ([["a"]] * 4, "classification", "labels have shape"),
        ([1, 2, "three", 4], "regression", r"row 2 \('c\\n'\): regression needs numbers as labels, not 'three'"),
        ([1, 2, 3, np.inf], "regression", r"row 3 \('d'\): its label is infinite"),
        ([1, 2, 3, 1j], "regression", "needs numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, task, message):
    with pytest.raises(LabelsError, match=message):
        labelled(X, labels, task, names=["a", "b", "c\n", "d"])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[0], r"not \(2,\)"),
        (X[:, :0], r"not \(4, 0\)"),
        ([[1, 2], [3]], "different lengths"),
        ([["a"]] * 4, "codes are numbers"),
        (np.where(X == 5, np.nan, X), "row 2: its code holds numbers that are not finite"),
        (np.where(X == 7, -np.inf, X), "row 3: its code"),
    ],
)
def test_codes_that_are_no_finite_matrix_are_refused(x, message):
    with pytest.raises(UsageError, match=message):
        labelled(x, list("abab"), "classification")


def test_there_is_a_name_for_every_row():
    with pytest.raises(UsageError, match="4 rows and 1 names"):
        labelled(X, list("abab"), "classification", names=["a"])


def test_symbols_of_two_values_are_binary_and_floats_are_not():
    bits = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.uint8)
    assert labelled(bits, list("abab"), "classification").binary
    assert labelled(bits.astype(bool), list("abab"), "classification").binary
    assert not labelled(bits.astype(np.float32), list("abab"), "classification").binary
    assert not labelled(bits * 2, list("abab"), "classification").binary
    assert not labelled(-bits.astype(int), list("abab"), "classification").binary


def test_negative_class_numbers_are_no_label_but_signs_are():
    x = np.arange(8.0).reshape(4, 2)
    assert labelled(x, [0, -1, 2, 0], "classification").y.tolist() == ["0", "2", "0"]
    assert labelled(x, [-1, 1, 1, -1], "classification").y.tolist() == ["-1", "1", "1", "-1"]
    assert labelled(x, [-1, 1, 1, -3], "regression").y.tolist() == [-1, 1, 1, -3]
    assert labelled(x, ["nan", "NA", "a", np.array(3)], "classification").y.tolist() == ["nan", "NA", "a", "3"]
