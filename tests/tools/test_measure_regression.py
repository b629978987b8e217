"""Figures of places and sizes: sprites whole and in small, boxes on files made of Tiny-ImageNet's shape."""

import importlib
import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("measure_regression")


def write_boxes(folder, per_class):
    """Three files of grey images, each with a white box that the table tells."""
    rng = np.random.default_rng(0)
    lines = ["name,wnid,x0,y0,x1,y1"]
    for i in range(3):
        with zipfile.ZipFile(folder / f"tiny-imagenet-train-{i}.zip", "w") as file:
            for k in range(2):
                for j in range(per_class):
                    pixels = np.full((64, 64, 3), 60, np.uint8)
                    (x0, y0), (wide, high) = rng.integers(0, 32, 2), rng.integers(8, 32, 2)
                    pixels[y0 : y0 + high, x0 : x0 + wide] = 250
                    data, name = BytesIO(), f"n{k}/n{k}_{i}{j:03d}.JPEG"
                    Image.fromarray(pixels).save(data, "JPEG")
                    file.writestr(name, data.getvalue())
                    lines.append(f"{name},n{k},{x0},{y0},{x0 + wide},{y0 + high}")
    (folder / "tiny-imagenet-train-boxes.csv").write_text("\n".join(lines) + "\n")


def test_sprites_are_scored_from_every_input_of_every_model(tool, model, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SIDE", 16)  # boosting takes its time with 1,024 columns
    out = tmp_path / "r.json"
    own = ["--model", str(model), "--sprites-model", str(model), "--device", "cpu"]
    tool.main(["--only", "sprites", "--sprites", "120", *own, "-o", str(out)])
    result = json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text()
    (found,) = result["sets"]
    assert found["command"].endswith("--device cpu -o r.json")
    assert tool.kept_sets(out, ["boxes"]) == [found]
    assert tool.kept_sets(out, ["sprites"]) == tool.kept_sets(tmp_path / "none.json", ["boxes"]) == []
    assert (found["train_images"], found["test_images"], len(found["models"])) == (120, 60, 2)
    rows = found["models"][0]["rows"]
    assert {row["input"] for row in rows} == {"vectors", "symbols", "features"}
    assert len(rows) == 3 * 2 * 5
    for row in rows + found["pixels"]:
        assert row["low"] <= row["score"] <= row["high"] <= 1
    assert {row["probe"] for row in found["pixels"]} == {"linear", "neighbours", "boosting"}
    assert found["pixels"][0]["bits_per_image"] == 16 * 16 * 8  # grey
    near = next(row for row in found["pixels"] if (row["probe"], row["target"]) == ("neighbours", "x"))
    assert near["score"] > 0.3
    assert found["best"]["x"]["pixels"] >= near["score"]


def test_boxes_are_scored_on_images_that_nothing_was_trained_on(tool, model, tmp_path):
    write_boxes(tmp_path, 30)
    task = tool.boxes(tmp_path, None, 0)
    assert (len(task.train), len(task.test)) == (3 * 2 * 10, 3 * 2 * 20)
    assert {int(entry.name[-8:-5]) for entry in task.test.entries} == set(range(10, 30))
    lines = (tmp_path / "tiny-imagenet-train-boxes.csv").read_text().splitlines()
    told = {line.split(",")[0]: [int(cell) for cell in line.split(",")[2:]] for line in lines[1:]}
    x0, y0, x1, y1 = told[task.test.entries[7].name]
    assert task.test_targets[7].tolist() == [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
    out = tmp_path / "r.json"
    asked = ["--data", str(tmp_path), "--only", "boxes", "-n", "40", "--model", str(model)]
    tool.main([*asked, "--device", "cpu", "-o", str(out)])
    (found,) = json.loads(out.read_text())["sets"]
    assert (found["train_images"], found["test_images"], len(found["models"])) == (40, 40, 1)
    assert {row["target"] for row in found["pixels"]} == {"x", "y", "width", "height"}
    assert found["best"]["x"]["pixels"] > 0.2


def test_neighbours_are_counted_by_rows_that_are_kept_back(tool):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(400, 1)).astype(np.float32)
    smooth, noisy = np.sin(9 * x[:, 0]), rng.normal(size=400)
    found = tool.neighbours(x[:300], x[300:], np.stack([smooth, noisy], axis=1)[:300], 0)
    assert np.abs(found[:, 0] - smooth[300:]).max() < 0.2
    assert np.abs(found[:, 1]).mean() < 0.3  # many neighbours: near the mean


def test_what_is_kept_is_of_what_features_give(tool):
    rows = [
        {"input": given, "target": "x", "probe": probe, "score": score}
        for given, probe, score in (
            ("vectors", "linear", 0.4), ("vectors", "neighbours", 0.6), ("symbols", "linear", 0.5),
            ("features", "linear", 0.8), ("features", "neighbours", 0.1),
        )
    ]  # fmt: skip
    task = tool.Task("sprites", None, None, None, None, ("x",), (False,), boosted=False)
    assert tool.kept(rows, task) == {"x": 0.75}


def test_a_missing_folder_of_data_is_said(tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main(["-o", str(tmp_path / "r.json")])
    assert "--data names the folder" in capsys.readouterr().err
