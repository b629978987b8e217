"""The fused augmentation is what a chain of operations does, part by part, each by its formula."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from stochcl.training.augment import Augmentation, counter_rng

ROWS = 6
LUMA = torch.tensor([0.299, 0.587, 0.114])
KEYS = torch.arange(ROWS)


@pytest.fixture
def images():
    """Soft images whose colours stay inside their range whatever is done to them, so that nothing is clipped."""
    coarse = torch.rand(ROWS, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 60 + 80
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")


def luma(images):
    return (images * LUMA[:, None, None]).sum(1, keepdim=True)


def coloured(images, column, value, *, strength=0.5):
    """Views in which one number alone decides what is done to the colours, of unit 0..1."""
    u = torch.full((ROWS, 13), 0.5)
    u[:, 10] = 1  # not grey
    u[:, column] = value
    matrix, offset = Augmentation(16, strength=strength, jitter=1)._colour(u, images.mean((2, 3)))
    return torch.baddbmm(offset[:, :, None], matrix, images.flatten(2)).view_as(images) / 255


@pytest.mark.parametrize("value", [0.0, 0.3, 0.9])
def test_brightness(images, value):
    expected = images / 255 * (1 + 0.4 * (2 * value - 1))
    torch.testing.assert_close(coloured(images, 6, value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.9])
def test_contrast(images, value):
    mean = luma(images / 255).mean((2, 3), keepdim=True)
    expected = mean + (images / 255 - mean) * (1 + 0.4 * (2 * value - 1))
    torch.testing.assert_close(coloured(images, 7, value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.9])
def test_saturation(images, value):
    grey = luma(images / 255)
    expected = grey + (images / 255 - grey) * (1 + 0.4 * (2 * value - 1))
    torch.testing.assert_close(coloured(images, 8, value), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.9])
def test_hue(images, value):
    # A rotation of the two chroma axes, YIQ's or YUV's, which differ by 33 degrees and a mirroring.
    y = luma(images / 255)[:, 0]
    u, v = 0.492 * (images[:, 2] / 255 - y), 0.877 * (images[:, 0] / 255 - y)
    angle = -2 * math.pi * 0.1 * (2 * value - 1)
    u, v = u * math.cos(angle) - v * math.sin(angle), u * math.sin(angle) + v * math.cos(angle)
    red, blue = y + v / 0.877, y + u / 0.492
    expected = torch.stack([red, (y - LUMA[0] * red - LUMA[2] * blue) / LUMA[1], blue], 1)
    # The published constants of the two spaces agree to three digits.
    torch.testing.assert_close(coloured(images, 9, value), expected, rtol=0, atol=3e-3)
    if value != 0.5:
        assert (expected - images / 255).abs().max() > 0.02


def test_grey(images):
    expected = luma(images / 255).expand(-1, 3, -1, -1)
    torch.testing.assert_close(coloured(images, 10, 0.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("side", "size"), [(16, 16), (16, 12), (16, 24)])
def test_crop_resize_and_flip(images, side, size):
    augmentation = Augmentation(size, jitter=0, grey=0)
    u = counter_rng(KEYS, 3, 0, 13)
    area, ratio = 0.2 + 0.8 * u[:, 0], torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
    width, height = (side * (area * ratio).sqrt()).clamp(max=side), (side * (area / ratio).sqrt()).clamp(max=side)
    left, top = u[:, 2] * (side - width), u[:, 3] * (side - height)
    # From the middle of a pixel of the view to the place in the image, the border repeated beyond it.
    middle = (torch.arange(size) + 0.5) / size
    expected = torch.empty(ROWS, 3, size, size)
    for row in range(ROWS):
        x, y = left[row] + width[row] * middle - 0.5, top[row] + height[row] * middle - 0.5
        at = np.stack(np.meshgrid(y, x, indexing="ij"))
        for channel in range(3):
            plane = ndimage.map_coordinates(images[row, channel].numpy(), at, order=1, mode="nearest")
            expected[row, channel] = torch.from_numpy(plane)
    flipped = u[:, 4] < 0.5
    assert 0 < flipped.sum() < ROWS
    expected = torch.where(flipped[:, None, None, None], expected.flip(3), expected)
    torch.testing.assert_close(augmentation(images, KEYS, 3, 0), expected, rtol=1e-3, atol=0.05)


def test_blur_is_gaussian_with_a_deviation_of_its_own_for_every_view(images):
    still = {"area": (1.0, 1.0), "ratio": 1.0, "jitter": 0.0, "grey": 0.0, "flip": False}
    images = images.repeat(1, 1, 4, 4)  # 64 pixels: kernels of 7
    sharp = Augmentation(64, **still)(images, KEYS, 0, 0)
    u = counter_rng(KEYS, 0, 0, 13)
    expected = torch.empty(sharp.shape)
    for row, deviation in enumerate((0.1 + 1.9 * u[:, 12]).tolist()):
        blurred = ndimage.gaussian_filter(sharp[row].numpy(), deviation, axes=(1, 2), mode="mirror", radius=3)
        expected[row] = torch.from_numpy(blurred)
    blurred = Augmentation(64, blur=1.0, **still)(images, KEYS, 0, 0)
    torch.testing.assert_close(blurred, expected, rtol=1e-4, atol=1e-3)
    assert blurred.is_contiguous(memory_format=torch.channels_last)
    some = Augmentation(64, blur=0.5, **still)(images, KEYS, 0, 0)
    chosen = u[:, 11] < 0.5
    assert 0 < chosen.sum() < ROWS
    assert torch.equal(some[~chosen], sharp[~chosen])
    assert torch.equal(some[chosen], blurred[chosen])


def test_what_is_not_to_be_mirrored_is_not():
    ramp = torch.linspace(0, 255, 8).expand(64, 3, 8, 8)
    views = Augmentation(8, jitter=0, grey=0, flip=False)(ramp, torch.arange(64), 0, 0)
    assert (views[:, 0, :, 0] < views[:, 0, :, -1]).all()
