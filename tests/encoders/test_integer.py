"""Networks in 8-bit integers: near those in floats, and the same on every processor."""

import hashlib

import numpy as np
import pytest
import torch

import stochcl
from stochcl.encoders import integer
from stochcl.encoders.engine import OnnxNetwork, encode, features
from stochcl.encoders.inference import network_of
from stochcl.encoders.latents import Latents
from stochcl.encoders.modelfile import save_model
from stochcl.errors import UsageError
from tests.encoders.making import make_encoder, make_images

DIGESTS = {
    "fast": "db73aa860ce26473c05d2d1b9aa0138df1c655fc24cabdd932558a76e741e34c",
    "general": "3e956c7785b18ebbeb8c5702c9ecc721c243b88dbeb5e517a510ad7090ab66bc",
}


def nearness(one, other):
    """Return the mean cosine of features with others."""
    products = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return float(products.mean())


@pytest.fixture(scope="module", params=DIGESTS)
def model(request):
    return stochcl.load(request.param, device="cpu").model


@pytest.fixture(scope="module")
def pixels(model):
    """Pictures of smooth shapes, the same on every machine: whole numbers alone make them."""
    y, x = np.mgrid[: model.config.size, : model.config.size]
    waves = [(x * a + y * b + x * y // c) % 256 for a, b, c in ((2, 1, 40), (1, 3, 25), (4, 2, 60))]
    picture = np.stack([np.minimum(w, 255 - w) * 2 for w in waves], axis=-1).astype(np.uint8)
    return np.stack([picture, picture[::-1], picture[:, ::-1, ::-1], 255 - picture])


def test_integers_give_nearly_the_features_of_floats(model, pixels):
    exact, whole = (
        encode(OnnxNetwork(model.config, model.tensors, precision), Latents.of(model.config, model.tensors), pixels)
        for precision in ("fp32", "int8")
    )
    assert 0.97 < nearness(exact.features, whole.features) < 1


def test_the_codes_of_integers_are_the_same_on_every_processor(model, pixels):
    """These were computed with AVX-512 VNNI; emulated processors with AVX2 and with SSE 4.2 gave the same."""
    network = OnnxNetwork(model.config, model.tensors, "int8")
    padded = np.concatenate([pixels, pixels])
    found = [network.features(padded, rows)[:4] for rows in (8, 4)]
    assert np.array_equal(*found)
    assert hashlib.sha256(found[0].tobytes()).hexdigest() == DIGESTS[model.name]


def test_training_and_compress_see_the_same_features(model, pixels):
    fitted = features(network_of(model.encoder, torch.device("cpu"), "int8"), pixels, model.encoder.feature_dim)
    network = OnnxNetwork(model.config, model.tensors, "int8")
    assert np.array_equal(fitted, encode(network, Latents.of(model.config, model.tensors), pixels).features)


def test_no_two_weights_of_a_channel_overflow_16_bits(rng):
    weight = rng.normal(size=(50, 12, 1, 1)) * rng.lognormal(size=(50, 12, 1, 1))
    weight[3] = 0
    whole = np.rint(weight / integer.steps_of(weight, alone=False)[:, None, None, None]).reshape(50, 12)
    for sign in (1, -1):
        pairs = np.sort(np.maximum(whole * sign, 0), axis=1)[:, -2:].sum(axis=1)
        assert pairs.max() in (127, 128)
    alone = np.rint(weight / integer.steps_of(weight, alone=True)[:, None, None, None])
    assert np.abs(alone).max() == 127


@pytest.mark.parametrize(("backbone", "pooling"), [("efficientnet-lite2", "mean"), ("efficientnet-lite0", "stages")])
def test_networks_of_any_weights_run_in_integers(backbone, pooling):
    encoder = make_encoder(backbone=backbone, pooling=pooling, size=37)
    config, tensors = encoder.config, encoder.arrays()
    images, latents = make_images(9, 37), Latents.of(config, tensors)
    exact, whole = (encode(OnnxNetwork(config, tensors, p), latents, images) for p in ("fp32", "int8"))
    assert np.isfinite(whole.features).all()
    assert whole.features.shape == exact.features.shape


def test_other_networks_and_devices_are_refused_in_integers(tmp_path):
    codec = stochcl.load(precision="int8")
    assert (codec.device, codec.runtime, codec.with_runtime("torch").precision) == ("cpu", "onnx", "fp32")
    assert stochcl.load(device="cpu").precision == "int8"
    model = tmp_path / "model.safetensors"
    tuned = make_encoder(backbone="efficientnet-lite0", size=32)
    tuned.set_classes(("a", "b"), "vectors")
    save_model(tuned, model, {})
    assert stochcl.load(model, device="cpu").precision == "fp32"
    save_model(make_encoder(), model, {})
    assert stochcl.load(model, device="cpu").precision == "fp32"
    with pytest.raises(UsageError, match="int8"):
        stochcl.load(model, precision="int8")
    with pytest.raises(UsageError, match="int8"):
        stochcl.load(model).with_precision("int8")
