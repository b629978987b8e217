"""The operations of RandAugment against Pillow, which they are defined by."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from stochcl.training import augment as operations
from stochcl.training.augment import OPERATIONS, apply_each


@pytest.fixture
def photo():
    """A soft image that does not fill the range, uint8, shape (24, 24, 3)."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(30, 220, (4, 4, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((24, 24), Image.Resampling.BICUBIC))


def ours(operation, photo, amount):
    images = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    return operation(images, torch.tensor([amount]))[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", "Brightness"), ("contrast", "Contrast"), ("colour", "Color"), ("sharpness", "Sharpness")],
)
@pytest.mark.parametrize("amount", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_blends_are_pillow_s(photo, name, enhance, amount):
    expected = getattr(ImageEnhance, enhance)(Image.fromarray(photo)).enhance(1 + 0.9 * amount)
    found = ours(getattr(operations, name), photo, amount)
    assert np.abs(found - np.asarray(expected, float)).max() <= 2  # Pillow rounds at every step


def test_equalise_is_pillow_s(photo):
    assert np.array_equal(ours(operations.equalise, photo, 0.3), ImageOps.equalize(Image.fromarray(photo)))


def test_autocontrast_is_pillow_s(photo):
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(photo)), float)
    assert np.abs(ours(operations.autocontrast, photo, 0.3) - expected).max() <= 1


@pytest.mark.parametrize(("amount", "bits"), [(0.0, 8), (0.5, 6), (-0.5, 6), (1.0, 4)])
def test_posterise_is_pillow_s(photo, amount, bits):
    expected = ImageOps.posterize(Image.fromarray(photo), bits)
    assert np.array_equal(ours(operations.posterise, photo, amount), expected)


@pytest.mark.parametrize("amount", [0.25, -0.25, 0.5, 1.0])
def test_solarise_is_pillow_s(photo, amount):
    expected = ImageOps.solarize(Image.fromarray(photo), 255 * (1 - abs(amount)))
    assert np.array_equal(ours(operations.solarise, photo, amount), expected)


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("shear_x", lambda a: (1, 0.3 * a, -0.3 * a * 12, 0, 1, 0)),
        ("shear_y", lambda a: (1, 0, 0, 0.3 * a, 1, -0.3 * a * 12)),
        ("shift_x", lambda a: (1, 0, 0.45 * a * 24, 0, 1, 0)),
        ("shift_y", lambda a: (1, 0, 0, 0, 1, 0.45 * a * 24)),
    ],
)
@pytest.mark.parametrize("amount", [-1.0, 0.5])
def test_moves_are_pillow_s(photo, name, matrix, amount):
    expected = Image.fromarray(photo).transform(
        (24, 24), Image.Transform.AFFINE, matrix(amount), Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )
    found = ours(getattr(operations, name), photo, amount)
    # Pillow does not blend with what lies outside: at such a border they differ.
    differs = np.abs(found - np.asarray(expected, float)).max(axis=2) > 1.5
    assert differs.mean() < 0.1
    assert not np.allclose(found, photo, atol=5)


@pytest.mark.parametrize("amount", [-1.0, 1.0])
def test_rotate_is_pillow_s(photo, amount):
    expected = Image.fromarray(photo).rotate(30 * amount, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)
    inside = np.s_[4:-4, 4:-4]
    assert np.abs(ours(operations.rotate, photo, amount)[inside] - np.asarray(expected, float)[inside]).max() <= 2


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.__name__)
def test_flat_images_and_amounts_of_nothing_are_harmless(operation):
    for value in (0, 7, 255):
        out = operation(torch.full((2, 3, 8, 8), float(value)), torch.tensor([0.0, 1.0]))
        assert out.isfinite().all()
        assert ((out >= 0) & (out <= 255)).all()


def test_each_image_gets_its_own():
    images = torch.rand(len(OPERATIONS), 3, 12, 12) * 255
    amount = torch.linspace(-1, 1, len(images))
    order = torch.randperm(len(images))
    out = apply_each(images, order, amount)
    for i, which in enumerate(order.tolist()):
        alone = OPERATIONS[which](images[i : i + 1], amount[i : i + 1])
        torch.testing.assert_close(out[i : i + 1], alone)
    assert torch.equal(out[order == 0], images[order == 0])
