"""stochcl.writer: images of a loader, or codes, into an archive."""

import numpy as np
import pytest
import torch
from PIL import Image

import stochcl
from stochcl.errors import UsageError
from tests.making import LATENTS, make_pixels


@pytest.fixture
def pixels():
    return np.stack([make_pixels(i, i)[:, :40] for i in range(11)])


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda part: list(map(Image.fromarray, part))])
def test_images_and_their_codes_give_the_same_archive(model, codec, pixels, tmp_path, kind):
    names = [f"{'ab'[i % 2]}/{i}" for i in range(11)]
    with stochcl.writer(tmp_path / "a.bin", model=model, device="cpu") as out:
        for start in range(0, 11, 4):
            out.add(kind(pixels[start : start + 4]), names[start : start + 4])
        out.add([], [])
    with stochcl.writer(tmp_path / "b.bin", codec) as out:
        out.add(codec.encode(pixels), names)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert archive.names == tuple(names)
        assert archive.labels == tuple("ab"[i % 2] for i in range(11))
        np.testing.assert_array_equal(archive.to_numpy(), codec.encode(pixels).symbols())


def test_width_labels_and_uncertainty_are_stored_where_asked_for(codec, pixels, tmp_path):
    with stochcl.writer(tmp_path / "a.bin", codec, latents=LATENTS // 2, uncertainty=True) as out:
        out.add(pixels, labels=range(11))
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert archive.header.latents == LATENTS // 2
        assert archive.names is None
        assert archive.labels == tuple(map(str, range(11)))
        assert (archive[:].uncertainty > 0).all()


@pytest.mark.parametrize("texts", [["a"], "abcdefghijk"])
@pytest.mark.parametrize("what", ["names", "labels"])
def test_as_many_names_and_labels_as_rows(codec, pixels, tmp_path, what, texts):
    with pytest.raises(UsageError, match=f"11 rows in this batch, and not as many {what}"):  # noqa: SIM117
        with stochcl.writer(tmp_path / "a.bin", codec) as out:
            out.add(pixels, **{what: texts})
    assert list(tmp_path.iterdir()) == []


def test_codec_and_model_are_not_both_given(codec, model, tmp_path):
    with pytest.raises(UsageError, match="give either"):
        stochcl.writer(tmp_path / "a.bin", codec, model=model)


def test_no_label_is_no_label_and_a_tensor_is_its_number(codec, pixels, tmp_path):
    given = [None, float("nan"), np.float32("nan"), -1, "", "  ", torch.tensor(0), np.array(3), "nan", "NA", b"cat"]
    with stochcl.writer(tmp_path / "a.bin", codec) as out:
        out.add(pixels, labels=given)
    with stochcl.open(tmp_path / "a.bin") as archive:
        assert archive.labels == ("", "", "", "", "", "", "0", "3", "nan", "NA", "cat")
