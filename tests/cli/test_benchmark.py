"""`stochcl benchmark codec`: a row for every method, files with all that a figure needs, and no wrong answer."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from stochcl.benchmarks import codec
from stochcl.benchmarks.methods import Zlib

OURS = {"independent", "archive"}
OTHERS = {
    "packed", "zlib -9, rows", "zlib -9, columns", "xz -9e, rows", "xz -9e, columns", "zstd -19, rows",
    "zstd -19, columns", "brotli -11, rows", "brotli -11, columns", "constriction, perfect=True",
    "constriction, perfect=False",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("STOCHCL_DATA", raising=False)


@pytest.fixture
def few_methods(monkeypatch):
    """Processes take their time to start; where the methods do not matter, one is enough."""
    every = codec.entries_of
    monkeypatch.setattr(codec, "entries_of", lambda *given: every(*given)[:1])


def test_every_method_stands_beside_ours(run, codes, tmp_path):
    folder = tmp_path / "new" / "results"
    result = run("benchmark", "codec", codes, "-o", folder, "--repeat", "1", "--latents", "16", "--seed", "7")
    written = json.loads((folder / "codec.json").read_text("utf-8"))
    assert written["schema"] == "stochcl.benchmark.codec/0"
    assert written["command"] == ("stochcl benchmark codec codes.bin --latents 16 --seed 7 --repeat 1 -o results/")
    assert written["seed"] == 7
    assert written["n"] == {"codes.bin": 42}
    assert written["hardware"]["threads"] == 1
    assert {"python", "numpy", "constriction", "stochcl", "zstandard", "brotli"} <= set(written["versions"])
    rows = {row["method"]: row for row in written["rows"]}
    assert set(rows) - {"autoregressive"} == OURS | OTHERS
    assert all(row["correct"] for row in rows.values())
    assert rows["packed"]["bytes_per_image"] == 2
    for row in rows.values():
        assert row["bytes_per_image"] == pytest.approx(row["bytes"] / 42, abs=1e-4)
        assert (row["n"], row["latents"]) == (42, 16)
        assert min(row["encode_images_per_second"], row["decode_images_per_second"]) > 0
        assert row["ours"] == (row["method"] in OURS | {"autoregressive"})
    for method in rows:
        assert f"  {method} " in result.stdout
    with (folder / "codec.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["method"] for row in table] == list(rows)
    assert {row["command"] for row in table} == {written["command"]}
    assert all(row["hardware"] and row["versions"] and row["seed"] == "7" and row["n"] == "42" for row in table)


def test_no_folder_of_the_machine_stands_in_the_results(run, codes, tmp_path, few_methods):
    run("benchmark", "codec", codes, "-o", tmp_path / "r")
    for name in ("codec.json", "codec.csv"):
        text = (tmp_path / "r" / name).read_text("utf-8")
        assert str(tmp_path) not in text
        assert str(Path(codes).parent) not in text


def test_built_in_sets_and_what_is_left_out(run, tmp_path, few_methods):
    options = ["--rows", "40", "--latents", "16", "--repeat", "1", "--json"]
    result = run("benchmark", "codec", "-o", tmp_path, *options)
    found = json.loads(result.stdout)
    assert [(row["set"], row["n"]) for row in found["rows"]] == [("skewed", 40), ("correlated", 40), ("opq", 40)]
    sentence = "cifar10-16 was left out: $STOCHCL_DATA names no folder that holds cifar10-test.zip."
    assert sentence in found["left_out"]
    assert sentence in result.stderr
    kinds = {entry["set"]: entry["alphabet"] for entry in found["sets"]}
    assert kinds == {"skewed": 2, "correlated": 2, "opq": 256}


def test_a_missing_extra_is_one_sentence_and_its_rows_are_left_out(run, tmp_path, monkeypatch):
    def find_spec(name):
        return None if name in {"zstandard", "brotli", "faiss"} else object()

    monkeypatch.setattr("stochcl.benchmarks.extras.find_spec", find_spec)
    options = ["--rows", "9", "--latents", "8", "--repeat", "1", "--only", "skewed", "--only", "opq", "--json"]
    result = run("benchmark", "codec", "-o", tmp_path, *options)
    found = json.loads(result.stdout)
    install = "install it with: pip install 'stochcl[bench]'."
    assert f"zstd -19 was left out: it needs zstandard; {install}" in found["left_out"]
    assert f"brotli -11 was left out: it needs brotli; {install}" in found["left_out"]
    assert f"opq was left out: quantising vectors needs faiss-cpu; {install}" in found["left_out"]
    assert not [row for row in found["rows"] if "zstd" in row["method"] or row["set"] == "opq"]
    assert {"xz -9e, rows", "independent"} <= {row["method"] for row in found["rows"]}


@pytest.mark.parametrize(
    ("latents", "alphabet", "message"),
    [
        (7, 2, "zlib on skewed: it gave back other codes than it was given; no figure of this run counts."),
        (80, 2, "zlib on skewed: its process failed: ValueError"),
    ],
)
def test_a_wrong_method_fails_the_run(refused, tmp_path, monkeypatch, latents, alphabet, message):
    def entries(code_set, leave_out):
        return [codec.Entry(Zlib("zlib", len(code_set.codes), latents, alphabet, "rows"))]

    monkeypatch.setattr(codec, "entries_of", entries)
    monkeypatch.setattr("stochcl.benchmarks.models.has_autoregressive", lambda: True)
    monkeypatch.setattr("stochcl.benchmarks.models.fitted", lambda rows: {"independent": _independent(rows)})
    options = ["--only", "skewed", "--rows", "9", "--latents", "8"]
    assert message in refused("benchmark", "codec", "-o", tmp_path, *options)
    assert not (tmp_path / "codec.json").exists()


def _independent(rows):
    from stochcl.benchmarks.models import EntropyModel
    from stochcl.entropy.independent import IndependentModel

    return EntropyModel.of(IndependentModel.fit(rows), "fitted")


def test_what_it_refuses(run, refused, codes, tmp_path):
    message = "--only chooses among the built-in sets"
    assert message in refused("benchmark", "codec", codes, "--only", "opq", "-o", tmp_path, code=2)
    np.save(tmp_path / "one.npy", np.zeros((1, 8), np.uint8))
    assert "fewer than two rows" in run("benchmark", "codec", tmp_path / "one.npy", "-o", tmp_path, code=1).stderr
    (tmp_path / "file").touch()
    assert "this folder cannot be made" in refused("benchmark", "codec", codes, "-o", tmp_path / "file")
    wrong = {"'skewed'": ["--only", "x"], "--rows": ["--rows", "1"], "--repeat": ["--repeat", "0"]}
    for words, options in wrong.items():
        assert words in run("benchmark", "codec", "-o", tmp_path, *options, code=2).stderr


def test_help_of_the_benchmark_has_an_example(run):
    text = run("benchmark", "codec", "--help").stdout
    assert "Example:\n    stochcl benchmark codec -o results/" in text
    assert "--json" in text
