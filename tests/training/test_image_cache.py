"""Decoded images in mapped files: those that memory would hold, decoded once, whatever happens in between."""

import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from stochcl.api.train import train
from stochcl.data import Preprocess, open_source
from stochcl.errors import TrainingError, UsageError
from stochcl.training import images as imagecache
from stochcl.training.images import read_images
from tests.making import write_images

SQUARE = Preprocess(16)


@pytest.fixture
def photos(tmp_path):
    folder = write_images(tmp_path / "photos", per_class=7)
    (folder / "cats" / "03.jpg").write_bytes(b"bad")
    (folder / "dogs" / "06.png").write_bytes(b"")
    (folder / "lost.png").symlink_to("nowhere")
    return folder


@pytest.fixture
def tarred(photos, tmp_path):
    """Two tar shards of them."""
    files = sorted(path for path in photos.rglob("*.*") if path.is_file())
    for i in range(2):
        with tarfile.open(tmp_path / f"shard-{i}.tar", "w") as out:
            for path in files[i::2]:
                out.add(path, str(path.relative_to(photos)))
    return [tmp_path / "shard-0.tar", tmp_path / "shard-1.tar"]


def same(a, b):
    np.testing.assert_array_equal(a.train, b.train)
    np.testing.assert_array_equal(a.held, b.held)
    assert (a.train_labels, a.held_labels, a.skipped) == (b.train_labels, b.held_labels, b.skipped)


@pytest.mark.parametrize("hold_out", [0, 2])
def test_they_are_those_that_memory_holds(photos, tarred, tmp_path, hold_out):
    for sources in ([photos], tarred, [photos, tarred[1]]):
        opened = [open_source(path) for path in sources]
        memory = read_images(opened, SQUARE, hold_out=hold_out)
        mapped = read_images(opened, SQUARE, hold_out=hold_out, cache=tmp_path / "cache", workers=2)
        same(mapped, memory)
        assert isinstance(mapped.train.base, np.memmap)


def test_images_are_decoded_once_and_anew_when_they_change(photos, tmp_path, monkeypatch):
    told = []

    def read():
        told.clear()
        return read_images(
            [open_source(photos)], SQUARE, cache=tmp_path / "cache", progress=lambda done, total: told.append(done)
        )

    first = read()
    assert told == [0, 21]
    same(read(), first)
    assert told == [21]
    os.utime(photos / "cats" / "00.png", ns=(1, 1))
    same(read(), first)
    assert told == [0, 21]  # it might be another image
    assert len(list((tmp_path / "cache").iterdir())) == 2
    read_images([open_source(photos)], Preprocess(16, "pad"), cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("torn", [0, 3])
def test_what_was_interrupted_is_gone_on_with(photos, tarred, tmp_path, monkeypatch, torn):
    monkeypatch.setattr(imagecache, "_BATCH", 4)
    opened = [open_source(path) for path in [photos, *tarred]]
    memory = read_images(opened, SQUARE, hold_out=1)

    def stop(done, total):
        if done >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_images(opened, SQUARE, hold_out=1, cache=tmp_path / "cache", progress=stop)
    (place,) = (tmp_path / "cache").iterdir()
    if torn:  # written, and not yet in the journal, or only half of its line
        with (place / "train").open("ab") as file:
            file.write(bytes(1000))
        with (place / "journal").open("r+b") as file:
            file.truncate((place / "journal").stat().st_size - torn)
    told = []
    mapped = read_images(
        opened, SQUARE, hold_out=1, cache=tmp_path / "cache", progress=lambda done, total: told.append(done)
    )
    same(mapped, memory)
    assert told[0] == (21 if torn else 25)  # 21 images, and then each tar anew in batches of 4


def test_files_that_somebody_cut_are_noticed(photos, tmp_path):
    read_images([open_source(photos)], SQUARE, cache=tmp_path / "cache")
    (place,) = (tmp_path / "cache").iterdir()
    os.truncate(place / "train", 100)
    with pytest.raises(UsageError, match="delete this folder"):
        read_images([open_source(photos)], SQUARE, cache=tmp_path / "cache")


def test_a_disk_without_room_is_said_before_anything_is_decoded(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(imagecache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UsageError, match=r"21 decoded images need .* and the disk has 0\.0 GiB left"):
        read_images([open_source(photos)], SQUARE, cache=tmp_path / "cache")


def test_too_few_images_are_refused_as_in_memory(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(b"")
    with pytest.raises(TrainingError, match="at least two readable images"):
        read_images([open_source(tmp_path / "one")], SQUARE, cache=tmp_path / "cache")


def test_training_gives_the_same_weights_and_memory_says_that_there_is_a_cache(tarred, tmp_path, monkeypatch):
    how = {
        "epochs": 1, "width": 4, "size": 32, "latents": 8, "decoder": (8,), "batch_size": 8, "device": "cpu",
        "latent_steps": 2,
    }  # fmt: skip
    train(tarred, tmp_path / "memory.safetensors", **how)
    train(tarred, tmp_path / "mapped.safetensors", cache=tmp_path / "cache", **how)
    memory, mapped = (load_file(tmp_path / f"{name}.safetensors") for name in ("memory", "mapped"))
    assert memory.keys() == mapped.keys()
    for name, tensor in memory.items():
        np.testing.assert_array_equal(mapped[name], tensor, err_msg=name)
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    with pytest.raises(UsageError, match="cache FOLDER"):
        train(tarred, tmp_path / "large.safetensors", **how)
    train(tarred, tmp_path / "large.safetensors", cache=tmp_path / "cache", **how)


def test_processes_share_one_cache(photos, tmp_path):
    code = f"""
from pathlib import Path
from stochcl.data import Preprocess, open_source
from stochcl.training.images import read_images
told = []
images = read_images(
    [open_source({str(photos)!r})], Preprocess(16), cache=Path({str(tmp_path / "cache")!r}),
    progress=lambda done, total: told.append(done),
)
print(told[0], len(images.train))
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(process.communicate(timeout=60)[0].split() for process in running)
    assert said == [["0", "19"], ["21", "19"], ["21", "19"]]


def test_training_takes_a_pattern_of_shards(tarred, tmp_path):
    how = {"epochs": 0, "width": 4, "size": 32, "latents": 8, "decoder": (8,), "device": "cpu", "latent_steps": 0}
    report = train([tmp_path / "shard-{0..1}.tar"], tmp_path / "model.safetensors", cache=tmp_path / "cache", **how)
    assert report.images == 19
