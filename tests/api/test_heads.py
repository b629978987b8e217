"""Models of vectors trained on rows in memory, and held as the bytes of their file."""

import json

import numpy as np
import pytest
import torch

from stochcl.api.embedding_model import codec_of, to_bytes, train_head
from stochcl.errors import ModelError, OutputError, TrainingError, UsageError
from stochcl.files import write_file


def make(rows, seed=0, width=10):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(0, 2, (4, width))
    return (rng.normal(0, 1, (rows, 4)) @ mixing + rng.normal(0, 0.2, (rows, width)) + 30).astype(np.float32)


def train(rows=300, held=60, **options):
    given = {"latents": 16, "steps": 30, "entropy": "independent"} | options
    return train_head(make(rows), make(held, seed=1), **given)


def test_a_model_says_what_it_was_trained_on():
    encoder, record = train(seed=3)
    assert encoder.config.backbone == "features:10"
    assert encoder.config.latents == 16
    assert (record["rows"], record["held_out"]) == (300, 60)
    assert record["latents"]["options"]["seed"] == 3
    assert set(record["versions"]) == {"stochcl", "torch", "python"}
    assert json.loads(json.dumps(record)) == record


def test_training_brings_decoded_vectors_nearer():
    rows, errors = make(500, seed=2), []
    for steps in (1, 150):
        codec = codec_of(to_bytes(*train(1000, steps=steps)))
        decoded = codec.tables.decoder.decode(codec.encode(rows).symbols())
        errors.append(np.square(rows - decoded).sum() / np.square(rows - rows.mean(axis=0)).sum())
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.5


def test_the_seed_decides_and_nobody_elses_random_numbers_are_touched():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    models = [to_bytes(*train(seed=seed)) for seed in (1, 1, 2)]
    hashes = [codec_of(model).model.sha256 for model in models]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert hashes[0] == hashes[1] != hashes[2]


def test_progress_is_told():
    told = []
    train(steps=120, report=told.append)
    assert told
    assert told[0].fraction <= told[-1].fraction
    assert "bits/input" in told[-1].line()


def test_a_code_of_few_rows_is_measured_on_those():
    _, record = train(rows=5, held=0)
    assert np.isfinite(record["latents"]["rate"])


def test_what_cannot_be_trained():
    with pytest.raises(TrainingError, match="at least two rows to train on, got 1"):
        train(rows=1)
    with pytest.raises(UsageError, match="rate must be more than 0"):
        train(rate=0.0)
    with pytest.raises(UsageError, match="latents"):
        train(latents=0)


def test_the_bytes_are_those_of_a_model_file(tmp_path):
    data = to_bytes(*train())
    write_file(tmp_path / "head.safetensors", data, "the model")
    assert (tmp_path / "head.safetensors").read_bytes() == data
    with pytest.raises(OutputError, match="cannot be written"):
        write_file(tmp_path / "no" / "head.safetensors", data, "the model")
    with pytest.raises(ModelError):
        codec_of(data[:-1])


def test_rows_that_are_all_equal_are_refused():
    with pytest.raises(TrainingError, match="equal"):
        train_head(np.ones((50, 8), np.float32), make(0), latents=8)
