"""Faults of the disk, the network and the file table stop the reading; they are not taken for bad images."""

import errno
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stochcl.data import Preprocess, open_source
from stochcl.data import access as files
from stochcl.data.open import open_list, open_sources
from stochcl.errors import EnvironmentFault, ImageError

resource = pytest.importorskip("resource")

SMALL = Preprocess(16, "crop")

FAULTS = [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOSPC, errno.ESTALE, errno.ENOENT, errno.ENOTCONN]


def failing(monkeypatch, number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    monkeypatch.setattr(os, "pread", fail)


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def sources(tree, png, tmp_path):
    folder = tree({"a/1.png": png, "a/2.png": png})
    (tmp_path / "list").write_text("a/1.png\na/2.png\n")
    return {
        "folder": open_source(folder),
        "zip": open_source(zipped(tmp_path / "a.zip", {"a/1.png": png, "a/2.png": png})),
        "list": open_list(tmp_path / "list", folder=folder),
    }


@pytest.mark.parametrize("kind", ["folder", "zip", "list"])
@pytest.mark.parametrize("number", FAULTS)
def test_a_fault_of_the_environment_stops_at_the_image(sources, monkeypatch, kind, number):
    source = sources[kind]
    failing(monkeypatch, number)
    with pytest.raises(EnvironmentFault, match=r"a/1\.png"):
        source.load(0, SMALL)
    for workers in (1, 3):
        with pytest.raises(EnvironmentFault, match="no fault of the image"):
            list(source.batches(SMALL, workers=workers))


@pytest.mark.parametrize("number", [errno.EACCES, errno.ELOOP])
def test_a_fault_of_one_file_costs_one_image(sources, monkeypatch, number):
    source = sources["folder"]
    failing(monkeypatch, number)
    with pytest.raises(ImageError):
        source.load(0, SMALL)
    (batch,) = source.batches(SMALL)
    assert len(batch.failures) == 2


def test_a_source_that_vanishes_stops_the_reading(tree, png):
    folder = tree({f"a/{i}.png": png for i in range(9)})
    source = open_source(folder)
    batches = source.batches(SMALL, batch_size=3)
    assert len(next(batches).names) == 3
    shutil.move(folder, folder.with_name("gone"))
    with pytest.raises(EnvironmentFault, match="no such file"):
        list(batches)


def test_listing_does_not_take_a_fault_for_an_empty_folder(tree, png, monkeypatch):
    folder = tree({"a/1.png": png, "b/1.png": png})
    scandir = os.scandir

    def fail(path):
        if str(path).endswith("b"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(EnvironmentFault, match="input/output error"):
        open_source(folder)


def test_archives_kept_open_follow_the_limit_of_the_process(tmp_path, png, monkeypatch):
    paths = [zipped(tmp_path / f"{i:03d}.zip", {"a/1.png": png}) for i in range(120)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 64, hard))
    try:
        assert files.most_open() <= (used + 64) // 4
        source = open_sources(paths)
        read = list(source.batches(SMALL, workers=4))
        # Others, opened apart: the limit is the process's.
        apart = [open_source(path) for path in paths]
        for one in apart:
            one.load(0, SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sum(len(batch.names) for batch in read) == 120
    assert not any(batch.failures for batch in read)
    before = files.RandomFile._open_files
    del source, apart, one
    assert files.RandomFile._open_files < before
    np.testing.assert_array_equal(open_source(paths[0]).load(0, SMALL), read[0].images[0])


@pytest.mark.parametrize("ending", ["tar", "zip", "folder"])
def test_a_locale_without_letters_costs_no_image(tmp_path, png, ending):
    names = ["a/é.png", "a/日本.png", "b/1.png"]
    path = tmp_path / f"a.{ending}"
    if ending == "zip":
        zipped(path, dict.fromkeys(names, png))
    elif ending == "tar":
        with tarfile.open(path, "w") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(png)
                archive.addfile(info, io.BytesIO(png))
    else:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(png)
    code = """
import sys
from stochcl.data import Preprocess, open_source
source = open_source(sys.argv[1])
(batch,) = source.batches(Preprocess(8))
names = [name.encode("utf-8", "surrogateescape").hex() for name in batch.names]
print(len(names), len(source.rejected), *names)
"""
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = subprocess.run(
        [sys.executable, "-c", code, path], env=os.environ | plain, capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == ["3", "0", *(name.encode().hex() for name in names)]
