"""``stochcl sprites``: a folder that the other commands take."""

import json

import numpy as np


def test_what_is_made_is_compressed_and_evaluated(run, compress, tmp_path):
    folder = tmp_path / "sprites"
    found = json.loads(run("sprites", "-o", folder, "--images", "60", "--size", "32", "--json").stdout)
    assert set(found) == {"schema", "images", "size", "seed", "colour", "plain", "columns", "paths", "bytes"}
    assert found["schema"] == "stochcl.sprites/0"
    assert np.load(folder / "images.npy").shape == (60, 32, 32, 1)
    codes = compress(folder / "images.npy")
    labels = ["--labels", folder / "factors.csv", "--json"]
    targets = json.loads(
        run("evaluate", codes, *labels, "--task", "regression", "--column", "x", "--column", "rotation").stdout
    )["targets"]
    assert set(targets) == {"x", "rotation"}
    assert json.loads(run("evaluate", codes, *labels).stdout)["classes"] == ["ellipse", "heart", "square"]


def test_people_are_told_what_is_there(run, tmp_path):
    text = run("sprites", "-o", tmp_path, "--images", "3", "--size", "8").stdout
    assert text.splitlines()[0] == str(tmp_path / "images.npy")
    assert "3 images of 8 pixels" in text


def test_files_are_replaced_only_when_asked(run, refused, tmp_path):
    arguments = ["sprites", "-o", tmp_path, "--images", "3", "--size", "8"]
    run(*arguments)
    assert "exists already; pass --force" in refused(*arguments, code=2)
    run(*arguments, "--force")


def test_a_folder_that_cannot_be_is_one_sentence(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written there" in refused("sprites", "-o", tmp_path / "file", "--images", "3")
