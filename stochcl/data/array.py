"""Images and embeddings in NumPy array files, and samples of their rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from stochcl.data.pixels import MAX_PIXELS
from stochcl.data.source import Entry, Failure, ImageSource, digest
from stochcl.errors import ImageError, SourceError, StochclError, UsageError
from stochcl.files import reading, refuse_pointer
from stochcl.lazy import cached_property
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.data.preprocess import Preprocess

MAGIC = b"\x93NUMPY"
"""The first bytes of a .npy file."""

_WANTED = (
    "a .npy source is either embeddings (two-dimensional float16, float32 or float64, one row each) or "
    "images (four-dimensional uint8, N x height x width x 3 or x 1)"
)


class ArraySource(ImageSource):
    """Images in a .npy file: uint8, shape (N, H, W, 3) or (N, H, W, 1), memory-mapped.

    Images are named by their row, zero-padded, and have no label.
    """

    kind: ClassVar[str] = "array"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = map_array(path)
        rows, height, width = self._array.shape[:3]
        if height * width > MAX_PIXELS:
            raise SourceError(
                f"{escape_name(path)}: its images of {height} x {width} pixels exceed {MAX_PIXELS:,}; shrink them."
            )
        size, mtime_ns = math.prod(self._array.shape[1:]), path.stat().st_mtime_ns
        self.entries = [Entry(name, size, mtime_ns) for name in row_names(range(rows), rows)]

    def __reduce__(self) -> tuple[Any, ...]:
        return ArraySource, (self.path,)

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        pixels = np.ascontiguousarray(self._array[i])
        return preprocess.apply(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))

    def _read(self, i: int) -> bytes:
        raise ImageError(f"image {i} of an array is not a file")


def row_names(rows: Iterable[int], total: int) -> tuple[str, ...]:
    """Name rows by their numbers, padded so that bytewise order is row order.

    Examples
    --------
    >>> row_names(range(8, 10), total=100)
    ('0000008', '0000009')
    """
    width = max(7, len(str(total - 1)))
    return tuple(f"{row:0{width}d}" for row in rows)


def map_array(path: Path) -> NDArray[Any]:
    """Memory-map a .npy file, read-only, and check that it holds embeddings or images."""
    shown = escape_name(path)
    with reading(path, "this .npy file"), path.open("rb") as file:
        head = file.read(32)
    refuse_pointer(path, head, "an array")
    if not head.startswith(MAGIC):  # numpy would take a zip, or offer to load a pickle
        raise SourceError(f"{shown}: this is not a NumPy array, or its beginning is damaged; {_WANTED}.")
    array = load_array(path, "this .npy file")
    found = f"{shown}: this array is {array.dtype} of {shape_of(array)}"
    embeddings = array.ndim == 2 and array.dtype.kind == "f" and array.dtype.itemsize <= 8
    images = array.ndim == 4 and array.dtype == np.uint8 and array.shape[3] in (1, 3)
    if not embeddings and not images:
        raise SourceError(f"{found}; {_WANTED}{_hint(array)}.")
    if 0 in array.shape:
        raise SourceError(f"{found}: it is empty.")
    return np.asarray(array)


def load_array(path: Path, what: str, error: type[StochclError] = SourceError) -> NDArray[Any]:
    """Memory-map any .npy file except a pickle, read-only."""
    try:
        with reading(path, what, error):
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return array
    except StochclError:
        raise
    except Exception as exc:  # the header is Python text, and damaged text can cause any error
        if "Python objects" in str(exc):
            raise error(
                f"{escape_name(path)}: this array holds Python objects (a pickle), which are never loaded; {_WANTED}."
            ) from exc
        raise error(f"{escape_name(path)}: {what} is truncated or damaged ({escape_name(str(exc))}).") from exc


def shape_of(array: NDArray[Any]) -> str:
    """Return the shape of an array as text."""
    return " x ".join(map(str, array.shape)) or "no dimension"


def _hint(array: NDArray[Any]) -> str:
    if array.ndim == 4 and array.dtype == np.uint8 and array.shape[1] in (1, 3):
        return "; transpose it with .transpose(0, 2, 3, 1)"
    if array.ndim == 4 and array.dtype != np.uint8:
        return "; images are uint8, 0 to 255"
    if array.ndim == 3 and array.dtype == np.uint8:
        return "; give grey images a last dimension with [..., None]"
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class MatrixBatch:
    """Consecutive rows of a matrix, split into finite rows and failures.

    Parameters
    ----------
    rows : range
        Positions in the source that the batch covers.
    positions : tuple of int
        Positions of the finite rows.
    names : tuple of str
        Names of the finite rows: their numbers in the file, zero-padded.
    vectors : ndarray of float32, shape (B, dim)
        The finite rows, in the order of ``names``.
    failures : tuple of Failure
        The other rows.
    row_bytes : int
        Stored bytes of a row.
    labels : tuple of str, optional
        Labels of the finite rows, if the source has them.
    """

    rows: range
    positions: tuple[int, ...]
    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    failures: tuple[Failure, ...]
    row_bytes: int
    labels: tuple[str, ...] | None = None
    damaged: ClassVar[tuple[Failure, ...]] = ()

    @property
    def inputs(self) -> NDArray[np.float32]:
        """Input for an encoder: the finite rows."""
        return self.vectors

    @property
    def sizes(self) -> list[int]:
        """Stored bytes of each finite row."""
        return [self.row_bytes] * len(self.names)

    @classmethod
    def of(
        cls, start: int, names: Sequence[str], vectors: NDArray[np.float32], row_bytes: int,
        reasons: dict[int, str] | None = None, labels: Sequence[str] | None = None,
    ) -> MatrixBatch:  # fmt: skip
        """Return a batch of rows, leaving out rows with ``reasons`` and rows that are not finite."""
        finite = np.isfinite(vectors).all(axis=1)
        bad = dict.fromkeys(np.flatnonzero(~finite).tolist(), "the row holds a value that is not a finite float32")
        bad |= reasons or {}
        good = [i for i in range(len(names)) if i not in bad]
        return cls(
            rows=range(start, start + len(names)),
            positions=tuple(start + i for i in good),
            names=tuple(names[i] for i in good),
            vectors=vectors[good] if bad else vectors,
            failures=tuple(Failure(names[i], bad[i]) for i in sorted(bad)),
            row_bytes=row_bytes,
            labels=None if labels is None else tuple(labels[i] for i in good),
        )


class VectorSource(ABC):
    """Vectors of one width, in matrices or a table, read in parts."""

    unit: ClassVar[str] = "row"
    """The noun for a row."""
    path: Path | str
    dim: int
    embedder: str | None = None
    """The vectors' embedder, if the source says so: a name, or ``NAME@REVISION``."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows, or 0 if unknown."""

    @abstractmethod
    def batches(self, batch_size: int = 4096, start: int = 0) -> Iterator[MatrixBatch]:
        """Iterate over the rows in order, from position ``start``; rows that are not finite are failures."""


