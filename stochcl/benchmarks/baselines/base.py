"""What every baseline is: a function from vectors to codes and one back, with what the second needs to know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from stochcl.errors import SourceError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.codes import Codes


class Baseline(ABC):
    """What somebody would do to an embedding matrix who did not have stochcl.

    ``fit`` learns from training rows; ``codes`` brings rows to discrete codes and ``vectors`` brings those back to
    vectors in the units of the input. What ``vectors`` uses is ``side``, float16 arrays and nothing else: their
    bytes are what a reader needs beside the codes, and a figure that leaves them out is not honest. What only
    ``codes`` uses (thresholds, projections) is the writer's and costs nothing.

    The same rows, bits and seed give the same codes: faiss runs in one thread, as sums in another order give
    others.

    Attributes
    ----------
    name : str
        As it is called in tables.
    module : str or None
        A module of the ``bench`` extra that it needs.
    coded : bool
        Whether an entropy coder has anything to do with it: floats are kept as they are.
    """

    name: ClassVar[str]
    module: ClassVar[str | None] = None
    coded: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def fit(cls, train: NDArray[np.float32], bits: int, seed: int) -> Self:
        """Learn from rows, shape (N, V), float32, finite."""

    @abstractmethod
    def codes(self, vectors: NDArray[np.float32]) -> Codes:
        """Return the codes of vectors, shape (N, V)."""

    @abstractmethod
    def vectors(self, codes: Codes) -> NDArray[np.float32]:
        """Return the vectors that codes stand for, float32, shape (N, V)."""

    @property
    @abstractmethod
    def side(self) -> tuple[NDArray[np.float16], ...]:
        """What :meth:`vectors` needs to know: codebooks, rotations, bases."""

    @property
    def side_bytes(self) -> int:
        """Bytes of ``side``."""
        return sum(array.nbytes for array in self.side)


def half(array: NDArray[Any]) -> NDArray[np.float16]:
    """Round to what is stored, so that decoding uses what is counted."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(array, np.float16)
    if not np.isfinite(rounded).all():
        raise SourceError("these vectors are too large for float16 codebooks; divide them by their deviation first.")
    return rounded


def full(array: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return what is stored as numbers to compute with."""
    return array.astype(np.float32)


def need_rows(rows: int, least: int, what: str) -> None:
    """Raise SourceError where there are too few rows to learn from."""
    if rows < least:
        raise SourceError(f"{what} is learned from {least:,} rows or more, and here are {rows:,}.")


def need_bits(bits: int, allowed: bool, sentence: str) -> None:
    """Raise UsageError where a code cannot have so many bits."""
    if not allowed:
        raise UsageError(f"{sentence}, not {bits:,}.")


def principal(train: NDArray[np.float32], most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean, shape (V,), and the first principal directions as rows, shape (most, V), float64."""
    mean = train.mean(axis=0, dtype=np.float64)
    centred = train - mean.astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(train)
    _, directions = np.linalg.eigh(covariance)
    return mean, directions[:, ::-1].T[:most]
