import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from stochcl.data import Preprocess, open_source
from stochcl.errors import TrainingError, UsageError
from stochcl.training.images import read_images

SQUARE = Preprocess(8)


@pytest.fixture
def folder(tmp_path):
    """Write images of one grey each below a folder, by name; None for a file that is no image."""

    def write(files, name="images"):
        root = tmp_path / name
        for path, value in files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if value is None:
                target.write_bytes(b"not an image")
            else:
                Image.new("RGB", (8, 8), (value,) * 3).save(target)
        return open_source(root)

    return write


def greys(images):
    return images[:, 0, 0, 0].tolist()


def test_the_last_of_each_class_are_held_out(folder):
    source = folder({"a/0.png": 0, "a/1.png": 1, "a/2.png": 2, "b/0.png": 10, "b/1.png": 11, "b/2.png": 12})
    data = read_images([source], SQUARE, hold_out=1)
    assert (greys(data.train), greys(data.held)) == ([0, 1, 10, 11], [2, 12])
    assert (data.train_labels, data.held_labels) == (("a", "a", "b", "b"), ("a", "b"))
    assert data.skipped == ()
    assert data.train.shape == (4, 8, 8, 3)


def test_nothing_is_held_out_unless_asked(folder):
    data = read_images([folder({"a/0.png": 0, "1.png": 1})], SQUARE)
    assert (greys(data.train), data.held.shape) == ([1, 0], (0, 8, 8, 3))
    assert (data.train_labels, data.held_labels) == (("", "a"), ())


@pytest.mark.parametrize("workers", [1, 3])
def test_images_that_cannot_be_read_are_said_and_move_no_other(folder, workers):
    files = {f"a/{i:03d}.png": None if i % 7 == 3 or i == 299 else i % 251 for i in range(300)}
    source = folder(files)
    data = read_images([source], SQUARE, hold_out=5, workers=workers)
    readable = [i for i in range(300) if files[f"a/{i:03d}.png"] is not None]
    assert greys(data.train) == [i % 251 for i in readable if i < 295]
    assert greys(data.held) == [i % 251 for i in readable if i >= 295]
    assert [f.name for f in data.skipped] == [name for name, value in files.items() if value is None]
    assert "not an image" in data.skipped[0].reason


def test_sources_are_joined_and_each_holds_out_its_own(folder):
    first = folder({"a/0.png": 0, "a/1.png": 1}, "first")
    second = folder({"a/0.png": 20, "a/1.png": 21, "c/0.png": None}, "second")
    data = read_images([first, second], SQUARE, hold_out=1)
    assert (greys(data.train), greys(data.held)) == ([0, 20], [1, 21])
    assert [f.name for f in data.skipped] == ["c/0.png"]


def test_rejected_entries_are_reported_too(folder, tmp_path):
    folder({"0.png": 0, "1.png": 1})
    (tmp_path / "images" / "2.png").symlink_to("nowhere.png")
    data = read_images([open_source(tmp_path / "images")], SQUARE)
    assert [f.name for f in data.skipped] == ["2.png"]


def test_progress_comes_to_its_end(folder):
    told = []
    files = {f"{i:03d}.png": None if i == 2 else 1 for i in range(300)}
    read_images([folder(files)], SQUARE, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 300), (256, 300), (300, 300)]


@pytest.mark.parametrize(
    ("files", "hold_out"), [({"0.png": 1}, 0), ({"0.png": 1, "1.png": None}, 0), ({"0.png": 1, "1.png": 2}, 1)]
)
def test_one_image_is_too_few(folder, files, hold_out):
    with pytest.raises(TrainingError, match="images: training needs at least two readable images"):
        read_images([folder(files)], SQUARE, hold_out=hold_out)


def test_images_that_would_not_fit_into_memory_are_refused_before_any_is_read(folder, monkeypatch):
    source = folder({"0.png": 0, "1.png": 1})
    monkeypatch.setattr("os.sysconf", lambda name: 1 if "PAGES" in name else 384)
    with pytest.raises(UsageError, match=r"2 decoded images need 0\.0 GiB, and this machine has 0\.0 GiB"):
        read_images([source], SQUARE)
    monkeypatch.setattr("os.sysconf", lambda name: 1 if "PAGES" in name else 4096)
    assert len(read_images([source], SQUARE).train) == 2


def test_a_system_that_does_not_say_its_memory_is_trusted(folder, monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr("os.sysconf", unknown)
    assert len(read_images([folder({"0.png": 0, "1.png": 1})], SQUARE).train) == 2


def test_holding_out_takes_no_second_copy_of_the_images(folder):
    data = read_images([folder({f"a/{i}.png": i for i in range(9)})], SQUARE, hold_out=2)
    assert data.train.base is not None  # a part of the array that was read into
    assert np.array_equal(data.train[:, 0, 0, 0], range(7))


def test_names_that_a_zip_holds_twice_do_not_move_what_is_held_out(tmp_path):
    # Of two equal names the second cannot be read; matched by name, the first would count as the unreadable one.
    def png(value):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (value,) * 3).save(buffer, "png")
        return buffer.getvalue()

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(3):
            archive.writestr(f"a/{i}.png", png(i))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/1.png", b"no image")
    data = read_images([open_source(tmp_path / "a.zip")], SQUARE, hold_out=2)
    # The rows held out are the last two, of which one cannot be read.
    assert (greys(data.train), greys(data.held)) == ([0, 1], [2])


def test_labels_may_come_from_elsewhere_than_the_folders(folder):
    source = folder({"a/0.png": 0, "a/1.png": 1, "b/0.png": 10, "b/1.png": 11})
    label = {"a/0.png": "x", "a/1.png": "y", "b/0.png": "y", "b/1.png": "y"}.__getitem__
    data = read_images([source], SQUARE, hold_out=1, label=label)
    assert (greys(data.train), data.train_labels) == ([1, 10], ("y", "y"))
    assert (greys(data.held), data.held_labels) == ([0, 11], ("x", "y"))
