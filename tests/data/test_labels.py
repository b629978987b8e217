"""Labels and targets from a CSV: what is matched, and what is said of what does not match."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stochcl.data import read_labels
from stochcl.errors import LabelsError


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_columns_by_name(written):
    table = read_labels(written("name,label,age\na/1.png,cat,3\na/2.png,dog,4.5\n"))
    assert table.columns == ("label", "age")
    assert len(table) == 2
    assert table.match(["a/2.png", "a/1.png", "a/2.png"]) == ("dog", "cat", "dog")
    assert table.match(["a/1.png"], "age") == ("3",)


@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1),
        st.text(st.characters(blacklist_categories=("Cs", "Cc"))),
        min_size=1,
    )
)
@settings(deadline=None)
def test_what_csv_writes_is_read(tmp_path_factory, rows):
    import csv

    path = tmp_path_factory.mktemp("l") / "l.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "label"])
        writer.writerows(rows.items())
    assert read_labels(path).match(list(rows)) == tuple(value.strip() for value in rows.values())


def test_spreadsheet_text_is_read(written):
    table = read_labels(written('\ufeffname, label\r\n"a, b.png","big ""cat"""\r\n\r\nc.png,dog\r\n'))
    assert table.columns == ("label",)
    assert table.match(["a, b.png", "c.png"]) == ('big "cat"', "dog")


def test_equal_rows_may_repeat_and_others_may_not(written):
    assert len(read_labels(written("name,label\na,1\na,1\n"))) == 1
    with pytest.raises(LabelsError, match="line 3 gives a again"):
        read_labels(written("name,label\na,1\na,2\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("name,label\n", "no row under its header"),
        ("a.png,cat\nb.png,dog\n", r"must be name,label .* not a\.png,cat"),
        ("name\na\n", "must be name,label"),
        ("name,label,label\na,b,c\n", "must be name,label"),
        ("name,label,\na,b,c\n", "must be name,label"),
        ("name,label\na\n", "line 2 has 1 cells where the header has 2"),
        ("name,label\na,b,c\n", "line 2 has 3 cells"),
        ('name,label\n"a,b\n', "line 2 is not CSV"),
        ("name,label\na," + "b" * 200_000 + "\n", "line 2 is not CSV"),
        (b"name,label\na,\xff\n", "not UTF-8"),
        ("name,label\na,b\n".encode("utf-16"), "are UTF-16"),
        ("name,label\na,b\n".encode("utf-16-be"), "are UTF-16"),
    ],
)
def test_malformed_files(written, text, message):
    with pytest.raises(LabelsError, match=message):
        read_labels(written(text))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(LabelsError, match="no such file"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(LabelsError, match="is a directory"):
        read_labels(tmp_path)


def test_names_without_a_row_are_counted_and_named(written):
    table = read_labels(written("name,label\na,1\nb,2\n"))
    with pytest.raises(LabelsError, match=r"5 of 6 names have no row here: v, w, x, \.\.\. \(2 more\)"):
        table.match(["v", "w", "a", "x", "y", "z"])
    with pytest.raises(LabelsError, match=r"1 of 1 names have no row here: \\udcff\."):
        table.match(["\udcff"])


def test_a_column_that_is_not_there(written):
    table = read_labels(written("name,label,age\na,1,2\n"))
    with pytest.raises(LabelsError, match="no column size; the columns are label, age"):
        table.match(["a"], "size")


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\na/1.png,cat\nb/2.png,dog\n",
        "filename;label\na/1.png;cat\nb/2.png;dog\n",
        "Name\tlabel\na/1.png\tcat\nb/2.png\tdog\n",
        '\ufeff"name";"label"\r\n"a/1.png";"cat"\r\n"b/2.png";"dog"\r\n',
        "label,path\ncat,a/1.png\ndog,b/2.png\n",
        "name,label\n./a/1.png,cat\n.\\b\\2.png,dog\n",
        "name,label\n a/1.png , cat \nb/2.png,dog \n",
    ],
)
def test_dialects_of_spreadsheets_and_data_sets(written, text):
    table = read_labels(written(text))
    assert table.columns == ("label",)
    assert table.match(["a/1.png", "b/2.png"]) == ("cat", "dog")


def test_accents_composed_and_not_are_one_name(written):
    nfc, nfd = "caf\u00e9/1.png", "cafe\u0301/1.png"
    for stored, asked in ((nfc, nfd), (nfd, nfc)):
        assert read_labels(written(f"name,label\n{stored},x\n")).match([asked]) == ("x",)
    both = read_labels(written(f"name,label\n{nfc},x\n{nfd},y\n"))
    assert both.match([nfc, nfd]) == ("x", "y")  # to the letter
    with pytest.raises(LabelsError, match="another spelling"):
        both.match(["./" + nfc])


def test_an_array_of_labels_has_one_for_each_row(tmp_path):
    for values, texts in (
        (np.array([2, -1, 0]), ("2", "", "0")),
        (np.array(["cat", "dog", "é"]), ("cat", "dog", "é")),
        (np.array([[0.5], [np.nan], [3.0]], np.float32), ("0.5", "", "3")),
        (np.array([True, False, True]), ("True", "False", "True")),
    ):
        np.save(tmp_path / "y.npy", values)
        table = read_labels(tmp_path / "y.npy")
        assert table.match(["0000000", "1", "0000002"]) == texts
        assert table.match(["0000002", "0000000"]) == (texts[2], texts[0])  # a row was skipped
        assert table.match(["a.png", "b.png", "c.png"]) == texts
        assert table.of(["a.png", "b.png", "c.png"]).match(["b.png"]) == (texts[1],)
        with pytest.raises(LabelsError, match="3 labels for 2 rows"):
            table.match(["a.png", "b.png"])
        with pytest.raises(LabelsError, match="have no row"):
            table.match(["0000003"])
    with pytest.raises(LabelsError, match="different labels"):
        table.of(["a.png", "a.png", "c.png"])
    for wrong in (np.zeros((3, 2)), np.zeros(0), np.array([{}], object)):
        np.save(tmp_path / "y.npy", wrong)
        with pytest.raises(LabelsError, match="labels"):
            read_labels(tmp_path / "y.npy")


def test_plain_numbers_are_those_of_rows(written):
    table = read_labels(written("name,label\n0,a\n1,b\n0000002,c\n10,d\n"))
    assert table.match(["0000000", "0000001", "0000002", "0000010"]) == ("a", "b", "c", "d")
    assert table.match(["10", "2"]) == ("d", "c")
    with pytest.raises(LabelsError, match="another spelling"):
        read_labels(written("name,label\n1,a\n01,b\n")).match(["001"])
