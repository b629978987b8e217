"""A matrix of embeddings from the command line: compressed, looked at, exported, evaluated, resumed, added to."""

import csv

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.making import json_of, make_head, process


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A matrix of digits with two rows that are not finite, a model of such rows, and labels by row."""
    folder = tmp_path_factory.mktemp("vectors")
    x, y = load_digits(return_X_y=True)
    x = x[:300].astype(np.float32)
    head = make_head(folder / "head.safetensors", x)
    x[5, 3], x[250, 60] = np.nan, np.inf
    np.save(folder / "vectors.npy", x)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "label"), *((f"{i:07d}", label) for i, label in enumerate(y[:300]))])
    return folder, head


@pytest.fixture
def codes(run, vectors, tmp_path):
    folder, head = vectors
    result = run("compress", folder / "vectors.npy", "-m", head, "-o", tmp_path / "codes.bin", "--device", "cpu")
    assert "skipped 0000005: the row holds a value that is not a finite float32" in result.stderr
    return tmp_path / "codes.bin"


def test_info_compares_with_the_rows(run, codes):
    found = json_of(run("info", codes, "--json"))
    assert (found["images"], len(found["skipped"])) == (298, 2)
    assert found["reduction"]["features"] == pytest.approx(298 * 64 * 4 / found["bytes"], abs=1e-3)
    said = run("info", codes).stdout
    assert "298 rows, " in said
    assert "float32 rows (76,288 bytes)" in said


def test_rows_are_not_called_images(run, codes, tmp_path):
    for arguments in (
        ("verify", codes), ("split", codes, "-o", tmp_path / "parts", "--parts", "2"),
        ("decompress", codes, "-o", tmp_path / "v.npy"),
    ):  # fmt: skip
        said = run(*arguments).stdout
        assert " rows, " in said
        assert " images" not in said


def test_codes_are_exported_with_the_rows_numbers(run, codes, tmp_path):
    run("decompress", codes, "-o", tmp_path / "codes.npz")
    with np.load(tmp_path / "codes.npz") as stored:
        assert list(stored["names"][4:6]) == ["0000004", "0000006"]
        assert len(stored["symbols"]) == 298


def test_probes_are_trained_with_labels_by_row(run, codes, vectors):
    result = run("evaluate", codes, "--labels", vectors[0] / "labels.csv", "--json")
    found = json_of(result)
    assert found["input"] == "vectors"
    assert found["score"] > 0.3  # of ten digits, through an untrained model


def test_rows_by_which_a_matrix_has_grown_are_added(run, codes, vectors, tmp_path):
    folder, head = vectors
    x = np.load(folder / "vectors.npy")
    np.save(tmp_path / "grown.npy", np.concatenate([x, np.ones((7, 64), np.float32)]))
    found = json_of(run("append", codes, tmp_path / "grown.npy", "-m", head, "--device", "cpu", "--json"))
    assert (found["images"], found["added"], found["there"]) == (305, 7, 298)


def test_each_model_names_what_it_takes(refused, vectors, model, images, tmp_path):
    folder, head = vectors
    out = tmp_path / "codes.bin"
    said = refused("compress", folder / "vectors.npy", "-m", model, "-o", out, code=2)
    assert "these are embeddings (300 x 64), and the model tiny takes images" in said
    assert f"`stochcl train {folder / 'vectors.npy'} -o head.safetensors --rate 64`" in said
    said = refused("compress", images, "-m", head, "-o", out, code=2)
    assert "these are images, and the model head takes rows of 64 numbers" in said
    said = refused("compress", folder / "vectors.npy", "-m", head, "-o", out, "--fit", "pad", code=2)
    assert "--fit is for images" in said
    said = refused("compress", folder / "vectors.npy", "-m", head, "-o", out, "--strict")
    assert "0000005: the row holds a value that is not a finite float32; --strict stops at rows" in said
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os
from stochcl.compress import Writer
import stochcl.api.source
Writer.__init__.__kwdefaults__["segment_rows"] = 50
stochcl.api.source._MATRIX_ROWS = 20
add = Writer.add
def killed(self, *arguments, **options):
    add(self, *arguments, **options)
    if self.position >= 150:
        os._exit(9)
Writer.add = killed
"""


def test_a_killed_run_is_resumed_to_the_same_bytes(run, vectors, tmp_path, small_segments):
    folder, head = vectors
    command = ["compress", folder / "vectors.npy", "-m", head, "--device", "cpu"]
    assert process(*command, "-o", tmp_path / "a.bin", before=KILLED).returncode == 9
    left = {path.name for path in tmp_path.iterdir()} - {"a.bin.lock"}  # which a killed process leaves, unlocked
    assert left == {"a.bin.partial", "a.bin.partial.journal"}
    small_segments(50)
    assert json_of(run(*command, "-o", tmp_path / "a.bin", "--resume", "--json"))["images"] == 298
    run(*command, "-o", tmp_path / "b.bin")
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_training_on_a_matrix_makes_a_model_of_it(run, vectors, tmp_path):
    folder, _ = vectors
    head = tmp_path / "head.safetensors"
    options = ["--latents", "16", "--epochs", "2", "--entropy", "independent"]
    result = run("train", folder / "vectors.npy", "-o", head, *options)
    assert "head.safetensors: 16 latents; 268 rows" in result.stdout
    assert "rate of held-out rows" in result.stdout
    assert "bits per row" in result.stdout
    run("compress", folder / "vectors.npy", "-m", head, "-o", tmp_path / "codes.bin", "--device", "cpu")
    found = json_of(run("info", tmp_path / "codes.bin", "--json"))
    assert (found["images"], found["latents"]) == (298, 16)


@pytest.mark.parametrize("pattern", ["part-*.parquet", "part-{0..1}.parquet"])
def test_a_pattern_is_taken_wherever_tables_are(run, refused, vectors, tmp_path, rng, pattern):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows, labels = rng.normal(size=(150, 64)).tolist(), ["a", "b", "c"] * 50
    for i in range(2):
        parquet.write_table(pa.table({"v": rows, "label": labels}), tmp_path / f"part-{i}.parquet")
    given, head = tmp_path / pattern, vectors[1]
    assert json_of(run("train", given, "-o", tmp_path / "m.safetensors", "--rate", "16", "--json"))["images"] == 270
    assert json_of(run("compress", given, "-m", head, "-o", tmp_path / "a.bin", "--json"))["images"] == 300
    assert "300 rows" in run("evaluate", given, "-m", head, "--label-column", "label").stdout
    assert "no such file" in refused("train", tmp_path / "none-*.parquet", "-o", tmp_path / "n.safetensors")
