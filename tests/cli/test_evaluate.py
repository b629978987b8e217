"""`stochcl evaluate`: what it learns from, what it learns with, what it scores on."""

import json
from contextlib import nullcontext

import numpy as np
import pytest

import stochcl
from stochcl.downstream import ESTIMATORS
from tests.making import make_head


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
    head = f"{codes}: vectors of 32 latents, model tiny\nlabels: folder 1 of each name\naccuracy "
    assert text.startswith(head)
    assert "with logistic (" in text
    assert "  guessing the largest class: " in text


def test_the_same_archive_for_training_and_scoring_is_said(run, codes):
    assert "the training rows" in scored(run, "--train", codes, "--test", codes)["notes"][0]


def test_progress_goes_by_folds(run, codes, labels, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("stochcl.cli.evaluate.progress_bar", lambda *a, **k: nullcontext(lambda *p: told.append(p)))
    run("evaluate", codes, "--labels", labels, "--folds", "3")
    assert told == [(i, 3, f"{i} of 3 probes trained") for i in (0, 1, 2, 3, 3)]
    told.clear()
    run("evaluate", codes, "--labels", labels, "--folds", "2", "--save", tmp_path / "p.skops")
    assert [done / total for done, total, _ in told] == [0, 1 / 3, 2 / 3, 1]


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
        assert found["notes"] == ["left out 3 rows without a label"]


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
        (["--estimator", "os.path"], 2, "'os.path': this is not a scikit-learn estimator"),
        (["--estimator", "no.such.Thing"], 2, "'no.such.Thing': there is no such class"),
        (["--estimator", "sklearn.linear_model.Ridge"], 2, "this is not an estimator for classification."),
        (["--estimator", "ridge"], 2, "there is no classification estimator 'ridge'"),
        (["--latents", "33"], 2, "it has 32 latents; ask for 1 to 32, not 33"),
        (["--column", "depth"], 2, "give that file with --labels"),
        (["--test", ".", "--test-size", "0.5"], 2, "--test and --test-size both name what to score on"),
        (["--task", "regression"], 1, "codes.bin: row 0 ('cats/00.png'): regression needs numbers as labels"),
        (["--test", "x.bin"], 1, "x.bin: there is no such file or folder."),
    ],
)
def test_what_evaluate_refuses(refused, codes, options, code, message):
    assert message in refused("evaluate", codes, *options, code=code)


def split_of(compress, images, tmp_path, *, latents=("32", "32")):
    """Archives of even and of odd images, whose names in their folders are the same."""
    out = []
    for parity, width in enumerate(latents):
        folder = tmp_path / f"part{parity}"
        for path in sorted(images.rglob("*.*")):
            i = int(path.stem)
            if i % 2 == parity:
                target = folder / path.relative_to(images).parent / f"{i // 2:02d}{path.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        out.append(compress(folder, "--latents", width, name=f"part{parity}.bin"))
    return out


@pytest.mark.parametrize("given", ["vectors", "symbols"])
def test_archives_of_different_widths_are_compared_on_the_narrower(run, compress, images, tmp_path, given):
    train, test = split_of(compress, images, tmp_path, latents=("32", "11"))
    narrow = compress(tmp_path / "part0", "--latents", "11", name="narrow.bin")
    for pair, same in (((train, test), (narrow, test)), ((test, train), (test, narrow))):
        found, wanted = (scored(run, a, "--test", b, "--input", given) for a, b in (pair, same))
        assert found["latents"] == 11
        assert "the first 11 of both" in found["notes"][-1]
        assert (found["confusion"], found["score"]) == (wanted["confusion"], wanted["score"])


def test_a_probe_that_is_saved_after_a_cut_takes_as_many_latents(run, compress, images, tmp_path):
    train, test = split_of(compress, images, tmp_path, latents=("32", "11"))
    run("evaluate", train, "--test", test, "--save", tmp_path / "probe")
    assert run("predict", test, "-m", tmp_path / "probe", "-o", tmp_path / "out.csv").exit_code == 0


def test_archives_of_other_latents_are_not_compared(run, refused, compress, images, tmp_path):
    train, test = split_of(compress, images, tmp_path)
    (tmp_path / "list.json").write_text("[1, 3, 5]")
    run("transcode", test, "-o", tmp_path / "chosen.bin", "--select", tmp_path / "list.json")
    assert "it holds other latents" in refused("evaluate", train, "--test", tmp_path / "chosen.bin", code=2)
    assert "it has 32 latents; ask for 1 to 32, not 33" in refused(
        "evaluate", train, "--test", test, "--latents", "33", code=2
    )


@pytest.mark.parametrize("command", ["evaluate", "uncertainty"])
def test_one_file_does_not_label_two_images_of_one_name(run, refused, compress, images, tmp_path, command):
    train = compress(images / "cats", name="train.bin")
    test = compress(images / "dogs", name="test.bin")
    names = [f"{i:02d}.{'jpg' if i % 2 else 'png'}" for i in range(14)]
    files = tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "other.csv"
    for path, classes in zip(files, (["a", "b"], ["a", "b"], ["b", "a"]), strict=True):
        path.write_text("name,label\n" + "".join(f"{n},{classes[i % 2]}\n" for i, n in enumerate(names)))
    options = ["--train", train, "--test", test, "--labels", files[0]]
    for same in ([], ["--test-labels", files[0]]):
        message = refused(command, *options, *same, code=2)
        assert "14 names" in message
        assert "--test-labels" in message
    one, other = (json.loads(run(command, *options, "--test-labels", path, "--json").stdout) for path in files[1:])
    key = "score" if command == "evaluate" else "accuracy"
    assert one[key] == pytest.approx(1 - other[key], abs=1e-3)  # every label is the other one


