"""tools/refit_latents.py: new latents on a model's network, which stays as it is."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from stochcl.encoders.modelfile import load_model

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def refit(monkeypatch):
    """Call the tool as the shell does."""
    monkeypatch.syspath_prepend(str(TOOLS))
    tool = importlib.import_module("refit_latents")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["refit_latents.py", *map(str, words)])
        tool.main()

    return call


def test_latents_of_other_shape_on_the_same_network(refit, tmp_path, images, model, capsys):
    out = tmp_path / "refit.safetensors"
    words = ["--rate", 12, "--latents", 6, "--ladder", "2,6", "--alphabet", 8, "--steps", 20, "--hold-out", 1]
    refit(model, images, "-o", out, *words, "--head", "24", "--decoder", "16", "--pooling", "stages")
    before, after = load_model(model), load_model(out)
    assert "bits per held-out image; hash " + after.sha256 in capsys.readouterr().out
    config = after.encoder.config
    assert (config.posterior, config.latents, config.alphabet, config.ladder) == ("gaussian", 6, 8, (2, 6))
    assert (config.head, config.decoder, config.pooling) == ((24,), (16,), "stages")
    assert after.record["latents"]["start"] == "principal axes"
    assert after.record["latents_refit"]["from"] == before.sha256
    kept = after.encoder.backbone.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in before.encoder.backbone.state_dict().items())


def test_layers_that_are_not_given_are_the_model_s(refit, tmp_path, images, model):
    out = tmp_path / "refit.safetensors"
    refit(model, images, "-o", out, "--rate", 8, "--latents", 4, "--ladder", "2,4", "--steps", 5)
    before, after = (load_model(path).encoder.config for path in (model, out))
    assert (after.head, after.decoder, after.pooling) == (before.head, before.decoder, before.pooling)
