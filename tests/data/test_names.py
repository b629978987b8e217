"""Names: order, labels, what is shown, what an archive may call its members, and the held-out split."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.codes import folder_label
from stochcl.data import Entry, held_out
from stochcl.data.names import MAX_NAME_BYTES, is_hidden, member_name, path_name, sort_key
from stochcl.messages import escape_name

raw_names = st.binary(min_size=1, max_size=30).filter(lambda b: b"\0" not in b)


@given(st.lists(raw_names))
@settings(deadline=None)
def test_order_is_that_of_the_bytes(raw):
    names = [b.decode("utf-8", "surrogateescape") for b in raw]
    assert [sort_key(n) for n in sorted(names, key=sort_key)] == sorted(raw)


@given(raw_names)
@settings(deadline=None)
def test_what_is_shown_fits_any_terminal(raw):
    shown = escape_name(raw.decode("utf-8", "surrogateescape"))
    assert shown.isprintable()
    shown.encode("utf-8")


@given(st.text(max_size=40))
@settings(deadline=None)
def test_a_member_name_stays_inside(stored):
    try:
        name = member_name(stored)
    except ValueError:
        return
    assert name
    assert not name.startswith("/")
    assert not {"", ".", ".."} & set(name.split("/"))
    assert member_name(name) == name


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ("/etc/a.png", "absolute"),
        ("\\server\\a.png", "absolute"),
        ("C:\\a.png", "absolute"),
        ("c:/a.png", "absolute"),
        ("../a.png", "climbs out"),
        ("a/../../b.png", "climbs out"),
        ("a\\..\\b.png", "climbs out"),
        ("a\0.png", "NUL"),
        ("./", "empty"),
        ("a" * (MAX_NAME_BYTES - 3) + ".png", "longer than"),
    ],
)
def test_names_that_a_member_may_not_have(stored, reason):
    with pytest.raises(ValueError, match=reason):
        member_name(stored)


def test_two_dots_within_a_name_are_fine():
    assert member_name("a..b/c...png") == "a..b/c...png"


def test_hidden_names():
    assert all(map(is_hidden, [".a.png", "a/.b/c.png", "a/._c.png", "__MACOSX/._c.png"]))
    assert not any(map(is_hidden, ["a.b.png", "a/b.c/d.png", "x__MACOSX/a.png"]))


def test_label_is_the_first_folder():
    assert [folder_label(n) for n in ("a/b/c.png", "c.png", "\udcff/c.png")] == ["a", "", "\udcff"]


@given(st.lists(st.sampled_from("abc"), max_size=60), st.integers(0, 10))
@settings(deadline=None)
def test_held_out_is_the_last_of_each_class(labels, per_class):
    names = [f"{label}/{i:04d}.png" for i, label in enumerate(labels)]
    mask = held_out(names, per_class)
    assert mask.dtype == np.bool_
    for label in set(labels):
        rows = [i for i, other in enumerate(labels) if other == label]
        kept = rows[: max(0, len(rows) - per_class)]
        assert mask[rows].tolist() == [i not in kept for i in rows]


def test_held_out_takes_entries_as_well():
    names = [f"{c}/{i:02d}" for c in "ab" for i in range(30)]
    from_entries = held_out([Entry(n, 1, 0) for n in names])
    assert np.array_equal(from_entries, held_out(names))
    assert from_entries.sum() == 40


def test_entries_pickle():
    entry = Entry("a/\udcff.png", 3, 4)
    assert pickle.loads(pickle.dumps(entry)) == entry


def test_classes_may_come_from_elsewhere_than_the_folders():
    labels = {"a/0": "x", "a/1": "y", "a/2": "y", "b/0": "x"}
    assert held_out(labels, per_class=1, label=labels.get).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("s3://bucket/train/cat/1.jpg", "train/cat/1.jpg"),
        ("https://host:80/cat/1.jpg", "cat/1.jpg"),
        ("file:///data/cat/1.jpg", "data/cat/1.jpg"),
        ("/data/cat/1.jpg", "data/cat/1.jpg"),
        (r"C:\data\cat\1.jpg", "data/cat/1.jpg"),
        ("C:/data/cat/1.jpg", "data/cat/1.jpg"),
        (r"\\server\share\cat\1.jpg", "cat/1.jpg"),
        (r"cat\1.jpg", "cat/1.jpg"),
        (r"..\..\cat\1.jpg", "cat/1.jpg"),
        ("../../cat/1.jpg", "cat/1.jpg"),
        ("a/../cat/./1.jpg", "cat/1.jpg"),
        ("cat:3/1.jpg", "cat:3/1.jpg"),
    ],
)
def test_paths_of_tables_and_lists_become_names(given, name):
    assert path_name(given) == name


def test_a_backslash_may_be_a_letter():
    assert path_name("cat/a\\b.jpg") == "cat/a\\b.jpg"
    assert path_name("a\\b.jpg", backslashes=False) == "a\\b.jpg"
    with pytest.raises(ValueError, match="empty"):
        path_name("../..")
