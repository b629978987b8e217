"""`stochcl evaluate`: what it learns from, what it learns with, what it scores on."""

import json

import pytest

import stochcl
from stochcl.downstream import ESTIMATORS


def scored(run, *arguments):
    return json.loads(run("evaluate", *arguments, "--json").stdout)


@pytest.fixture
def labels(codes, tmp_path):
    """A CSV of two columns: a class that is not the folder, and a number."""
    with stochcl.open(codes) as archive:
        rows = [f"{name},{'odd' if i % 2 else 'even'},{i / 2}" for i, name in enumerate(archive.names)]
    path = tmp_path / "labels.csv"
    path.write_text("name,parity,depth\n" + "\n".join(rows), "utf-8")
    return path


def test_folders_are_the_classes(run, codes):
    found = scored(run, codes)
    assert found["classes"] == ["cats", "dogs", "fische"]
    assert (found["images"], found["n_test"], found["latents"]) == (42, 42, 32)
    assert (found["input"], found["model"], found["estimator"]) == ("vectors", "tiny", "logistic")
    assert found["baseline"] == pytest.approx(1 / 3, abs=0.06)
    assert found["score"] > found["baseline"] + 0.1  # even an untrained network sees their colours
    assert sum(map(sum, found["confusion"])) == 42


def test_people_see_the_score_beside_the_baseline(run, codes):
    text = run("evaluate", codes).stdout
    assert text.startswith(f"{codes}: vectors of 32 latents, model tiny\naccuracy ")
    assert "with logistic (" in text
    assert "  guessing the largest class: " in text


@pytest.mark.parametrize("given", ["symbols", "vectors"])
@pytest.mark.parametrize("estimator", [*ESTIMATORS["classification"], "sklearn.naive_bayes.GaussianNB"])
def test_every_classifier(run, codes, estimator, given):
    options = ["--estimator", estimator, "--input", given, "--test-size", "0.3"]
    found = scored(run, codes, *options)
    assert (found["estimator"], found["input"]) == (estimator, given)
    assert (found["n_train"], found["n_test"]) == (29, 13)


@pytest.mark.parametrize("estimator", [*ESTIMATORS["regression"], "sklearn.tree.DecisionTreeRegressor"])
def test_every_regressor(run, codes, labels, estimator):
    options = ["--labels", labels, "--column", "depth", "--estimator", estimator, "--folds", "3"]
    found = scored(run, codes, "--task", "regression", *options)
    assert (found["task"], found["estimator"], len(found["folds"])) == ("regression", estimator, 3)
    assert found["mae"] > 0
    assert found["rmse"] >= found["mae"]
    assert found["baseline"] < 0.05


def test_labels_of_a_csv_file_take_the_place_of_folders(run, codes, labels):
    assert scored(run, codes, "--labels", labels)["classes"] == ["even", "odd"]
    depth = scored(run, codes, "--labels", labels, "--column", "depth", "--task", "regression")
    assert "classes" not in depth


def test_images_without_a_label_are_left_out_and_counted(run, codes, labels):
    lines = labels.read_text("utf-8").splitlines()
    lines[1:4] = [line.partition(",")[0] + ",," for line in lines[1:4]]
    labels.write_text("\n".join(lines), "utf-8")
    for options in ([], ["--task", "regression", "--column", "depth"]):
        found = scored(run, codes, "--labels", labels, *options)
        assert found["n_test"] == 39
        assert found["notes"] == ["3 images have no label and were left out"]


def test_a_prefix_of_the_latents(run, codes):
    found = scored(run, codes, "--latents", "8", "--input", "symbols")
    assert found["latents"] == 8
    assert scored(run, codes, "--latents", "8")["input"] == "vectors"


def test_a_test_archive_is_scored_on_and_not_trained_on(run, compress, codes, images):
    test = compress(images / "cats", name="test.bin")
    names = "name,label\n" + "".join(f"{i:02d}.{'jpg' if i % 2 else 'png'},cats\n" for i in range(14))
    with stochcl.open(codes) as archive:
        names += "".join(f"{name},{label}\n" for name, label in zip(archive.names, archive.labels, strict=True))
    table = test.with_name("labels.csv")
    table.write_text(names, "utf-8")
    found = scored(run, codes, "--test", test, "--labels", table)
    assert (found["n_train"], found["n_test"]) == (42, 14)
    assert found["score"] > 0.9


def test_the_seed_decides_the_split(run, codes):
    scores = [scored(run, codes, "--seed", seed, "--test-size", "0.3")["confusion"] for seed in "0011"]
    assert scores[0] == scores[1] != scores[2] == scores[3]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--estimator", "forest"],
            2,
            "there is no classification estimator 'forest'; there are logistic,",
        ),
        (["--estimator", "os.path"], 2, "'os.path': this is no scikit-learn estimator"),
        (["--estimator", "no.such.Thing"], 2, "'no.such.Thing': there is no such class"),
        (["--estimator", "sklearn.linear_model.Ridge"], 2, "this is not an estimator for classification."),
        (["--estimator", "ridge"], 2, "there is no classification estimator 'ridge'"),
        (["--latents", "33"], 2, "it has 32 latents, not 33."),
        (["--column", "depth"], 2, "--column says which column of a CSV file; give that file with --labels."),
        (["--test", "x.bin", "--test-size", "0.5"], 2, "--test and --test-size both say what to score on"),
        (["--task", "regression"], 1, "codes.bin: row 0 ('cats/00.png'): regression needs numbers as labels"),
        (["--test", "x.bin"], 1, "x.bin: there is no such file."),
    ],
)
def test_what_evaluate_refuses(refused, codes, options, code, message):
    assert message in refused("evaluate", codes, *options, code=code)
