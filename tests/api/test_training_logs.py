"""Where a run's figures go."""

import csv

import numpy as np
import pytest

from stochcl.api import train as training
from stochcl.encoders.modelfile import load_model
from stochcl.errors import MissingExtraError

TINY = {
    "width": 4, "stem": "small", "latents": 16, "decoder": (8,), "size": 16, "crop": 16, "batch_size": 8,
    "epochs": 1, "precision": "fp32", "device": "cpu",
}  # fmt: skip


@pytest.fixture
def images(tmp_path, rng):
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (24, 16, 16, 3), np.uint8))
    return tmp_path / "images.npy"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_stands_beside_the_model_and_is_that_of_its_run(images, tmp_path):
    output, table = tmp_path / "m.safetensors", tmp_path / "m.safetensors.csv"
    training.train([images], output, **TINY)
    assert [row["step"] for row in rows(table)] == ["1"]
    assert rows(table)[0]["rate"] == "16.0"
    training.train([images], output, force=True, **TINY | {"epochs": 7})
    assert [row["step"] for row in rows(table)] == ["1", "20"]


def test_a_resumed_run_goes_on_with_its_table(images, tmp_path):
    output, table = tmp_path / "m.safetensors", tmp_path / "m.safetensors.csv"

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train([images], output, report=interrupt, **TINY | {"epochs": 7})
    assert len(rows(table)) == 1
    training.train([images], output, resume=True, **TINY | {"epochs": 7})
    assert [row["step"] for row in rows(table)] == ["1", "20"]


def test_a_log_of_one_s_own_takes_its_place_and_is_appended_to(images, tmp_path):
    output, log = tmp_path / "m.safetensors", tmp_path / "log.csv"
    for force in (False, True):
        training.train([images], output, log=log, force=force, **TINY)
    assert [row["step"] for row in rows(log)] == ["1", "1"]
    assert not (tmp_path / "m.safetensors.csv").exists()


def test_without_tensorboard_nothing_is_trained(images, tmp_path, monkeypatch):
    def missing(self, folder):
        raise MissingExtraError("it is missing.")

    monkeypatch.setattr("stochcl.training.outputs.TensorBoardLog.__init__", missing)
    monkeypatch.setattr("stochcl.training.images.read_images", lambda *a, **k: pytest.fail("images were read"))
    with pytest.raises(MissingExtraError):
        training.train([images], tmp_path / "m.safetensors", tensorboard=tmp_path / "runs", **TINY)


def test_the_average_of_the_weights_is_what_is_written(images, tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    training.train([images], one, **TINY)
    training.train([images], two, average=0.99, **TINY)
    weights = [load_model(path).encoder.head.weight for path in (one, two)]
    assert not weights[0].equal(weights[1])
    assert load_model(two).record["options"]["average"] == 0.99
