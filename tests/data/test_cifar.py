"""CIFAR-10 as published, generated in that layout."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import stochcl
from stochcl.data import Preprocess, open_source
from stochcl.data.builtin import Cifar10Source
from stochcl.errors import SourceError

NAMES = ["airplane", "automobile", "bird"]


def write_batch(path, rows, seed, protocol=2, changes=None):
    """A batch as Python 2 wrote it: byte strings for keys and names."""
    rng = np.random.default_rng(seed)
    batch = {
        b"batch_label": b"a batch",
        b"labels": [int(n) for n in rng.integers(0, 3, rows)],
        b"data": rng.integers(0, 256, (rows, 3072), np.uint8),
        b"filenames": [b"kind_s_%06d.png" % n for n in rng.permutation(1000)[:rows]],
    } | (changes or {})
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
    return batch


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i in range(1, 3):
        write_batch(folder / f"data_batch_{i}", 6, i)
    write_batch(folder / "test_batch", 4, 9)
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in NAMES]}, protocol=2))
    (folder / "readme.html").write_text("about")
    return folder


def test_a_folder_is_its_training_batches_in_the_order_of_names(published):
    source = open_source(published)
    assert isinstance(source, Cifar10Source)
    batches = [pickle.loads((published / f"data_batch_{i}").read_bytes()) for i in (1, 2)]
    expected = {}
    for batch in batches:
        for label, name, data in zip(batch[b"labels"], batch[b"filenames"], batch[b"data"], strict=True):
            expected[f"{NAMES[label]}/{name.decode()}"] = data.reshape(3, 32, 32).transpose(1, 2, 0)
    assert [e.name for e in source.entries] == sorted(expected)
    for i, entry in enumerate(source.entries):
        assert np.array_equal(source.load(i, Preprocess(32)), expected[entry.name])
    (batch,) = source.batches(Preprocess(16), workers=2)
    assert batch.images.shape == (12, 16, 16, 3)


def test_one_batch_is_a_source_and_a_source_can_be_pickled(published):
    source = open_source(published / "test_batch")
    assert len(source) == 4
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.load(1, Preprocess(32)), source.load(1, Preprocess(32)))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_whatever_wrote_it(tmp_path, protocol):
    batch = write_batch(tmp_path / "test_batch", 3, 0, protocol)
    source = open_source(tmp_path / "test_batch")
    assert {e.name.split("/")[0] for e in source.entries} == {str(n) for n in batch[b"labels"]}  # no batches.meta
    del batch[b"filenames"]
    (tmp_path / "test_batch").write_bytes(pickle.dumps({k.decode(): v for k, v in batch.items()}, protocol=protocol))
    assert sorted(e.name.split("/")[1] for e in open_source(tmp_path / "test_batch").entries) == [
        f"test_batch-{i:05d}.png" for i in range(3)
    ]


class Harmful:
    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({b"data": Harmful()}, r"__builtin__\.print, which no batch of images needs"),
        ({b"data": np.zeros((6, 3072))}, "its data are not uint8 of N x 3072"),
        ({b"data": np.zeros((6, 3071), np.uint8)}, "its data are not uint8"),
        ({b"data": None}, "its data are not uint8"),
        ({b"labels": [0, 1]}, "no label for each of 6 images"),
        ({b"labels": [0, 1, 2, -1, 0, 0]}, "no label for each"),
        ({b"labels": [0, 1, 2, "a", 0, 0]}, "no label for each"),
        ({b"filenames": [b"../a.png"] * 6}, "a file's name is bad"),
        ({b"filenames": [b"a.png"]}, "1 names for 6 images"),
        ({b"filenames": 3}, "a file's name is bad"),
    ],
)
def test_what_is_no_batch_is_refused(published, capsys, changes, said):
    write_batch(published / "data_batch_1", 6, 1, changes=changes)
    with pytest.raises(SourceError, match=f"data_batch_1: .*{said}"):
        open_source(published)
    assert capsys.readouterr().out == ""


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "test_batch"
    write_batch(path, 1, 0)
    data = path.read_bytes()
    for end in (*range(1, 200), *range(200, len(data), 211)):
        path.write_bytes(data[:end])
        with pytest.raises(SourceError, match="test_batch: this batch of images is damaged"):
            open_source(path)


def test_another_file_of_such_a_name_is_what_it_was(tmp_path, png):
    (tmp_path / "data_batch_1").write_text("text")
    (tmp_path / "a.png").write_bytes(png)
    assert [e.name for e in open_source(tmp_path).entries] == ["a.png"]


def test_it_compresses_and_needs_no_torch_to_be_read(published, tmp_path, model):
    stochcl.load(model, device="cpu").compress(published, tmp_path / "codes.bin")
    with stochcl.open(tmp_path / "codes.bin") as archive:
        assert len(archive) == 12
        assert archive.names[0].startswith("airplane/")
    code = f"import sys, stochcl.data as d; d.open_source({str(published)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
