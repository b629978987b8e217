"""Write the images beside this script: `python examples/make_images.py` makes `examples/images` again.

Ten classes of handwritten digits (`digit-0` ... `digit-9`, 64 x 64 PNG, enlarged smoothly from 8 x 8) and two of
patches of photographs (`china`, `flower`, 96 x 96 JPEG), from scikit-learn. The same images every time.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

DIGITS_PER_CLASS, DIGIT_SIDE = 9, 64
PATCH_SIDE, GRID = 96, (4, 5)  # rows and columns of patches in a photograph of 427 x 640 pixels


def write_examples(folder: Path) -> int:
    """Write the images below a folder, one folder a class, and return how many there are."""
    images = list(make_images())
    for name, image in images:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **({"optimize": True} if path.suffix == ".png" else {"quality": 85}))
    return len(images)


def make_images() -> Iterator[tuple[str, Image.Image]]:
    """Yield names and images."""
    digits = load_digits()
    for digit in range(10):
        for k, row in enumerate(np.flatnonzero(digits.target == digit)[:DIGITS_PER_CLASS]):
            small = Image.fromarray(np.rint(digits.images[row] * (255 / 16)).astype(np.uint8))
            enlarged = small.resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC)  # so that strokes stay smooth
            yield f"digit-{digit}/{k:02d}.png", enlarged
    photographs = load_sample_images()
    for path, pixels in zip(photographs.filenames, photographs.images, strict=True):
        tops, lefts = (  # squares spread evenly from edge to edge
            np.linspace(0, side - PATCH_SIDE, count).astype(int)
            for side, count in zip(pixels.shape, GRID, strict=False)
        )
        for k, (top, left) in enumerate(product(tops, lefts)):
            patch = Image.fromarray(pixels[top : top + PATCH_SIDE, left : left + PATCH_SIDE])
            yield f"{Path(path).stem}/{k:02d}.jpg", patch


if __name__ == "__main__":
    images = Path(__file__).parent / "images"
    print(f"{write_examples(images)} images in {images}")
