"""Small archives: what is not codes takes a few hundred bytes."""

import numpy as np
import pytest

import stochcl
from stochcl.compress import Archive


@pytest.fixture(scope="module")
def codec():
    return stochcl.load()


@pytest.mark.parametrize(("count", "most"), [(1, 400), (10, 800)])
def test_few_images_of_the_default_model_take_few_bytes(codec, count, most, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    names = [f"holiday photographs/IMG_{2041 + i}.jpeg" for i in range(count)]
    with stochcl.writer(tmp_path / "a", codec) as writer:
        writer.add(images, names)
    with Archive(tmp_path / "a") as archive:
        archive.verify()
        assert list(archive.names) == names
        np.testing.assert_array_equal(archive.to_numpy(), codec.encode(images).symbols())
        parts = archive.parts()
    assert archive.size < most
    assert parts["header"] + parts["index"] < 240
