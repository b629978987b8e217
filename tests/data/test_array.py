"""Images in a .npy array, and the .npy files that are neither images nor embeddings."""

import pickle

import numpy as np
import pytest

from stochcl.data import ArraySource, Preprocess, open_source
from stochcl.data.array import row_names
from stochcl.errors import SourceError
from tests.making import every


@pytest.fixture
def saved(tmp_path):
    def write(array, name="a.npy", **options):
        path = tmp_path / name
        np.save(path, array, **options)
        return path

    return write


def test_images_by_row(saved, pixels):
    images = np.stack([pixels(12, 8), 255 - pixels(12, 8)])
    path = saved(images)
    source = open_source(path)
    assert isinstance(source, ArraySource)
    assert source.kind == "array"
    assert [e.name for e in source.entries] == ["0000000", "0000001"]
    assert source.entries[0].size == 12 * 8 * 3
    assert np.array_equal(source.load(1, Preprocess(8)), 255 - pixels(12, 8)[:, 2:10])
    (batch,) = source.batches(Preprocess(8), workers=2)
    assert batch.images.shape == (2, 8, 8, 3)
    assert sum(batch.sizes) == images.nbytes


def test_grey_and_fortran_order(saved, pixels):
    grey = pixels(8, 8)[None, :, :, :1]
    for array in (grey, np.asfortranarray(grey)):
        result = open_source(saved(array)).load(0, Preprocess(8))
        assert np.array_equal(result, np.repeat(grey[0], 3, axis=2))


def test_arrays_pickle(saved, pixels):
    source = open_source(saved(pixels(8, 8)[None]))
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.load(0, Preprocess(8)), source.load(0, Preprocess(8)))


def test_row_names_keep_their_order_beyond_seven_digits():
    assert row_names(range(9_999_999, 10_000_001), 20_000_000) == ("09999999", "10000000")


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(5, np.float32), "float32 of 5;"),
        (np.float32(3), "float32 of no dimension"),
        (np.zeros((2, 3, 4), np.float32), "float32 of 2 x 3 x 4"),
        (np.zeros((2, 3), np.int64), "int64 of 2 x 3"),
        (np.zeros((2, 3), np.complex64), "complex64 of 2 x 3"),
        (np.zeros((2, 3), np.uint8), "uint8 of 2 x 3"),
        (np.zeros((2, 3), bool), "bool of 2 x 3"),
        (np.array([["a"]]), "<U1 of 1 x 1"),
        (np.zeros((2, 8, 8, 3), np.float32), "images are uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), "transpose it"),
        (np.zeros((2, 8, 8, 4), np.uint8), "uint8 of 2 x 8 x 8 x 4"),
        (np.zeros((2, 8, 8), np.uint8), r"last dimension with \[\.\.\., None\]"),
        (np.zeros((0, 8), np.float32), "0 x 8: it is empty"),
        (np.zeros((8, 0), np.float32), "8 x 0: it is empty"),
        (np.zeros((0, 8, 8, 3), np.uint8), "it is empty"),
    ],
)
def test_other_arrays_are_refused_with_what_was_found(saved, array, found):
    with pytest.raises(SourceError, match=found):
        open_source(saved(array))


def test_pickled_objects_are_never_loaded(saved):
    path = saved(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match=r"Python objects \(a pickle\), which are never loaded"):
        open_source(path)
    path.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(SourceError, match="not a NumPy array, or its beginning is damaged"):
        open_source(path)


@pytest.mark.parametrize("shape", [(40, 8), (3, 4, 4, 3)])
def test_every_truncation_and_a_damaged_header(saved, shape):
    path = saved(np.ones(shape, np.float32 if len(shape) == 2 else np.uint8))
    data = path.read_bytes()
    for length in sorted({*range(0, len(data), every(5)), len(data) - 1}):
        path.write_bytes(data[:length])
        with pytest.raises(SourceError):
            open_source(path)
    for at in range(0, 128, every(3)):
        damaged = bytearray(data)
        damaged[at] ^= 0x15
        path.write_bytes(damaged)
        try:
            open_source(path)
        except SourceError:
            continue


def test_npz_says_what_to_do(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((2, 3), np.float32))
    with pytest.raises(SourceError, match=r"save the array .* as \.npy"):
        open_source(path)


def test_images_that_are_too_large(saved, monkeypatch):
    monkeypatch.setattr("stochcl.data.array.MAX_PIXELS", 60)
    with pytest.raises(SourceError, match="exceed 60"):
        open_source(saved(np.zeros((1, 8, 8, 3), np.uint8)))
