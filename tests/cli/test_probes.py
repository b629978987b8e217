"""Saved probes and selections on the command line: evaluate --save, predict, select, transcode --select."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

import stochcl
from stochcl.compress import Writer
from stochcl.downstream import ESTIMATORS, load
from stochcl.entropy.tables import Tables
from tests.compress.making import make_codes, make_decoder, make_names, make_tables, write


def said(result):
    return json.loads(result.stdout)


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def labels(codes, tmp_path):
    """A class, two numbers, a group of two rows each, and what is wrong in several ways."""
    with stochcl.open(codes) as archive:
        rows = [
            f"{name},{name.split('/')[0]},{i / 2},{i % 7},g{i // 2},{'' if i == 3 else 'x'},{'nan' if i < 4 else i}"
            for i, name in enumerate(archive.names)
        ]
    path = tmp_path / "labels.csv"
    path.write_text("name,animal,depth,week,pair,holes,some\n" + "\n".join(rows), "utf-8")
    return path


@pytest.fixture
def other(tmp_path):
    """An archive of another model."""
    return write(tmp_path / "other.bin", make_codes(30, 32, names=make_names(30)), make_tables(32))


@pytest.mark.parametrize("given", ["symbols", "vectors"])
@pytest.mark.parametrize(
    ("task", "estimator"),
    [(task, name) for task in ESTIMATORS for name in ESTIMATORS[task]]
    + [("classification", "sklearn.ensemble.ExtraTreesClassifier")],
)
def test_every_probe_is_saved_and_answers(run, codes, labels, tmp_path, task, estimator, given):
    column = "animal" if task == "classification" else "depth"
    probe, out = tmp_path / "probe.skops", tmp_path / "p.csv"
    options = ["--task", task, "--estimator", estimator, "--input", given, "--folds", "2"]
    run("evaluate", codes, "--labels", labels, "--column", column, *options, "--save", probe)
    found = said(run("predict", codes, "-m", probe, "-o", out, "--json"))
    assert (found["schema"], found["images"]) == ("stochcl.predict/0", 42)
    rows, truth = read(out), read(labels)
    assert [row["name"] for row in rows] == [row["name"] for row in truth]
    if task == "regression":
        assert list(rows[0]) == ["name", "depth"]
        assert np.isfinite([float(row["depth"]) for row in rows]).all()
        return
    right = np.mean([row["animal"] == true["animal"] for row, true in zip(rows, truth, strict=True)])
    assert right > 0.4
    if estimator != "svm":
        shares = np.array([[float(row[f"p({name})"]) for name in ("cats", "dogs", "fische")] for row in rows])
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-4)
    assert stochcl.data.read_labels(out).columns[0] == "animal"


def test_several_targets_at_once(run, codes, labels, tmp_path):
    options = ["--labels", labels, "--column", "depth", "--column", "week", "--task", "regression"]
    found = said(run("evaluate", codes, *options, "--save", tmp_path / "p.skops", "--json"))
    assert list(found["targets"]) == ["depth", "week"]
    for target in found["targets"].values():
        assert target["mae"] > 0
        assert target["baseline_mae"] > 0
        assert target["baseline_rmse"] >= target["baseline_mae"]
    assert "depth:\nR2 " in run("evaluate", codes, *options).stdout
    run("predict", codes, "-m", tmp_path / "p.skops", "-o", tmp_path / "p.csv")
    assert list(read(tmp_path / "p.csv")[0]) == ["name", "depth", "week"]


def test_what_cannot_be_saved_is_refused_before_anything_is_scored(
    refused, run, codes, labels, tmp_path, monkeypatch
):
    monkeypatch.setattr("stochcl.downstream.evaluate", None)
    probe = tmp_path / "p.skops"
    message = refused(
        "evaluate", codes, "--estimator", "sklearn.neural_network.MLPClassifier", "--save", probe, code=2
    )
    assert "it cannot be saved, for its file would hold" in message
    assert not probe.exists()


def test_evaluate_says_where_the_probe_is(run, codes, tmp_path):
    probe = tmp_path / "p.skops"
    assert run("evaluate", codes, "--save", probe).stdout.endswith(f"probe saved in {probe}\n")
    assert said(run("evaluate", codes, "--save", probe, "--json"))["saved"] == str(probe)


def test_vectors_of_other_tables_are_refused_and_symbols_are_not(run, refused, codes, tmp_path):
    for given in ("vectors", "symbols"):
        run("evaluate", codes, "--input", given, "--folds", "2", "--save", tmp_path / f"{given}.skops")
    saved = load(tmp_path / "vectors.skops")
    with stochcl.open(codes) as archive:
        assert saved.tables_sha256 == archive.header.tables_sha256
    other = tmp_path / "other.bin"  # as a later version of the model's tables would be
    with stochcl.open(codes) as archive:
        old = archive.tables
        tables = Tables(old.ladder, old.entropy, make_decoder(32, old.decoder.dim), old.autoregressive)
        with Writer(other, replace(archive.header, tables_sha256=tables.sha256), tables, embed_tables=True) as out:
            out.add(archive[:])
    message = refused("predict", other, "-m", tmp_path / "vectors.skops", "-o", tmp_path / "p.csv")
    assert "its vectors are decoded by other tables" in message
    run("predict", other, "-m", tmp_path / "symbols.skops", "-o", tmp_path / "p.csv")
    replace(saved, tables_sha256=None).save(tmp_path / "first.skops")  # the first files did not say
    run("predict", other, "-m", tmp_path / "first.skops", "-o", tmp_path / "p.csv", "--force")


@pytest.mark.parametrize("folds", [["--folds", "3"], ["--test-size", "0.3"]])
def test_groups_are_kept_together(run, codes, labels, tmp_path, folds):
    # Each pair has a class of its own: nothing of it can be known from others.
    found = said(run("evaluate", codes, "--labels", labels, "--column", "pair", "--groups", "pair", *folds, "--json"))
    assert found["score"] == 0
    file = tmp_path / "groups.csv"
    file.write_text("name,group\n" + "".join(f"{r['name']},{r['pair']}\n" for r in read(labels)))
    again = said(run("evaluate", codes, "--labels", labels, "--column", "pair", "--groups", file, *folds, "--json"))
    assert again["confusion"] == found["confusion"]


def test_near_duplicates_across_the_split_are_counted(run, codes):
    found = said(run("evaluate", "--train", codes, "--test", codes, "--json"))
    assert found["duplicates"] == {"checked": 42, "identical": 42, "near": 42, "differ": 0}
    assert (
        "near duplicates: 42 of 42 scored rows have the same code" in run("evaluate", codes, "--test", codes).stdout
    )
    assert found["baseline_balanced_accuracy"] == pytest.approx(1 / 3)


def test_latents_are_chosen_and_kept(run, codes, tmp_path):
    chosen, out = tmp_path / "l.json", tmp_path / "small.bin"
    found = said(run("select", codes, "--latents", "8", "-o", chosen, "--json"))
    assert found["schema"] == "stochcl.select/0"
    assert found["latents"] == sorted(found["order"])
    assert json.loads(chosen.read_text()) == found
    run("transcode", codes, "--select", chosen, "-o", out)
    with stochcl.open(codes) as whole, stochcl.open(out) as part:
        np.testing.assert_array_equal(part.to_numpy(), whole.to_numpy()[:, found["latents"]])
    # A probe on the selection answers for archives of that selection only.
    run("evaluate", out, "--save", tmp_path / "p.skops")
    run("predict", out, "-m", tmp_path / "p.skops", "-o", tmp_path / "p.csv")
    assert len(read(tmp_path / "p.csv")) == 42
    nested = said(run("select", out, "--latents", "3", "-o", tmp_path / "m.json", "--json"))
    assert set(nested["latents"]) < set(found["latents"])


def test_another_model_is_refused(run, refused, codes, other, tmp_path):
    probe, chosen = tmp_path / "p.skops", tmp_path / "l.json"
    run("evaluate", codes, "--save", probe)
    run("select", codes, "--latents", "8", "-o", chosen)
    message = refused("predict", other, "-m", probe, "-o", tmp_path / "p.csv")
    assert message.startswith(f"{other}: it was made by the model ")
    assert "was fitted on codes of tiny" in message
    message = refused("predict", tmp_path, "-m", probe, "-o", tmp_path / "p.csv", code=2)
    assert "saved probe reads codes" in message
    message = refused("transcode", other, "--select", chosen, "-o", tmp_path / "o.bin")
    assert "it selects latents of the model tiny" in message
    assert not (tmp_path / "p.csv").exists()
    assert "made by another model" in refused("evaluate", codes, "--test", other)


def test_a_probe_of_other_latents_is_refused(run, refused, codes, tmp_path):
    run("evaluate", codes, "--save", tmp_path / "p.skops")
    run("transcode", codes, "--latents", "8", "-o", tmp_path / "narrow.bin")
    run("select", codes, "--latents", "8", "-o", tmp_path / "l.json")
    run("transcode", codes, "--select", tmp_path / "l.json", "-o", tmp_path / "chosen.bin")
    out = tmp_path / "p.csv"
    assert "8 latents, and" in refused(
        "predict", tmp_path / "narrow.bin", "-m", tmp_path / "p.skops", "-o", out, code=2
    )
    run("evaluate", codes, "--latents", "8", "--save", tmp_path / "q.skops")
    run("predict", tmp_path / "narrow.bin", "-m", tmp_path / "q.skops", "-o", out)
    wide = tmp_path / "wide.csv"
    run("predict", codes, "-m", tmp_path / "q.skops", "-o", wide)
    assert wide.read_text() == out.read_text()
    message = refused("predict", tmp_path / "chosen.bin", "-m", tmp_path / "q.skops", "-o", tmp_path / "r.csv")
    assert "holds other latents than those" in message


def test_what_is_no_probe_is_refused(refused, codes, tmp_path):
    import skops.io

    out = tmp_path / "p.csv"
    assert "no such file" in refused("predict", codes, "-m", tmp_path / "none", "-o", out)
    (tmp_path / "text").write_text("words")
    assert "this is not a probe, or it is damaged" in refused("predict", codes, "-m", tmp_path / "text", "-o", out)
    skops.io.dump({"schema": "else"}, tmp_path / "else")
    assert "this is not a probe" in refused("predict", codes, "-m", tmp_path / "else", "-o", out)
    skops.io.dump({"schema": "stochcl.probe/0", "targets": [json.dumps, stochcl.open]}, tmp_path / "code")
    assert "which is not part of a probe; it was not loaded" in refused(
        "predict", codes, "-m", tmp_path / "code", "-o", out
    )


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--labels", "LABELS", "--column", "holes"], 1, "there is nothing to learn"),
        (["--labels", "LABELS", "--column", "none"], 1, "there is no column none; the columns are animal,"),
        (["--labels", "LABELS", "--groups", "none"], 1, "there is no column none"),
        (["--groups", "none"], 1, "none: there is no such file of groups"),
        (["--labels", "LABELS", "--groups", "holes"], 1, "1 of 42 rows have an empty group, the first "),
        (["--labels", "LABELS", "--column", "depth", "--column", "depth"], 2, "named twice"),
        (["--labels", "SHORT"], 1, "41 of 42 names have no row here"),
        (["--save", "no/folder/p.skops"], 1, "the probe cannot be written: no such file"),
    ],
)
def test_what_evaluate_refuses(refused, codes, labels, tmp_path, options, code, message):
    short = tmp_path / "short.csv"
    short.write_text("\n".join(labels.read_text("utf-8").splitlines()[:2]))
    files = {"LABELS": labels, "SHORT": short}
    assert message in refused("evaluate", codes, *(files.get(option, option) for option in options), code=code)


def test_targets_that_are_nan_are_left_out_and_counted(run, codes, labels):
    options = ["--labels", labels, "--column", "some", "--task", "regression"]
    assert said(run("evaluate", codes, *options, "--json"))["notes"] == ["left out 4 rows without a label"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--latents", "33"], 2, "it has 32 latents; 33 cannot be chosen."),
        (["--latents", "3", "--task", "regression"], 1, "regression needs numbers as labels"),
        (["--latents", "3", "--labels", "LABELS", "--column", "holes"], 1, "nothing to learn"),
        (["--latents", "3", "--column", "depth"], 2, "give that file with --labels"),
    ],
)
def test_what_select_refuses(refused, codes, labels, tmp_path, options, code, message):
    options = [labels if option == "LABELS" else option for option in options]
    assert message in refused("select", codes, "-o", tmp_path / "l.json", *options, code=code)
    assert not (tmp_path / "l.json").exists()
