"""Images and archives that the tests of this room are made of."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def gradient(width: int, height: int) -> np.ndarray:
    """Smooth RGB pixels, shape (height, width, 3), that differ at every corner."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return np.stack([x, y, 255 - (x + y) / 2], axis=2).astype(np.uint8)


def encode(image, kind="PNG", **options) -> bytes:
    """Bytes of an image file, from pixels or a Pillow image."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def pixels():
    return gradient


@pytest.fixture
def as_file():
    return encode


@pytest.fixture
def png() -> bytes:
    return encode(gradient(12, 12))


@pytest.fixture
def tree(tmp_path: Path):
    """Write files below a new folder, from a mapping of names to bytes, and return the folder."""

    def write(files: dict[str, bytes], folder: str = "images") -> Path:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return root

    return write
