"""Images that tools make worse, each in a way and strength of its own."""

import sys
from pathlib import Path

import numpy as np
import pytest

from stochcl.errors import UsageError
from tests.making import make_pixels

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from corruptions import CORRUPTIONS, STRENGTHS, corrupt

IMAGES = np.stack([make_pixels(i, i)[:32, :32] for i in range(4)])


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_stronger_is_further_from_the_image(kind):
    off = []
    for strength in STRENGTHS:
        worse = corrupt(IMAGES, kind, strength)
        assert (worse.shape, worse.dtype) == (IMAGES.shape, np.uint8)
        off.append(np.abs(worse.astype(int) - IMAGES).mean())
    assert 0 < off[0] < off[2] < off[4]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_same_seed_gives_the_same_whatever_follows(kind):
    before = IMAGES.copy()
    np.testing.assert_array_equal(corrupt(IMAGES, kind, 3, seed=5)[:2], corrupt(IMAGES[:2], kind, 3, seed=5))
    np.testing.assert_array_equal(IMAGES, before)


def test_another_seed_and_another_place_give_other_noise():
    twice = np.stack([IMAGES[0], IMAGES[0]])
    found = corrupt(twice, "noise", 2)
    assert (found[0] != found[1]).any()
    assert (found != corrupt(twice, "noise", 2, seed=1)).any()


def test_contrast_keeps_the_mean_and_shrinks_what_is_around_it():
    worse = corrupt(IMAGES, "contrast", 2)
    np.testing.assert_allclose(worse.mean(axis=(1, 2)), IMAGES.mean(axis=(1, 2)), atol=1)
    np.testing.assert_allclose(worse.std(axis=(1, 2)), IMAGES.std(axis=(1, 2)) / 2, atol=1)


def test_a_single_pixel_can_be_corrupted():
    for kind in CORRUPTIONS:
        assert corrupt(np.full((1, 1, 1, 3), 9, np.uint8), kind, 5).shape == (1, 1, 1, 3)


@pytest.mark.parametrize(
    ("images", "kind", "strength", "message"),
    [
        (IMAGES, "fog", 1, "there is no corruption 'fog'; there are blur"),
        (IMAGES, "blur", 6, "the strengths 1 to 5, not 6"),
        (IMAGES / 255, "blur", 1, "images are uint8"),
        (IMAGES[0], "blur", 1, "images are uint8"),
    ],
)
def test_what_is_none_is_refused(images, kind, strength, message):
    with pytest.raises(UsageError, match=message):
        corrupt(images, kind, strength)
