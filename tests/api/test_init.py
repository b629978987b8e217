"""`--init`: training that begins with published weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stochcl.api import train as training
from stochcl.api.models import find_model, model_info
from stochcl.encoders.backbones import ResNet
from stochcl.encoders.inference import encode
from stochcl.encoders.modelfile import load_model
from stochcl.errors import ModelError, UsageError
from stochcl.training.pretrain import train_latents

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


@pytest.fixture
def finished(images, tmp_path):
    """A model file, trained a little."""
    path = tmp_path / "finished.safetensors"
    training.train([images], path, **TINY | {"lr": 1e-2, "latent_steps": 20})
    return path


def tensors(path, *parts):
    found = load_model(path).encoder.state_dict()
    return {name: tensor for name, tensor in found.items() if name.startswith(parts)}


def test_without_epochs_latents_are_trained_on_the_features_of_a_finished_network(images, tmp_path, finished):
    out = tmp_path / "m.safetensors"
    given = {"epochs": 0, "latents": 32, "rate": 8.0, "latent_steps": 200}  # 20.9 bits where no rate is asked for
    report = training.train([images], out, init=finished, **TINY | given)
    model = load_model(out)
    assert (report.steps, report.latents, model.encoder.config.latents) == (0, 32, 32)
    assert report.rate == pytest.approx(8, rel=0.05)
    assert model.record["latents"]["steps"] >= 200
    assert model.record["init"]["statistics"]
    before, after = (tensors(path, "backbone.", "norm.") for path in (finished, out))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name


def test_the_network_is_the_one_in_the_file_unless_options_say_otherwise(images, tmp_path, finished):
    out, given = tmp_path / "m.safetensors", {"epochs": 0, "latent_steps": 0, "latents": 8, "device": "cpu"}
    training.train([images], out, init=finished, **given)
    config, theirs = load_model(out).encoder.config, load_model(finished).encoder.config
    assert (config.width, config.stem, config.size, config.latents) == (4, "small", 16, 8)
    assert (config.mean, config.pooling) == (theirs.mean, "mean")
    training.train([images], out, init=finished, pooling="stages", force=True, **given)
    assert load_model(out).encoder.config.pooling == "stages"


def test_an_embedded_model_is_begun_with_by_its_name(images, tmp_path):
    out = tmp_path / "m.safetensors"
    report = training.train([images], out, init="general", epochs=0, latent_steps=0, latents=8, device="cpu")
    ours, theirs = load_model(out), load_model(find_model("general"))
    assert ours.record["init"]["statistics"]
    assert ours.encoder.config.backbone == theirs.encoder.config.backbone
    assert ours.encoder.config.pooling == theirs.encoder.config.pooling
    found, expected = ours.encoder.backbone.state_dict(), theirs.encoder.backbone.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in found if not name.endswith("tracked"))
    assert "general.safetensors" in report.initialised


@pytest.mark.parametrize("latent_steps", [0, 20])
@pytest.mark.parametrize("pooling", ["stages", None])
def test_features_that_the_file_says_nothing_of_are_measured_first(
    images, tmp_path, finished, weights, pooling, latent_steps
):
    given = TINY | {"epochs": 0, "latent_steps": latent_steps, "pooling": pooling}
    path = finished if pooling else weights(stem="small")[0]
    out = tmp_path / "m.safetensors"
    training.train([images], out, init=path, **given)
    model = load_model(out)
    assert not model.record["init"]["statistics"]
    assert bool(model.record["latents"]) == bool(latent_steps)
    given, found = load_file(path), tensors(out, "backbone.")
    for name in (name for name in found if not name.endswith("num_batches_tracked")):
        expected = given[name if pooling else name.replace("backbone", "module")]
        torch.testing.assert_close(found[name], expected, atol=1e-3, rtol=1e-3, check_dtype=False)
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted(images.iterdir())])
    features = encode(model.encoder, pixels, torch.device("cpu")).features
    varied = features.std(axis=0) > 0.5  # a channel may be silent
    assert np.abs(features.mean(axis=0)[varied]).max() < 0.05
    assert np.median(features.std(axis=0)[varied]) == pytest.approx(1, abs=0.01)
    assert varied.mean() > 0.5


@pytest.mark.parametrize(
    ("options", "begun"),
    [({"epochs": 0}, "principal axes"), ({"deterministic": True}, "principal axes"), ({}, "the head trained so far")],
    ids=str,
)
def test_a_head_that_has_learned_nothing_begins_at_the_features_own_axes(images, tmp_path, finished, options, begun):
    out = tmp_path / "m.safetensors"
    gaussian = {"posterior": "gaussian", "alphabet": 8, "latents": 4, "latent_steps": 5, "whitening": 0.5}
    training.train([images], out, init=finished, **TINY | gaussian | options)
    found = load_model(out).record["latents"]
    assert (found["start"], found["options"]["whitening"]) == (begun, 0.5)


def test_a_decoder_without_hidden_layers_is_told_as_one_linear_layer(images, tmp_path):
    out = tmp_path / "m.safetensors"
    training.train([images], out, **TINY | {"epochs": 0, "decoder": ()})
    assert "  decoder: to vectors of 32 numbers by one linear layer" in model_info(out).lines()


def test_without_latent_steps_a_finished_network_stays_as_it_is(images, tmp_path, finished):
    out = tmp_path / "m.safetensors"
    training.train([images], out, init=finished, **TINY | {"epochs": 0, "latent_steps": 0})
    before, after = (tensors(path, "backbone.", "norm.") for path in (finished, out))
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert load_model(out).record["latents"] == {}


def test_the_latents_of_a_finished_network_have_all_the_time_there_is(images, tmp_path, finished, monkeypatch):
    asked = []

    def stage(*args, max_time, **options):
        asked.append(max_time)
        return train_latents(*args, max_time=max_time, **options)

    monkeypatch.setattr("stochcl.training.pretrain.train_latents", stage)
    given = TINY | {"max_time": 40.0, "latent_steps": 5}
    for epochs in (0, 1):
        training.train([images], tmp_path / f"{epochs}", init=finished, **given | {"epochs": epochs})
    assert asked == [40, 10]


def test_a_fresh_stem_that_nothing_would_train_is_refused(images, tmp_path, weights, monkeypatch):
    path, _ = weights(stem="imagenet")
    with monkeypatch.context() as patched:
        patched.setattr("stochcl.training.images.read_images", lambda *a, **o: pytest.fail("read before checked"))
        with pytest.raises(UsageError, match="would not train a fresh stem; give stem imagenet, or more ep"):
            training.train([images], tmp_path / "m", init=path, **TINY | {"epochs": 0})
    training.train([images], tmp_path / "m", init=path, **TINY | {"epochs": 0, "stem": "imagenet", "latent_steps": 5})


def test_weights_that_do_not_fit_are_refused_before_images_are_read(images, tmp_path, weights, monkeypatch):
    monkeypatch.setattr("stochcl.training.images.read_images", lambda *a, **o: pytest.fail("read before checked"))
    path, _ = weights(width=6)
    with pytest.raises(ModelError, match=r"these weights are of another network: conv1\.weight is \[6, 3, 7, 7\]"):
        training.train([images], tmp_path / "m.safetensors", init=path, **TINY)
    with pytest.raises(ModelError, match="the weights cannot be read"):
        training.train([images], tmp_path / "m.safetensors", init=tmp_path / "none", **TINY)
    assert not (tmp_path / "m.safetensors").exists()
