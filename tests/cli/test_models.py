"""`stochcl models`."""

import json
import shutil
from copy import deepcopy

import pytest

from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.encoder import Encoder
from stochcl.encoders.modelfile import save_model


def test_models_says_what_each_is_and_was_trained_on(run, model, tmp_path, monkeypatch):
    shutil.copy(model, tmp_path / "mine.safetensors")
    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path))
    text = run("models").stdout
    size = model.stat().st_size
    lines = text[text.index("mine: ") :].splitlines()
    assert lines[:4] == [
        f"mine: 32 latents, {size:,} bytes",
        "  network: resnet10 of width 4, 32 pixels",
        "  codes: the first 8, 16, 32 latents",
        lines[3],
    ]
    assert lines[3].startswith("  trained on: photos; 42 images, 0 seen, 0 minutes on cpu")
    card = json.loads(run("models", "--json").stdout)["models"][-1]
    assert (card["name"], card["bytes"]) == ("mine", size)
    assert card["path"] == str(tmp_path / "mine.safetensors")
    assert card["config"]["latents"] == 32
    assert card["record"]["images"] == 42


@pytest.mark.parametrize(
    "damage", [b"", b"no model", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0{}"]
)
def test_a_damaged_model_is_named_and_the_others_are_listed(run, model, tmp_path, monkeypatch, damage):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(damage)
    shutil.copy(model, tmp_path / "mine.safetensors")
    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path))
    result = run("models")
    reason = f"{bad}: this is not a stochcl model, or it is damaged; fetch or train it again."
    assert result.stderr == f"skipped {reason}\n"
    assert "\nmine: 32 latents" in f"\n{result.stdout}"
    found = json.loads(run("models", "--json").stdout)
    assert [card["name"] for card in found["models"]][-1] == "mine"
    assert found["damaged"] == [{"path": str(bad), "reason": reason}]


def test_info_says_what_a_model_file_holds(run, model, codec):
    lines = run("models", "info", model).stdout.splitlines()
    assert lines[0].startswith("tiny: resnet10 of width 4, imagenet stem, ")
    assert lines[0].endswith(f" parameters, {model.stat().st_size:,} bytes")
    assert lines[1:8] == [
        f"  file: {model}",
        f"  hash: {codec.model.sha256}",
        f"  tables: {codec.tables.sha256} ({len(codec.tables.data):,} bytes; archives bring them along)",
        "  code: 32 bernoulli latents of 2 values, 32 bits before entropy coding",
        "  prefixes: the first 8, 16, 32 latents",
        "  decoder: to vectors of 32 numbers through layers of 8",
        "  entropy: independent symbols",
    ]
    assert lines[8] == (
        "  input: images, crop to 32 x 32 pixels, mean 0.485, 0.456, 0.406, deviation 0.229, 0.224, 0.225"
    )
    assert lines[9] == "  training record:"
    assert "    images: 42" in lines
    assert not any("classifier" in line for line in lines)


def test_info_in_json(run, model, codec):
    found = json.loads(run("models", "info", model, "--json").stdout)
    assert found["schema"] == "stochcl.model-info/0"
    assert (found["sha256"], found["tables"]["sha256"]) == (codec.model.sha256, codec.tables.sha256)
    assert found["code"] == {
        "posterior": "bernoulli", "latents": 32, "alphabet": 2, "bits": 32, "ladder": [8, 16, 32], "vector": 32,
    }  # fmt: skip
    assert found["preprocess"]["size"] == 32
    assert found["config"]["width"] == 4
    assert found["record"]["images"] == 42
    assert found["classes"] == []


def test_info_knows_the_packaged_models_by_name(run):
    lines = run("models", "info", "general").stdout.splitlines()
    assert lines[2] == "  hash: 15150ce92c7f3bb068004514769ef8f379e52a149c4a886850aed57d381afba5"
    assert lines[3].endswith(" bytes; they come with the package)")
    assert "  entropy: autoregressive network, 96 hidden units" in lines


def test_info_of_many_equal_numbers_is_short(run):
    (line,) = [line for line in run("models", "info", "general").stdout.splitlines() if " stages: " in line]
    assert line.endswith("5, 5, 192 x 1")


@pytest.mark.parametrize("classifies", ["vectors", "features"])
def test_info_names_classes(run, codec, tmp_path, classifies):
    encoder = deepcopy(codec.model.encoder)
    encoder.set_classes(tuple(f"c{i:02d}" for i in range(12)), classifies)
    save_model(encoder, tmp_path / "c.safetensors", {})
    lines = run("models", "info", tmp_path / "c.safetensors").stdout.splitlines()
    names = ", ".join(f"c{i:02d}" for i in range(10))
    assert f"  classifier: 12 classes ({names}, ...), read from {classifies}" in lines
    assert lines[-1] == "  training record: none"


def test_info_of_a_model_for_vectors(run, tmp_path):
    save_model(Encoder(EncoderConfig(backbone="features:24", latents=16)), tmp_path / "v.safetensors", {})
    lines = run("models", "info", tmp_path / "v.safetensors").stdout.splitlines()
    assert lines[0].startswith("v: features:24, ")
    assert "  input: vectors of 24 numbers" in lines
    assert json.loads(run("models", "info", tmp_path / "v.safetensors", "--json").stdout)["preprocess"] == {
        "columns": 24
    }


def test_info_of_a_record_with_a_figure_that_is_no_number(run, tmp_path):
    save_model(
        Encoder(EncoderConfig(backbone="features:4", latents=8)), tmp_path / "v.safetensors", {"knn": float("nan")}
    )
    assert json.loads(run("models", "info", tmp_path / "v.safetensors", "--json").stdout)["record"] == {"knn": None}


def test_info_of_a_later_version_s_model_says_so(refused, tmp_path, monkeypatch):
    from stochcl.encoders import modelfile

    path = tmp_path / "v.safetensors"
    later = modelfile.stored_config(EncoderConfig(backbone="features:4", latents=8)) | {"wings": 2}
    monkeypatch.setattr(modelfile, "stored_config", lambda config: later)
    save_model(Encoder(EncoderConfig(backbone="features:4", latents=8)), path, {})
    said = refused("models", "info", path)
    assert said.startswith(
        f"{path}: this version of stochcl does not know wings, which the model's configuration has"
    )
    assert said.endswith("; a later version made it: update stochcl.")


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 2, "there is no model of this name and no such file"),
        (b"PK\x03\x04" + b"\0" * 30, 1, "this is a pickle"),
        (b"\x02\0\0\0\0\0\0\0{}", 1, "this is a safetensors file but not a stochcl model"),
        (b"damage" * 9, 1, "this is not a stochcl model, or it is damaged"),
    ],
)
def test_info_of_what_is_no_model_is_refused(refused, tmp_path, content, code, message):
    if content is not None:
        (tmp_path / "m.safetensors").write_bytes(content)
    assert message in refused("models", "info", tmp_path / "m.safetensors", code=code)
