"""Accuracy on three sets by one command: digits whole and in small, the others on files made of the same shape."""

import importlib
import json
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.making import make_pixels

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("measure_classification")


def write_zip(path, per_class, seed, ending):
    with zipfile.ZipFile(path, "w") as file:
        for k, name in enumerate(("red", "green", "blue")):
            for i in range(per_class):
                data = BytesIO()
                Image.fromarray(make_pixels(1000 * seed + 100 * k + i, k)).save(data, "JPEG")
                file.writestr(f"{name}/{i:03d}.{ending}", data.getvalue())


def test_digits_are_learned_from_codes_and_scored_on_those_that_the_model_has_not_seen(tool, tmp_path, monkeypatch):
    quick = partial(tool.training.train, latent_steps=200, entropy="independent")
    monkeypatch.setattr(tool.training, "train", quick)
    out = tmp_path / "c.json"
    tool.main(["--only", "digits", "--epochs", "1", "--device", "cpu", "-n", "250", "-o", str(out)])
    result = json.loads(out.read_text())
    assert (
        result["command"]
        == "python tools/measure_classification.py --only digits --epochs 1 --device cpu -n 250 -o c.json"
    )
    (found,) = result["sets"]
    assert (found["set"], found["train_images"], found["test_images"]) == ("digits", 250, 250)
    rows = {row["input"]: row for row in found["rows"]}
    assert set(rows) == {"vectors", "symbols", "features", "pixels"}
    for row in rows.values():
        assert found["largest_class"] < row["accuracy_low"] < row["accuracy"] < row["accuracy_high"] <= 1
    assert rows["vectors"]["bits_per_image"] == rows["symbols"]["bits_per_image"] < 200
    assert rows["features"]["bits_per_image"] == 32 * rows["features"]["columns"]
    assert rows["pixels"]["bits_per_image"] == 32 * 32 * 3 * 8


def test_the_split_of_tiny_imagenet_is_the_one_that_training_holds_out(tool, model, tmp_path):
    for i in range(3):
        write_zip(tmp_path / f"tiny-imagenet-train-{i}.zip", 26, i, "JPEG")
    task = tool.tiny_imagenet(tmp_path, None, 0)
    assert (len(task.train), len(task.test)) == (3 * 3 * 6, 3 * 3 * 20)
    assert {entry.name[-8:-5] for entry in task.train.entries} == {f"{i:03d}" for i in range(6)}
    out = tmp_path / "c.json"
    tool.main(
        ["--data", str(tmp_path), "--only", "tiny-imagenet", "--model", str(model), "--device", "cpu", "-o", str(out)]
    )
    (found,) = json.loads(out.read_text())["sets"]
    pixels = next(row for row in found["rows"] if row["input"] == "pixels")
    assert pixels["accuracy"] > 0.9  # each class has a colour
    assert found["classes"] == 3


def test_cifar10_is_learned_on_one_file_and_scored_on_the_other(tool, tmp_path):
    write_zip(tmp_path / "cifar10-train.zip", 8, 0, "jpg")
    write_zip(tmp_path / "cifar10-test.zip", 5, 1, "jpg")
    task = tool.cifar10(tmp_path, 20, 0)
    assert (len(task.train), len(task.test)) == (20, 15)
    assert task.train.path.name == "cifar10-train.zip"
    assert task.test.path.name == "cifar10-test.zip"


def test_a_missing_folder_of_data_is_said(tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main(["-o", str(tmp_path / "c.json")])
    assert "--data names the folder" in capsys.readouterr().err
