"""A folder as a source: what is listed, in which order, and what is skipped with a reason."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from stochcl.data import FolderSource, Preprocess, open_source
from stochcl.errors import EnvironmentFault, ImageError, SourceError

SMALL = Preprocess(8)


def names(source):
    return [entry.name for entry in source.entries]


def rejected(source):
    return {failure.name: failure.reason for failure in source.rejected}


def test_recursive_in_bytewise_order(tree, png):
    wanted = ["B/z.JPG", "a-b.png", "a/b.png", "a/c/d.webp", "a0.png", "é.png"]
    source = open_source(tree(dict.fromkeys(reversed(wanted), png)))
    assert isinstance(source, FolderSource)
    assert source.kind == "folder"
    assert names(source) == wanted
    assert len(source) == 6
    assert source.entries[0].size == len(png)
    assert source.entries[0].mtime_ns == (source.path / "B/z.JPG").stat().st_mtime_ns


def test_other_and_hidden_files_are_left_out(tree, png):
    files = [
        ".hidden.png",
        ".git/a.png",
        "__MACOSX/a.png",
        "a/._b.png",
        "a/b.txt",
        "a/png",
        "a/.png",
        "a/b.png",
    ]
    source = open_source(tree(dict.fromkeys(files, png)))
    assert names(source) == ["a/b.png"]
    assert source.rejected == []


def test_an_empty_folder_and_one_without_images(tree):
    for root in (tree({}), tree({"a/notes.txt": b"x"}, "texts")):
        with pytest.raises(SourceError, match="this folder holds no image"):
            open_source(root)


def test_bad_files_are_named_and_the_rest_is_read(tree, png, as_file, pixels):
    jpeg = as_file(pixels(40, 40), "JPEG")
    root = tree(
        {
            "a.png": png,
            "b.jpg": b"",
            "c.jpg": b"some text\n",
            "d.jpg": jpeg[: len(jpeg) // 2],
            "e.png": png[:60],
            "f.png": png,
        }
    )
    (batch,) = open_source(root).batches(SMALL)
    assert batch.names == ("a.png", "f.png")
    assert batch.rows == range(6)
    assert sum(batch.sizes) == 2 * len(png)
    assert np.array_equal(batch.images[0], batch.images[1])
    assert [f.name for f in batch.failures] == ["b.jpg", "c.jpg", "d.jpg", "e.png"]
    for failure, reason in zip(batch.failures, ["0 bytes", "not an image", "truncated", "truncated"], strict=True):
        assert reason in failure.reason


def test_load_names_the_source_the_image_and_the_reason(tree):
    source = open_source(tree({"a/b.jpg": b""}))
    with pytest.raises(ImageError, match=r"images: a/b\.jpg: the file is empty"):
        source.load(0, SMALL)


def test_an_index_out_of_range(tree, png):
    with pytest.raises(IndexError):
        open_source(tree({"a.png": png})).load(1, SMALL)


def test_links_to_files_are_followed(tree, png, tmp_path):
    root = tree({"a.png": png})
    (tmp_path / "elsewhere.bin").write_bytes(png)
    (root / "b.png").symlink_to(tmp_path / "elsewhere.bin")
    (root / "c.png").symlink_to("a.png")
    (root / "d.png").symlink_to("nothing.png")
    (root / "e.png").symlink_to("e.png")
    source = open_source(root)
    assert names(source) == ["a.png", "b.png", "c.png"]
    assert source.load(1, SMALL).shape == (8, 8, 3)
    assert rejected(source)["d.png"] == "it is a broken link"
    assert "cannot be looked at" in rejected(source)["e.png"]


def test_links_to_folders_are_followed_once(tree, png, tmp_path):
    root = tree({"real/a.png": png, "real/deep/b.png": png})
    outside = tree({"c.png": png, "d/e.png": png}, "outside")
    (root / "also").symlink_to("real")
    (root / "linked").symlink_to(outside)
    (outside / "d" / "back").symlink_to(root)
    (root / "real" / "loop").symlink_to("..")
    source = open_source(root)
    assert names(source) == ["linked/c.png", "linked/d/e.png", "real/a.png", "real/deep/b.png"]
    assert set(rejected(source)) == {"also", "linked/d/back", "real/loop"}
    assert set(rejected(source).values()) == {"it links to a folder that is read already"}
    assert source.load(1, SMALL).shape == (8, 8, 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_and_folders_called_images_are_not_opened(tree, png):
    root = tree({"a.png": png, "folder.png/b.png": png})
    os.mkfifo(root / "pipe.png")
    source = open_source(root)
    assert names(source) == ["a.png", "folder.png/b.png"]
    assert rejected(source) == {"pipe.png": "it is not a regular file"}
    (root / "a.png").unlink()
    os.mkfifo(root / "a.png")  # between listing and reading: must not wait for a writer
    with pytest.raises(ImageError, match="not a regular file"):
        source.load(0, SMALL)
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        open_source(root / "pipe.png")


def test_unreadable_files_are_failures(tree, png, monkeypatch):
    root = tree({"a.png": png, "b.png": png})
    real = os.open

    def deny(path, *args, **kwargs):
        if Path(os.fsdecode(path)).name == "a.png":
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", deny)
    (batch,) = open_source(root).batches(SMALL)
    assert batch.names == ("b.png",)
    assert batch.failures[0].name == "a.png"
    assert batch.failures[0].reason == "it cannot be read: permission denied"


def test_unreadable_folders(tree, png, monkeypatch):
    root = tree({"a/x.png": png, "b/y.png": png})
    real = os.scandir

    def deny(path):
        if Path(path).name in denied:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", deny)
    denied = {"a"}
    source = open_source(root)
    assert names(source) == ["b/y.png"]
    assert rejected(source) == {"a": "the folder cannot be read: permission denied"}
    denied = {"a", "b"}
    with pytest.raises(SourceError, match="none of the 2 images"):
        open_source(root)
    denied = {"images"}
    with pytest.raises(SourceError, match="this folder cannot be read: permission denied"):
        open_source(root)


def test_a_file_that_goes_away_or_grows(tree, png, monkeypatch):
    root = tree({"a.png": png, "b.png": png})
    source = open_source(root)
    (root / "a.png").unlink()
    with pytest.raises(EnvironmentFault, match="no such file"):
        source.load(0, SMALL)
    with (root / "b.png").open("ab") as file:
        file.write(b"x" * 5000)
    assert source.load(1, SMALL).shape == (8, 8, 3)
    monkeypatch.setattr("stochcl.data.folder.MAX_FILE_BYTES", 1000)
    with pytest.raises(ImageError, match="limit is 1,000"):
        source.load(1, SMALL)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode on this system")
def test_undecodable_and_very_long_names(tmp_path, png):
    root = tmp_path / "images"
    root.mkdir()
    raw = [b"\xff\xfe.png", "\u65e5\u672c.png".encode(), b"a" * 251 + b".png", b"new\nline.png"]
    for name in raw:
        with open(os.path.join(os.fsencode(root), name), "wb") as file:  # noqa: PTH118, PTH123
            file.write(png)
    deep = root
    for _ in range(8):
        deep /= "d" * 200
        deep.mkdir()
    (deep / "e.png").write_bytes(png)
    source = open_source(root)
    found = [os.fsencode(n) for n in names(source)]
    assert found == sorted([*raw, os.fsencode(deep.relative_to(root) / "e.png")])
    (batch,) = source.batches(SMALL)
    assert len(batch.images) == 5
    (root / os.fsdecode(raw[0])).write_bytes(b"")
    with pytest.raises(ImageError, match="0 bytes") as caught:
        source.load(names(source).index(os.fsdecode(raw[0])), SMALL)
    str(caught.value).encode("utf-8")


def test_one_image_is_a_source(tree, png, tmp_path):
    path = tree({"a/b.png": png}) / "a/b.png"
    source = open_source(path)
    assert names(source) == ["b.png"]
    assert source.load(0, SMALL).shape == (8, 8, 3)
    unnamed = tmp_path / "picture"
    unnamed.write_bytes(png)
    assert names(open_source(unnamed)) == ["picture"]


def test_folders_pickle(tree, png):
    source = open_source(tree({"a.png": png}))
    again = pickle.loads(pickle.dumps(source))
    assert again.entries == source.entries
    assert np.array_equal(again.load(0, SMALL), source.load(0, SMALL))
