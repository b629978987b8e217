"""Names that are not ASCII, not UTF-8, very long, or there twice: kept to the byte, and shown without harm."""

import csv
import io
import json
import os
import zipfile

import numpy as np
import pytest

import stochcl
from tests.cli.test_bad_input import JPEG, PNG, encoded, folder_of, written, zipped

NAMES = [
    "süß/日本 🐱.png",
    "caf\udce9/\udcff\udcfe.png",
    'a, "b"\nc/\x1b[31m\'.png',
    "l" * 200 + "/" + "m" * 200 + ".png",
]


@pytest.fixture
def folder(tmp_path):
    try:
        return folder_of(tmp_path / "images", dict.fromkeys(NAMES, PNG))
    except OSError:
        pytest.skip("this file system does not take such names")


def test_strange_names_survive(compress, folder):
    with stochcl.open(compress(folder)) as archive:
        assert archive.names == tuple(sorted(NAMES, key=os.fsencode))
        assert set(archive.labels) == {name.split("/")[0] for name in NAMES}


def test_strange_names_are_shown_on_one_line_each(run, model, folder, tmp_path):
    for name in NAMES:
        written(folder / name, b"")
    written(folder / "good.png", PNG)
    result = run("compress", folder, "-m", model, "-o", tmp_path / "codes.bin")
    assert result.stderr.count("\n") == len(NAMES)
    assert "skipped caf\\udce9/\\udcff\\udcfe.png: the file is empty (0 bytes)\n" in result.stderr
    assert "skipped süß/日本 🐱.png: the file is empty (0 bytes)\n" in result.stderr
    assert "\x1b" not in result.stderr
    found = json.loads(run("info", tmp_path / "codes.bin", "--json").stdout)
    assert {skip["name"] for skip in found["skipped"]} >= {"süß/日本 🐱.png", "caf\\udce9/\\udcff\\udcfe.png"}


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet"])
def test_strange_names_are_exported_as_unicode(run, compress, folder, tmp_path, ending):
    out = tmp_path / f"codes.{ending}"
    run("decompress", compress(folder), "-o", out)
    if ending == "npz":
        with np.load(out) as arrays:
            names = arrays["names"].tolist()
    elif ending == "csv":
        with out.open(encoding="utf-8", newline="") as file:
            names = [row[0] for row in csv.reader(file)][1:]
    else:
        from pyarrow import parquet

        names = parquet.read_table(out)["name"].to_pylist()
    assert set(names) == {*NAMES[:1], "caf\\xe9/\\xff\\xfe.png", *NAMES[2:]}


def test_paths_that_are_not_utf_8(run, model, images, tmp_path):
    """Of the source, the output, and everything that is read later."""
    strange = tmp_path / "\udcff\n"
    try:
        strange.mkdir()
    except OSError:
        pytest.skip("this file system does not take such names")
    (strange / "images").symlink_to(images)
    codes = strange / "\udcfd.bin"
    shown = f"{tmp_path}/\\udcff\\n"
    result = run("compress", strange / "images", "-m", model, "-o", codes)
    assert result.stdout.startswith(f"{shown}/\\udcfd.bin: 42 images, ")
    for command in (["info"], ["info", "--json"], ["verify"], ["evaluate"], ["evaluate", "--json"]):
        assert "\\udcff" in run(command[0], codes, *command[1:]).stdout
    tiny = ["--epochs", "0", "--width", "4", "--size", "32", "--latents", "8"]
    trained = run("train", strange / "images", "-o", strange / "\udcfc.safetensors", *tiny)
    assert trained.stdout.startswith(f"{shown}/\\udcfc.safetensors: 8 latents")
    run("train", strange / "images", "-o", strange / "\udcfb.safetensors", *tiny, "--json")


def test_one_name_twice_is_two_images(run, compress, codec, tmp_path):
    other = encoded(image=None, kind="BMP")
    members = [("a/x.png", PNG), ("a/x.png", b"not an image"), ("a/x.png", JPEG), ("a/x.png", other)]
    path = compress(zipped(tmp_path / "a.zip", members))
    with stochcl.open(path) as archive:
        assert archive.names == ("a/x.png",) * 3
        assert [name for name, _ in archive.skipped] == ["a/x.png"]
        assert archive.source_bytes == len(PNG) + len(JPEG) + len(other)
        expected = [codec.preprocess.decode(data) for data in (PNG, JPEG, other)]
        np.testing.assert_array_equal(archive.to_numpy(), codec.encode(np.stack(expected)).symbols())


def test_a_name_as_long_as_a_zip_can_hold(compress, tmp_path):
    name = "d/" * 30_000 + "a.png"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, PNG)
    with stochcl.open(compress(tmp_path / "a.zip")) as archive:
        assert archive.names == (name,)


def test_names_of_a_zip_that_are_not_utf_8(compress, tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("AAAA.png", PNG)
    path = written(tmp_path / "a.zip", out.getvalue().replace(b"AAAA", b"\xff\xfe/\x80"))
    with stochcl.open(compress(path)) as archive:
        assert archive.names == ("\udcff\udcfe/\udc80.png",)
        assert archive.labels == ("\udcff\udcfe",)
