"""`stochcl train`, then everything else with the model that it wrote."""

import json

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
    assert result.stderr == "skipped 2.png: the file is empty (0 bytes)\n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
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
