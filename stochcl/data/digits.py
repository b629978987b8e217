"""The handwritten digits that scikit-learn carries, as a source of labelled images to train on anywhere."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from stochcl.data.source import Entry, ImageSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.data.preprocess import Preprocess


class DigitsSource(ImageSource):
    """1,797 grey images of 8 x 8 pixels, named ``0/000.png`` and so on, the first folder being the digit.

    (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.)
    """

    kind: ClassVar[str] = "digits"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.path = Path("digits")
        self._images = [
            Image.fromarray(np.rint(digits.images[row] * (255 / 16)).astype(np.uint8))
            for digit in range(10)
            for row in np.flatnonzero(digits.target == digit)
        ]
        counts = np.bincount(digits.target, minlength=10).tolist()
        self.entries = [
            Entry(f"{digit}/{k:03d}.png", 64, 0) for digit, count in enumerate(counts) for k in range(count)
        ]
        self.rejected = []

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        return preprocess.apply(self._images[i])

    def _read(self, i: int) -> bytes:
        file = BytesIO()
        self._images[i].save(file, "PNG")
        return file.getvalue()
