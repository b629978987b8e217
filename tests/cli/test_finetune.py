"""`stochcl finetune`, then everything else with the model that it wrote."""

import csv
import json
import re
import shutil
import signal
import subprocess
import time

import pytest

import stochcl
from tests.making import CLASSES, process, program

FAST = ["--batch-size", "16", "--epochs", "1", "--precision", "fp32", "--device", "cpu"]


def test_a_model_is_tuned_scored_listed_and_compresses(run, model, images, tmp_path):
    out, log = tmp_path / "tuned.safetensors", tmp_path / "log.jsonl"
    result = run("finetune", model, images, "-o", out, *FAST, "--hold-out", "2", "--test", images, "--log", log)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{out}: 3 classes, 32 latents; 36 images, 2 steps, ")
    assert lines[1].startswith("  top-1 of 6 held-out images ")
    assert lines[2] == "  top-1 of 42 test images (photos)"
    for line, said in zip(lines[3:6], ("from hard codes: ", "with mirroring: ", "from codes.bin: "), strict=True):
        assert line.startswith(f"    {said}")
        assert " %" in line
    assert lines[-1].startswith("  hash ")
    assert json.loads(log.read_text().splitlines()[0])["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "tuned.safetensors"]

    run("compress", images, "-m", out, "-o", tmp_path / "codes.bin")
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert (archive.header.model, archive.header.latents) == ("tuned", 32)
        assert archive.header.model_sha256 == lines[-1].split()[-1]
    assert "  classifier: 3 classes (cats, dogs, fische), read from vectors" in run("models", "info", out).stdout


def test_json(run, model, images, tmp_path):
    out = tmp_path / "tuned.safetensors"
    result = run("finetune", model, images, "-o", out, *FAST, "--test", images, "--json")
    found = json.loads(result.stdout)
    assert found["schema"] == "stochcl.finetune/0"
    assert set(found) == {
        "schema", "model", "sha256", "images", "held_out", "classes", "latents", "skipped", "steps", "seconds",
        "initialised", "held_top1", "test", "test_top1", "test_top1_mirrored", "codes_top1", "codes_bits_per_image",
        "codes_top1_by_latents", "warning",
    }  # fmt: skip
    assert 0 <= found["test_top1"] <= 100
    assert found["codes_top1"] == found["test_top1"] == found["codes_top1_by_latents"]["32"]
    without = json.loads(run("finetune", model, images, "-o", out, *FAST, "--force", "--json").stdout)
    assert without["test"] is None
    assert "test_top1" not in without


@pytest.mark.parametrize("flag", ["--deterministic", "--from-scratch"])
def test_the_twins_are_a_flag_away(run, model, images, tmp_path, flag):
    out = tmp_path / "tuned.safetensors"
    run("finetune", model, images, "-o", out, *FAST, flag)
    options = json.loads(run("models", "info", out, "--json").stdout)["record"]["options"]
    assert options[flag[2:].replace("-", "_")] is True
    assert options["deterministic"] != options["from_scratch"]


def test_options_stand_before_a_recipe(run, model, images, tmp_path):
    out = tmp_path / "tuned.safetensors"
    run("finetune", model, images, "-o", out, "--preset", "cifar10-finetune", *FAST, "--no-flip", "--cutout", "0")
    options = json.loads(run("models", "info", out, "--json").stdout)["record"]["options"]
    assert (options["epochs"], options["flip"], options["cutout"]) == (1, False, 0)
    assert (options["lr"], options["warmup"]) == (0.1, 5)


def test_the_program_by_itself(model, images, tmp_path):
    labels = tmp_path / "labels.csv"
    names = sorted(p.relative_to(images).as_posix() for p in images.rglob("*.*"))
    with labels.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "label"), *((n, "a" if n < "dogs" else "b") for n in names)])
    out = tmp_path / "tuned.safetensors"
    scored = ["--labels", labels, "--test", images, "--test-labels", shutil.copy(labels, tmp_path / "same.csv")]
    ended = process("finetune", model, images, "-o", out, *FAST, *scored, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["classes"] == 2


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_a_checkpoint_to_go_on_from(run, model, images, tmp_path, sent, code):
    out, log = tmp_path / "tuned.safetensors", tmp_path / "log.jsonl"
    long = ["finetune", model, images, "-o", out, *FAST, "--log", log, "--epochs", "100000"]
    with subprocess.Popen(program(*long), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            while not log.exists():
                assert child.poll() is None, child.stderr.read()
                time.sleep(0.05)
            child.send_signal(sent)
            said = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == code
    assert said[0] == ""
    assert "Traceback" not in said[1]
    kept = rf"is kept in {re.escape(str(out))}\.checkpoint; pass --resume"
    # Behind progress, where the machine is slow.
    told = re.search(rf"stochcl: interrupted\. Step ([\d,]+) {kept}.*\.\n\Z", said[1])
    assert told
    assert (tmp_path / "tuned.safetensors.checkpoint").exists()
    found = json.loads(run(*long, "--resume", "--max-time", "1s", "--json").stdout)
    assert found["steps"] >= int(told[1].replace(",", "")) >= json.loads(log.read_text().splitlines()[0])["step"]
    assert not (tmp_path / "tuned.safetensors.checkpoint").exists()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--preset", "best"], 2, "there is no preset 'best'"),
        (["--device", "abacus"], 2, "there is no device 'abacus' here"),
        (["--resume"], 2, "there is no such checkpoint to resume; omit --resume."),
        (["--labels", "none.csv"], 1, "none.csv: there is no such file"),
        (["--init", "none.safetensors"], 2, "none.safetensors: the weights cannot be read"),
        (["--test", "nowhere"], 1, "nowhere"),
    ],
)
def test_what_it_refuses(refused, model, images, tmp_path, monkeypatch, change, code, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused("finetune", model, images, "-o", "tuned.safetensors", *FAST, *change, code=code)
    assert list(tmp_path.iterdir()) == []


def test_one_class_is_refused(refused, model, images, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "cats").symlink_to(images / CLASSES[0])
    said = refused("finetune", model, tmp_path / "one", "-o", tmp_path / "m.safetensors", *FAST)
    assert "images are of one class, cats; a classifier needs two." in said


def test_one_file_of_labels_is_not_for_two_images_of_one_name(refused, model, images, tmp_path):
    names = "".join(f"{i:02d}.{'jpg' if i % 2 else 'png'},{i % 2}\n" for i in range(14))
    (tmp_path / "l.csv").write_text("name,label\n" + names)
    options = ["-o", tmp_path / "m", *FAST, "--labels", tmp_path / "l.csv", "--test", images / "dogs"]
    assert "--test-labels" in refused("finetune", model, images / "cats", *options, code=2)


def test_another_folder_is_the_class_and_names_of_splits_are_warned_of(run, model, images, tmp_path):
    for split in ("train", "val"):
        for name in ("cats", "dogs"):
            shutil.copytree(images / name, tmp_path / "photos" / split / name)
    said = run("finetune", model, tmp_path / "photos", "-o", tmp_path / "a", *FAST).stdout
    assert "names of splits" in said
    said = run("finetune", model, tmp_path / "photos", "-o", tmp_path / "b", *FAST, "--label-level", "2").stdout
    assert "names of splits" not in said
    assert "2 classes (cats, dogs)" in run("models", "info", tmp_path / "b").stdout
