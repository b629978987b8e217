"""Every command on a folder of shards: it works as on one file, or one sentence says what to do first."""

import shutil

import numpy as np
import pytest

import stochcl
from stochcl.ray import compress_folder
from stochcl.sklearn import CodesTransformer
from tests.making import json_of


@pytest.fixture(scope="module")
def made(tmp_path_factory, images, model, codec):
    """The images' codes in three shards, with uncertainties."""
    folder = tmp_path_factory.mktemp("folder") / "codes"
    compress_folder(codec, images, folder, model=str(model), shard_images=20, uncertainty=True)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "codes")


@pytest.fixture
def one(folder, run, tmp_path):
    """The same in one file."""
    run("merge", folder, "-o", tmp_path / "one.bin")
    return tmp_path / "one.bin"


WORKS = {
    "info": [],
    "verify": [],
    "decompress": ["-o", "OUT.npz"],
    "evaluate": ["--folds", "2"],
    "uncertainty": [],
    "select": ["--latents", "4", "-o", "OUT.json"],
    "search": ["QUERY", "-k", "3"],
}
VARYING = {
    "bytes",
    "bits_per_image",
    "parts",
    "path",
    "codes",
    "tables",
    "external_bytes",
    "reduction",
    "seconds",
    "archive",
}


def comparable(found):
    """What must not differ between a folder and a file: all but sizes, paths and times."""
    return {key: value for key, value in found.items() if key not in VARYING and "second" not in key}


@pytest.mark.parametrize("command", WORKS)
def test_commands_that_read_take_a_folder(run, folder, one, model, images, tmp_path, command):
    said = {}
    for path in (folder, one):
        names = {"OUT": tmp_path / f"out-{path.name}", "QUERY": images / "cats" / "00.png"}
        more = [
            str(names["OUT"]) + text[3:] if text.startswith("OUT") else names.get(text, text)
            for text in WORKS[command]
        ]
        extra = ["-m", model] if command == "search" else []
        said[path] = json_of(run(command, path, *more, *extra, "--json"))
    assert comparable(said[folder]) == comparable(said[one])
    if command == "decompress":
        with np.load(tmp_path / "out-codes.npz") as a, np.load(tmp_path / "out-one.bin.npz") as b:
            assert set(a) == set(b)
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("command", ["info", "verify", "evaluate"])
def test_commands_that_read_take_a_url(run, one, command):
    more = ["--folds", "2"] if command == "evaluate" else []
    said = [json_of(run(command, path, *more, "--json")) for path in (one, f"file://{one}")]
    assert comparable(said[0]) == comparable(said[1])


def test_a_transformer_looks_names_up_in_a_folder(folder, one):
    with stochcl.open(one) as archive:
        names = [archive.names[row] for row in (30, 2, 17)]
        found = CodesTransformer(archive=folder).fit(names).transform(names)
        np.testing.assert_array_equal(found, archive.to_numpy()[[30, 2, 17]])


REFUSES = {
    "transcode": ["CODES", "-o", "OUT"],
    "transcode --rate": ["CODES", "-o", "OUT", "--rate", "9"],
    "split": ["CODES", "-o", "OUT", "--rows", "10"],
    "append": ["CODES", "IMAGES"],
    "verify --salvage": ["CODES", "--salvage", "OUT"],
    "verify --repair": ["CODES", "--repair"],
}


@pytest.mark.parametrize("command", REFUSES)
def test_commands_that_rewrite_a_file_say_to_merge_first(refused, folder, images, tmp_path, command):
    names = {"CODES": folder, "OUT": tmp_path / "out", "IMAGES": images}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = refused(command.split()[0], *[names.get(text, text) for text in REFUSES[command]])
    assert said.startswith(f"{folder}: ")
    assert "`stochcl merge`" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "out").exists()


def test_shards_to_a_rate_say_how_to_come_by_it(refused, images, model, tmp_path):
    said = refused(
        "compress", images, "-m", model, "-o", tmp_path / "c", "--shard-images", "20", "--rate", "9", code=2
    )
    assert "`stochcl merge` and `stochcl transcode --rate`" in said


def test_a_probe_of_a_folder_predicts_a_file_and_the_other_way(run, folder, one, tmp_path):
    for fitted, asked in ((folder, one), (one, folder)):
        probe = tmp_path / f"{fitted.name}.skops"
        run("evaluate", fitted, "--save", probe)
        run("predict", asked, "-m", probe, "-o", tmp_path / f"{asked.name}.csv")
    assert (tmp_path / "codes.csv").read_text() == (tmp_path / "one.bin.csv").read_text()


def test_a_shard_by_itself_is_an_archive(folder):
    tables = list(folder.glob("*.tables"))
    with stochcl.Archive(folder / "shard-00001.bin", tables=tables) as shard, stochcl.open(folder) as whole:
        np.testing.assert_array_equal(shard.to_numpy(), whole.to_numpy()[20:40])
