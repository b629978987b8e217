"""The fused augmentation is what kornia's chain of operations does, part by part."""

import math

import kornia
import pytest
import torch

from stochcl.training.augment import Augmentation, keyed_uniform

ROWS = 6
KEYS = torch.arange(ROWS)


@pytest.fixture
def images():
    """Soft images whose colours stay inside their range whatever is done to them, so that nothing is clipped."""
    coarse = torch.rand(ROWS, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 60 + 80
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")


def coloured(images, column, value, *, strength=0.5):
    """Views in which one number alone decides what is done to the colours, of unit 0..1."""
    u = torch.full((ROWS, 13), 0.5)
    u[:, 10] = 1  # not grey
    u[:, column] = value
    matrix, offset = Augmentation(16, strength=strength, jitter=1)._colour(u, images.mean((2, 3)))
    return torch.baddbmm(offset[:, :, None], matrix, images.flatten(2)).view_as(images) / 255


@pytest.mark.parametrize("value", [0.0, 0.3, 0.9])
def test_brightness(images, value):
    expected = kornia.enhance.adjust_brightness_accumulative(images / 255, 1 + 0.4 * (2 * value - 1))
    torch.testing.assert_close(coloured(images, 6, value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.9])
def test_contrast(images, value):
    expected = kornia.enhance.adjust_contrast_with_mean_subtraction(images / 255, 1 + 0.4 * (2 * value - 1))
    torch.testing.assert_close(coloured(images, 7, value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.9])
def test_saturation(images, value):
    expected = kornia.enhance.adjust_saturation_with_gray_subtraction(images / 255, 1 + 0.4 * (2 * value - 1))
    torch.testing.assert_close(coloured(images, 8, value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.9])
def test_hue(images, value):
    # A rotation of the two chroma axes, YIQ's or YUV's, which differ by 33 degrees and a mirroring. (kornia's
    # adjust_hue turns the angle of HSV, which leaves the largest channel as large rather than the luma.)
    y, u, v = kornia.color.rgb_to_yuv(images / 255).unbind(1)
    angle = -2 * math.pi * 0.1 * (2 * value - 1)
    turned = torch.stack([y, u * math.cos(angle) - v * math.sin(angle), u * math.sin(angle) + v * math.cos(angle)], 1)
    expected = kornia.color.yuv_to_rgb(turned)
    # The published constants of the two spaces agree to three digits.
    torch.testing.assert_close(coloured(images, 9, value), expected, rtol=0, atol=3e-3)
    if value != 0.5:
        assert (expected - images / 255).abs().max() > 0.02


def test_grey(images):
    expected = kornia.color.rgb_to_grayscale(images / 255).expand(-1, 3, -1, -1)
    torch.testing.assert_close(coloured(images, 10, 0.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("side", "size"), [(16, 16), (16, 12), (16, 24)])
def test_crop_resize_and_flip(images, side, size):
    augmentation = Augmentation(size, jitter=0, grey=0)
    u = keyed_uniform(KEYS, 3, 0, 13)
    area, ratio = 0.2 + 0.8 * u[:, 0], torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
    width, height = (side * (area * ratio).sqrt()).clamp(max=side), (side * (area / ratio).sqrt()).clamp(max=side)
    left, top = u[:, 2] * (side - width), u[:, 3] * (side - height)
    # From a pixel of the view to the place in the image that its middle lies on, and back for kornia.
    to_image = torch.zeros(ROWS, 3, 3)
    to_image[:, 0, 0], to_image[:, 0, 2] = width / size, left + width / size / 2 - 0.5
    to_image[:, 1, 1], to_image[:, 1, 2] = height / size, top + height / size / 2 - 0.5
    to_image[:, 2, 2] = 1
    expected = kornia.geometry.warp_affine(
        images, torch.linalg.inv(to_image)[:, :2], (size, size), padding_mode="border", align_corners=True
    )
    flipped = u[:, 4] < 0.5
    assert 0 < flipped.sum() < ROWS
    expected = torch.where(flipped[:, None, None, None], kornia.geometry.hflip(expected), expected)
    torch.testing.assert_close(augmentation(images, KEYS, 3, 0), expected, rtol=1e-3, atol=0.05)


def test_blur_is_kornia_s_with_deviations_of_its_own_for_every_view(images):
    still = {"area": (1.0, 1.0), "ratio": 1.0, "jitter": 0.0, "grey": 0.0, "flip": False}
    images = images.repeat(1, 1, 2, 2)
    sharp = Augmentation(32, **still)(images, KEYS, 0, 0)
    u = keyed_uniform(KEYS, 0, 0, 13)
    deviation = (0.1 + 1.9 * u[:, 12, None]).expand(-1, 2)
    expected = kornia.filters.gaussian_blur2d(sharp, (3, 3), deviation)
    blurred = Augmentation(32, blur=1.0, **still)(images, KEYS, 0, 0)
    torch.testing.assert_close(blurred, expected)
    assert blurred.is_contiguous(memory_format=torch.channels_last)
    some = Augmentation(32, blur=0.5, **still)(images, KEYS, 0, 0)
    chosen = u[:, 11] < 0.5
    assert 0 < chosen.sum() < ROWS
    assert torch.equal(some[~chosen], sharp[~chosen])
    torch.testing.assert_close(some[chosen], expected[chosen])


def test_what_is_not_to_be_mirrored_is_not():
    ramp = torch.linspace(0, 255, 8).expand(64, 3, 8, 8)
    views = Augmentation(8, jitter=0, grey=0, flip=False)(ramp, torch.arange(64), 0, 0)
    assert (views[:, 0, :, 0] < views[:, 0, :, -1]).all()
