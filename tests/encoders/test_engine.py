"""ONNX Runtime, PyTorch and numpy: the same features, the same codes."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from stochcl.encoders import layout
from stochcl.encoders.encoder import Encoder
from stochcl.encoders.engine import OnnxNetwork, cores, encode
from stochcl.encoders.inference import TorchNetwork
from stochcl.encoders.latents import FAMILIES, Latents
from stochcl.encoders.posteriors import POSTERIORS
from tests.encoders.making import make_config, make_encoder, make_images

CPU = torch.device("cpu")
NETWORKS = [
    {"backbone": name, "stem": stem, "pooling": pooling, "size": size}
    for name, stem, pooling, size in (
        ("resnet10", "small", "mean", 16),
        ("resnet10", "imagenet", "moments", 33),
        ("resnet34", "small", "moments", 17),
        ("resnet50", "imagenet", "stages", 32),
        ("efficientnet-lite0", "imagenet", "stages", 33),
        ("efficientnet-lite2", "imagenet", "mean", 32),
    )
]
LATENTS = [
    {},
    {"head": (7,)},
    {"posterior": "gaussian", "alphabet": 5, "temperature": 1.7},
    {"posterior": "categorical", "alphabet": 5, "head": (7, 9), "temperature": 1.7},
    {"posterior": "categorical", "alphabet": 300, "latents": 9},
    {"posterior": "residual", "transform": "sqrt", "reduced": 8, "temperature": 1.3},
    {"posterior": "residual", "backbone": "features:12", "latents": 40, "reduced": 9},
    {"posterior": "residual", "backbone": "features:12", "latents": 9, "stages": (1,) * 9},
    {"posterior": "residual", "backbone": "features:12", "latents": 8, "stages": (8,)},
    {"backbone": "features:12", "classes": ("a", "b"), "classifies": "features"},
]


@pytest.mark.parametrize("options", NETWORKS, ids=lambda o: f"{o['backbone']}-{o['pooling']}")
def test_onnx_runtime_gives_the_features_of_pytorch(options):
    encoder = make_encoder(**options, width=6)
    images = make_images(20, encoder.config.size)
    network, latents = (made(encoder.config, encoder.arrays()) for made in (OnnxNetwork, Latents.of))
    ours, theirs = (encode(n, latents, images) for n in (network, TorchNetwork(encoder, CPU)))
    assert abs(ours.features - theirs.features).max() < 1e-4 * theirs.features.std()
    assert (ours.codes.symbols() != theirs.codes.symbols()).mean() < 0.01


@pytest.mark.parametrize("size", [1, 7, 8, 31, 33])
def test_codes_of_onnx_runtime_do_not_depend_on_batches_or_threads(size, monkeypatch):
    encoder = make_encoder(backbone="efficientnet-lite0", pooling="stages", latents=40, posterior="residual", size=32)
    images = make_images(70, 32)
    network, latents = (made(encoder.config, encoder.arrays()) for made in (OnnxNetwork, Latents.of))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole = encode(network, latents, images)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores() == 3
    parts = [encode(network, latents, images[i : i + size]) for i in range(0, len(images), size)]
    assert np.array_equal(np.concatenate([p.features for p in parts]), whole.features)
    assert np.array_equal(np.concatenate([p.codes.packed for p in parts]), whole.codes.packed)
    assert np.array_equal(np.concatenate([p.codes.uncertainty for p in parts]), whole.codes.uncertainty)


@pytest.mark.parametrize("options", [o for o in LATENTS if o.get("posterior") != "residual"], ids=str)
def test_numpy_gives_the_symbols_and_the_uncertainty_of_pytorch(options, rng):
    encoder = make_encoder(**options)
    features = rng.normal(size=(300, encoder.feature_dim)).astype(np.float32)
    latents = Latents.of(encoder.config, encoder.arrays())
    parameters = latents.parameters(features)
    with torch.inference_mode():
        posterior = encoder.posterior(torch.from_numpy(features))
        for width in sorted({1, 4, 8, encoder.config.latents}):
            expected = posterior.mode()[:, :width].numpy()
            found = latents.symbols(parameters, width)
            assert (found.dtype, found.shape) == (
                np.uint8 if encoder.config.alphabet <= 256 else np.uint16,
                expected.shape,
            )
            assert (found != expected).mean() < 1e-3
        bits = posterior.tempered(encoder.config.temperature).entropy().sum(1).numpy() / np.log(2)
    np.testing.assert_allclose(latents.uncertainty(parameters), bits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [*NETWORKS, *LATENTS, {"entropy": "autoregressive", "entropy_hidden": 4, "backbone": "features:9"}],
    ids=str,
)
def test_a_configuration_says_which_tensors_its_encoder_has(options):
    config = make_config(**options)
    with torch.device("meta"):
        encoder = Encoder(config)
    state = {name: t for name, t in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert layout.shapes_of(config) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert {name for name in state if layout.is_weight(name)} == {name for name, _ in encoder.named_parameters()}


def test_every_family_is_there_in_numpy_and_those_that_are_trained_in_pytorch():
    assert FAMILIES.keys() == {*POSTERIORS, "residual"}


def test_encoding_takes_one_thread_of_matrix_products_and_leaves_the_setting_as_it_was(monkeypatch):
    encoder, images, seen = make_encoder(), make_images(9), []
    network, latents = (made(encoder.config, encoder.arrays()) for made in (OnnxNetwork, Latents.of))
    parameters = latents.parameters
    monkeypatch.setattr(latents, "parameters", lambda features: seen.append(blas()) or parameters(features))
    with threadpool_limits(2, user_api="blas"):
        encode(network, latents, images)
        assert (seen, blas()) == ([{1}], {2})


def blas() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
