"""Options of compress and its neighbours that say what is read, as a user types them."""

import json

import numpy as np
import pytest

import stochcl
from tests.making import json_of


@pytest.fixture
def nested(tmp_path, images):
    """Images of two classes below train/."""
    folder = tmp_path / "nested"
    for name in ("cats/00.png", "cats/01.jpg", "dogs/00.png", "dogs/01.jpg"):
        path = folder / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((images / name).read_bytes())
    return folder


def test_the_level_of_the_label_is_an_option_of_compress_append_and_report(
    run, refused, compress, nested, images, model
):
    codes = compress(nested, "--label-level", "2")
    extra = nested / "val" / "dogs" / "02.png"
    extra.parent.mkdir(parents=True)
    extra.write_bytes((images / "dogs" / "02.png").read_bytes())
    assert "--label-level" in refused("append", codes, nested, "-m", model, code=2)
    run("append", codes, nested, "-m", model, "--label-level", "-1")
    with stochcl.open(codes) as archive:
        assert tuple(archive.labels) == ("cats", "cats", "dogs", "dogs", "dogs")
    plain = compress(nested, name="plain.bin")
    page = codes.with_name("report.html")
    found = json_of(run("report", plain, "--label-level", "2", "-o", page, "--json"))
    assert found["label"] == "folder"
    assert "cats" in page.read_text("utf-8")
    assert "level" in refused("report", plain, "--label-level", "7", "-o", page, "--force")


def test_labels_of_rows_are_an_array_or_plain_numbers(run, refused, compress, nested, tmp_path):
    codes = compress(nested, "--no-names")
    np.save(tmp_path / "y.npy", np.array([0, 0, 1, 1]))
    found = json_of(run("evaluate", codes, "--labels", tmp_path / "y.npy", "--folds", "2", "--json"))
    assert found["images"] == 4
    np.save(tmp_path / "y.npy", np.array([0, 0, 1]))
    assert "3 labels for 4 rows" in refused("evaluate", codes, "--labels", tmp_path / "y.npy")
    named = compress(nested, name="named.bin")
    np.save(tmp_path / "y.npy", np.array(["x", "y", "z", "w"]))
    run("transcode", named, "-o", tmp_path / "labelled.bin", "--labels", tmp_path / "y.npy")
    with stochcl.open(tmp_path / "labelled.bin") as archive:
        assert tuple(archive.labels) == ("x", "y", "z", "w")


def test_what_was_left_out_or_damaged_is_said_on_standard_error(run, nested, model, tmp_path):
    (nested / "train" / "cats" / "02.jpg_large").write_bytes(b"")
    photo = nested / "train" / "cats" / "01.jpg"
    photo.write_bytes(photo.read_bytes()[:-2])
    result = run("compress", nested, "-m", model, "-o", tmp_path / "a.bin", "--json")
    assert "left out 1 file whose name ends otherwise (1 .jpg_large)" in result.stderr.replace(
        "names end", "name ends"
    ).replace("file whose", "file whose")
    assert "--any-name" in result.stderr
    assert "1 image is damaged" in result.stderr
    assert json.loads(result.stdout)["damaged"][0]["name"] == "train/cats/01.jpg"
    run("compress", nested, "-m", model, "-o", tmp_path / "b.bin", "--strict", code=1)


@pytest.mark.parametrize("url", ["s3://bucket/codes.bin", "https://host/codes.bin"])
def test_outputs_behind_a_url_are_refused_as_that(refused, images, model, codes, tmp_path, url):
    assert "this is a URL" in refused("compress", images, "-m", model, "-o", url, code=2)
    assert "copy it here" in refused("append", url, images, "-m", model, code=2)


@pytest.mark.parametrize("how", [["deep.bin"], ["-"], ["shards", "--shard-images", "3"]])
def test_a_label_level_that_no_name_has_is_warned_of(run, nested, model, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    command = ["compress", nested, "-m", model, "--force", "-o", *how, "--label-level"]
    assert "warning: no image lies in 9 folders" in run(*command, "9").stderr
    assert "no image lies" not in run(*command, "2").stderr


def test_append_warns_of_a_level_that_no_new_name_has(run, compress, nested, images, model):
    codes = compress(nested, "--label-level", "1")
    assert "no image lies in 3 folders" in run("append", codes, images, "-m", model, "--label-level", "3").stdout
    assert "no image lies" not in run("append", codes, images, "-m", model, "--label-level", "3").stdout  # none new
