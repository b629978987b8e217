"""Known data sets: scikit-learn's digits and CIFAR-10."""

from __future__ import annotations

import pickle
import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from stochcl.data.names import member_name, sort_key
from stochcl.data.source import Entry, ImageSource
from stochcl.errors import ImageError, SourceError
from stochcl.files import is_file, is_folder, reading
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
        order = np.argsort(digits.target, kind="stable")
        self._images = [Image.fromarray(grey) for grey in np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)]
        counts = np.bincount(digits.target, minlength=10).tolist()
        self.entries = [
            Entry(f"{digit}/{k:03d}.png", 64, 0) for digit, count in enumerate(counts) for k in range(count)
        ]

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        return preprocess.apply(self._images[i])

    def _read(self, i: int) -> bytes:
        file = BytesIO()
        self._images[i].save(file, "PNG")
        return file.getvalue()


META = "batches.meta"
_TRAINING = re.compile(r"data_batch_\d+")
_SIDE, _PIXELS = 32, 3 * 32 * 32
_MOST_BYTES = 1 << 30  # a published batch has 31 MB
_MOST_CLASSES = 1000
# All that a pickle of bytes, lists and a uint8 array needs, from any version of Python and numpy.
_ALLOWED: dict[str, Callable[..., Any]] = {
    "_reconstruct": np.empty(0, np.uint8).__reduce__()[0],  # type: ignore[dict-item]
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "encode": lambda text, encoding: text.encode(encoding) if encoding == "latin1" else b"",
}
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs")


class Cifar10Source(ImageSource):
    """The images of CIFAR-10's published batches (Krizhevsky, 2009), named ``class/file`` as published.

    A folder (``cifar-10-batches-py``) stands for its training batches; a single batch, such as ``test_batch``, for
    itself. Class names come from ``batches.meta`` beside it, else they are numbers. The pixels are the published
    ones, never compressed lossily.

    Parameters
    ----------
    path : Path
        A folder with ``data_batch_1`` and so on, or a batch.

    Raises
    ------
    SourceError
        If a batch is damaged, or holds something else.
    """

    kind: ClassVar[str] = "cifar-10"

    def __init__(self, path: Path) -> None:
        self.path = path
        folder = path if path.is_dir() else path.parent
        files = _batches(path) if path.is_dir() else [path]
        meta = folder / META
        classes = _names(meta, _load(meta).get(b"label_names") or (), "a class's name") if is_file(meta) else []
        found: list[tuple[Entry, int]] = []
        parts: list[NDArray[np.uint8]] = []
        for file in files:
            data, labels, names = _read_batch(file)
            mtime, begin = file.stat().st_mtime_ns, sum(map(len, parts))
            for i, (label, name) in enumerate(zip(labels, names, strict=True)):
                shown = classes[label] if label < len(classes) else str(label)
                found.append((Entry(f"{shown}/{name}", _PIXELS, mtime), begin + i))
            parts.append(data)
        found.sort(key=lambda pair: sort_key(pair[0].name))
        self._pixels = np.concatenate(parts)
        self._rows = [row for _, row in found]
        self.entries = [entry for entry, _ in found]

    def __reduce__(self) -> tuple[Any, ...]:
        return Cifar10Source, (self.path,)

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        planes = self._pixels[self._rows[i]].reshape(3, _SIDE, _SIDE)
        return preprocess.apply(Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))))

    def _read(self, i: int) -> bytes:
        raise ImageError(f"image {i} of a batch is not a file")


def is_cifar10(path: Path, head: bytes = b"") -> bool:
    """Return whether a folder holds the training batches, or a file that begins with ``head`` is a batch."""
    if is_folder(path):
        return bool(_batches(path))
    named = path.name == "test_batch" or _TRAINING.fullmatch(path.name) is not None
    return named and head.startswith(b"\x80")


def _batches(folder: Path) -> list[Path]:
    """Return a folder's training batches, leaving out other files of such names."""
    try:
        found = [path for path in sorted(folder.iterdir()) if _TRAINING.fullmatch(path.name) and path.is_file()]
        return [path for path in found if _begins(path)]
    except OSError:  # one that cannot be read must not leave only the others
        return []


def _begins(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


class _Unpickler(pickle.Unpickler):
    """Loads the types of a batch, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _ALLOWED:
            return _ALLOWED[name]
        raise pickle.UnpicklingError(
            f"it asks for {escape_name(module)}.{escape_name(name)}, which no batch of images needs"
        )


def _load(path: Path) -> dict[bytes, Any]:
    with reading(path):
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise SourceError(f"{escape_name(path)}: a batch of images does not have {size:,} bytes.")
        data = path.read_bytes()
    try:
        found = _Unpickler(BytesIO(data), encoding="bytes").load()
    except Exception as exc:  # a damaged pickle can raise anything
        raise SourceError(f"{escape_name(path)}: this batch of images is damaged ({escape_name(str(exc))}).") from exc
    if not isinstance(found, dict):
        raise SourceError(f"{escape_name(path)}: this is not a batch of CIFAR-10: it holds a {type(found).__name__}.")
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}


def _read_batch(path: Path) -> tuple[NDArray[np.uint8], list[int], list[str]]:
    """Return pixels, shape (N, 3072), as planes of red, green and blue; class numbers; file names."""
    found = _load(path)
    data, labels, names = found.get(b"data"), found.get(b"labels"), found.get(b"filenames")
    shown = escape_name(path)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise SourceError(f"{shown}: this is not a batch of CIFAR-10: its data are not uint8 of N x {_PIXELS}.")
    rows = len(data)
    numbered = isinstance(labels, list) and len(labels) == rows and rows > 0
    if not numbered or not all(type(n) is int and 0 <= n < _MOST_CLASSES for n in labels or ()):
        raise SourceError(f"{shown}: this is not a batch of CIFAR-10: it has no label for each of {rows:,} images.")
    numbers = (f"{path.name}-{i:05d}.png" for i in range(rows))
    texts = _names(path, numbers if names is None else names, "a file's name")
    if len(texts) != rows:
        raise SourceError(f"{shown}: this is not a batch of CIFAR-10: {len(texts):,} names for {rows:,} images.")
    return data, list(labels or ()), texts


def _names(path: Path, given: Iterable[Any], what: str) -> list[str]:
    """Return a batch's names, given as bytes or text."""
    try:
        return [member_name(n.decode("utf-8", "surrogateescape") if isinstance(n, bytes) else n) for n in given]
    except (TypeError, ValueError) as exc:
        raise SourceError(f"{escape_name(path)}: this is not a batch of CIFAR-10: {what} is bad ({exc}).") from exc
