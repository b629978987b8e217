"""`stochcl uncertainty`: what finds errors, and foreign images."""

import json

import pytest

import stochcl
from tests.making import process, write_images

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
    assert text.startswith(f"{sure}: 42 rows, symbols of 32 latents, model tiny\naccuracy ")
    assert "errors found by each score (AUROC, 95 % interval)\n  score " in text
    assert "accuracy, in %, when the least certain are refused" in text


def test_foreign_images_and_a_plot(run, sure, codec, tmp_path):
    grey = tmp_path / "grey"
    write_images(grey, per_class=3)
    codec.compress(grey, tmp_path / "other.bin", uncertainty=True)
    options = ["--outside", tmp_path / "other.bin"]
    found = measured(run, "--train", sure, "--test", sure, *options, "--plot", tmp_path / "a.png")
    assert set(found) == KEYS | {"test", "plot"}
    (other,) = found["outside"]
    assert (other["what"], other["images"]) == (str(tmp_path / "other.bin"), 9)
    assert set(other["scores"]) == set(found["scores"])
    assert (tmp_path / "a.png").stat().st_size > 5000
    text = run("uncertainty", sure, *options).stdout
    assert "rows of other archives told from the answered ones (AUROC)\n  archive " in text


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
    assert any("left out 1 row without a label" in note for note in found["notes"])
    assert "classes of fewer than 2 rows count as unlabelled: 1 of them, such as single" in found["notes"]


def test_a_prefix_and_images_without_a_label(run, sure, tmp_path):
    with stochcl.open(sure) as archive:
        rows = [f"{name},{'' if i < 2 else name[0]}" for i, name in enumerate(archive.names)]
    (tmp_path / "labels.csv").write_text("name,label\n" + "\n".join(rows), "utf-8")
    found = measured(run, sure, "--labels", tmp_path / "labels.csv", "--latents", "8")
    assert (found["images"], found["latents"]) == (40, 8)
    assert found["notes"] == [f"{sure}: left out 2 rows without a label"]


def test_requests_that_cannot_be_met(refused, sure, images, tmp_path, codec):
    assert "gives no probabilities" in refused("uncertainty", sure, "--estimator", "svm", code=2)
    assert "a plot is drawn as" in refused("uncertainty", sure, "--plot", tmp_path / "a.txt", code=2)
    assert "there is no such file" in refused("uncertainty", tmp_path / "none.bin")
    narrow = tmp_path / "narrow.bin"
    codec.compress(images, narrow, latents=4)
    assert "it holds other latents" in refused("uncertainty", sure, "--outside", narrow, code=2)


def test_it_runs_without_torch(sure):
    said = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    done = process("uncertainty", sure, "--json", before=said)
    assert json.loads(done.stdout)["images"] == 42
    assert done.stderr == "False\n"
