"""Images behind URLs: folders, single images and tars, through fsspec."""

import io
import pickle
import tarfile
import zipfile

import fsspec
import numpy as np
import pytest

import stochcl
from stochcl.data import Preprocess, SourceOptions, open_source
from stochcl.errors import EnvironmentFault, MissingExtraError, SourceError, SourceNotFound, UsageError
from tests.serving import served

SMALL = Preprocess(8)


@pytest.fixture
def bucket(png, as_file, pixels):
    memory = fsspec.filesystem("memory")
    files = {"a/1.png": png, "b/2.png": as_file(pixels(20, 12)), "b/2.cls": b"7", "b/.h.png": png, "c.bin": png}
    for name, data in files.items():
        memory.pipe_file(f"/pictures/{name}", data)
    yield "memory://pictures"
    memory.rm("/pictures", recursive=True)


def test_a_folder_behind_a_url_is_as_one_here(bucket, tree, png, as_file, pixels, codec, tmp_path):
    here = tree({"a/1.png": png, "b/2.png": as_file(pixels(20, 12))})
    source, local = pickle.loads(pickle.dumps(open_source(bucket))), open_source(here)
    assert [(e.name, e.size) for e in source.entries] == [(e.name, e.size) for e in local.entries]
    for i in range(2):
        np.testing.assert_array_equal(source.load(i, SMALL), local.load(i, SMALL))
    codec.compress(bucket, tmp_path / "a.bin")
    codec.compress(here, tmp_path / "b.bin")
    with stochcl.open(tmp_path / "a.bin") as a, stochcl.open(tmp_path / "b.bin") as b:
        assert (a.names, a.labels) == (b.names, b.labels)
        np.testing.assert_array_equal(a.to_numpy(), b.to_numpy())
    assert [e.name for e in open_source(bucket, SourceOptions(any_name=True)).entries][-1] == "c.bin"
    assert open_source(bucket, SourceOptions(label_files="cls")).labels == ["", "7"]


def test_http_serves_single_images_and_tars(tree, png, codec, tmp_path, run_compress):
    folder = tree({"x.png": png})
    with tarfile.open(folder / "t.tar.gz", "w:gz") as archive:
        for i in range(5):
            info = tarfile.TarInfo(f"cat/{i}.png")
            info.size = len(png)
            archive.addfile(info, io.BytesIO(png))
    with served(folder) as url:
        assert [e.name for e in open_source(f"{url}/x.png").entries] == ["x.png"]
        run_compress(f"{url}/t.tar.gz", "-o", tmp_path / "t.bin")
        run_compress(f"{url}/x.png", folder / "x.png", "-o", tmp_path / "x.bin")
        with pytest.raises(SourceError, match="nothing there"):
            open_source(f"{url}/y.png")
        with pytest.raises(SourceError, match="copy it here"):
            open_source(f"{url}/t.tar.gz")
    with stochcl.open(tmp_path / "t.bin") as archive:
        assert tuple(archive.names) == tuple(f"cat/{i}.png" for i in range(5))
    with stochcl.open(tmp_path / "x.bin") as archive:
        assert len(archive) == 2
    with pytest.raises(SourceError, match="cannot be reached"):
        open_source(f"{url}/x.png")
    for name in ("x.zip", "x.tar"):
        with pytest.raises(SourceError, match="cannot connect"):
            codec.compress(f"{url}/{name}", tmp_path / "y.bin")
    with pytest.raises(SourceError, match="cannot connect"):
        stochcl.open(f"{url}/codes.bin")


def test_a_zip_behind_a_url_is_read_in_place(tree, png, as_file, pixels, run_compress, tmp_path):
    folder = tree({})
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        for i in range(9):
            archive.writestr(f"cat/{i}.png", as_file(pixels(20 + i, 12)))
        archive.writestr("large.txt", bytes(3_000_000))
    with served(folder, asked=(asked := [])) as url:
        source, local = open_source(f"{url}/z.zip"), open_source(folder / "z.zip")
        assert [e.name for e in source.entries] == [e.name for e in local.entries]
        source = pickle.loads(pickle.dumps(source))
        for batch, expected in zip(source.batches(SMALL, workers=3), local.batches(SMALL), strict=True):
            np.testing.assert_array_equal(batch.images, expected.images)
        assert len(asked) < 9 + 25
        run_compress(f"{url}/z.zip", "-o", tmp_path / "a.bin")
        with pytest.raises(SourceNotFound):
            open_source(f"{url}/none.zip")
        (folder / "bad.zip").write_bytes(b"PK" + bytes(500))
        with pytest.raises(SourceError, match=r"not a zip.*copy it here"):
            open_source(f"{url}/bad.zip")
    with pytest.raises(EnvironmentFault):
        source.load(0, SMALL)
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert len(archive) == 9
    with served(folder, ranges=False) as url, pytest.raises(SourceError, match="copy it here"):
        open_source(f"{url}/z.zip")


@pytest.fixture
def run_compress(model):
    from click.testing import CliRunner

    from stochcl.cli.main import main

    def run(*arguments):
        result = CliRunner().invoke(main, ["compress", "-m", str(model), *map(str, arguments)])
        assert result.exit_code == 0, result.output

    return run


def test_what_is_not_read_from_a_url_is_said(bucket, codec, tmp_path):
    for url in ("https://host/a.npy?token=1", "s3://b/a.parquet"):
        with pytest.raises(SourceError, match="copy this file here"):
            codec.compress(url, tmp_path / "a.bin")
    with pytest.raises(UsageError, match="no protocol"):
        open_source("nonsense://x/y")
    source = open_source(bucket)
    fsspec.filesystem("memory").rm_file("/pictures/a/1.png")
    with pytest.raises(EnvironmentFault, match="no fault of the image"):
        source.load(0, SMALL)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"stochcl\[s3\]"):
        open_source("s3://bucket/images")
