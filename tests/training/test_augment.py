import pytest
import torch

from stochcl.training.augment import _RGB_TO_YIQ, Augmentation

LUMA = torch.tensor(_RGB_TO_YIQ[0])
STILL = {"area": (1.0, 1.0), "ratio": 1.0, "strength": 0.0, "grey": 0.0}
KEYS = torch.arange(64)


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def ramps(rows, side):
    """Images whose red channel is the column and whose green channel is the row, 0 to 255 at the centres."""
    line = torch.linspace(0, 255, side)
    x, y = line.expand(side, side), line[:, None].expand(side, side)
    return torch.stack([x, y, torch.zeros(side, side)]).expand(rows, 3, side, side)


@pytest.mark.parametrize("size", [8, 16, 24])
def test_views_have_the_shape_type_and_range_that_they_say(images, size):
    views = Augmentation(size, strength=1.0)(images, KEYS, 0, 0)
    assert views.shape == (64, 3, size, size)
    assert views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert views.min() >= 0
    assert views.max() <= 255
    assert views.std() > 10


def test_without_any_strength_a_view_is_the_image_or_its_mirror_image(images):
    views = Augmentation(16, **STILL)(images, KEYS, 0, 0)
    pixels = images.float()
    same = [torch.allclose(v, p, atol=0.01) for v, p in zip(views, pixels, strict=True)]
    flipped = [torch.allclose(v, p.flip(-1), atol=0.01) for v, p in zip(views, pixels, strict=True)]
    assert all(a != b for a, b in zip(same, flipped, strict=True))
    assert any(same)
    assert any(flipped)


def test_a_view_is_a_function_of_its_image_and_key_alone(images):
    augmentation = Augmentation(16)
    views = augmentation(images, KEYS, 0, 0)
    part = augmentation(images[10:13], KEYS[10:13], 0, 0)
    torch.testing.assert_close(part, views[10:13], rtol=0, atol=1e-3)
    for seed, stream, keys in [(1, 0, KEYS), (0, 1, KEYS), (0, 0, KEYS + 64)]:
        assert not torch.allclose(augmentation(images, keys, seed, stream), views, atol=5)


def test_half_of_the_views_are_mirrored():
    views = Augmentation(8, **STILL)(ramps(4000, 8), torch.arange(4000), 0, 0)
    mirrored = views[:, 0, :, 0] > views[:, 0, :, -1]
    assert (mirrored == mirrored[:, :1]).all()
    assert mirrored[:, 0].float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_crops_have_the_areas_shapes_and_places_that_they_should():
    augmentation = Augmentation(16, area=(0.2, 1.0), ratio=4 / 3, strength=0, grey=0)
    side = 64
    views = augmentation(ramps(4000, side), torch.arange(4000), 0, 0)
    # Neighbours of a view are 1/16 of its crop apart, pixels of a ramp 1/64 of the image and 255/63 of value.
    per_pixel = 255 / (side - 1)
    width = (views[:, 0, 8, 9] - views[:, 0, 8, 8]).abs() / per_pixel * 16 / side
    height = (views[:, 1, 9, 8] - views[:, 1, 8, 8]).abs() / per_pixel * 16 / side
    assert (views[:, 1, 9, 8] > views[:, 1, 8, 8]).all()  # never upside down
    area = width * height
    assert area.min().item() == pytest.approx(0.2, abs=0.01)
    assert area.mean().item() == pytest.approx(0.6, abs=0.02)  # the widest, longest ones are cut off
    inside = area < 0.7  # where neither side is cut off at the image's
    ratio = (width / height)[inside].log() / torch.tensor(4 / 3).log()
    assert ratio.abs().max() < 1.05
    assert ratio.mean().item() == pytest.approx(0, abs=0.05)
    assert ratio.std().item() == pytest.approx(1 / 3**0.5, abs=0.05)
    centre = views[:, :2, 7:9, 7:9].mean((2, 3)) / 255
    assert centre.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    room = (1 - torch.stack([width, height], 1)) / 2
    assert ((centre - 0.5).abs() <= room + 0.02).all()  # no crop leaves the image
    assert ((centre - 0.5).abs() > 0.9 * room)[room > 0.1].float().mean() > 0.05  # and some touch its border


