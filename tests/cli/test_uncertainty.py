"""`stochcl uncertainty`: what finds errors, foreign images and corrupted ones."""

import json

import pytest

import stochcl
from stochcl.api.corruptions import CORRUPTIONS
from tests.making import make_model, process, write_images

KEYS = {
    "schema", "path", "images", "input", "latents", "model", "trained_on", "estimator", "accuracy", "scores",
    "refused", "outside", "notes", "seed", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def sure(images, codec, tmp_path_factory):
    path = tmp_path_factory.mktemp("sure") / "sure.bin"
    codec.compress(images, path, uncertainty=True)
    return path


def measured(run, *arguments):
    return json.loads(run("uncertainty", *arguments, "--json").stdout)


def test_scores_of_one_file_are_of_images_that_were_not_trained_on(run, sure):
    found = measured(run, sure, "--folds", "3")
    assert set(found) == KEYS
    assert (found["schema"], found["images"], found["trained_on"]) == ("stochcl.uncertainty/0", 42, 28)
    assert list(found["scores"]) == ["entropy", "atypical entropy", "code length", "neighbours", "confidence"]
    assert [score["needs_labels"] for score in found["scores"].values()] == [False, False, False, False, True]
    for name, score in found["scores"].items():
        low, high = score["interval"]
        assert low <= score["auroc"] <= high
        assert ("minus_confidence" in score) == (name != "confidence")
        first, *_, last = found["refused"][name]
        assert (first["images"], first["accuracy"], last["images"]) == (42, found["accuracy"], 4)
    assert found["outside"] == found["notes"] == []
    again = measured(run, sure, "--folds", "3")
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in found.items() if k != "seconds"}


def test_people_see_tables(run, sure):
    text = run("uncertainty", sure, "--input", "symbols").stdout
    assert text.startswith(f"{sure}: 42 images, symbols of 32 latents, model tiny\naccuracy ")
    assert "errors found by each score (AUROC, 95 % interval)\n  score " in text
    assert "accuracy, in %, when the least certain are refused" in text


def test_foreign_and_corrupted_images_and_a_plot(run, sure, images, model, codec, tmp_path):
    grey = tmp_path / "grey"
    write_images(grey, per_class=3)
    codec.compress(grey, tmp_path / "other.bin", uncertainty=True)
    options = ["--outside", tmp_path / "other.bin", "--images", images, "-m", model, "--sample", "5"]
    found = measured(run, "--train", sure, "--test", sure, *options, "--plot", tmp_path / "a.png", "--device", "cpu")
    assert set(found) == KEYS | {"test", "plot", "shifted"}
    assert found["shifted"]["images"] == 31 * 5
    assert set(found["shifted"]["scores"]) == set(found["scores"])
    other, clean, *worse = found["outside"]
    assert (other["what"], other["images"]) == (str(tmp_path / "other.bin"), 9)
    assert (clean["what"], clean["images"]) == ("clean", 5)
    assert [(w["what"], w["strength"]) for w in worse] == [(kind, s) for kind in CORRUPTIONS for s in range(1, 6)]
    for one in (other, *worse):
        assert set(one["scores"]) == set(found["scores"])
    # An image among those trained on is its own nearest; one that is corrupted is not.
    strong = [w["scores"]["neighbours"]["auroc"] for w in worse if w["strength"] == 5]
    assert sum(strong) / len(strong) > 0.65
    assert (tmp_path / "a.png").stat().st_size > 5000
    text = run("uncertainty", sure, *options, "--device", "cpu").stdout
    assert "  occlude 5 " in text
    assert "errors among 155 clean and corrupted images together" in text


def test_a_file_without_uncertainty_has_the_other_scores(run, codes, sure):
    found = measured(run, codes)
    assert list(found["scores"]) == ["code length", "neighbours", "confidence"]
    assert "no uncertainty stored (stochcl compress --uncertainty)" in found["notes"][0]
    found = measured(run, sure, "--outside", codes)
    assert "entropy" not in found["outside"][0]["scores"]
    assert found["notes"] == [f"{codes}: it has no uncertainty stored; the entropy is left out there"]


def test_a_class_of_one_image_is_left_out_of_the_cross_validation(run, sure, tmp_path):
    with stochcl.open(sure) as archive:
        rows = [
            f"{name},{'single' if i == 0 else label}"
            for i, (name, label) in enumerate(zip(archive.names, archive.labels, strict=True))
        ]
    (tmp_path / "labels.csv").write_text("\n".join(["name,label", *rows]))
    found = measured(run, sure, "--labels", tmp_path / "labels.csv", "--folds", "3")
    assert found["images"] == 41
    assert "1 classes of fewer than 2 images were left out, such as single" in found["notes"]


def test_a_prefix_and_images_without_a_label(run, sure, tmp_path):
    with stochcl.open(sure) as archive:
        rows = [f"{name},{'' if i < 2 else name[0]}" for i, name in enumerate(archive.names)]
    (tmp_path / "labels.csv").write_text("name,label\n" + "\n".join(rows), "utf-8")
    found = measured(run, sure, "--labels", tmp_path / "labels.csv", "--latents", "8")
    assert (found["images"], found["latents"]) == (40, 8)
    assert found["notes"] == [f"{sure}: 2 images have no label and were left out"]


def test_requests_that_cannot_be_met(refused, sure, model, images, tmp_path, codec):
    assert "give it with -m" in refused("uncertainty", sure, "--images", images, code=2)
    assert "gives no probabilities" in refused("uncertainty", sure, "--estimator", "svm", code=2)
    assert "a plot is drawn as" in refused("uncertainty", sure, "--plot", tmp_path / "a.txt", code=2)
    assert "there is no such file" in refused("uncertainty", tmp_path / "none.bin")
    other = make_model(tmp_path / "other.safetensors", images / "dogs")
    said = refused("uncertainty", sure, "--images", images, "-m", other, "--device", "cpu")
    assert "it was made by the model tiny" in said
    narrow = tmp_path / "narrow.bin"
    codec.compress(images, narrow, latents=4)
    assert "it holds other latents" in refused("uncertainty", sure, "--outside", narrow, code=2)
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "others" / "below", per_class=1)
    said = refused("uncertainty", sure, "--images", tmp_path / "others", "-m", model, code=2)
    assert "none of its images has the name" in said


def test_it_runs_without_torch(sure):
    said = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    done = process("uncertainty", sure, "--json", before=said)
    assert json.loads(done.stdout)["images"] == 42
    assert done.stderr == "False\n"
