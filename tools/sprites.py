"""Sprites: images of one figure each, made from known factors, to measure what codes keep of them.

python tools/sprites.py -o sprites --images 4000 --size 32
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from stochcl.cli.main import JSON, show
from stochcl.data.array import row_names
from stochcl.errors import OutputError, StochclError, UsageError, command_line
from stochcl.files import replacing
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

IMAGES, TABLE = "images.npy", "factors.csv"
SHAPES = ("square", "ellipse", "heart")

FACTORS = ("shape", "scale", "rotation", "x", "y")
"""A sprite's factors, in the order of its table's columns."""

SIZES = (8, 512)
"""Smallest and largest side of an image, in pixels."""

SCALES = (0.15, 0.3)  # half of a figure's extent, relative to the image's side
PLACES = (0.3, 0.7)  # range of its centre: the largest figure just fits at any angle
TURN = 40.0
"""The largest rotation of a figure in degrees, either way.

A square looks the same after 90 degrees and an ellipse after 180, so a full turn would be ambiguous. Below 45 degrees
either way, each of the three shapes shows its angle, and the angle does not wrap around.
"""

_CONTRAST = 0.35  # least difference in brightness between figure and ground
_SLENDER = 0.55  # the ellipse's short axis
_CHUNK_PIXELS = 1 << 20  # drawn at a time
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, eq=False)
class Sprites:
    """Images and their factors.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, size, size, 1), or (N, size, size, 3) in colour
    shape : ndarray of int64, shape (N,)
        Indices into ``SHAPES``.
    scale, x, y : ndarray of float64, shape (N,)
        Half of the figure's extent, and its centre from the left and from the top, as parts of the image's side.
    rotation : ndarray of float64, shape (N,)
        Degrees, clockwise, within ``TURN`` either way.
    """

    images: NDArray[np.uint8]
    shape: NDArray[np.int64]
    scale: NDArray[np.float64]
    rotation: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.images)

    def factors(self) -> NDArray[np.float64]:
        """Return the factors as numbers, shape (N, 5), in the order of ``FACTORS``; shapes as indices."""
        return np.stack([np.asarray(getattr(self, name), np.float64) for name in FACTORS], axis=1)

    def table(self, names: tuple[str, ...]) -> str:
        """Return the factors as a CSV file ``name,shape,scale,rotation,x,y``; shapes by name."""
        lines = [",".join(("name", *FACTORS))]
        for i, name in enumerate(names):
            numbers = f"{self.scale[i]:.6f},{self.rotation[i]:.4f},{self.x[i]:.6f},{self.y[i]:.6f}"
            lines.append(f"{name},{SHAPES[self.shape[i]]},{numbers}")
        return "\n".join(lines) + "\n"


def make_sprites(count: int, *, size: int = 64, seed: int = 0, colour: bool = False, plain: bool = False) -> Sprites:
    """Draw sprites: each a square, an ellipse or a heart with independent scale, angle and position.

    Figure and ground have random greys or colours that differ in brightness by at least 0.35 of the range; edges are
    antialiased. The factors depend only on the seed and the count, not on size or colour.

    Parameters
    ----------
    count : int
    size : int
        Side of an image in pixels.
    seed : int
    colour : bool
        Three channels instead of one.
    plain : bool
        White on black, so that only the five factors vary.

    Raises
    ------
    UsageError
        If a number is outside what can be drawn.

    Examples
    --------
    >>> sprites = make_sprites(4, size=16)
    >>> sprites.images.shape, [SHAPES[i] for i in sprites.shape]
    ((4, 16, 16, 1), ['heart', 'ellipse', 'ellipse', 'square'])
    """
    if count < 1 or not SIZES[0] <= size <= SIZES[1] or seed < 0:
        raise UsageError(f"sprites are at least one, of {SIZES[0]} to {SIZES[1]} pixels, with a seed of 0 or more.")
    rng = np.random.default_rng(seed)
    shape = rng.integers(0, len(SHAPES), count)
    scale = rng.uniform(*SCALES, count)
    rotation = rng.uniform(-TURN, TURN, count)
    x, y = rng.uniform(*PLACES, (2, count))
    figure, ground = _paints(rng, count, colour=colour, plain=plain)
    images = np.empty((count, size, size, figure.shape[1]), np.uint8)
    chunk = max(1, _CHUNK_PIXELS // size**2)
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        cover = _cover(shape[part], scale[part], rotation[part], x[part], y[part], size)[..., None]
        paint = ground[part, None, None] + cover * (figure - ground)[part, None, None]
        images[part] = np.rint(255 * paint)
    return Sprites(images, shape, scale, rotation, x, y)


def _paints(
    rng: np.random.Generator, count: int, *, colour: bool, plain: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw the colours of figures and grounds, each of shape (N, channels), 0..1."""
    channels = 3 if colour else 1
    if plain:
        return np.ones((count, channels), np.float32), np.zeros((count, channels), np.float32)
    low = rng.uniform(0, 1 - _CONTRAST, count)
    high = rng.uniform(low + _CONTRAST, 1)
    swap = rng.random(count) < 0.5
    greys = [np.where(swap, low, high), np.where(swap, high, low)]
    painted = []
    for grey in greys:
        luma = grey[:, None].astype(np.float32)
        if colour:  # a tint that keeps the brightness, as strong as 0..1 allows
            tint = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
            tint -= (tint @ _LUMA)[:, None]
            room = np.where(tint > 0, (1 - luma) / np.maximum(tint, 1e-6), luma / np.maximum(-tint, 1e-6)).min(axis=1)
            luma = luma + np.minimum(room, 1)[:, None] * tint
        painted.append(np.clip(luma, 0, 1))
    return painted[0], painted[1]


