"""Training on a matrix of embeddings: a sample of its rows, a model file that compresses it, and what is refused."""

import numpy as np
import pytest

import stochcl
from stochcl.api import train as training
from stochcl.encoders.modelfile import load_model
from stochcl.errors import OutputError, SourceError, UsageError

OPTIONS = {"latents": 16, "epochs": 5, "entropy": "independent", "batch_size": 64}


@pytest.fixture
def matrix(tmp_path):
    rng = np.random.default_rng(0)
    rows = (rng.normal(0, 1, (400, 3)) @ rng.normal(0, 1, (3, 9)) + 2).astype(np.float32)
    rows[7, 2] = np.nan
    np.save(tmp_path / "vectors.npy", rows)
    return tmp_path / "vectors.npy"


MANY = {"epochs": 20, "posterior": "gaussian"}


def test_a_model_of_a_matrix_compresses_it(matrix, tmp_path):
    told = []
    report = training.train([matrix], tmp_path / "head.safetensors", report=told.append, **OPTIONS | MANY)
    assert (report.images + report.held_out, report.latents, report.unit) == (399, 16, "row")
    assert report.to_json()["schema"] == "stochcl.train/0"
    assert told
    assert 0 <= told[0].fraction <= told[-1].fraction <= 1
    model = load_model(tmp_path / "head.safetensors")
    assert model.sha256 == report.sha256
    assert model.record["sources"] == ["vectors.npy"]
    assert report.steps == model.record["latents"]["steps"] >= 20 * 360 // 64
    codec = stochcl.load(tmp_path / "head.safetensors", device="cpu")
    compressed = codec.compress(matrix, tmp_path / "codes.bin")
    assert compressed.images == 399
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["codes.bin", "head.safetensors", "vectors.npy"]


def test_rows_that_are_not_finite_are_counted_and_said(matrix, tmp_path):
    report = training.train([matrix], tmp_path / "head.safetensors", **OPTIONS)
    assert report.warnings[0].startswith("1 row of ")
    assert report.warnings[0].endswith("vectors.npy left out: the numbers there are not all finite")
    assert load_model(tmp_path / "head.safetensors").record["not_finite"] == 1


def test_few_rows_and_constant_columns_are_said(tmp_path, rng):
    rows = rng.normal(size=(5, 6)).astype(np.float32)
    rows[:, 2] = 1.5
    np.save(tmp_path / "few.npy", rows)
    report = training.train([tmp_path / "few.npy"], tmp_path / "head.safetensors", **OPTIONS)
    assert any("5 rows to train on" in line for line in report.warnings)
    assert any("1 column has one value" in line for line in report.warnings)


def test_a_large_matrix_is_sampled(matrix, tmp_path, monkeypatch):
    monkeypatch.setattr("stochcl.data.array.MOST_BYTES", 9 * 4 * 100)
    report = training.train([matrix], tmp_path / "head.safetensors", **OPTIONS)
    assert report.images + report.held_out == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 32}, r"^size is for training on images, and .*vectors.npy holds embeddings"),
        ({"hold_out": 3}, "^hold_out is for"),
        ({"preset": "digits"}, "^preset is for"),
        ({"device": "cuda"}, "^device is for"),
        ({"resume": True}, "keeps no checkpoint to resume"),
        ({"rate": -1.0}, "rate must be more than 0"),
        ({"latents": 5000}, "latents"),
    ],
)
def test_options_that_make_no_sense_for_a_matrix(matrix, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        training.train([matrix], tmp_path / "head.safetensors", **OPTIONS | options)
    assert not (tmp_path / "head.safetensors").exists()


def test_outputs_and_sources_are_checked_first(matrix, tmp_path, images):
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    with pytest.raises(UsageError, match="exists already"):
        training.train([matrix], tmp_path / "there.safetensors", **OPTIONS)
    with pytest.raises(OutputError, match="no model can be written there"):
        training.train([matrix], tmp_path / "no" / "head.safetensors", **OPTIONS)
    with pytest.raises(UsageError, match="give one kind"):
        training.train([matrix, images], tmp_path / "head.safetensors", **OPTIONS)
    np.save(matrix, np.full((10, 3), np.nan))
    with pytest.raises(SourceError, match="nothing to train on"):
        training.train([matrix], tmp_path / "head.safetensors", **OPTIONS)
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"