def test_folders_of_splits_are_warned_of_and_the_next_level_is_the_label(run, compress, images, tmp_path):
    for split in ("train", "val"):
        for name in ("cats", "dogs"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for path in (images / name).iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
    path = compress(tmp_path / "photos")
    found = scored(run, path)
    assert found["classes"] == ["train", "val"]
    assert "--label-level 2" in found["notes"][-1]
    for level in ("2", "-1"):
        found = scored(run, path, "--label-level", level)
        assert found["classes"] == ["cats", "dogs"]
        assert found["labels_from"] == f"folder {level} of each name"
        assert not any("splits" in note for note in found.get("notes", ()))
    assert "labels: folder 2 of each name\n" in run("evaluate", path, "--label-level", "2").stdout
    chosen = json.loads(
        run("select", path, "--latents", "2", "-o", tmp_path / "s", "--label-level", "2", "--json").stdout
    )
    assert chosen["images"] == 56


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--label-level", "0"], 2, "not 0"),
        (["--label-level", "4"], 1, "nearer to 0"),
        (["--label-level", "2", "--labels", "."], 2, "give one of them"),
        (["--test-labels", "."], 2, "all three"),
    ],
)
def test_options_of_labels_that_make_no_sense(refused, codes, options, code, word):
    assert word in refused("evaluate", codes, *options, code=code)


def test_a_class_of_a_single_image_and_images_without_a_row_are_left_out_and_said(run, refused, codes, labels):
    lines = labels.read_text("utf-8").splitlines()
    lines[1] = lines[1].replace("even", "rare")
    labels.write_text("\n".join(lines), "utf-8")
    found = scored(run, codes, "--labels", labels)
    assert (found["classes"], found["n_test"]) == (["even", "odd"], 41)
    assert any("left out 1 row without a label" in note for note in found["notes"])
    assert "classes of fewer than 2 rows count as unlabelled: 1 of them, such as rare" in found["notes"]
    labels.write_text("\n".join(lines[:1] + lines[2:30]), "utf-8")
    found = scored(run, codes, "--labels", labels)
    assert found["n_test"] == 28
    assert found["notes"] == ["left out 14 rows without a label"]
    assert "classes has 15 rows" in refused("evaluate", codes, "--labels", labels, "--min-class", "15")
    labels.write_text("name,label\nother.png,x\n", "utf-8")
    assert "have no row here" in refused("evaluate", codes, "--labels", labels)


@pytest.fixture
def embeddings(tmp_path):
    """A table of two columns of vectors and a topic, and models of the first width and of both."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(5)
    kinds = rng.integers(0, 3, 60)
    vectors = (4 * rng.normal(size=(3, 12))[kinds] + rng.normal(size=(60, 12))).astype(np.float32)
    columns = {"emb": list(vectors), "emb2": list(vectors[:, :8]), "topic": [f"t{kind}" for kind in kinds]}
    parquet.write_table(pa.table(columns), tmp_path / "two.parquet")
    parquet.write_table(pa.table(columns | {"emb2": list(vectors + 1)}), tmp_path / "alike.parquet")
    return tmp_path, make_head(tmp_path / "head.safetensors", vectors)


def test_the_column_of_vectors_is_named_or_the_one_that_fits(run, refused, embeddings):
    folder, head = embeddings
    options = ["-m", head, "--label-column", "topic", "--folds", "2"]
    found = scored(run, folder / "two.parquet", *options)
    assert found == scored(run, folder / "two.parquet", "--vector-column", "emb", *options) | {
        "seconds": found["seconds"]
    }
    assert found["score"] > 0.8
    said = refused("evaluate", folder / "alike.parquet", *options, code=2)
    assert "--vector-column" in said
    assert scored(run, folder / "alike.parquet", "--vector-column", "emb", *options)["score"] == found["score"]
    assert "--vector-column" in refused(
        "evaluate", folder / "two.parquet", "--vector-column", "nope", *options, code=2
    )


def test_codes_are_scored_on_embeddings(run, refused, embeddings):
    """The model is found by the archive's hash, and the width is the archive's."""
    folder, head = embeddings
    how = ["--label-column", "topic", "--column", "emb"]
    run("compress", folder / "two.parquet", "-m", head, "-o", folder / "tr.bin", *how, "--latents", "8")
    for model in ([], ["-m", head]):
        options = ["--test", folder / "two.parquet", "--label-column", "topic", *model]
        found = scored(run, "--train", folder / "tr.bin", *options)
        assert (found["n_test"], found["latents"]) == (60, 8)
        assert found["score"] > 0.8
        assert "notes" not in found
    head.rename(folder / "away")
    assert "-m" in refused("evaluate", folder / "tr.bin", "--test", folder / "two.parquet", code=2)
    assert "not a table" in refused("evaluate", folder / "tr.bin", "--vector-column", "emb", code=2)


def test_images_in_a_table_need_no_model(run, images, tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    paths = sorted(images.rglob("*.*g"))[::3]
    given = {"image": [path.read_bytes() for path in paths], "label": [path.parent.name for path in paths]}
    parquet.write_table(pa.table(given), tmp_path / "img.parquet")
    found = scored(run, tmp_path / "img.parquet", "--folds", "2")
    assert found["images"] == len(paths)
    assert found["model"] == stochcl.load(device="cpu").model.name
