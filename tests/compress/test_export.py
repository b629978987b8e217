import csv
import sys
from contextlib import contextmanager

import numpy as np
import pyarrow.ipc
import pyarrow.parquet
import pytest

from stochcl.compress import Archive
from stochcl.compress.export import export
from stochcl.errors import FormatError, LabelsError, MissingExtraError, OutputError, UsageError
from tests.compress.golden import archives as golden_archives
from tests.compress.making import make_codes, make_names, make_tables, write
from tests.conftest import GOLDEN

NAMES = [*make_names(20), 'a/"quoted", and\nbroken.png', "caf\udce9/1.png"]
ENDINGS = ["npz", "npy", "csv", "parquet"]
SHOWN = [*NAMES[:-1], "caf\\xe9/1.png"]


@pytest.fixture(scope="module", params=[(2, True), (300, False)], ids=["binary", "without decoder"])
def archive(request, tmp_path_factory):
    alphabet, decoder = request.param
    codes = make_codes(22, 6, alphabet, names=NAMES)
    path = write(tmp_path_factory.mktemp("export") / "a", codes, make_tables(6, alphabet, decoder=decoder))
    with Archive(path) as archive:
        yield archive


def test_npz_holds_everything(archive, tmp_path):
    done = export(archive, tmp_path / "a.npz")
    assert (done.rows, done.bytes) == (22, (tmp_path / "a.npz").stat().st_size)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert set(arrays) == set(done.holds) == {"symbols", "names", "labels", *["vectors"] * archive.has_decoder}
        np.testing.assert_array_equal(arrays["symbols"], archive.to_numpy())
        assert arrays["symbols"].dtype == archive.to_numpy().dtype
        assert arrays["names"].tolist() == SHOWN
        assert arrays["labels"].tolist() == [name.split("/")[0] for name in SHOWN]
        if archive.has_decoder:
            np.testing.assert_array_equal(arrays["vectors"], archive.to_vectors())


@pytest.mark.parametrize("version", [1, 2])
def test_uncertainty_is_a_column_where_it_is_stored(tmp_path, version):
    codes = make_codes(22, 6, names=NAMES, uncertainty=np.arange(22) / 8)
    write(tmp_path / "a", codes, make_tables(6), version=version)
    with Archive(tmp_path / "a") as archive:
        for ending in ENDINGS:
            done = export(archive, tmp_path / f"a.{ending}", chunk=5)
            assert ("uncertainty" in done.holds) == (ending != "npy")
        np.testing.assert_array_equal(archive.uncertainty, np.arange(22) / 8)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["uncertainty"], np.arange(22) / 8)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["uncertainty"]) for row in rows] == [i / 8 for i in range(22)]
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["name", "label", "uncertainty", "symbols", "vector"]
    assert table["uncertainty"].to_pylist() == [i / 8 for i in range(22)]


def test_npy_holds_vectors_or_symbols(archive, tmp_path):
    done = export(archive, tmp_path / "a.NPY")
    array = np.load(tmp_path / "a.NPY", allow_pickle=False)
    assert done.holds == (("vectors",) if archive.has_decoder else ("symbols",))
    np.testing.assert_array_equal(array, archive.to_vectors() if archive.has_decoder else archive.to_numpy())


def test_csv_brings_every_number_back(archive, tmp_path):
    export(archive, tmp_path / "a.csv", labels=["x"] * 22)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:8] == ["name", "label", "s0", "s1", "s2", "s3", "s4", "s5"]
    assert [row[0] for row in rows] == SHOWN
    assert {row[1] for row in rows} == {"x"}
    np.testing.assert_array_equal(np.array([row[2:8] for row in rows], int), archive.to_numpy())
    if archive.has_decoder:
        np.testing.assert_array_equal(np.array([row[8:] for row in rows], np.float32), archive.to_vectors())


def test_parquet_has_typed_columns(archive, tmp_path):
    done = export(archive, tmp_path / "a.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.num_rows == done.rows == 22
    assert table["name"].to_pylist() == SHOWN
    symbols = archive.to_numpy()
    assert table.schema.field("symbols").type.value_type == str(symbols.dtype)
    assert table["symbols"].to_pylist() == symbols.tolist()
    assert ("vector" in table.column_names) == archive.has_decoder
    if archive.has_decoder:
        np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), archive.to_vectors())


