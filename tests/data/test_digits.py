import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stochcl.codes import folder_label
from stochcl.data import Preprocess
from stochcl.data.builtin import DigitsSource


def test_every_digit_is_there_once_under_its_label():
    source, digits = DigitsSource(), load_digits()
    assert len(source) == len(digits.target) == 1797
    names = [entry.name for entry in source.entries]
    assert names == sorted(set(names))
    labels = [int(folder_label(name)) for name in names]
    assert np.array_equal(np.bincount(labels), np.bincount(digits.target))
    for i in (0, 700, 1796):
        k = int(names[i].split("/")[1][:3])
        expected = np.rint(digits.images[np.flatnonzero(digits.target == labels[i])[k]] * 255 / 16)
        assert np.array_equal(source.load(i, Preprocess(8))[:, :, 0], expected)


def test_an_image_is_what_its_file_would_be(tmp_path):
    source, preprocess = DigitsSource(), Preprocess(32)
    (tmp_path / "digit.png").write_bytes(source._read(5))
    with Image.open(tmp_path / "digit.png") as image:
        assert np.array_equal(preprocess.convert(image), source.load(5, preprocess))
