import numpy as np
import pytest
import torch

from stochcl.training.augment import StrongAugmentation

FILL = torch.full((1, 3, 1, 1), 100.0)
PLAIN = {"operations": 0, "cutout": 0.0, "flip": False}


def images(count, side=16):
    rows = torch.arange(side).float().view(1, 1, side, 1) * 8
    columns = torch.arange(side).float().view(1, 1, 1, side) * 8
    channels = [rows.expand(1, 1, side, side), columns.expand(1, 1, side, side), (rows + columns) / 2]
    return torch.cat(channels, 1).expand(count, 3, side, side).to(torch.uint8)


def views(count=64, keys=None, size=16, seed=0, **options):
    keys = torch.arange(count) if keys is None else keys
    return StrongAugmentation(size, **options)(images(len(keys)), keys, seed, 0, FILL)


def test_a_view_is_a_function_of_its_key_alone():
    together = views(keys=torch.tensor([5, 9, 2, 700]))
    assert torch.equal(together[3:], views(keys=torch.tensor([700])))
    assert torch.equal(together[[2, 0]], views(keys=torch.tensor([2, 5])))
    assert not torch.equal(together, views(keys=torch.tensor([5, 9, 2, 700]), seed=1))


def test_views_without_anything_are_the_images():
    torch.testing.assert_close(views(padding=0.0, **PLAIN), images(64).float(), atol=1e-3, rtol=0)


def test_whole_images_move_by_whole_pixels_up_to_the_padding():
    found = views(400, padding=0.125, **PLAIN)
    torch.testing.assert_close(found, found.round(), atol=1e-3, rtol=0)
    # The middle row and column of a view, in pixels of the image.
    rows, columns = (found[:, i, 8, 8] / 8 - 8 for i in (0, 1))
    for moved in (rows, columns):
        assert sorted(set(moved.round().int().tolist())) == [-2, -1, 0, 1, 2]
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.2


def test_beyond_the_border_images_are_reflected():
    found = views(400, padding=0.125, **PLAIN)
    down = found[(found[:, 0, 8, 8] / 8).round() == 10][0]  # moved two rows down: the last two are mirrored
    assert (down[0, -3:, 0] / 8).round().tolist() == [15, 15, 14]


def test_every_second_image_is_mirrored():
    found = views(400, padding=0.0, operations=0, cutout=0.0)
    mirrored = found[:, 1, 0, 0] > found[:, 1, 0, -1]
    assert 0.4 < mirrored.float().mean() < 0.6
    torch.testing.assert_close(found[mirrored][0].flip(2), images(1)[0].float(), atol=1e-3, rtol=0)


def test_smaller_windows_have_the_areas_asked_for():
    found = views(400, padding=0.0, area=0.25, **PLAIN)
    side = (found[:, 1, 8, -1] - found[:, 1, 8, 0]) / (8 * 15)
    assert side.min() > 0.48
    assert side.max() < 1.01
    assert abs(side.square().mean() - 0.625) < 0.05
    assert found[:, :2].min() >= 0
    assert found[:, :2].max() <= 120


@pytest.mark.parametrize("size", [8, 11])
def test_smaller_views_are_pieces_of_the_image_at_its_own_scale(size):
    found = views(400, size=size, padding=0.0, **PLAIN)
    torch.testing.assert_close(found, found.round(), atol=1e-3, rtol=0)
    steps = found[:, 1, :, 1:] - found[:, 1, :, :-1]
    torch.testing.assert_close(steps, torch.full_like(steps, 8.0), atol=2e-3, rtol=0)
    first = (found[:, 0, 0, 0] / 8).round().int()
    assert sorted(set(first.tolist())) == list(range(16 - size + 1))


def test_views_may_be_smaller_than_images():
    assert views(3, size=8).shape == (3, 3, 8, 8)
    assert views(3, size=8).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("cutout", "side"), [(0.25, 4), (0.5, 8)])
def test_a_square_is_cut_out_with_its_middle_in_the_view(cutout, side):
    options = PLAIN | {"cutout": cutout, "padding": 0.0}
    hole = (views(600, **options) == 100).all(dim=1)
    height, width = hole.any(dim=2).sum(1), hole.any(dim=1).sum(1)
    assert (height * width == hole.sum(dim=(1, 2))).all()
    assert height.max() == width.max() == side
    assert height.min() >= side // 2
    covered = hole.float().mean(0)
    assert covered[8, 8] == pytest.approx(cutout**2, abs=0.05)
    assert covered[0, 0] == pytest.approx(cutout**2 / 4, abs=0.05)


def test_operations_are_drawn_and_their_strength_is_kept():
    plain = views(300, padding=0.0, **PLAIN)
    one, none = (views(300, padding=0.0, **PLAIN | {"operations": 1}, strength=strength) for strength in (1.0, 0.0))
    changed = (one - plain).abs().amax(dim=(1, 2, 3)) > 1
    assert 0.7 < changed.float().mean() < 1
    # Without strength only those change an image whose amount does not matter: two of fourteen.
    moved = ((none - plain).abs().amax(dim=(1, 2, 3)) > 1).float().mean()
    assert 0.05 < moved < 0.3
    three = views(300, padding=0.0, **PLAIN | {"operations": 3})
    assert (three - plain).abs().mean() > (one - plain).abs().mean()
