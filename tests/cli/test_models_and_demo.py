"""`stochcl models` and `stochcl demo`."""

import json
import shutil

import pytest


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
def test_a_damaged_model_is_named(refused, tmp_path, monkeypatch, damage):
    (tmp_path / "bad.safetensors").write_bytes(damage)
    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path))
    said = refused("models")
    assert said == (
        f"{tmp_path / 'bad.safetensors'}: this is not a stochcl model, or it is damaged; fetch or train it again."
    )


def test_demo_tells_the_whole_story(run, model):
    result = run("demo", "-m", model)
    assert "made 130 example images" in result.stderr
    assert "stochcl compress images/ -o codes.bin    (model tiny, 32 latents)" in result.stderr
    assert result.stdout.startswith("codes.bin: 130 images, ")
    for line in ("bits per image   accuracy", "  codes ", "  raw pixels           24,576.0 "):
        assert line in result.stdout


def test_demo_in_json(run, model):
    found = json.loads(run("demo", "-m", model, "--json").stdout)
    assert found["images"] == 130
    assert found["pixel_bits_per_image"] == 32 * 32 * 3 * 8
    assert found["accuracy"]["baseline"] == pytest.approx(20 / 130)
    assert 0 < found["accuracy"]["codes"] < found["accuracy"]["pixels"] <= 1


def test_demo_without_the_model(refused):
    said = refused("demo", "-m", "nowhere", code=2)
    assert said.startswith("nowhere: there is no model of this name and no such file; embedded models: ")
