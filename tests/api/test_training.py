import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from stochcl.api import train as training
from stochcl.encoders.modelfile import load_model
from stochcl.errors import OutputError, SourceError, TrainingError, UsageError
from stochcl.training.images import read_images
from stochcl.training.monitor import Monitor

TINY = {
    "latent_steps": 0,
    "width": 4, "stem": "small", "latents": 16, "decoder": (8,), "size": 16, "crop": 16, "batch_size": 8,
    "epochs": 1, "precision": "fp32", "device": "cpu",
}  # fmt: skip


@pytest.fixture
def images(tmp_path, rng):
    """A folder of two classes of twelve images, one of which is damaged."""
    root = tmp_path / "images"
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / label / f"{i:02d}.png")
    (root / "cat" / "05.png").write_bytes(b"not an image")
    return root


@pytest.fixture
def output(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def checkpoint(output):
    return output.with_name("model.safetensors.checkpoint")


@pytest.fixture
def untrainable(monkeypatch):
    """Fail if images are read or anything is trained."""

    def fail(*args, **kwargs):
        pytest.fail("the request was not checked first")

    monkeypatch.setattr("stochcl.training.images.read_images", fail)
    monkeypatch.setattr("stochcl.training.pretrain.Trainer", fail)


def interrupt(images, output, **options):
    def report(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train([images], output, report=report, **TINY | options)


def test_the_report_says_what_was_made(images, output, checkpoint):
    told = []
    report = training.train([images], output, hold_out=2, report=told.append, **TINY)
    model = load_model(output)
    assert (report.model, report.sha256, report.latents) == (str(output), model.sha256, 16)
    assert (report.images, report.held_out, report.steps) == (19, 4, 2)
    reason = "it is not an image in a format that is read here, or its beginning is damaged"
    assert report.skipped == (("cat/05.png", reason),)
    assert 0 < report.rate <= 20
    assert report.knn in (0, 0.25, 0.5, 0.75, 1)
    assert report.seconds > 0
    assert [progress.step for progress in told] == [1]
    assert not checkpoint.exists()


def test_the_report_is_json(images, output):
    report = training.train([images], output, **TINY)
    assert report.knn is None
    found = json.loads(json.dumps(report.to_json()))
    assert found == {"schema": "stochcl.train/0"} | asdict(report) | {"warnings": []} | {
        "skipped": [{"name": "cat/05.png", "reason": report.skipped[0][1]}]
    }


def test_the_record_says_how_it_was_made(images, output):
    training.train([images], output, hold_out=2, seed=3, **TINY)
    record = load_model(output).record
    assert record["sources"] == ["images"]
    assert (record["images"], record["held_out"], record["steps"], record["images_seen"]) == (19, 4, 2, 16)
    assert record["options"]["seed"] == 3
    assert record["options"]["batch_size"] == 8
    assert (record["options"]["precision"], record["precision"]) == ("fp32", "fp32")
    assert set(record["measured"]) == {"rate", "knn"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"].startswith("cpu, ")


@pytest.mark.parametrize(("native", "used"), [(True, "bf16"), (False, "fp32")])
def test_the_record_says_what_auto_came_to(images, output, monkeypatch, native, used):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native}, raising=False)
    training.train([images], output, **TINY | {"precision": None, "latent_steps": 20})
    record = load_model(output).record
    assert (record["options"]["precision"], record["precision"], record["latents"]["precision"]) == (
        "auto",
        used,
        used,
    )


def test_the_rate_is_that_of_the_held_out_images(images, output, monkeypatch):
    kept = {}

    def note(*args, **options):
        kept["data"] = read_images(*args, **options)
        return kept["data"]

    monkeypatch.setattr("stochcl.training.images.read_images", note)
    report = training.train([images], output, hold_out=4, **TINY)
    data, encoder = kept["data"], load_model(output).encoder
    monitor = Monitor(data.train, data.held, data.train_labels, data.held_labels, seed=0)
    assert report.rate == pytest.approx(monitor(encoder, torch.device("cpu"))["rate"], abs=0.5)  # fp16 weights


def test_held_out_images_are_never_trained_on(images, output, tmp_path):
    first = training.train([images], output, hold_out=3, **TINY)
    for label in ("cat", "dog"):
        for i in (9, 10, 11):
            Image.new("RGB", (16, 16), (255, 0, 0)).save(images / label / f"{i:02d}.png")
    second = training.train([images], tmp_path / "second.safetensors", hold_out=3, **TINY)
    third = training.train([images], tmp_path / "third.safetensors", hold_out=2, **TINY)
    assert first.sha256 == second.sha256 != third.sha256


def test_the_seed_decides_the_model(images, tmp_path):
    hashes = [
        training.train([images], tmp_path / f"{i}.safetensors", seed=seed, **TINY).sha256
        for i, seed in enumerate([0, 0, 1])
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_an_interrupted_run_resumes_to_the_same_model(images, output, checkpoint, tmp_path):
    whole = training.train([images], tmp_path / "whole.safetensors", **TINY | {"epochs": 2})
    interrupt(images, output, epochs=2)
    assert checkpoint.exists()
    assert not output.exists()
    resumed = training.train([images], output, resume=True, **TINY | {"epochs": 2})
    assert (resumed.sha256, resumed.steps) == (whole.sha256, whole.steps)
    assert not checkpoint.exists()


def test_several_sources_are_trained_on(images, output, tmp_path, rng):
    np.save(tmp_path / "more.npy", rng.integers(0, 256, (5, 16, 16, 3), np.uint8))
    report = training.train([images, tmp_path / "more.npy"], output, **TINY)
    assert report.images == 28
    assert load_model(output).record["sources"] == ["images", "more.npy"]


def test_an_existing_model_is_kept_unless_force_is_given(images, output, untrainable):
    output.write_bytes(b"precious")
    with pytest.raises(
        FileExistsError, match=r"model\.safetensors: .* exists already; pass force=True to replace it"
    ):
        training.train([images], output, **TINY)
    assert output.read_bytes() == b"precious"


def test_force_replaces_an_existing_model(images, output):
    output.write_bytes(b"old")
    report = training.train([images], output, force=True, **TINY)
    assert load_model(output).sha256 == report.sha256


def test_a_checkpoint_is_neither_passed_over_nor_invented(images, output, checkpoint, untrainable):
    with pytest.raises(UsageError, match="there is no such checkpoint to resume; omit resume=True"):
        training.train([images], output, resume=True, **TINY)
    checkpoint.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"checkpoint .* resume=True"):
        training.train([images], output, **TINY)
    assert checkpoint.read_bytes() == b"precious"


def test_force_starts_anew(images, output, checkpoint, tmp_path):
    interrupt(images, output, seed=5)
    report = training.train([images], output, force=True, **TINY)
    other = training.train([images], tmp_path / "other.safetensors", **TINY)
    assert report.sha256 == other.sha256
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("source", "options"), [("none", {}), ("images", {"size": 0}), ("images", {"device": "banana"})]
)
def test_force_deletes_no_checkpoint_for_a_request_that_fails(images, output, checkpoint, source, options):
    interrupt(images, output)
    before = checkpoint.read_bytes()
    with pytest.raises((SourceError, UsageError)):
        training.train([images.parent / source], output, force=True, **TINY | options)
    assert checkpoint.read_bytes() == before