@pytest.mark.parametrize("chance", [0.0, 0.2, 1.0])
def test_grey_is_grey_and_as_frequent_as_it_should_be(images, chance):
    pixels = images.repeat(16, 1, 1, 1)
    views = Augmentation(16, grey=chance)(pixels, torch.arange(1024), 0, 0)
    grey = (views - views.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 0.01
    assert grey.float().mean().item() == pytest.approx(chance, abs=0.05 if 0 < chance < 1 else 0)


def test_grey_has_the_image_s_luma(images):
    views = Augmentation(16, **STILL | {"grey": 1.0})(images, KEYS, 0, 0)
    luma = torch.einsum("c,bchw->bhw", LUMA, images.float())
    torch.testing.assert_close(views.mean((1, 2, 3)), luma.mean((1, 2)), rtol=0, atol=0.05)


def test_colours_change_as_often_as_they_should(images):
    augmentation = Augmentation(16, area=(1, 1), ratio=1, jitter=0.8, grey=0)
    means = images.float().mean((2, 3)).repeat(16, 1)
    views = augmentation(images.repeat(16, 1, 1, 1), torch.arange(1024), 0, 0)
    changed = (views.mean((2, 3)) - means).abs().amax(1) > 0.01
    assert changed.float().mean().item() == pytest.approx(0.8, abs=0.05)


def colour(column, value, strength=1.0):
    """The colour matrix and offset of a view of which one number alone is not in the middle."""
    u = torch.full((1, 12), 0.5)
    u[:, 10] = 1  # not grey
    u[:, column] = value
    mean = torch.tensor([[90.0, 120.0, 60.0]])
    matrix, offset = Augmentation(8, strength=strength, jitter=1)._colour(u, mean)
    return matrix[0], offset[0], mean[0]


@pytest.mark.parametrize("value", [0.0, 0.2, 0.9, 1.0])
def test_hue_rotates_colours_and_keeps_the_luma(value):
    matrix, offset, _ = colour(9, value)
    colours = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) * 255
    turned = colours @ matrix.T + offset
    torch.testing.assert_close(turned @ LUMA, colours @ LUMA, rtol=1e-4, atol=1e-2)
    yiq = torch.tensor(_RGB_TO_YIQ)
    chroma, before = (c @ yiq.T[:, 1:] for c in (turned, colours))
    torch.testing.assert_close(chroma.norm(dim=1), before.norm(dim=1), rtol=1e-4, atol=1e-2)
    cosine = (chroma * before).sum(1) / before.norm(dim=1) ** 2
    angle = torch.tensor(2 * torch.pi * 0.2 * (2 * value - 1))
    torch.testing.assert_close(cosine, angle.cos().expand(100), rtol=0, atol=1e-4)


def test_brightness_scales_contrast_keeps_the_mean_luma_saturation_every_luma():
    matrix, offset, _ = colour(6, 1.0)
    torch.testing.assert_close((matrix, offset), (1.8 * torch.eye(3), torch.zeros(3)), rtol=0, atol=1e-4)
    matrix, offset, mean = colour(7, 0.0)
    assert ((matrix @ mean + offset) @ LUMA).item() == pytest.approx((mean @ LUMA).item(), rel=1e-4)
    torch.testing.assert_close(matrix, 0.2 * torch.eye(3), rtol=0, atol=1e-4)
    matrix, offset, mean = colour(8, 0.0)
    torch.testing.assert_close(matrix.T @ LUMA, LUMA, rtol=0, atol=1e-4)
    assert (matrix @ mean).std() < 0.3 * mean.std()
    assert offset.abs().max() == 0
