"""An embedding matrix, one row a vector, memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stochcl.data.array import map_array, row_names
from stochcl.data.names import printable
from stochcl.data.source import Failure
from stochcl.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class MatrixBatch:
    """Consecutive rows of a matrix, those that are finite and those that are not.

    Parameters
    ----------
    rows : range
        Positions in the source that the batch covers.
    positions : tuple of int
        Those of the finite rows.
    names : tuple of str
        Names of the finite rows: their numbers in the file, zero-padded.
    vectors : ndarray of float32, shape (B, dim)
        The finite rows, in the order of ``names``.
    failures : tuple of Failure
        The others.
    source_bytes : int
        Bytes of the finite rows as they are stored.
    labels : tuple of str, optional
        Of the finite rows, where the source itself has them.
    """

    rows: range
    positions: tuple[int, ...]
    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    failures: tuple[Failure, ...]
    source_bytes: int
    labels: tuple[str, ...] | None = None


class MatrixSource:
    """Embeddings in a .npy file: two-dimensional float16, float32 or float64, memory-mapped, of any size.

    Parameters
    ----------
    path : Path
        The file.
    rows : ndarray of int64, optional
        Take these rows of it, ascending; all by default.

    Raises
    ------
    SourceError
        If the file cannot be read or holds something else.
    """

    kind: ClassVar[str] = "matrix"
    rejected: tuple[Failure, ...] = ()

    def __init__(self, path: Path, rows: NDArray[np.int64] | None = None) -> None:
        self.path, self._rows = path, rows
        self._array = map_array(path)
        if self._array.ndim != 2:
            raise SourceError(f"{printable(path)}: this array holds images, not embeddings.")
        status = path.stat()
        self.size = status.st_size
        self.mtime_ns = status.st_mtime_ns

    def __len__(self) -> int:
        return self.total if self._rows is None else len(self._rows)

    @property
    def total(self) -> int:
        """Rows of the file."""
        return len(self._array)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._array.shape[1])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is stored."""
        return self._array.dtype.itemsize * self.dim

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The rows' numbers in the file, zero-padded."""
        return row_names(self._numbers(0, len(self)), self.total)

    def _numbers(self, start: int, stop: int) -> Sequence[int]:
        return range(start, stop) if self._rows is None else self._rows[start:stop].tolist()

    def without(self, names: Iterable[str]) -> MatrixSource:
        """Return the rows that are not among these names, the numbers of rows; other names count for nothing."""
        left = np.ones(self.total, bool)
        for name in names:
            if name.isdecimal() and int(name) < self.total:
                left[int(name)] = False
        return MatrixSource(self.path, np.flatnonzero(left))

    def batches(self, batch_size: int = 4096, start: int = 0) -> Iterator[MatrixBatch]:
        """Iterate over the rows in order, from position ``start`` on.

        Rows that hold NaN or infinity, also those that overflow float32, are failures.

        Raises
        ------
        UsageError
            If a number is out of its range.
        """
        if batch_size < 1 or start < 0:
            raise UsageError(f"batch_size={batch_size}, start={start}: these count rows")
        total = len(self)
        return (self._batch(range(a, min(a + batch_size, total))) for a in range(start, total, batch_size))

    def take(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Read chosen rows of the file, finite or not, shape (n, dim), float32.

        The file is mapped anew each time: pages of a mapping count as this process's memory for as long as it
        lasts, which of a large file would look like all of it.

        Raises
        ------
        SourceError
            If the file is gone, or another than it was.
        """
        array = map_array(self.path)
        if (array.shape, array.dtype) != (self._array.shape, self._array.dtype):
            raise SourceError(f"{printable(self.path)}: this file was changed while it was read; begin anew.")
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(array[rows], dtype=np.float32, order="C")

    def _batch(self, rows: range) -> MatrixBatch:
        chosen = slice(rows.start, rows.stop) if self._rows is None else self._rows[rows.start : rows.stop]
        vectors = self.take(chosen)
        finite = np.asarray(np.isfinite(vectors).all(axis=1))
        names = row_names(self._numbers(rows.start, rows.stop), self.total)
        positions = tuple(rows)
        failures: tuple[Failure, ...] = ()
        if not finite.all():
            failures = tuple(
                Failure(name, "the row holds a value that is not a finite float32")
                for name, good in zip(names, finite, strict=True)
                if not good
            )
            names = tuple(name for name, good in zip(names, finite, strict=True) if good)
            positions = tuple(row for row, good in zip(rows, finite, strict=True) if good)
            vectors = vectors[finite]
        return MatrixBatch(rows, positions, names, vectors, failures, self.row_bytes * len(names))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "rows": self._rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
