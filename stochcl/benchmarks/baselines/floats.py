"""Every number on its own: float32, float16, and 256 steps between each column's extremes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from stochcl.benchmarks.baselines.base import Baseline, full, half, need_bits, need_rows
from stochcl.codes import Codes

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Floats(Baseline):
    """The numbers themselves, as bytes of a float type.

    Parameters
    ----------
    width : int
    """

    width: int

    coded: ClassVar[bool] = False
    dtype: ClassVar[type[np.floating[Any]]]

    @classmethod
    def fit(cls, train: NDArray[np.float32], bits: int, seed: int) -> Self:  # noqa: D102
        own = 8 * np.dtype(cls.dtype).itemsize * train.shape[1]
        need_bits(bits, bits == own, f"{cls.name} has {own:,} bits a row")
        return cls(train.shape[1])

    def codes(self, vectors: NDArray[np.float32]) -> Codes:  # noqa: D102
        return Codes.from_symbols(self._bytes(vectors), alphabet=256)

    def _bytes(self, vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
        with np.errstate(over="ignore"):
            little = np.ascontiguousarray(vectors, np.dtype(self.dtype).newbyteorder("<"))
        return little.view(np.uint8)

    def vectors(self, codes: Codes) -> NDArray[np.float32]:  # noqa: D102
        little = np.ascontiguousarray(codes.symbols()).view(np.dtype(self.dtype).newbyteorder("<"))
        return little.astype(np.float32)

    @property
    def side(self) -> tuple[NDArray[np.float16], ...]:  # noqa: D102
        return ()


class Float32(Floats):
    """float32, what embeddings come as."""

    name: ClassVar[str] = "float32"
    dtype = np.float32


class Float16(Floats):
    """float16."""

    name: ClassVar[str] = "float16"
    dtype = np.float16


@dataclass(frozen=True, eq=False)
class Int8(Baseline):
    """256 evenly spaced values from each column's smallest number to its largest.

    Parameters
    ----------
    low, step : ndarray of float16, shape (V,)
    """

    low: NDArray[np.float16]
    step: NDArray[np.float16]

    name: ClassVar[str] = "int8"

    @classmethod
    def fit(cls, train: NDArray[np.float32], bits: int, seed: int) -> Self:  # noqa: D102
        need_rows(len(train), 2, cls.name)
        need_bits(bits, bits == 8 * train.shape[1], f"{cls.name} has {8 * train.shape[1]:,} bits a row")
        low = train.min(axis=0)
        # The smallest float16 keeps a constant column's step from being zero.
        step = np.maximum((train.max(axis=0) - low) / 255, np.finfo(np.float16).tiny)
        return cls(half(low), half(step))

    def codes(self, vectors: NDArray[np.float32]) -> Codes:  # noqa: D102
        levels = np.rint((vectors - full(self.low)) / full(self.step))
        return Codes.from_symbols(np.clip(levels, 0, 255).astype(np.uint8), alphabet=256)

    def vectors(self, codes: Codes) -> NDArray[np.float32]:  # noqa: D102
        return codes.symbols() * full(self.step) + full(self.low)

    @property
    def side(self) -> tuple[NDArray[np.float16], ...]:  # noqa: D102
        return self.low, self.step
