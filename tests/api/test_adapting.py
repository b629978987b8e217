"""Adapting a model to images: the same network, fitted latents, a file that names a packaged network."""

import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

import stochcl
from stochcl.api import train as adapting
from stochcl.api.train import train
from stochcl.encoders import packaged
from stochcl.encoders.modelfile import load_model
from stochcl.errors import ModelError, TrainingError, UsageError
from tests.making import write_images


def adapt(sources, output, **options):
    return adapting.adapt(sources, output, **{"device": "cpu", "rate": 16} | options)


def network(path):
    state = load_model(path).encoder.state_dict()
    return {k: v for k, v in state.items() if k.startswith(("backbone.", "norm.")) and not k.endswith("tracked")}


def stored(path):
    with safe_open(path, framework="pt") as file:
        return set(file.keys()), file.metadata()


@pytest.fixture
def package(tmp_path, model, monkeypatch):
    """A package whose only model is the tiny one."""
    folder = tmp_path / "package"
    folder.mkdir()
    shutil.copy(model, folder / "general.safetensors")
    monkeypatch.setattr(packaged, "embedded_models", lambda: tuple(folder.glob("*.safetensors")))
    return folder


def test_the_network_stays_and_codes_have_the_rate_asked_for(images, model, tmp_path):
    out = tmp_path / "mine.safetensors"
    report = adapt([images], out, model=model, hold_out=2)
    adapted, before = load_model(out), network(model)
    assert (report.images, report.held_out, report.steps) == (36, 6, 0)
    assert any("36 images are few" in line for line in report.warnings)
    assert report.rate == pytest.approx(16, rel=0.25)  # 36 images
    assert adapted.encoder.config.posterior == "residual"
    assert adapted.record["init"]["statistics"]
    assert network(out).keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network(out).items())
    assert any(name.startswith("backbone.") for name in stored(out)[0])  # no packaged model has this network
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors"]
    stochcl.load(out, device="cpu").compress(images, tmp_path / "codes.bin")
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert (archive.header.model_sha256, len(archive)) == (report.sha256, 42)


def test_a_packaged_network_is_named_in_place_of_stored(images, model, package, tmp_path):
    whole, shared = tmp_path / "whole.safetensors", tmp_path / "shared.safetensors"
    report = adapt([images], shared, model=model)
    names, metadata = stored(shared)
    assert not any(name.startswith("backbone.") for name in names)
    assert packaged.BASE in metadata
    assert all(torch.equal(tensor, network(model)[name]) for name, tensor in network(shared).items())
    for path in package.iterdir():
        path.unlink()
    assert adapt([images], whole, model=model).sha256 == report.sha256  # whichever way it is stored
    assert whole.stat().st_size > shared.stat().st_size
    with pytest.raises(ModelError, match=f"{shared}: .*this version"):
        load_model(shared)


def test_a_file_that_shares_its_network_is_begun_with_as_any_other(images, model, package, tmp_path):
    adapt([images], tmp_path / "shared.safetensors", model=model)
    adapt([images], tmp_path / "again.safetensors", model=tmp_path / "shared.safetensors")
    assert packaged.BASE in stored(tmp_path / "again.safetensors")[1]
    given = {"epochs": 0, "latents": 8, "latent_steps": 0, "device": "cpu"}
    train([images], tmp_path / "trained.safetensors", init=tmp_path / "shared.safetensors", **given)
    assert packaged.BASE not in stored(tmp_path / "trained.safetensors")[1]
    for name in ("again", "trained"):
        found = network(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(tensor, network(model)[key]) for key, tensor in found.items())


def test_a_damaged_packaged_model_lends_nothing(images, model, package, tmp_path):
    adapt([images], tmp_path / "shared.safetensors", model=model)
    (package / "general.safetensors").write_bytes(b"no model")
    with pytest.raises(ModelError, match="this version"):
        load_model(tmp_path / "shared.safetensors")


def test_of_many_images_a_seeded_choice_is_fitted_to(images, model, tmp_path, monkeypatch):
    monkeypatch.setattr(adapting, "MOST_IMAGES", 20)
    more = write_images(tmp_path / "more", per_class=4)
    hashes = []
    for i, seed in enumerate((0, 0, 1)):
        report = adapt([images, more], tmp_path / f"{i}.safetensors", model=model, hold_out=1, seed=seed)
        assert (report.images, report.held_out) == (20, 6)
        hashes.append(report.sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_few_images_are_enough_and_one_is_not(model, tmp_path):
    few = write_images(tmp_path / "few", per_class=2)
    assert adapt([few], tmp_path / "few.safetensors", model=model).images == 6
    one = next(few.rglob("*.png"))
    with pytest.raises(TrainingError, match="at least two"):
        adapt([one], tmp_path / "one.safetensors", model=model)
    assert not (tmp_path / "one.safetensors").exists()


def test_embeddings_have_no_network_to_keep(model, images, tmp_path):
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))
    with pytest.raises(UsageError, match="embeddings"):
        adapt([tmp_path / "vectors.npy"], tmp_path / "m.safetensors", model=model)
    train([tmp_path / "vectors.npy"], tmp_path / "vectors.safetensors", latents=8, latent_steps=5)
    with pytest.raises(UsageError, match="takes vectors"):
        adapt([images], tmp_path / "m.safetensors", model=tmp_path / "vectors.safetensors")


def test_what_is_there_is_kept_unless_forced(images, model, tmp_path):
    (tmp_path / "mine.safetensors").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        adapt([images], tmp_path / "mine.safetensors", model=model)
    adapt([images], tmp_path / "mine.safetensors", model=model, force=True)
    load_model(tmp_path / "mine.safetensors")


def test_features_are_fitted_in_the_precision_of_compress(images, tmp_path):
    def fitted(name, **options):
        given = {"epochs": 0, "posterior": "residual", "rate": 16, "device": "cpu"} | options
        return train([images], tmp_path / name, init="fast", **given).sha256

    assert fitted("auto.safetensors") == fitted("int8.safetensors", precision="int8")
    assert fitted("auto.safetensors", force=True) != fitted("fp32.safetensors", precision="fp32")
    adapted = load_model(tmp_path / "auto.safetensors")
    assert (adapted.record["options"]["precision"], adapted.record["precision"]) == ("int8", "int8")
    assert stochcl.load(tmp_path / "auto.safetensors", device="cpu").precision == "int8"


@pytest.mark.parametrize(
    ("options", "word"),
    [({"epochs": 1}, "stays as it is"), ({"epochs": 0, "backbone": "resnet10"}, "EfficientNet-Lite")],
)
def test_int8_is_for_a_finished_efficientnet(images, tmp_path, options, word):
    with pytest.raises(UsageError, match=word):
        train([images], tmp_path / "m.safetensors", precision="int8", device="cpu", **options)
    assert not (tmp_path / "m.safetensors").exists()
