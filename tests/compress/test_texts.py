import copy
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest

from stochcl.compress import Archive
from stochcl.compress.columns import LazyStrings, PackedTexts, StringColumn, pack_labels, unpack_labels
from stochcl.errors import ChecksumMismatch, FormatError, LimitExceeded
from stochcl.framing import pack_texts, pack_varints
from tests.compress.making import make_codes, make_tables, write

NAMES = ("a", "", "süß/b", "caf\udce9", "a", "日本/c", "z" * 300, "last")
STARTS = np.array([0, 3, 4, 8])


def make_texts(rows=range(8), read=None):
    def segment(number):
        if read is not None:
            read.append(number)
        return NAMES[STARTS[number] : STARTS[number + 1]]

    return LazyStrings(StringColumn(STARTS, segment), rows)


def test_packed_texts_give_back_what_they_were_given():
    packed = PackedTexts(NAMES)
    assert len(packed) == len(NAMES)
    assert packed.take(np.array([7, 0, 3, 3])) == [NAMES[i] for i in (7, 0, 3, 3)]
    assert packed.nbytes < 400


@pytest.mark.parametrize("rows", [range(8), range(7, 0, -2), range(0), np.array([5, 5, 0, 7])], ids=repr)
def test_texts_are_as_the_tuple_of_them(rows):
    texts, expected = make_texts(rows), tuple(NAMES[i] for i in rows)
    assert texts == expected
    assert expected == texts
    assert texts == make_texts(rows)
    assert texts != (*expected, "more")
    assert texts != (*expected[:-1], "other")
    assert texts != list(expected)
    assert (hash(texts), len(texts), list(texts)) == (hash(expected), len(expected), list(expected))
    assert texts[1:3] == expected[1:3]
    assert repr(texts) == repr(expected)
    assert [texts[i] for i in range(-len(rows), len(rows))] == [*expected, *expected]
    assert "last" not in texts[:-1] or "last" in expected[:-1]
    for again in (pickle.loads(pickle.dumps(texts)), copy.copy(texts)):
        assert type(again) is tuple
        assert again == expected
    with pytest.raises(IndexError):
        texts[len(rows)]


def test_only_the_segments_that_are_looked_at_are_read_and_each_once():
    read = []
    texts = make_texts(read=read)
    assert (texts[3:][0], len(texts), bool(texts)) == (NAMES[3], 8, True)
    assert read == [1]
    assert list(texts) == list(NAMES)
    assert sorted(read) == [0, 1, 2]


def test_many_are_shown_by_a_few():
    texts = LazyStrings(StringColumn(np.array([0, 50]), lambda _: [str(i) for i in range(50)]), range(50))
    assert repr(texts) == "('0', '1', '2', '3', '4', '5', '6', '7', ... 50 in all)"


@pytest.fixture
def path(tmp_path):
    names = [f"{'cat' if i % 2 else 'dog'}/{i}" for i in range(90)]
    codes = make_codes(90, 9, names=names, uncertainty=np.arange(90))
    return write(tmp_path / "a", codes, make_tables(9), segment_rows=40)


def test_damaged_names_do_not_keep_rows_from_being_read(path):
    data = bytearray(path.read_bytes())
    with Archive(path) as archive:
        offset, head = archive._index.segments[1]
    data[offset + head.parts_at] ^= 1
    path.write_bytes(data)
    with Archive(path) as archive:
        codes = archive[30:50]
        assert codes.names[9] == "cat/39"
        with pytest.raises(ChecksumMismatch, match="a: the names of the segment at byte"):
            _ = codes.names[10]
        with pytest.raises(ChecksumMismatch, match="the names of the segment at byte"):
            archive.verify()


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(
    "labels",
    [
        ["x"],
        ["", "x"] * 300,
        [f"süß {i % 256}" for i in range(1000)],
        [f"caf\udce9 {i % 257}" for i in range(1000)],
        [f"{i % 5000}" for i in range(20_000)],
        *([f"{7 * i % n}" for i in range(999)] for n in (3, 4, 5, 16, 17)),
        [f"{i}" for i in range(300)],
    ],
)
def test_labels_come_back_whatever_their_number(labels, version):
    data = pack_labels(labels, version)
    assert unpack_labels(data, len(labels), version) == tuple(labels)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_labels_in_random_order_take_hardly_more_than_their_entropy(classes):
    labels = [f"a class with a name {i}" for i in np.random.default_rng(0).integers(0, classes, 10_000)]
    names = len(pack_texts(sorted(set(labels))))
    assert 8 * (len(pack_labels(labels, 4)) - names) / 10_000 < 1.06 * np.log2(classes) + 0.1


def test_labels_without_names_are_counted_apart(tmp_path):
    names = [f"{'cat' if i % 2 else 'dog'}/{i}" for i in range(90)]
    codes = make_codes(90, 9, names=names)
    path = write(tmp_path / "a", codes, make_tables(9), names=False)
    with Archive(path) as archive:
        assert archive.labels == tuple(codes.labels or (name[:3] for name in names))
        assert archive.parts()["names"] == 0
        assert 0 < archive.parts()["labels"] < 50


def test_labels_that_lie_are_refused():
    texts = pack_texts(["a" * 60_000, "b"])
    head, zeros = pack_varints([2, len(texts)]) + texts, bytes(125)
    three = pack_texts(["a", "b", "c"])
    for data, error, said in (
        (pack_varints([3, len(three)]) + three + zlib.compress(b"\xc0" * 250), FormatError, "number 3 of 3"),
        (head + zlib.compress(zeros), LimitExceeded, "length"),
        (head + zlib.compress(zeros[1:]), FormatError, "inflate"),
        (pack_varints([1001, len(texts)]) + texts + zlib.compress(zeros), LimitExceeded, "number"),
        (pack_varints([2, 1 << 40]) + texts + zlib.compress(zeros), FormatError, "end"),
    ):
        with pytest.raises(error, match=said):
            unpack_labels(data, 1000, 4)


def descriptors():
    """How many files are open, where that can be seen."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_names_can_be_looked_at_when_the_archive_is_closed(path):
    before = descriptors()
    with Archive(path) as archive:
        codes, names = archive[[80, 3]], archive.names
        assert np.array_equal(codes.uncertainty, [80, 3])
    path.unlink()
    assert (codes.names, codes.labels, names[41]) == (("dog/80", "cat/3"), ("dog", "cat"), "cat/41")
    with pytest.raises(ValueError, match="closed"):
        _ = archive.names
    del codes, names
    assert descriptors() == before
