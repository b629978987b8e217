import math

import numpy as np
import pytest
import torch

from stochcl.encoders.inference import choose_device, encode
from stochcl.encoders.posteriors import Bernoulli
from stochcl.errors import UsageError
from tests.encoders.making import make_encoder, make_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(latents=40)


@pytest.fixture(scope="module")
def images():
    return make_images(150)


@pytest.fixture(scope="module")
def whole(encoder, images):
    return encode(encoder, images, CPU)


@pytest.mark.parametrize("batch", [1, 7, 64, 65])
def test_codes_do_not_depend_on_the_batch_size(encoder, images, whole, batch):
    parts = [encode(encoder, images[i : i + batch], CPU) for i in range(0, len(images), batch)]
    assert np.array_equal(np.concatenate([p.codes.packed for p in parts]), whole.codes.packed)
    assert np.array_equal(np.concatenate([p.codes.uncertainty for p in parts]), whole.codes.uncertainty)
    assert np.array_equal(np.concatenate([p.features for p in parts]), whole.features)


def test_codes_do_not_depend_on_the_neighbours(encoder, images, whole, rng):
    order = rng.permutation(len(images))
    assert np.array_equal(encode(encoder, images[order], CPU).codes.packed, whole.codes.packed[order])
    assert len(np.unique(whole.codes.packed, axis=0)) > 50


def test_codes_are_modes_with_their_entropy(encoder, images, whole):
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        features = encoder.features(encoder.normalise(pixels))
        posterior = encoder.posterior(features)
    assert isinstance(posterior, Bernoulli)
    assert whole.codes.latents == 40
    assert whole.codes.alphabet == 2
    agree = whole.codes.symbols() == posterior.mode().numpy()
    assert agree[posterior.parameters.abs().numpy() > 1e-3].all()
    np.testing.assert_allclose(whole.features, features.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(whole.codes.uncertainty, posterior.entropy().sum(1).numpy() / math.log(2), rtol=1e-3)


def test_no_images_are_no_codes(encoder):
    encoded = encode(encoder, make_images(0), CPU)
    assert len(encoded.codes) == 0
    assert encoded.features.shape == (0, 32)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 16, 16, 3)), make_images(2, size=15), make_images(2)[0], make_images(2).transpose(0, 3, 1, 2)],
    ids=["float", "size", "one", "channels first"],
)
def test_images_of_another_shape_are_refused(encoder, images):
    with pytest.raises(UsageError, match=r"takes uint8 images of shape \(B, 16, 16, 3\), not (uint8|float64) \("):
        encode(encoder, images, CPU)


def test_there_is_a_cpu_and_a_device_to_begin_with():
    assert choose_device("cpu").type == "cpu"
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["", "banana", "cuda:99", "cuda:-1", "meta", "xpu:7", "mtia", "hpu"])
def test_a_device_that_is_not_here_is_said(name):
    with pytest.raises(UsageError, match=rf"there is no device '{name}' here \(.+\); try device cpu\.$"):
        choose_device(name)


def test_an_uncertainty_that_nobody_asks_for_is_not_computed(encoder, images, whole, monkeypatch):
    monkeypatch.setattr(Bernoulli, "entropy", None)
    without = encode(encoder, images, CPU, uncertainty=False).codes
    assert without.uncertainty is None
    assert np.array_equal(without.packed, whole.codes.packed)