def vectors_in(path):
    """Read the vectors of an exported file."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["vectors"]
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        first = header.index("v0")
        return np.array([row[first:] for row in rows], np.float32)
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
    else:
        with pyarrow.ipc.open_file(path) as file:
            table = file.read_all()
    return np.array(table["vector"].to_pylist(), np.float32)


@pytest.mark.parametrize("name", golden_archives())
def test_every_export_of_every_golden_file_has_its_vectors(name, tmp_path):
    with Archive(GOLDEN / name, tables=[GOLDEN / "binary.tables"]) as archive:
        symbols = archive.to_arrow(vectors=False).read_all()["symbols"].to_pylist()
        assert symbols == archive.to_numpy().tolist()
        if not archive.has_decoder:
            return
        expected = archive.to_vectors()
        for ending in [*ENDINGS, "arrow"]:
            export(archive, tmp_path / f"a.{ending}", chunk=1024)
            found = vectors_in(tmp_path / f"a.{ending}")
            np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-6, atol=1e-6)
        found = np.array(archive.to_arrow().read_all()["vector"].to_pylist(), np.float32)
        np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_archive_without_rows_or_names(tmp_path, ending):
    with Archive(write(tmp_path / "a", make_codes(0, 6), make_tables(6))) as archive:
        assert export(archive, tmp_path / f"a.{ending}").rows == 0
    with Archive(write(tmp_path / "b", make_codes(3, 6), make_tables(6), names=False)) as archive:
        assert "names" not in export(archive, tmp_path / f"b.{ending}").holds
    if ending == "parquet":
        assert pyarrow.parquet.read_table(tmp_path / "b.parquet")["name"].to_pylist() == [None] * 3


def test_what_cannot_be_written_is_said_before_anything_is_decoded(archive, tmp_path):
    with pytest.raises(UsageError, match=r"a\.txt: codes are decoded to \.npz, \.npy, \.csv, \.parquet"):
        export(archive, tmp_path / "a.txt")
    (tmp_path / "a.npz").write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists already; pass force=True"):
        export(archive, tmp_path / "a.npz")
    export(archive, tmp_path / "a.npz", force=True)
    for path, message in [
        (tmp_path / "missing" / "a.npz", "does not exist"),
        (tmp_path / ("x" * 300 + ".npz"), "file name too long"),
        (tmp_path / "a.npz" / "b.npz", "not a directory|does not exist"),
    ]:
        with pytest.raises(OutputError, match=message):
            export(archive, path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_parquet_without_pyarrow_says_what_to_install(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'stochcl\[arrow\]'"):
        export(archive, tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_file_does_not_depend_on_how_many_rows_are_decoded_at_a_time(tmp_path, ending):
    codes = make_codes(2500, 6, names=[f"{'n' * (i % 50)}{i}" for i in range(2500)])
    with Archive(write(tmp_path / "a", codes, make_tables(6))) as archive:
        whole, parts = tmp_path / f"whole.{ending}", tmp_path / f"parts.{ending}"
        export(archive, whole)
        done = export(archive, parts, chunk=1024)
        if ending == "parquet":  # which keeps the parts as row groups
            assert pyarrow.parquet.read_table(parts).equals(pyarrow.parquet.read_table(whole))
            assert pyarrow.parquet.read_metadata(parts).num_row_groups == 3
        else:
            assert parts.read_bytes() == whole.read_bytes()
        assert done.rows == 2500
        with pytest.raises(UsageError, match="at least 1"):
            export(archive, parts, force=True, chunk=0)


def test_symbols_or_vectors_may_be_left_out(archive, tmp_path):
    without = export(archive, tmp_path / "a.npz", vectors=False)
    assert without.holds == ("symbols", "names", "labels")
    assert export(archive, tmp_path / "a.npy", vectors=False).holds == ("symbols",)
    export(archive, tmp_path / "a.csv", vectors=False)
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").startswith("name,label,s0,s1,s2,s3,s4,s5\n")
    export(archive, tmp_path / "a.parquet", vectors=False)
    assert pyarrow.parquet.read_schema(tmp_path / "a.parquet").names == ["name", "label", "symbols"]
    for ending in ENDINGS:
        path = tmp_path / f"b.{ending}"
        if not archive.has_decoder:
            with pytest.raises(UsageError, match="vector decoder"):
                export(archive, path, symbols=False)
            assert not path.exists()
        else:
            assert set(export(archive, path, symbols=False).holds) <= {"vectors", "names", "labels"}
    if archive.has_decoder:
        assert (tmp_path / "b.csv").read_text(encoding="utf-8").startswith("name,label,v0,v1,v2\n")
        assert pyarrow.parquet.read_schema(tmp_path / "b.parquet").names == ["name", "label", "vector"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_in_place_of_the_archives(archive, tmp_path, ending):
    with pytest.raises(LabelsError, match="22 rows and 3 labels"):
        export(archive, tmp_path / f"a.{ending}", labels=["x"] * 3)
    assert list(tmp_path.iterdir()) == []
    export(archive, tmp_path / f"a.{ending}", labels=["\udce9\ud800é"] * 22)
    shown = "\\udce9\\ud800é"
    if ending == "npz":
        with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
            assert set(arrays["labels"].tolist()) == {shown}
    if ending == "parquet":
        assert set(pyarrow.parquet.read_table(tmp_path / "a.parquet")["label"].to_pylist()) == {shown}
    if ending == "csv":
        assert shown in (tmp_path / "a.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("ending", ENDINGS)
def test_equal_archives_give_equal_files(archive, tmp_path, ending):
    export(archive, tmp_path / f"a.{ending}")
    export(archive, tmp_path / f"b.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


@contextmanager
def small_disk():
    """Files of 4,096 bytes at most: what a full disk does, without one.

    Only while the block runs: pytest's own output may be a file, too, and longer than that.
    """
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, ending):
    codes = make_codes(4000, 64, names=make_names(4000))
    with Archive(write(tmp_path / "a", codes, make_tables(64))) as archive:
        (tmp_path / f"a.{ending}").write_bytes(b"precious")
        message = rf"a\.{ending}: it cannot be written: .*file too large"
        with small_disk(), pytest.raises(OutputError, match=message):
            export(archive, tmp_path / f"a.{ending}", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", f"a.{ending}"]
    assert (tmp_path / f"a.{ending}").read_bytes() == b"precious"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_damaged_archive_leaves_nothing(tmp_path, ending):
    path = write(tmp_path / "a", make_codes(4000, 64), make_tables(64))
    with Archive(path) as archive:
        size = archive.parts()
    data = bytearray(path.read_bytes())
    data[len(data) - size["index"] - 100] ^= 1  # in the last block, behind what has been written by then
    path.write_bytes(data)
    with Archive(path) as archive, pytest.raises(FormatError, match="rows"):
        export(archive, tmp_path / f"b.{ending}", chunk=500)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