class MatrixSource(VectorSource):
    """Embeddings in .npy files: two-dimensional float16, float32 or float64, memory-mapped, of any size.

    Parameters
    ----------
    path : Path or sequence of Path
        The file, or files that are concatenated; all must have the same width and type.
    rows : ndarray of int64, optional
        Rows to take, ascending; all by default.

    Attributes
    ----------
    total, dim, row_bytes : int
        Rows of the files, numbers per row, and stored bytes per row.

    Raises
    ------
    SourceError
        If a file cannot be read or holds something else.
    UsageError
        If several files do not fit together.
    """

    kind: ClassVar[str] = "matrix"
    read_once = has_names = False
    rejected: tuple[Failure, ...] = ()

    def __init__(self, path: Path | Sequence[Path], rows: NDArray[np.int64] | None = None) -> None:
        self.paths, self._rows = (path,) if isinstance(path, Path) else tuple(path), rows
        first = self.paths[0]
        self.path = first if len(self.paths) == 1 else Path(f"{first} and {len(self.paths) - 1:,} more")
        arrays = [map_array(one) for one in self.paths]
        for one, array in zip(self.paths, arrays, strict=True):
            if array.ndim != 2:
                raise SourceError(f"{escape_name(one)}: this array holds images, not embeddings.")
            if (array.shape[1], array.dtype) != (arrays[0].shape[1], arrays[0].dtype):
                raise UsageError(
                    f"{escape_name(one)}: its rows are {array.shape[1]:,} numbers of {array.dtype}, and those of "
                    f"{escape_name(first)} {arrays[0].shape[1]:,} of {arrays[0].dtype}; give files of one kind."
                )
        self._shapes = [array.shape for array in arrays]
        self._dtype, self.dim = arrays[0].dtype, int(arrays[0].shape[1])
        self.row_bytes = self._dtype.itemsize * self.dim
        self._starts = np.cumsum([0, *(len(array) for array in arrays)])
        self.total = int(self._starts[-1])
        found = [one.stat() for one in self.paths]
        self.size = sum(status.st_size for status in found)
        self.mtime_ns = max(status.st_mtime_ns for status in found)
        self.files = [[len(array), s.st_size, s.st_mtime_ns] for array, s in zip(arrays, found, strict=True)]

    def __len__(self) -> int:
        return self.total if self._rows is None else len(self._rows)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The rows' numbers, zero-padded; they count through all files."""
        return row_names(self._numbers(0, len(self)), self.total)

    def _numbers(self, start: int, stop: int) -> Sequence[int]:
        return range(start, stop) if self._rows is None else self._rows[start:stop].tolist()

    def without(self, names: Iterable[str]) -> MatrixSource:
        """Return the source without rows of these names; names that are no row number are ignored."""
        left = np.ones(self.total, bool)
        for name in names:
            if name.isdecimal() and int(name) < self.total:
                left[int(name)] = False
        return self.at(np.flatnonzero(left))

    def at(self, rows: NDArray[np.int64]) -> MatrixSource:
        """Return a source of rows by number, ascending."""
        return MatrixSource(self.paths, rows)

    def remarks(self) -> list[str]:
        """Return remarks about the source: none."""
        return []

    def listing(self) -> str:
        """Return a digest of the rows, sizes and times of the files."""
        facts = [len(self), self.dim, self.size, self.mtime_ns]
        return digest(self.kind, [facts + (self.files if len(self.files) > 1 else [])])

    def batches(self, batch_size: int = 4096, start: int = 0) -> Iterator[MatrixBatch]:
        """Iterate over the rows in order, from position ``start``.

        Rows that hold NaN or infinity, or that overflow float32, are failures.
        """
        if batch_size < 1 or start < 0:
            raise UsageError(f"batch_size must be at least 1 and start at least 0; got {batch_size} and {start}.")
        total = len(self)
        return (self._batch(range(a, min(a + batch_size, total))) for a in range(start, total, batch_size))

    def take(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Read chosen rows, finite or not, shape (n, dim), float32.

        The file is mapped anew each time, because mapped pages count as this process's memory while the mapping
        lasts, which for a large file would look like all of it.
        """
        if len(self.paths) == 1:
            return self._take(0, rows)
        wanted = np.arange(*rows.indices(self.total)) if isinstance(rows, slice) else np.asarray(rows, np.int64)
        out = np.empty((len(wanted), self.dim), np.float32)
        which = np.searchsorted(self._starts, wanted, side="right") - 1
        for file in np.unique(which).tolist():
            out[which == file] = self._take(file, wanted[which == file] - self._starts[file])
        return out

    def _take(self, file: int, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        array = map_array(self.paths[file])
        if (array.shape, array.dtype) != (self._shapes[file], self._dtype):
            raise SourceError(f"{escape_name(self.paths[file])}: this file changed while it was read; start over.")
        return _take(array, rows)

    def _batch(self, rows: range) -> MatrixBatch:
        chosen = slice(rows.start, rows.stop) if self._rows is None else self._rows[rows.start : rows.stop]
        names = row_names(self._numbers(rows.start, rows.stop), self.total)
        return MatrixBatch.of(rows.start, names, self.take(chosen), self.row_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return MatrixSource, (self.paths, self._rows)


MOST_ROWS = 200_000
"""Most rows that a head is trained on: more do not improve it, and need not fit into memory."""

MOST_BYTES = 1 << 30
"""Most bytes of these rows as float32, which limits rows of more than 1,342 numbers."""

MOST_HELD = 10_000
"""Most rows that are held out; of a small matrix a tenth."""

_ROUNDS = 8  # attempts to draw a finite row from a stratum
_READ_ROWS = 4096


def sample_rows(
    source: MatrixSource | NDArray[np.floating], most: int = MOST_ROWS, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sample finite rows evenly from a matrix, for training and for evaluation.

    The matrix is cut into as many runs of consecutive rows as rows are wanted, and one row is drawn from each. So a
    sorted matrix is represented evenly, and a mapped file is read front to back, a few rows at a time. The same seed
    gives the same rows.

    Examples
    --------
    >>> import numpy as np
    >>> train, held = sample_rows(np.ones((500, 3), np.float32), most=100)
    >>> train.shape, held.shape
    ((90, 3), (10, 3))
    """
    rng = np.random.default_rng([seed, len(source)])
    take = source.take if isinstance(source, MatrixSource) else partial(_take, source)
    width = source.dim if isinstance(source, MatrixSource) else source.shape[1]
    wanted = sample_size(len(source), width, most)
    kept = np.zeros(wanted, bool)
    kept[rng.permutation(wanted)[: min(wanted // 10, MOST_HELD)]] = True
    masks = (~kept, kept)
    parts = [np.empty((int(mask.sum()), width), np.float32) for mask in masks]  # filled in place
    places = [np.cumsum(mask) - 1 for mask in masks]
    found = np.zeros(wanted, bool)
    for strata, rows in _finite_rows(take, len(source), wanted, rng):
        found[strata] = True
        for part, mask, place in zip(parts, masks, places, strict=True):
            mine = mask[strata]
            part[place[strata[mine]]] = rows[mine]
    if not found.any():
        raise SourceError("no row of this matrix holds finite numbers only; there is nothing to train on.")
    train, held = (part if found.all() else part[found[mask]] for part, mask in zip(parts, masks, strict=True))
    return train, held


def sample_size(rows: int, width: int, most: int = MOST_ROWS) -> int:
    """Return how many rows of a matrix are drawn, before rows that are not finite are left out.

    Examples
    --------
    >>> sample_size(50_000, 512), sample_size(1_000_000, 512), sample_size(1_000_000, 4096)
    (50000, 200000, 65536)
    """
    return max(1, min(most, rows, MOST_BYTES // (4 * width)))


def _take(matrix: NDArray[np.floating], rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(matrix[rows], dtype=np.float32, order="C")


def _finite_rows(
    take: Callable[[NDArray[np.int64]], NDArray[np.float32]], total: int, wanted: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Draw a row from each stratum, again if it is not finite; yield strata and rows in parts."""
    edges = np.arange(wanted + 1) * total // wanted
    strata = np.arange(wanted)
    for _ in range(_ROUNDS if wanted < total else 1):
        drawn = rng.integers(edges[strata], edges[strata + 1])
        missed = []
        for start in range(0, len(drawn), _READ_ROWS):
            part = slice(start, start + _READ_ROWS)
            rows = take(drawn[part])
            finite = np.isfinite(rows).all(axis=1)
            yield strata[part][finite], rows[finite]
            missed.append(strata[part][~finite])
        strata = np.concatenate(missed)
        if not len(strata):
            return
