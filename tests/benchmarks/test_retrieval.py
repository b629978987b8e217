"""Retrieval: the metric against a plain computation, rows of every kind, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import stochcl
from stochcl.benchmarks import retrieval
from stochcl.codes import Codes
from stochcl.downstream.metrics import average_precision
from stochcl.errors import ModelMismatch, SourceError, UsageError
from tests.compress.making import make_tables, write
from tests.making import make_model


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


@pytest.fixture
def halves(codes, tmp_path):
    """Both parts of an archive, one to be searched."""
    stochcl.split(codes, tmp_path / "parts", count=2)
    return sorted((tmp_path / "parts").iterdir())


def brute(base, queries, labels, wanted, count):
    distances = (base[None] != queries[:, None]).sum(axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return average_precision(labels[nearest] == wanted[:, None]).mean()


def test_rows_of_ours_and_others(codes, codec, images, tmp_path):
    features = codec.encode_pixels(codec.prepare([images / n for n in stochcl.open(codes).names])).features
    np.save(tmp_path / "f.npy", features)
    request = retrieval.Request(codes, codes, bits=(8, 16), count=10, features=tmp_path / "f.npy",
                                test_features=tmp_path / "f.npy")  # fmt: skip
    result = retrieval.benchmark_retrieval(request)
    assert result["n"] == {"searched": 42, "queries": 42}
    methods = [row["method"] for row in result["rows"]]
    assert methods.count("ours, symbols") == 2
    assert {"float32", "ITQ", "random signs"} <= set(methods)
    assert methods.count("ours, vectors") == methods.count("ours, vectors, float queries") > 0
    json.dumps(result)
    with stochcl.open(codes) as archive:
        symbols, labels = archive.to_numpy(), np.asarray(archive.labels)
    for row in result["rows"]:
        assert 0 <= row["map_low"] <= row["map"] <= row["map_high"] <= 1
        if row["method"] == "ours, symbols":
            part = symbols[:, : row["code_bits"]]
            order = np.random.default_rng([0, 41]).permutation(len(part))
            assert row["map"] == pytest.approx(brute(part[order], part, labels[order], labels, 10))
        if row["method"] == "ours, vectors":
            assert row["bits"] <= 16
    some = retrieval.benchmark_retrieval(retrieval.Request(codes, codes, bits=(8,), count=500, queries=5))
    assert (some["n"]["queries"], some["count"]) == (5, 42)
    assert len(retrieval.lines(result)) == len(result["rows"])


def test_equal_distances_do_not_favour_the_class_that_stands_first():
    labels = np.repeat(["a", "b", "c", "d"], 500)
    task = retrieval.Task(labels, np.array(["a"]), 400, seed=0)
    row = task.row(np.zeros((2000, 8), np.uint8), np.zeros((1, 8), np.uint8), "hamming")
    assert row["map"] == pytest.approx(0.25, abs=0.08)


def test_codes_that_are_wider_than_asked_are_left_out(codes):
    result = retrieval.benchmark_retrieval(retrieval.Request(codes, codes, bits=(64,), count=5))
    assert all(row["method"] != "ours, symbols" for row in result["rows"])


def test_symbols_of_more_values_are_compared_by_levels(tmp_path, rng):
    tables = make_tables(6, 4)
    symbols = rng.integers(0, 4, (30, 6))
    names = [f"{'ab'[i % 2]}/{i}" for i in range(30)]
    write(tmp_path / "a.bin", Codes.from_symbols(symbols, alphabet=4, names=names), tables)
    request = retrieval.Request(tmp_path / "a.bin", tmp_path / "a.bin", bits=(1, 7, 64), count=8)
    (row,) = [r for r in retrieval.benchmark_retrieval(request)["rows"] if r["method"] == "ours, symbols"]
    assert (row["code"], row["code_bits"], row["distance"]) == ("3 latents", 6, "levels")
    order, labels = np.random.default_rng([0, 41]).permutation(30), np.array([name[0] for name in names])
    distances = np.abs(symbols[:, None, :3] - symbols[order][None, :, :3]).sum(axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :8]
    assert row["map"] == pytest.approx(average_precision(labels[order][nearest] == labels[:, None]).mean())


def test_what_does_not_go_together(codes, images, tmp_path):
    other = make_model(tmp_path / "other.safetensors", images / "dogs")
    stochcl.load(other, device="cpu").compress(images, tmp_path / "other.bin")
    with pytest.raises(ModelMismatch, match="another model"):
        retrieval.benchmark_retrieval(retrieval.Request(codes, tmp_path / "other.bin"))
    for change, said in (
        ({"bits": ()}, "--bits"), ({"count": 0}, "-k"), ({"features": codes}, "belong together"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            retrieval.benchmark_retrieval(retrieval.Request(codes, codes, **change))
    np.save(tmp_path / "few.npy", np.zeros((3, 4), np.float32))
    few = {"features": tmp_path / "few.npy", "test_features": tmp_path / "few.npy"}
    with pytest.raises(SourceError, match=r"few\.npy: it has 3 rows"):
        retrieval.benchmark_retrieval(retrieval.Request(codes, codes, **few))


def test_the_command(codes, tmp_path):
    from click.testing import CliRunner

    from stochcl.cli.main import main

    arguments = [
        "benchmark",
        "retrieval",
        str(codes),
        str(codes),
        "--bits",
        "8",
        "-k",
        "5",
        "-o",
        str(tmp_path / "r"),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "mAP@5 of 42 queries among 42 images" in result.stdout
    assert (tmp_path / "r" / "retrieval.csv").exists()
