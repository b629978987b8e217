"""Fine-tuning from sources to a model file, and the accuracy that survives in a file of codes."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import stochcl
from stochcl.api import finetune as finetuning
from stochcl.api.finetune import score
from stochcl.api.predict import predict
from stochcl.encoders.backbones import ResNet
from stochcl.encoders.config import EncoderConfig
from stochcl.encoders.encoder import Encoder
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.errors import (
    LabelsError,
    ModelError,
    ModelMismatch,
    OutputError,
    SourceError,
    TrainingError,
    UsageError,
)

FAST = {"epochs": 1, "batch_size": 16, "precision": "fp32", "device": "cpu", "lr": 0.05}
CLASSES = ("blue", "green", "red")


def write(root, per_class, seed=0, classes=CLASSES):
    """Noise with one colour brighter: classes that a tiny network tells apart in a few steps."""
    rng = np.random.default_rng(seed)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 150, (16, 16, 3), np.uint8)
            pixels[..., 2 - k % 3] += 100
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write(tmp_path_factory.mktemp("photos") / "train", 16)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    return write(tmp_path_factory.mktemp("photos") / "test", 12, seed=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    torch.manual_seed(0)
    save_model(Encoder(EncoderConfig(width=4, stem="small", latents=32, decoder=(16,), size=16)), path, {})
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "classifier.safetensors"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, base, photos, unseen):
    path = tmp_path_factory.mktemp("tuned") / "classifier.safetensors"
    options = FAST | {"epochs": 16, "batch_size": 8, "average": 0.5, "mixup": 0.0, "operations": 0, "lr": 0.1}
    options |= {"nested": 0.0}  # so that narrower codes are worse, and one width is told from another
    return path, finetuning.finetune(base, [photos], path, test=unseen, hold_out=2, **options)


def test_the_report_says_what_was_made(tuned, unseen):
    path, report = tuned
    model = load_model(path)
    assert (report.model, report.sha256, report.latents) == (str(path), model.sha256, 32)
    assert (report.images, report.held_out, report.classes, report.steps) == (42, 6, 3, 80)
    assert report.test.images == 36
    assert report.test.test_top1 > 80
    assert 0 <= report.held_top1 <= 100
    found = json.loads(json.dumps(report.to_json()))
    assert found["schema"] == "stochcl.finetune/0"
    assert found["test_top1"] == report.test.test_top1
    assert found["codes_top1"] == report.test.codes_top1
    assert found["test"] == {
        "source": "test",
        "images": 36,
        "skipped": [],
        "codes_file_bytes": report.test.codes_file_bytes,
    }
    lines = report.lines()
    assert f"    from codes.bin: {report.test.codes_top1:.2f} %" in lines[5]
    assert lines[-1] == f"  hash {report.sha256}"


def test_the_accuracy_from_a_file_is_that_of_hard_codes(tuned):
    _, report = tuned
    assert report.test.codes_top1 == report.test.test_top1
    assert report.test.codes_top1_by_latents[32] == report.test.codes_top1
    assert list(report.test.codes_top1_by_latents) == [8, 16, 32]
    assert len(set(report.test.codes_top1_by_latents.values())) > 1


@pytest.mark.parametrize(
    "family", [{"posterior": "categorical", "alphabet": 5, "latents": 12}, {"posterior": "gaussian", "alphabet": 16}]
)
def test_latents_of_other_families_survive_a_file_too(photos, unseen, out, tmp_path, family):
    torch.manual_seed(0)
    config = EncoderConfig(**{"width": 4, "stem": "small", "latents": 24, "decoder": (16,), "size": 16} | family)
    save_model(Encoder(config), tmp_path / "base.safetensors", {})
    options = FAST | {"epochs": 8, "batch_size": 8, "average": 0.5, "mixup": 0.0, "operations": 0}
    report = finetuning.finetune(tmp_path / "base.safetensors", [photos], out, test=unseen, **options)
    assert report.test.codes_top1 == report.test.test_top1 > 50


def test_a_model_of_residual_latents_is_tuned_through_fresh_ones(photos, unseen, out, tmp_path):
    torch.manual_seed(0)
    residual = {"posterior": "residual", "latents": 4, "stages": (3, 1), "reduced": 3}
    save_model(Encoder(EncoderConfig(width=4, stem="small", size=16, **residual)), tmp_path / "base.safetensors", {})
    options = FAST | {"epochs": 8, "batch_size": 8, "average": 0.5, "mixup": 0.0, "operations": 0}
    report = finetuning.finetune(tmp_path / "base.safetensors", [photos], out, test=unseen, **options)
    assert report.test.codes_top1 == report.test.test_top1 > 50
    assert list(report.test.codes_top1_by_latents) == [8, 16]
    codec = stochcl.load(out, device="cpu")
    assert (codec.model.encoder.config.posterior, codec.model.encoder.config.alphabet) == ("gaussian", 4)
    for latents, top1 in report.test.codes_top1_by_latents.items():
        codec.compress(unseen, tmp_path / f"{latents}.bin", latents=latents)
        predict(tmp_path / f"{latents}.bin", out, tmp_path / f"{latents}.csv")
        with (tmp_path / f"{latents}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        right = [row["label"] == row["name"].partition("/")[0] for row in rows]
        assert 100 * np.mean(right) == pytest.approx(top1)


def test_whoever_has_the_file_of_codes_classifies_alike(tuned, unseen, tmp_path):
    """With nothing but numpy, two tensors of the model file and the archive."""
    from safetensors.numpy import load_file

    path, report = tuned
    stochcl.load(path, device="cpu").compress(unseen, tmp_path / "codes.bin")
    tensors = load_file(path)
    classes = np.array(load_model(path).encoder.config.classes)
    with stochcl.open(tmp_path / "codes.bin") as archive:
        for latents, top1 in report.test.codes_top1_by_latents.items():
            vectors = archive.to_vectors(latents)
            scores = vectors @ tensors["classifier.weight"].astype(np.float32).T + tensors["classifier.bias"]
            assert 100 * np.mean(classes[scores.argmax(1)] == np.array(archive.labels)) == pytest.approx(top1)
        assert archive.parts()["codes"] * 8 / len(archive) == report.test.codes_bits_per_image
        assert archive.size == report.test.codes_file_bytes


def test_the_result_is_a_model_whose_tables_fit_its_codes(tuned, base, photos):
    path, report = tuned
    model = load_model(path)
    assert model.encoder.config.classes == CLASSES
    assert model.record["finetuned_from"] == {"name": "base", "sha256": load_model(base).sha256}
    assert (model.record["images"], model.record["steps"], model.record["options"]["epochs"]) == (42, 80, 16)
    assert model.record["versions"]["torch"] == torch.__version__
    assert model.record["precision"] == "fp32"
    assert model.record["figures"] == report.test.figures()
    assert model.record["figures"]["test, top-1"] == f"{report.test.test_top1:.2f}%"
    assert (model.encoder.ones != load_model(base).encoder.ones).any()
    assert not path.with_name(path.name + ".checkpoint").exists()


def test_a_cache_of_decoded_images_changes_nothing(base, photos, out, tmp_path):
    memory = finetuning.finetune(base, [photos], out, **FAST)
    mapped = finetuning.finetune(base, [photos], tmp_path / "mapped.safetensors", cache=tmp_path / "cache", **FAST)
    assert mapped.sha256 == memory.sha256
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_result_may_be_scored_again_and_tuned_again(tuned, unseen, out):
    path, report = tuned
    assert score(path, unseen, device="cpu") == report.test
    again = finetuning.finetune(path, [unseen], out, **FAST)
    assert again.steps == 2


@pytest.mark.parametrize("options", [{"deterministic": True}, {"from_scratch": True}, {"average": 0.0}], ids=str)
def test_twins_are_scored_too(base, photos, unseen, out, options):
    report = finetuning.finetune(base, [photos], out, test=unseen, **FAST | options)
    encoder = load_model(out).encoder
    deterministic = "deterministic" in options
    assert encoder.config.classifies == ("features" if deterministic else "vectors")
    assert (report.test.codes_top1 is None) == deterministic
    assert report.test.test_top1_mirrored >= 0
    assert ("from features" in report.lines()[2]) == deterministic
    assert load_model(out).record["options"]["from_scratch"] == ("from_scratch" in options)
    stochcl.load(out, device="cpu").compress(unseen, out.with_name("codes.bin"))


def table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("name", "label"), *rows])
    return path


def test_labels_may_come_from_a_table(base, photos, unseen, out, tmp_path):
    names = [p.relative_to(photos).as_posix() for p in photos.rglob("*.png")]
    rows = [(name, "warm" if name.startswith("red") else "cold") for name in names]
    labels = table(tmp_path / "labels.csv", rows)
    options = {"labels": labels, "test": unseen, "test_labels": table(tmp_path / "unseen.csv", rows)}
    report = finetuning.finetune(base, [photos], out, **options, hold_out=1, **FAST)
    assert load_model(out).encoder.config.classes == ("cold", "warm")
    assert report.held_out == 2
    assert report.test.images == 36


@pytest.fixture
def untrainable(monkeypatch):
    def fail(*args, **kwargs):
        pytest.fail("the request was not checked first")

    monkeypatch.setattr("stochcl.training.finetune.Finetuner", fail)


@pytest.mark.usefixtures("untrainable")
def test_bad_labels_are_refused_before_anything_is_trained(base, photos, unseen, out, tmp_path):
    names = [p.relative_to(photos).as_posix() for p in photos.rglob("*.png")]
    short = table(tmp_path / "short.csv", [(name, "x") for name in names[1:]])
    with pytest.raises(LabelsError, match=r"short\.csv: 1 of 48 names have no row here"):
        finetuning.finetune(base, [photos], out, labels=short, **FAST)
    empty = table(tmp_path / "empty.csv", [(name, "x" if i else " ") for i, name in enumerate(names)])
    with pytest.raises(LabelsError, match=r"1 of 48 images have no label, such as .*empty\.csv has an empty label"):
        finetuning.finetune(base, [photos], out, labels=empty, **FAST)
    one = table(tmp_path / "one.csv", [(name, "x") for name in names])
    with pytest.raises(LabelsError, match=r"all 48 images are of one class, x; a classifier needs two\."):
        finetuning.finetune(base, [photos], out, labels=one, **FAST)
    with pytest.raises(LabelsError, match=r"12 of 12 images have no label, such as 00\.png; .* with labels\."):
        finetuning.finetune(base, [unseen / "red"], out, **FAST)
    with pytest.raises(LabelsError, match=r"12 of 12 images have no label"):
        finetuning.finetune(base, [photos], out, test=unseen / "red", **FAST)
    rare = table(tmp_path / "rare.csv", [(name, "blue" if name == "blue/00.png" else "other") for name in names])
    with pytest.raises(LabelsError, match="every image of blue is held out, and none is left to train on"):
        finetuning.finetune(base, [photos], out, labels=rare, hold_out=1, **FAST)
    assert not out.exists()


@pytest.mark.usefixtures("untrainable")
def test_test_classes_that_are_not_trained_on_are_refused_first(base, photos, out, tmp_path):
    other = write(tmp_path / "other", 2, classes=("red", "violet"))
    with pytest.raises(LabelsError, match="1 labels are not among the 3 training classes: violet"):
        finetuning.finetune(base, [photos], out, test=other, **FAST)


@pytest.mark.usefixtures("untrainable")
def test_bad_requests_are_refused_before_anything_is_trained(base, photos, out, tmp_path):
    def refused(error, match, model=base, sources=(photos,), path=out, **options):
        with pytest.raises(error, match=match):
            finetuning.finetune(model, sources, path, **FAST | options)

    np.save(tmp_path / "vectors.npy", np.zeros((9, 4), np.float32))
    save_model(Encoder(EncoderConfig(backbone="features:4", latents=8)), tmp_path / "v.safetensors", {})
    (tmp_path / "bad.safetensors").write_bytes(b"damage" * 9)
    refused(UsageError, "needs at least one source", sources=())
    refused(UsageError, "nowhere: there is no model of this name", model="nowhere")
    refused(UsageError, "this model takes vectors", model=tmp_path / "v.safetensors")
    refused(ModelError, "not a stochcl model", model=tmp_path / "bad.safetensors")
    refused(SourceError, "none", sources=(tmp_path / "none",))
    refused(SourceError, "embeddings", sources=(tmp_path / "vectors.npy",))
    refused(UsageError, "no preset 'best'", preset="best")
    refused(UsageError, "lr must be more than 0", lr=-1.0)
    refused(UsageError, "fine-tuning has no option 'speed'", speed=3)
    refused(UsageError, "no checkpoint|no such checkpoint", resume=True)
    refused(ModelError, "weights cannot be read", init=tmp_path / "w.safetensors")
    refused(OutputError, "no model can be written there", path=tmp_path / "no" / "m.safetensors")
    out.write_bytes(b"precious")
    refused(UsageError, "exists already; pass force=True")
    assert out.read_bytes() == b"precious"


@pytest.mark.usefixtures("untrainable")
def test_several_processes_are_refused(base, photos, out, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="runs in one process; start it without torchrun"):
        finetuning.finetune(base, [photos], out, **FAST)


def test_scoring_a_model_without_a_classifier_is_refused(base, unseen):
    with pytest.raises(UsageError, match=r"base\.safetensors: this model has no classifier"):
        score(base, unseen, device="cpu")


def test_images_that_cannot_be_read_are_skipped_and_named(base, out, tmp_path):
    train, test = write(tmp_path / "a", 4), write(tmp_path / "b", 4)
    (train / "red" / "00.png").write_bytes(b"no image")
    (test / "red" / "01.png").write_bytes(b"no image")
    report = finetuning.finetune(base, [train], out, test=test, **FAST)
    assert [name for name, _ in report.skipped] == ["red/00.png"]
    assert (report.images, report.test.images) == (11, 11)
    assert [name for name, _ in report.test.skipped] == ["red/01.png"]
    assert report.test.codes_top1 == report.test.test_top1


def test_it_may_begin_from_published_weights(base, photos, out, tmp_path):
    torch.manual_seed(3)
    save_file(ResNet("resnet10", width=4).state_dict(), tmp_path / "w.safetensors")
    report = finetuning.finetune(base, [photos], out, init=tmp_path / "w.safetensors", **FAST | {"lr": 1e-9})
    assert "the stem stays fresh" in report.lines()[1]
    record = load_model(out).record
    assert record["init"]["tensors"] == 72 - 6
    theirs = ResNet("resnet10", width=4)
    torch.manual_seed(3)
    theirs = ResNet("resnet10", width=4)
    ours = load_model(out).encoder.backbone
    torch.testing.assert_close(ours.layer4[0].conv1.weight, theirs.layer4[0].conv1.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("from_scratch", [False, True])
def test_published_weights_are_loaded_also_where_all_else_is_fresh(base, photos, out, tmp_path, from_scratch):
    torch.manual_seed(3)
    weights = ResNet("resnet10", width=4, stem="small").state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    options = FAST | {"lr": 1e-9, "from_scratch": from_scratch}
    finetuning.finetune(base, [photos], out, init=tmp_path / "w.safetensors", **options)
    ours = load_model(out).encoder.backbone.conv1.weight
    torch.testing.assert_close(ours, weights["conv1.weight"], atol=1e-3, rtol=1e-3)


def test_an_interrupted_run_is_resumed_and_says_the_same(base, photos, out, tmp_path):
    whole = finetuning.finetune(base, [photos], tmp_path / "whole.safetensors", **FAST | {"epochs": 3})

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetuning.finetune(base, [photos], out, report=stop, **FAST | {"epochs": 3})
    with pytest.raises(UsageError, match="checkpoint of an interrupted run; pass resume=True"):
        finetuning.finetune(base, [photos], out, **FAST | {"epochs": 3})
    resumed = finetuning.finetune(base, [photos], out, resume=True, **FAST | {"epochs": 3})
    assert resumed.sha256 == whole.sha256


def test_a_run_is_not_resumed_with_other_weights_to_begin_with(base, photos, out, tmp_path):
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        save_file(ResNet("resnet10", width=4, stem="small").state_dict(), tmp_path / name)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetuning.finetune(base, [photos], out, init=tmp_path / "a", report=stop, **FAST)
    with pytest.raises(TrainingError, match="a run with another model"):
        finetuning.finetune(base, [photos], out, init=tmp_path / "b", resume=True, **FAST)
    finetuning.finetune(base, [photos], out, init=tmp_path / "a", resume=True, **FAST)


def test_a_recipe_stands_behind_options(base, photos, out, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("epochs = 3\nbatch_size = 8\nlr = 0.01\n")
    finetuning.finetune(base, [photos], out, preset=str(recipe), batch_size=16, device="cpu", epochs=None, lr=None)
    options = load_model(out).record["options"]
    assert (options["epochs"], options["batch_size"], options["lr"]) == (3, 16, 0.01)


def test_one_image_of_a_class_and_no_more_than_a_batch(base, out, tmp_path):
    report = finetuning.finetune(base, [write(tmp_path / "a", 1)], out, **FAST)
    assert (report.images, report.steps) == (3, 1)
    with pytest.raises(TrainingError, match="needs at least two readable images"):
        finetuning.finetune(base, [write(tmp_path / "b", 1, classes=("x",))], out, force=True, **FAST)


def test_the_classifier_predicts_from_codes_as_from_images(tuned, unseen, base, tmp_path):
    model, report = tuned
    stochcl.load(model, device="cpu").compress(unseen, tmp_path / "codes.bin")
    answers = {}
    for name, source in {"codes": tmp_path / "codes.bin", "images": unseen}.items():
        found = predict(source, model, tmp_path / f"{name}.csv", device="cpu")
        assert found["columns"] == ["name", "label", "p(blue)", "p(green)", "p(red)"]
        assert (found["images"], found["targets"][0]["classes"]) == (36, list(CLASSES))
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            answers[name] = list(csv.DictReader(file))
    assert answers["codes"] == answers["images"]
    right = sum(row["label"] == row["name"].partition("/")[0] for row in answers["codes"])
    assert 100 * right / 36 == pytest.approx(report.test.codes_top1, abs=1e-3)
    assert all(sum(float(row[f"p({c})"]) for c in CLASSES) == pytest.approx(1, abs=1e-4) for row in answers["codes"])

    with pytest.raises(UsageError, match="no classifier"):
        predict(tmp_path / "codes.bin", base, tmp_path / "none.csv")
    stochcl.load(base, device="cpu").compress(unseen, tmp_path / "base.bin")
    with pytest.raises(ModelMismatch, match="compress the images with this model"):
        predict(tmp_path / "base.bin", model, tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