def test_the_checkpoint_of_another_run_is_refused_and_kept(images, output, checkpoint):
    interrupt(images, output)
    before = checkpoint.read_bytes()
    with pytest.raises(TrainingError, match="belongs to a run with another lr; give the same options"):
        training.train([images], output, resume=True, **TINY | {"lr": 0.5})
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("place", ["output", "log"])
def test_a_place_that_cannot_be_written_to_is_said_before_training(
    images, output, place, resume, monkeypatch, untrainable
):
    what = "model" if place == "output" else "log"
    given = {"output": output, "log": None, "resume": resume}
    for path in (images, images.parent / "none" / "file", images / "cat" / "00.png" / "file"):
        with pytest.raises(OutputError, match=f"no {what} can be written there; name a file in a folder that exists"):
            training.train([images], **given | {place: path} | TINY)
    monkeypatch.setattr("os.access", lambda path, mode: path != images)
    with pytest.raises(OutputError, match=f"no {what} can be written there"):
        training.train([images], **given | {place: images / "file"} | TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, "has no option 'colour'"),
        ({"backbone": "vgg"}, "there is no backbone 'vgg'"),
        ({"fit": "squeeze"}, "fit must be"),
        ({"size": 0}, "size must be"),
        ({"max_time": -1.0}, "max_time must be"),
        ({"seed": -1}, "seed must be"),
        ({"device": "banana"}, "there is no device 'banana'"),
    ],
)
def test_options_that_make_no_sense_are_said_before_training(images, output, options, message, untrainable):
    with pytest.raises(UsageError, match=message):
        training.train([images], output, **TINY | options)


def test_what_is_not_a_source_of_images_is_said(output, tmp_path, untrainable):
    np.save(tmp_path / "matrix.npy", np.zeros((4, 8), np.float32))
    with pytest.raises(UsageError, match=r"is for training on images, and .*matrix.npy holds embeddings"):
        training.train([tmp_path / "matrix.npy"], output, **TINY)
    with pytest.raises(UsageError, match="at least one source"):
        training.train([], output, **TINY)


def test_the_entropy_network_is_fitted_in_sight_and_its_saving_kept_in_the_record(images, output, monkeypatch):
    monkeypatch.setattr("stochcl.training.entropy.MIN_CODES", 20)
    said = []
    training.train([images], output, report=lambda progress: said.append(progress.line()), **TINY)
    assert any(line.startswith("entropy network: ") and line.endswith(" bits a code") for line in said)
    record = load_model(output).record["entropy"]
    assert record["independent_bits"].keys() == record["autoregressive_bits"].keys() == {"8", "16"}
    assert 0 < record["independent_bits"]["16"] <= 17


def test_a_run_of_few_images_has_no_entropy_network(images, output):
    training.train([images], output, **TINY)
    model = load_model(output)
    assert model.record["entropy"] == {}
    assert model.encoder.config.entropy == "independent"
