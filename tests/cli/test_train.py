"""`stochcl train`, then everything else with the model that it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stochcl

TINY = [
    "--width", "4", "--size", "16", "--crop", "16", "--stem", "small", "--latents", "16", "--batch-size", "16",
    "--precision", "fp32", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def train(run, images, tmp_path):
    def invoke(*options, name="new.safetensors"):
        return run("train", images, "-o", tmp_path / name, *TINY, *options)

    return invoke


def test_a_model_of_a_few_steps_compresses_and_is_listed(run, train, images, tmp_path, monkeypatch):
    path, log = tmp_path / "new.safetensors", tmp_path / "log.jsonl"
    result = train("--epochs", "2", "--hold-out", "2", "--log", log)
    assert result.stderr == ""
    assert result.stdout.startswith(f"{path}: 16 latents; 36 images, 4 steps, ")
    assert "  rate of held-out images " in result.stdout
    assert "kNN accuracy" in result.stdout
    assert json.loads(log.read_text().splitlines()[0])["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "new.safetensors"]

    run("compress", images, "-m", path, "-o", tmp_path / "codes.bin")
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert (archive.header.model, archive.header.latents) == ("new", 16)
        assert f"hash {archive.header.model_sha256}" in result.stdout

    monkeypatch.setenv("STOCHCL_MODELS", str(tmp_path))
    run("compress", images, "-m", "new", "-o", tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "codes.bin").read_bytes()


def test_the_same_seed_gives_the_same_model(train, tmp_path):
    found = []
    for seed, name in [(0, "a"), (0, "b"), (1, "c")]:
        out = train("--epochs", "1", "--seed", str(seed), "--json", name=f"{name}.safetensors").stdout
        found.append(json.loads(out)["sha256"])
    assert found[0] == found[1] != found[2]


def test_nothing_held_out_is_said(train):
    assert "  rate of the training images " in train("--epochs", "0").stdout


def test_max_time_ends_it(train):
    found = json.loads(train("--epochs", "100000", "--max-time", "0.5s", "--json").stdout)
    assert 0 < found["steps"] < 100000 * 2


def test_images_that_cannot_be_read_are_named(run, images, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes((images / "cats" / f"0{2 * i}.png").read_bytes() if i != 2 else b"")
    result = run("train", folder, "-o", tmp_path / "m.safetensors", *TINY, "--epochs", "0")
    skipped, warning = result.stderr.splitlines()
    assert skipped == "skipped 2.png: the file is empty (0 bytes)"
    assert "untrained" in warning


def test_a_preset_brings_its_own_images_and_is_overridden_by_options(run, tmp_path):
    out = tmp_path / "digits.safetensors"
    options = [
        "--epochs", "1", "--batch-size", "600", "--size", "16", "--crop", "16", "--width", "4", "--device", "cpu",
        "--latent-steps", "5", "--entropy", "independent",
    ]  # fmt: skip
    found = json.loads(run("train", "--preset", "digits", "-o", out, *options, "--latents", "24", "--json").stdout)
    assert (found["images"], found["held_out"], found["latents"], found["steps"]) == (1497, 300, 24, 2)
    assert found["knn"] is not None
    table = (tmp_path / "digits.safetensors.csv").read_text().splitlines()
    assert table[0].startswith("fraction,step,epoch,")
    assert len(table) == 2
    assert json.loads(run("models", "info", out, "--json").stdout)["record"]["preset"] == "digits"


def test_sources_take_the_place_of_a_preset_s(train):
    assert (
        json.loads(train("--preset", "digits", "--epochs", "0", "--hold-out", "0", "--json").stdout)["images"] == 42
    )


def test_presets_can_be_read(run):
    listed = run("train", "--list-presets").stdout
    assert "digits\n  The 1,797 handwritten digits" in listed
    assert "finetune" not in listed
    shown = run("train", "--show-preset", "digits").stdout
    assert shown == (Path(stochcl.__file__).parent / "training/presets/digits.toml").read_text()


@pytest.mark.parametrize(
    ("options", "latents"),
    [
        (["--posterior", "categorical", "--alphabet", "4", "--embedding", "3", "--estimator", "relaxed"], 16),
        (["--posterior", "gaussian", "--alphabet", "8", "--objective", "vicreg", "--head", "8,8"], 16),
        (["--objective", "byol", "--average", "0.9", "--decoder", "", "--blur", "0.5", "--no-flip"], 16),
    ],
)
def test_every_part_can_be_chosen_and_compresses(run, train, images, tmp_path, options, latents):
    train("--epochs", "1", *options)
    run("compress", images, "-m", tmp_path / "new.safetensors", "-o", tmp_path / "codes.bin")
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert (len(archive), archive.header.latents) == (42, latents)


def test_widths_of_layers_are_numbers(run, tmp_path):
    said = run("train", tmp_path, "-o", tmp_path / "m.safetensors", "--decoder", "wide", code=2).stderr
    assert "--decoder must be whole numbers such as 512,512, got 'wide'." in said


def test_torchrun_trains_one_model_and_says_so_once(train, images, tmp_path):
    out = tmp_path / "together.safetensors"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = [*TINY, "--epochs", "2", "--json", "--average", "0.5"]
    together = subprocess.run(
        [*torchrun, "-m", "stochcl", "train", images, "-o", out, *options],
        capture_output=True, text=True, check=False, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert together.returncode == 0, together.stderr
    assert "Warning" not in together.stderr
    found, alone = json.loads(together.stdout), json.loads(train(*options[len(TINY) :]).stdout)
    assert found["steps"] == alone["steps"] == 4
    assert found["rate"] == pytest.approx(alone["rate"], abs=0.5)
    assert sorted(p.name for p in tmp_path.iterdir() if "together" in p.name) == [out.name, f"{out.name}.csv"]
    assert len((tmp_path / f"{out.name}.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--preset", "fast"], 2, "there is no preset 'fast'"),
        (["--posterior", "gaussian"], 2, "a gaussian latent has 3 to"),
        (["--resume"], 2, "there is no such checkpoint to resume; omit --resume."),
        (["--backbone", "vgg"], 2, "vgg"),
        (["--device", "abacus"], 2, "there is no device 'abacus' here"),
    ],
)
def test_what_train_refuses(refused, images, tmp_path, options, code, message):
    out = tmp_path / "m.safetensors"
    assert message in refused("train", images, "-o", out, *TINY, "--epochs", "1", *options, code=code)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_model_is_replaced_when_asked_only(refused, train, images, tmp_path):
    out = tmp_path / "new.safetensors"
    out.write_bytes(b"precious")
    assert "exists already; pass --force" in refused("train", images, "-o", out, *TINY, code=2)
    assert out.read_bytes() == b"precious"
    train("--epochs", "0", "--force")
    assert stochcl.load(out, device="cpu").latents == 16
