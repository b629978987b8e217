"""`stochcl info`, `verify` and `decompress`, on an archive that `compress` made."""

import csv

import numpy as np
import pyarrow.parquet
import pytest

import stochcl
from tests.cli.test_compress import names_below
from tests.making import LATENTS


@pytest.fixture
def arrays(codes):
    with stochcl.open(codes) as archive:
        return archive.to_numpy(), archive.to_vectors(), list(archive.names), list(archive.labels)


def test_verify_reads_everything(run, codes):
    text = run("verify", codes).stdout
    assert text == f"{codes}: 42 images, {codes.stat().st_size:,} bytes, nothing damaged\n"


def test_an_archive_may_be_called_anything(run, codes, tmp_path):
    path = tmp_path / "--photos, 2nd try (süß)"
    path.write_bytes(codes.read_bytes())
    for command in ("info", "verify"):
        assert run(command, path).stdout.startswith(f"{path}: 42 images")


def test_npz(run, codes, arrays, images, tmp_path):
    symbols, vectors, names, labels = arrays
    out = tmp_path / "codes.npz"
    text = run("decompress", codes, "-o", out).stdout
    size = out.stat().st_size
    assert text == f"{out}: symbols, vectors, names, labels of 42 rows, {size:,} bytes\n"
    with np.load(out, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["symbols"], symbols)
        np.testing.assert_array_equal(found["vectors"], vectors)
        assert tuple(found["names"]) == tuple(names) == names_below(images)
        assert list(found["labels"]) == labels
    assert set(labels) == {"cats", "dogs", "fische"}


def test_npy_holds_the_vectors(run, codes, arrays, tmp_path):
    run("decompress", codes, "-o", tmp_path / "codes.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), arrays[1])


def test_csv(run, codes, arrays, tmp_path):
    symbols, vectors, names, labels = arrays
    run("decompress", codes, "-o", tmp_path / "codes.csv")
    with (tmp_path / "codes.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:3] == ["name", "label", "s0"]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == labels
    np.testing.assert_array_equal(np.array([row[2 : 2 + LATENTS] for row in rows], int), symbols)
    np.testing.assert_array_equal(np.array([row[2 + LATENTS :] for row in rows], np.float32), vectors)


def test_parquet(run, codes, arrays, tmp_path):
    symbols, _, names, labels = arrays
    run("decompress", codes, "-o", tmp_path / "codes.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "codes.parquet")
    assert table["name"].to_pylist() == names
    assert table["label"].to_pylist() == labels
    assert table["symbols"].to_pylist() == symbols.tolist()


def test_labels_of_a_csv_file_are_written_in_place_of_folders(run, codes, arrays, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("name,label\n" + "".join(f"{name},{i}\n" for i, name in enumerate(arrays[2])), "utf-8")
    run("decompress", codes, "-o", tmp_path / "codes.npz", "--labels", labels)
    with np.load(tmp_path / "codes.npz") as found:
        assert found["labels"].tolist() == [str(i) for i in range(42)]


def test_what_decompress_refuses(refused, codes, tmp_path):
    out = tmp_path / "codes.npz"
    out.write_bytes(b"precious")
    refusals = [
        (out, 2, "pass --force"),
        (tmp_path / "codes.txt", 2, ".npz, .npy, .csv, .parquet, .arrow"),
        (tmp_path / "nowhere" / "codes.npz", 1, "folder to write to does not exist"),
    ]
    for path, code, message in refusals:
        said = refused("decompress", codes, "-o", path, code=code)
        assert said.startswith(f"{path}: ")
        assert message in said
    assert out.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]


def test_decompress_replaces_when_asked(run, codes, tmp_path):
    out = tmp_path / "codes.npy"
    out.write_bytes(b"old")
    run("decompress", codes, "-o", out, "--force")
    assert np.load(out).shape[0] == 42