def _cover(
    shape: NDArray[np.int64], scale: NDArray[np.float64], rotation: NDArray[np.float64],
    x: NDArray[np.float64], y: NDArray[np.float64], size: int,
) -> NDArray[np.float32]:  # fmt: skip
    """Return each pixel's coverage by the figure, shape (N, size, size), from the distance to its edge."""
    at = ((np.arange(size, dtype=np.float32) + 0.5) / size)[None]
    across, down = (at - x[:, None].astype(np.float32))[:, None, :], (at - y[:, None].astype(np.float32))[:, :, None]
    angle = np.deg2rad(rotation).astype(np.float32)[:, None, None]
    unit = scale.astype(np.float32)[:, None, None]
    u = (np.cos(angle) * across + np.sin(angle) * down) / unit
    v = (np.cos(angle) * down - np.sin(angle) * across) / unit
    distance = np.empty_like(u)
    for kind, of in enumerate((_square, _ellipse, _heart)):
        rows = shape == kind
        distance[rows] = of(u[rows], v[rows])
    return np.clip(0.5 - distance * unit * size, 0, 1).astype(np.float32)


# Distances from a figure's edge, negative inside, in units of its scale; v points down.


def _box(u: NDArray[np.float32], v: NDArray[np.float32], half: float) -> NDArray[np.float32]:
    a, b = np.abs(u) - half, np.abs(v) - half
    outside = np.hypot(np.maximum(a, 0), np.maximum(b, 0))
    found: NDArray[np.float32] = outside + np.minimum(np.maximum(a, b), 0)
    return found


def _square(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    return _box(u, v, 0.7)


def _ellipse(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """Approximate to first order: the implicit function over the length of its gradient."""
    value = np.hypot(u, v / _SLENDER)
    slope = np.hypot(u, v / _SLENDER**2)
    found: NDArray[np.float32] = value * (value - 1) / np.maximum(slope, 1e-6)
    return found


def _heart(u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """Join a square standing on its corner with a half disc on each upper side."""
    half = 0.5
    c = np.float32(np.sqrt(0.5))
    v = v - np.float32(0.15)
    square = _box(c * (u + v), c * (v - u), half)
    disc = np.hypot(np.abs(u) - half * c, v + half * c) - half
    found: NDArray[np.float32] = np.minimum(square, disc)
    return found


def write_sprites(
    output: str | os.PathLike[str], *, images: int, size: int = 64, seed: int = 0, colour: bool = False,
    plain: bool = False, force: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make sprites, write them to a folder as ``images.npy`` and ``factors.csv``, and return a description."""
    folder = Path(output)
    paths = folder / IMAGES, folder / TABLE
    if not force and (there := [path for path in paths if path.exists()]):
        raise UsageError(f"{escape_name(there[0])}: this file exists already; pass --force to replace it.")
    made = make_sprites(images, size=size, seed=seed, colour=colour, plain=plain)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(paths[0]) as file:
            np.save(file, made.images)
        with replacing(paths[1]) as file:
            file.write(made.table(row_names(range(images), images)).encode())
    except OSError as exc:
        raise OutputError(f"{escape_name(folder)}: sprites cannot be written there: {os_reason(exc)}.") from exc
    return {
        "schema": "stochcl.sprites/0", "images": images, "size": size, "seed": seed, "colour": colour, "plain": plain,
        "columns": list(FACTORS), "paths": [escape_name(path) for path in paths],
        "bytes": sum(path.stat().st_size for path in paths),
    }  # fmt: skip


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to write to.")
@click.option("--images", required=True, type=click.IntRange(1), metavar="N", help="How many.")
@click.option("--size", type=click.IntRange(8, 512), default=64, show_default=True, metavar="PIXELS", help="Side.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the factors.")
@click.option("--colour", is_flag=True, help="In colours, not greys.")
@click.option("--plain", is_flag=True, help="White on black: nothing but the factors varies.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@JSON
def sprites(output: Path, *, as_json: bool, **options: Any) -> None:
    """Make images of one figure each from known factors: shape, scale, rotation, x and y.

    The folder gets images.npy, which train and compress take, and factors.csv, whose columns evaluate asks for.

    \b
    Example:
      python tools/sprites.py -o sprites --images 4000 --size 32
      stochcl train sprites/images.npy --preset keep-position -o sprites.safetensors
      stochcl compress sprites/images.npy -m sprites.safetensors -o codes.bin
      stochcl evaluate codes.bin --labels sprites/factors.csv --task regression --column x --column rotation
    """
    with command_line():
        try:
            found = write_sprites(output, **options)
        except StochclError as exc:
            click.echo(f"error: {exc}", err=True)
            raise SystemExit(exc.exit_code) from exc
    facts = f"{found['images']:,} images of {found['size']} pixels, {found['bytes']:,} bytes"
    show(found, [*found["paths"], f"  {facts}; {', '.join(found['columns'])}"], as_json=as_json)


if __name__ == "__main__":
    sprites()
