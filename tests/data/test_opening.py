"""What a path is taken for, and what is said of a path that is nothing that can be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stochcl.data import Preprocess, held_out, open_source
from stochcl.errors import SourceError, StochclError


def test_nothing_there(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere: there is no such file or folder\."):
        open_source(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(tmp_path / ("x" * 5000))
    with pytest.raises(SourceError, match=r"not a path|cannot be read"):
        open_source("a\0b")


def test_a_loop_of_links(tmp_path):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(SourceError, match="cannot be read: too many levels"):
        open_source(tmp_path / "a")


def test_an_unreadable_file(tmp_path, png, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(png)

    def deny(self, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(SourceError, match=r"a\.zip: it cannot be read: permission denied"):
        open_source(path)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.npy", "a.png", "a"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(SourceError, match=r"this file is empty \(0 bytes\)"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv", "a", "a.safetensors"])
def test_a_foreign_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"name,label\n" * 100)
    with pytest.raises(SourceError, match="not a source of images or embeddings; give a folder"):
        open_source(tmp_path / name)


def test_foreign_files_with_known_endings(tmp_path):
    for name in ("a.zip", "a.tar", "a.tar.gz", "a.npy"):
        (tmp_path / name).write_bytes(b"neither fish nor fowl " * 100)
        with pytest.raises(SourceError, match="damaged"):
            open_source(tmp_path / name)


def test_every_message_is_one_line_that_names_the_path(tmp_path):
    for name, data in (
        ("x\ny.zip", b"PK\x03\x04"),
        ("\udcff.npy", b"\x93NUMPY"),
        ("e\x1b[31m.tar", b"0" * 600),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(StochclError) as caught:
            open_source(path)
        assert str(caught.value).isprintable()
        assert str(caught.value).endswith(".")


def test_a_path_as_text(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png)
    assert len(open_source(str(tmp_path))) == 1


def test_importing_is_light():
    code = (
        "import sys, stochcl.data\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'pandas', 'constriction', 'click'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.data
def test_real_zips_read_as_they_are():
    folder = os.environ.get("STOCHCL_DATA")
    if not folder or not (Path(folder) / "tiny-imagenet-train-0.zip").exists():
        pytest.skip("STOCHCL_DATA does not name a folder with tiny-imagenet-train-0.zip")
    source = open_source(Path(folder) / "tiny-imagenet-train-0.zip")
    assert (len(source), len(source.rejected)) == (24_000, 0)
    assert held_out(source.entries).sum() == 4_000
    batch = next(source.batches(Preprocess(64), batch_size=500, workers=2))
    assert batch.images.shape == (500, 64, 64, 3)
    assert batch.images.std() > 50
