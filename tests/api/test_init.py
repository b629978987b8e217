"""`--init`: training that begins with published weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stochcl.api import training
from stochcl.encoders.backbones import ResNet
from stochcl.encoders.modelfile import load_model
from stochcl.errors import ModelError

TINY = {
    "width": 4, "stem": "small", "latents": 16, "decoder": (8,), "size": 16, "crop": 16, "batch_size": 8,
    "epochs": 1, "precision": "fp32", "device": "cpu", "lr": 1e-9, "decay": 0.0,
}  # fmt: skip


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "images" / f"{i:02d}.png")
    return tmp_path / "images"


@pytest.fixture
def weights(tmp_path):
    def write(prefix="module.", **options):
        torch.manual_seed(9)
        state = ResNet("resnet10", **{"width": 4} | options).state_dict()
        save_file({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "w.safetensors")
        return tmp_path / "w.safetensors", state

    return write


def test_training_begins_with_the_weights_and_says_what_it_took(images, tmp_path, weights):
    path, state = weights()
    out = tmp_path / "m.safetensors"
    report = training.train([images], out, init=path, **TINY)
    model = load_model(out)
    name = "layer4.0.conv1.weight"
    torch.testing.assert_close(model.encoder.backbone.state_dict()[name], state[name], atol=1e-3, rtol=1e-3)
    assert report.initialised.startswith(f"{path}: 66 tensors loaded")
    assert "the stem stays fresh" in report.initialised
    assert model.record["init"]["sha256"]
    assert json.loads(json.dumps(report.to_json()))["initialised"] == report.initialised
    other = training.train([images], tmp_path / "other.safetensors", **TINY)
    assert other.initialised is None
    fresh = load_model(tmp_path / "other.safetensors").encoder.backbone.state_dict()[name]
    assert not torch.allclose(fresh, state[name], atol=1e-2)


def test_the_average_of_weights_begins_with_them_too(images, tmp_path, weights):
    path, state = weights(stem="small")
    training.train([images], tmp_path / "m.safetensors", init=path, average=0.9, **TINY)
    found = load_model(tmp_path / "m.safetensors").encoder.backbone.conv1.weight
    torch.testing.assert_close(found, state["conv1.weight"], atol=1e-3, rtol=1e-3)


def test_weights_that_do_not_fit_are_refused_before_images_are_read(images, tmp_path, weights, monkeypatch):
    monkeypatch.setattr("stochcl.encoders.imageset.read_images", lambda *a, **o: pytest.fail("read before checked"))
    path, _ = weights(width=6)
    with pytest.raises(ModelError, match=r"these weights are of another network: conv1\.weight is \[6, 3, 7, 7\]"):
        training.train([images], tmp_path / "m.safetensors", init=path, **TINY)
    with pytest.raises(ModelError, match="the weights cannot be read"):
        training.train([images], tmp_path / "m.safetensors", init=tmp_path / "none", **TINY)
    assert not (tmp_path / "m.safetensors").exists()
