"""Rows of fine-tuned models: scored once, with the command that makes them again."""

import importlib
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stochcl.api.finetune import finetune
from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.encoder import Encoder
from stochcl.encoders.modelfile import load_model, save_model

TOOLS = Path(__file__).parents[2] / "tools"
SETTINGS = {
    "epochs": 1, "batch_size": 8, "precision": "fp32", "size": 16, "crop": (16,), "frozen": 0, "nested": 0.0,
    "latents": 8, "preset": "cifar10-lite0-finetune",
}  # fmt: skip


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("measure_finetuned")


def photos(folder, per_class=8):
    rng = np.random.default_rng(0)
    for k, name in enumerate(("blue", "red")):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(100 * k, 150 + 100 * k, (16, 16, 3), np.uint8)).save(
                folder / name / f"{i}.png"
            )
    return folder


def test_arms_are_scored_once_and_say_how_they_were_made(tool, tmp_path, monkeypatch):
    source, out = photos(tmp_path / "photos"), tmp_path / "result.json"
    torch.manual_seed(0)
    save_model(Encoder(EncoderConfig(width=4, stem="small", latents=8, size=16)), tmp_path / "base.safetensors", {})
    paths = [tmp_path / "latents.safetensors", tmp_path / "twin.safetensors"]
    for path, twin in zip(paths, (False, True), strict=True):
        log = path.with_suffix(".jsonl")
        finetune(tmp_path / "base.safetensors", [source], path, log=log, deterministic=twin, **SETTINGS)
    argv = [str(paths[0]), str(paths[1]), "--test", str(source), "--trained-at", "abc", "-o", str(out)]
    monkeypatch.setattr(sys, "argv", ["measure_finetuned.py", *argv])
    tool.main()
    first, second = json.loads(out.read_text())["arms"]
    assert (first["arm"], second["arm"]) == ("latents", "deterministic twin")
    assert first["model_sha256"] == load_model(paths[0]).sha256
    assert 0 <= first["test_top1"] <= 100
    assert first["codes_top1"] == first["test_top1"]
    assert first["codes_bits_per_image"] > 0
    assert second["codes_top1"] is None
    assert (first["images"], first["steps"], first["epochs"], first["trained_at"]) == (16, 2, 1.0, "abc")
    assert (tmp_path / first["log"]).read_bytes() == paths[0].with_suffix(".jsonl").read_bytes()
    words = shlex.split(second["command"])
    assert words[:6] == ["stochcl", "finetune", "base", "photos", "-o", "twin.safetensors"]
    assert "--deterministic" in words
    assert words[words.index("--crop") + 1] == "16"
    assert words[words.index("--nested") + 1] == "0.0"
    assert "--lr" not in words  # as in the preset
    monkeypatch.setattr(tool, "score", lambda *given: pytest.fail("scored twice"))
    tool.main()
    assert json.loads(out.read_text())["arms"] == [first, second]
