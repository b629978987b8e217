"""A classifier in the model file: there if the configuration says so, and not otherwise."""

import json

import pytest
import safetensors.torch
import torch

from stochcl.encoders.modelfile import load_model, save_model
from stochcl.errors import ModelError, UsageError
from tests.encoders.making import make_config, make_encoder

CLASSES = ("cat", "dog", "füchs\udce9")


def classifying(classes=CLASSES, **more):
    encoder = make_encoder()
    encoder.set_classes(classes, **more)
    torch.nn.init.normal_(encoder.classifier.weight)
    torch.nn.init.normal_(encoder.classifier.bias)
    return encoder


@pytest.mark.parametrize("classifies", ["vectors", "features"])
def test_a_classifier_comes_back_as_it_was_written(tmp_path, classifies):
    encoder = classifying(classifies=classifies)
    sha256 = save_model(encoder, tmp_path / "m", {})
    model = load_model(tmp_path / "m")
    assert model.sha256 == sha256
    assert (model.encoder.config.classes, model.encoder.config.classifies) == (CLASSES, classifies)
    assert torch.equal(model.encoder.classifier.weight, encoder.classifier.weight.half().float())
    assert torch.equal(model.encoder.classifier.bias, encoder.classifier.bias)


def test_an_encoder_without_one_is_stored_as_before(tmp_path):
    save_model(make_encoder(), tmp_path / "m", {})
    with safetensors.safe_open(tmp_path / "m", framework="pt") as file:
        assert not {"classes", "classifies"} & set(json.loads(file.metadata()["config"]))
        assert not [name for name in file.keys() if "classifier" in name]  # noqa: SIM118


def test_the_hash_knows_weights_and_names_of_classes(tmp_path):
    first = classifying()
    hashes = {save_model(first, tmp_path / "m", {}), save_model(make_encoder(), tmp_path / "m", {})}
    first.classifier.bias.data[0] += 1
    hashes.add(save_model(first, tmp_path / "m", {}))
    named = make_encoder()
    named.set_classes(("cat", "dog", "fox"))
    named.classifier.load_state_dict(first.classifier.state_dict())
    hashes.add(save_model(named, tmp_path / "m", {}))
    assert len(hashes) == 4


def test_a_file_whose_classifier_has_other_classes_is_refused(tmp_path):
    save_model(classifying(), tmp_path / "m", {})
    with safetensors.safe_open(tmp_path / "m", framework="pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    config = json.loads(metadata["config"]) | {"classes": ["cat", "dog"]}
    (tmp_path / "m").write_bytes(safetensors.torch.save(tensors, metadata | {"config": json.dumps(config)}))
    with pytest.raises(ModelError, match="tensors are not those that its configuration asks for"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ("one",)}, "2 to 100,000 classes"),
        ({"classes": ("a", "a")}, "all different"),
        ({"classes": ("a", "")}, "classes with names"),
        ({"classes": ("a", 1)}, "classes must be"),
        ({"classes": ("a", "b"), "classifies": "pixels"}, "does not classify pixels"),
        ({"classifies": "features"}, "0 classes does not classify features"),
    ],
)
def test_classes_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        make_config(**fields)


def test_without_a_classifier_nothing_is_classified():
    with pytest.raises(UsageError, match="`stochcl finetune` makes one"):
        make_encoder().classify(torch.zeros(1, 32))


def test_a_fresh_classifier_prefers_no_class_and_replaces_any_other():
    encoder = classifying()
    encoder.set_classes(("x", "y"))
    assert torch.equal(encoder.classify(torch.rand(3, 32)), torch.zeros(3, 2))
