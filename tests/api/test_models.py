"""Finding models: by path, by name in the package, by name in the folders of ``$STOCHCL_MODELS``."""

import json
import shutil
from pathlib import Path

import pytest

from stochcl.api import models
from stochcl.errors import ModelError, UsageError


@pytest.fixture
def package(tmp_path, model, monkeypatch):
    """A package whose only model is called general."""
    folder = tmp_path / "package"
    folder.mkdir()
    shutil.copy(model, folder / "general.safetensors")
    monkeypatch.setattr(models, "embedded_models", lambda: tuple(sorted(folder.glob("*.safetensors"))))
    return folder


def test_a_path_is_a_model(model):
    assert models.find_model(model) == model
    assert models.find_model(str(model)) == model


def test_the_package_s_models_are_known_by_name(package):
    assert models.find_model("general") == package / "general.safetensors"
    assert models.find_model(models.DEFAULT) == package / "general.safetensors"


def test_a_file_of_the_same_name_does_not_stand_before_the_package_s(package, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(model, tmp_path / "general")
    assert models.find_model("general") == package / "general.safetensors"
    assert models.find_model("./general") == Path("general")
    assert models.find_model(Path("general")) == Path("general")


def test_folders_of_the_environment_are_looked_through_in_their_order(package, model, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("STOCHCL_MODELS", f":{tmp_path / 'one'}:{tmp_path / 'two'}")
    shutil.copy(model, tmp_path / "two" / "mine.safetensors")
    assert models.find_model("mine") == tmp_path / "two" / "mine.safetensors"
    shutil.copy(model, tmp_path / "one" / "mine.safetensors")
    for name in ("mine", "mine.safetensors"):
        assert models.find_model(name) == tmp_path / "one" / "mine.safetensors"
    assert models.find_model("general") == package / "general.safetensors"
    with pytest.raises(UsageError, match="sub/mine: there is no model"):
        models.find_model("sub/mine")


def test_what_is_not_there_is_answered_with_what_is(package):
    with pytest.raises(UsageError, match=r"photos: there is no model of this name .*; packaged models: general"):
        models.find_model("photos")


def test_cards_say_what_models_are_without_loading_them(package, model, tmp_path, monkeypatch):
    monkeypatch.setenv("STOCHCL_MODELS", str(model.parent))
    (general, mine), damaged = models.model_cards()
    assert damaged == []
    assert (general.name, mine.name) == ("general", "tiny")
    assert general.bytes == model.stat().st_size
    assert general.config["latents"] == mine.config["latents"] == 32
    assert json.loads(json.dumps(general.to_json())) == general.to_json()


def test_figures_are_shown_where_the_record_has_them(tmp_path):
    record = {
        "sources": ["a.zip", "b.zip"], "images": 1200, "images_seen": 54000, "seconds": 5400, "hardware": "cpu",
        "figures": {"accuracy on CIFAR-10": "51 %"},
    }  # fmt: skip
    config = {"latents": 8, "backbone": "resnet10", "width": 4, "size": 32, "ladder": [4, 8]}
    lines = models.ModelCard("m", tmp_path / "m", 1234, config, record).lines()
    assert lines == [
        "m: 8 latents, 1,234 bytes",
        "  network: resnet10 of width 4, 32 pixels",
        "  codes: the first 4, 8 latents",
        "  trained on: a.zip, b.zip; 1,200 images, 54,000 seen, 90 minutes on cpu",
        "  accuracy on CIFAR-10: 51 %",
    ]


@pytest.mark.parametrize(
    "metadata",
    [{}, {"config": "[]", "record": "{}"}, {"config": "{}", "record": "{}"}, {"config": "{", "record": "{}"},
     {"config": '{"latents": "many"}', "record": "{}"}, {"config": '{"latents": 8, "ladder": 8}', "record": "{}"}],
)  # fmt: skip
def test_a_card_that_makes_no_sense_is_a_damaged_model(package, tmp_path, monkeypatch, metadata):
    text = json.dumps({"__metadata__": metadata}).encode()
    (tmp_path / "bad.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path))
    cards, [(path, error)] = models.model_cards()
    assert [card.name for card in cards] == ["general"]
    assert path == tmp_path / "bad.safetensors"
    assert isinstance(error, ModelError)
    assert str(error).startswith(f"{path}: this is not a stochcl model, or it is damaged")


@pytest.mark.parametrize(
    ("config", "network"),
    [
        ({"backbone": "features:512", "width": 64, "size": 64}, "for vectors of 512 numbers"),
        ({"backbone": "timm:vit_small", "width": 64, "size": 224}, "timm:vit_small, 224 pixels"),
    ],
)
def test_cards_say_of_a_network_what_means_something(tmp_path, config, network):
    lines = models.ModelCard("m", tmp_path / "m", 1, {"latents": 8} | config, {}).lines()
    assert lines[1] == f"  network: {network}"


def test_figures_stand_in_the_order_of_their_numbers(tmp_path):
    figures = {f"x, codes, {k} latents": str(k) for k in ("1,024", "128", "16", "8")}
    lines = models.ModelCard("m", tmp_path / "m", 1, {"latents": 8}, {"figures": figures}).lines()
    assert [line.rpartition(": ")[2] for line in lines[-4:]] == ["8", "16", "128", "1,024"]


def test_a_figure_that_is_no_number_is_none(tmp_path, monkeypatch):
    metadata = {"config": '{"latents": 8}', "record": '{"knn": NaN, "rate": 3.5}'}
    text = json.dumps({"__metadata__": metadata}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path))
    cards, _ = models.model_cards()
    assert cards[-1].to_json()["record"] == {"knn": None, "rate": 3.5}


def test_a_card_says_that_there_is_a_classifier(tmp_path):
    lines = models.ModelCard("m", tmp_path / "m", 1, {"latents": 8, "classes": ["a", "b", "c"]}, {}).lines()
    assert lines[3] == "  classifier: 3 classes"
    assert not any("classifier" in line for line in models.ModelCard("m", tmp_path, 1, {"latents": 8}, {}).lines())
