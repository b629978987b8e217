"""Sprites show the factors that they are made from."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stochcl.data import read_labels
from stochcl.data.array import row_names
from stochcl.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from sprites import FACTORS, PLACES, SCALES, SHAPES, TURN, make_sprites
from sprites import sprites as command


def moments(images):
    """Mass, centre and covariance of white on black, in parts of the side."""
    side = images.shape[1]
    mass = images[..., 0] / 255 / side**2
    at = (np.arange(side) + 0.5) / side
    total = mass.sum((1, 2))
    x, y = (mass.sum(1) @ at) / total, (mass.sum(2) @ at) / total
    dx, dy = at - x[:, None], at - y[:, None]
    xx = (mass.sum(1) * dx**2).sum(1) / total
    yy = (mass.sum(2) * dy**2).sum(1) / total
    xy = np.einsum("nij,ni,nj->n", mass, dy, dx) / total
    return total, x, y, xx, yy, xy


def test_the_figure_is_where_and_as_large_as_the_factors_say():
    sprites = make_sprites(300, size=64, plain=True)
    total, x, y, *_ = moments(sprites.images)
    square = sprites.shape == 0
    np.testing.assert_allclose(total[square], (1.4 * sprites.scale[square]) ** 2, rtol=0.01)
    even = sprites.shape < 2  # a heart's centre is not that of its mass
    np.testing.assert_allclose(x[even], sprites.x[even], atol=1e-3)
    np.testing.assert_allclose(y[even], sprites.y[even], atol=1e-3)
    np.testing.assert_allclose(x, sprites.x, atol=0.02)


def test_an_ellipse_is_turned_clockwise_by_its_rotation():
    sprites = make_sprites(300, size=128, plain=True)
    *_, xx, yy, xy = moments(sprites.images)
    angle = np.rad2deg(np.arctan2(2 * xy, xx - yy)) / 2
    rows = sprites.shape == 1
    np.testing.assert_allclose(angle[rows], sprites.rotation[rows], atol=0.5)


def test_edges_are_smooth_and_no_figure_leaves_the_image():
    images = make_sprites(500, size=32, plain=True).images[..., 0]
    assert ((images > 0) & (images < 255)).any((1, 2)).all()
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    assert border.max() <= 128  # a corner's half pixel


def test_factors_are_independent_and_within_what_they_may_be():
    sprites = make_sprites(3000, size=8)
    assert set(sprites.shape) == set(range(len(SHAPES)))
    for name, (low, high) in {"scale": SCALES, "x": PLACES, "y": PLACES, "rotation": (-TURN, TURN)}.items():
        values = getattr(sprites, name)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    correlation = np.corrcoef(sprites.factors().T) - np.eye(len(FACTORS))
    assert np.abs(correlation).max() < 0.08


def test_factors_depend_on_the_seed_and_not_on_size_or_colour():
    a, b, c = make_sprites(20, size=16), make_sprites(20, size=32, colour=True), make_sprites(20, size=16, seed=1)
    np.testing.assert_array_equal(a.factors(), b.factors())
    assert (a.factors() != c.factors()).all(axis=0)[1:].all()
    np.testing.assert_array_equal(a.images, make_sprites(20, size=16).images)
    assert a.images.shape == (20, 16, 16, 1)
    assert b.images.shape == (20, 32, 32, 3)


@pytest.mark.parametrize("colour", [False, True])
def test_figure_and_ground_differ_in_brightness_either_way(colour):
    sprites = make_sprites(200, size=32, colour=colour)
    luma = sprites.images @ np.array([0.299, 0.587, 0.114]) if colour else sprites.images[..., 0].astype(float)
    centre = luma[np.arange(200), (32 * sprites.y).astype(int), (32 * sprites.x).astype(int)]
    difference = centre - luma[:, 0, 0]
    assert np.abs(difference).min() > 0.34 * 255
    assert 0.3 < (difference > 0).mean() < 0.7


def test_chunks_do_not_show(monkeypatch):
    whole = make_sprites(10, size=16)
    monkeypatch.setattr("sprites._CHUNK_PIXELS", 3 * 16**2)
    np.testing.assert_array_equal(whole.images, make_sprites(10, size=16).images)


def test_the_table_is_one_that_evaluation_reads(tmp_path):
    sprites = make_sprites(12, size=8)
    names = row_names(range(12), 12)
    path = tmp_path / "factors.csv"
    path.write_text(sprites.table(names))
    labels = read_labels(path)
    assert labels.columns == FACTORS
    assert labels.match(names) == tuple(SHAPES[i] for i in sprites.shape)
    np.testing.assert_allclose(np.array(labels.match(names, "x"), np.float64), sprites.x, atol=1e-6)


@pytest.mark.parametrize("bad", [{"count": 0}, {"size": 4}, {"size": 1000}, {"seed": -1}])
def test_what_cannot_be_drawn_is_refused(bad):
    with pytest.raises(UsageError, match="sprites are"):
        make_sprites(**{"count": 1, "size": 16, "seed": 0} | bad)


def invoke(*arguments, code=0):
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def test_what_is_made_is_a_folder_that_commands_take(tmp_path):
    folder = tmp_path / "sprites"
    found = json.loads(invoke("-o", folder, "--images", 60, "--size", 32, "--json").stdout)
    assert set(found) == {"schema", "images", "size", "seed", "colour", "plain", "columns", "paths", "bytes"}
    assert found["schema"] == "stochcl.sprites/0"
    assert np.load(folder / "images.npy").shape == (60, 32, 32, 1)
    assert read_labels(folder / "factors.csv").columns == FACTORS
    assert "60 images of 32 pixels" in invoke("-o", folder, "--images", 60, "--size", 32, "--force").stdout


def test_files_that_are_there_and_folders_that_cannot_be_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ["-o", tmp_path / "new", "--images", 3, "--size", 8]
    invoke(*arguments)
    for words, where, code in (("pass --force", "new", 2), ("cannot be written", "file", 1)):
        refused = invoke("-o", tmp_path / where, "--images", 3, "--size", 8, code=code)
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1
