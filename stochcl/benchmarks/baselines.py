"""The alternatives to stochcl for an embedding matrix, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from stochcl.benchmarks.run import call_in_child
from stochcl.codes import MAX_ALPHABET, Codes, bits_per_symbol
from stochcl.entropy.independent import MAX_DECISIONS
from stochcl.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


Matrix = NDArray[np.float32]
Half = NDArray[np.float16]
Cuts = tuple[NDArray[np.floating], NDArray[np.floating]]

_ITQ_ROWS = 20_000  # rows to learn ITQ's rotation from
_ITQ_STEPS = 50  # as in the paper
_STEP_ROWS = 10_000  # rows to search a scalar quantiser's step on
_STEP_SEARCH = 24  # halvings
_LEAST = 1e-3  # components with fewer bits are left out


class Baseline(ABC):
    """A method to compress an embedding matrix without stochcl.

    ``fit`` learns from training rows; ``codes`` maps rows to discrete codes, and ``vectors`` maps those back to
    vectors in the input's units. ``vectors`` uses only ``side``, float16 arrays: a reader needs their bytes beside
    the codes, so every honest figure includes them. What only ``codes`` uses (thresholds, projections) stays with the
    writer and costs nothing. The same rows, bits and seed give the same codes.
    """

    name: ClassVar[str]
    coded: ClassVar[bool] = True
    """Whether an entropy coder applies; floats are stored as they are."""

    native: ClassVar[bool] = False
    """Whether it is native code that may crash, and so runs in a child process."""

    least_rows: ClassVar[int] = 2

    @classmethod
    def check(cls, rows: int, width: int, bits: int) -> None:
        """Raise if ``fit`` cannot learn codes of ``bits`` bits from a matrix of this shape."""
        if rows < cls.least_rows:
            raise SourceError(f"{cls.name} needs {cls.least_rows:,} rows or more to learn from, got {rows:,}.")

    @classmethod
    def variants(cls, beams: Sequence[int], trials: int) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield a name suffix and extra arguments of ``fit`` for each variant to measure."""
        yield "", {}

    @classmethod
    @abstractmethod
    def fit(cls, train: Matrix, bits: int, seed: int) -> Self:
        """Learn codes of ``bits`` bits per row from rows, shape (N, V), float32, finite."""

    @abstractmethod
    def codes(self, vectors: Matrix) -> Codes:
        """Return the codes of vectors, shape (N, V)."""

    @abstractmethod
    def vectors(self, codes: Codes) -> Matrix:
        """Return the decoded vectors, float32, shape (N, V)."""

    @property
    def side(self) -> tuple[Half, ...]:
        """The arrays that :meth:`vectors` needs (codebooks, rotations, bases): all float16 fields."""
        return tuple(v for v in vars(self).values() if isinstance(v, np.ndarray) and v.dtype == np.float16)

    @property
    def side_bytes(self) -> int:
        """Bytes of ``side``."""
        return sum(array.nbytes for array in self.side)


def fit_and_code(
    kind: type[Baseline], fitting: Matrix, matrices: Sequence[Matrix], bits: int, seed: int,
    **options: int,
) -> tuple[Baseline, list[Codes]]:  # fmt: skip
    """Fit a baseline, in a child process if it is native code; return it and the codes of each matrix."""
    kind.check(len(fitting), fitting.shape[1], bits)
    work = call_in_child if kind.native else lambda function, *given: function(*given)
    found: tuple[Baseline, list[Codes]] = work(_fit_and_code, kind, fitting, matrices, bits, seed, options)
    return found


def _fit_and_code(
    kind: type[Baseline], fitting: Matrix, matrices: Sequence[Matrix], bits: int, seed: int,
    options: dict[str, int],
) -> tuple[Baseline, list[Codes]]:  # fmt: skip
    method = kind.fit(fitting, bits, seed, **options)
    return method, [method.codes(matrix) for matrix in matrices]


def half(array: NDArray[Any]) -> Half:
    """Round to float16, so that decoding uses exactly the arrays that are counted."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(array, np.float16)
    if not np.isfinite(rounded).all():
        raise SourceError("these vectors are too large for float16 codebooks; divide them by their deviation first.")
    return rounded


def full(array: Half) -> Matrix:
    """Convert to float32 to compute with."""
    return array.astype(np.float32)


def need_bits(bits: int, allowed: bool, sentence: str) -> None:
    """Raise UsageError unless ``allowed``."""
    if not allowed:
        raise UsageError(f"{sentence}, not {bits:,}.")


def principal(train: Matrix, most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean, shape (V,), and the first principal directions as rows, shape (most, V), float64."""
    mean = train.mean(axis=0, dtype=np.float64)
    centred = train - mean.astype(np.float32)
    covariance = (centred.T @ centred).astype(np.float64) / len(train)
    _, directions = np.linalg.eigh(covariance)
    return mean, directions[:, ::-1].T[:most]


# Each number on its own.


@dataclass(frozen=True, eq=False)
class PerColumn(Baseline):
    """A fixed number of bits per column, plus ``row_bits`` per row."""

    width: int

    column_bits: ClassVar[int]
    row_bits: ClassVar[int] = 0

    @classmethod
    def bits_of(cls, width: int) -> int:
        """Return the bits of a row of ``width`` columns."""
        return cls.column_bits * width + cls.row_bits

    @classmethod
    def check(cls, rows: int, width: int, bits: int) -> None:  # noqa: D102
        super().check(rows, width, bits)
        need_bits(bits, bits == (own := cls.bits_of(width)), f"{cls.name} has {own:,} bits a row")


class Float32(PerColumn):
    """float32, the usual type of embeddings."""

    name = "float32"
    coded = False
    column_bits = 32
    dtype: ClassVar[type[np.floating[Any]]] = np.float32

    @classmethod
    def fit(cls, train: Matrix, bits: int, seed: int) -> Self:  # noqa: D102
        return cls(train.shape[1])

    def codes(self, vectors: Matrix) -> Codes:  # noqa: D102
        with np.errstate(over="ignore"):
            little = np.ascontiguousarray(vectors, np.dtype(self.dtype).newbyteorder("<"))
        return Codes.from_symbols(little.view(np.uint8), alphabet=256)

    def vectors(self, codes: Codes) -> Matrix:  # noqa: D102
        little = np.ascontiguousarray(codes.symbols()).view(np.dtype(self.dtype).newbyteorder("<"))
        return little.astype(np.float32)


class Float16(Float32):
    """float16."""

    name = "float16"
    column_bits = 16
    dtype = np.float16


@dataclass(frozen=True, eq=False)
class Int8(PerColumn):
    """256 evenly spaced values between each column's extremes, like sentence-transformers' ``int8`` but rounded."""

    low: Half
    step: Half

    name = "int8"
    column_bits = 8

    @classmethod
    def fit(cls, train: Matrix, bits: int, seed: int) -> Self:  # noqa: D102
        low = train.min(axis=0)
        # The smallest float16 keeps a constant column's step from being zero.
        step = np.maximum((train.max(axis=0) - low) / 255, np.finfo(np.float16).tiny)
        return cls(train.shape[1], half(low), half(step))

    def codes(self, vectors: Matrix) -> Codes:  # noqa: D102
        levels = np.rint((vectors - full(self.low)) / full(self.step))
        return Codes.from_symbols(np.clip(levels, 0, 255).astype(np.uint8), alphabet=256)

    def vectors(self, codes: Codes) -> Matrix:  # noqa: D102
        return codes.symbols() * full(self.step) + full(self.low)


@dataclass(frozen=True, eq=False)
class Binary(PerColumn):
    """The sign of each number, like sentence-transformers' ``ubinary``, decoded to the column's mean on that side."""

    below: Half
    above: Half

    name = "binary"
    column_bits = 1

    @classmethod
    def fit(cls, train: Matrix, bits: int, seed: int) -> Self:  # noqa: D102
        ones = train > 0
        sums = [(train * side).sum(axis=0) / np.maximum(side.sum(axis=0), 1) for side in (~ones, ones)]
        return cls(train.shape[1], half(sums[0]), half(sums[1]))

    def codes(self, vectors: Matrix) -> Codes:  # noqa: D102
        return Codes.from_symbols(vectors > 0)

    def vectors(self, codes: Codes) -> Matrix:  # noqa: D102
        return np.where(codes.symbols() > 0, full(self.above), full(self.below))


@dataclass(frozen=True, eq=False)
class RaBitQ(PerColumn):
    """RaBitQ (Gao and Long, SIGMOD 2024): signs after a random rotation, and one float16 per row.

    The estimator is faiss's one-bit ``RaBitQuantizer``. The rotation comes from the seed and costs nothing.
    """

    seed: int
    centroid: Half

    name = "RaBitQ"
    column_bits = 1
    row_bits = 16

    @classmethod
    def fit(cls, train: Matrix, bits: int, seed: int) -> Self:  # noqa: D102
        return cls(train.shape[1], seed, half(train.mean(axis=0)))

    def _rotation(self) -> Matrix:
        rng = np.random.default_rng([self.seed, 47])
        return np.linalg.qr(rng.normal(size=(self.width, self.width)))[0].astype(np.float32)

    def codes(self, vectors: Matrix) -> Codes:  # noqa: D102
        rotated = (vectors - full(self.centroid)) @ self._rotation().T
        size, along = np.square(rotated).sum(axis=1), np.abs(rotated).sum(axis=1) / self.width**0.5
        scale = half(size / np.maximum(along, np.finfo(np.float32).tiny))
        factor = np.unpackbits(scale.astype("<f2")[:, None].view(np.uint8), axis=1)
        return Codes.from_symbols(np.concatenate([factor.astype(bool), rotated > 0], axis=1))

    def vectors(self, codes: Codes) -> Matrix:  # noqa: D102
        bits = codes.symbols()
        scale = np.packbits(bits[:, :16], axis=1).view("<f2").astype(np.float32)
        signs = (2 * bits[:, 16:].astype(np.float32) - 1) / np.float32(self.width**0.5)
        return (scale * signs) @ self._rotation() + full(self.centroid)


# One bit per direction.


@dataclass(frozen=True, eq=False)
class Signs(Baseline):
    """One bit per direction: the side of a threshold on which a vector lies.

    Bits are decoded by least squares on the training rows. On those rows this is never worse than projecting back the
    mean of each side, and it stores no more.
    """

    directions: Matrix
    thresholds: Matrix
    weight: Half
    bias: Half

    @classmethod
    def fit(cls, train: Matrix, bits: int, seed: int) -> Self:  # noqa: D102
        directions, thresholds = cls._cuts(train, bits, np.random.default_rng([seed, 7]))
        directions, thresholds = directions.astype(np.float32), thresholds.astype(np.float32)
        ones = (train @ directions.T > thresholds).astype(np.float32)
        mean, target = ones.mean(axis=0), train.mean(axis=0)
        centred = ones - mean
        gram = (centred.T @ centred).astype(np.float64)
        gram += np.eye(bits) * max(gram.trace() / bits, 1.0) * 1e-6  # bits that never change
        weight = np.linalg.solve(gram, (centred.T @ (train - target)).astype(np.float64))
        return cls(directions, thresholds, half(weight), half(target - mean @ weight))

    @classmethod
    def _cuts(cls, train: Matrix, bits: int, rng: np.random.Generator) -> Cuts:
        raise NotImplementedError

    def codes(self, vectors: Matrix) -> Codes:  # noqa: D102
        return Codes.from_symbols(vectors @ self.directions.T > self.thresholds)

    def vectors(self, codes: Codes) -> Matrix:  # noqa: D102
        return codes.symbols().astype(np.float32) @ full(self.weight) + full(self.bias)


class RandomSigns(Signs):
    """Random directions cut at their medians, orthogonal in groups of up to V."""

    name = "random signs"

    @classmethod
    def _cuts(cls, train: Matrix, bits: int, rng: np.random.Generator) -> Cuts:
        width = train.shape[1]
        frames = [np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(-(-bits // width))]
        directions = np.concatenate(frames)[:bits]
        return directions, np.median(train @ directions.T.astype(np.float32), axis=0)


class PrincipalSigns(Signs):
    """The first principal directions, cut at their medians."""

    name = "PCA signs"

    @classmethod
    def check(cls, rows: int, width: int, bits: int) -> None:  # noqa: D102
        super().check(rows, width, bits)
        need_bits(bits, 1 <= bits <= width, f"there is one bit for each of at most {width:,} principal directions")

    @classmethod
    def _cuts(cls, train: Matrix, bits: int, rng: np.random.Generator) -> Cuts:
        _, directions = principal(train, bits)
        return directions, np.median(train @ directions.T.astype(np.float32), axis=0)


class Itq(PrincipalSigns):
    """Iterative quantisation (Gong and Lazebnik, CVPR 2011, 2.2): principal directions, rotated to fit signs."""

    name = "ITQ"

    @classmethod
    def _cuts(cls, train: Matrix, bits: int, rng: np.random.Generator) -> Cuts:
        mean, directions = principal(train, bits)
        rows = train[rng.permutation(len(train))[:_ITQ_ROWS]]
        projected = (rows - mean.astype(np.float32)) @ directions.T.astype(np.float32)
        rotation = np.linalg.qr(rng.normal(size=(bits, bits)))[0].astype(np.float32)
        for _ in range(_ITQ_STEPS):
            signs = np.where(projected @ rotation > 0, np.float32(1), np.float32(-1))
            left, _, right = np.linalg.svd(projected.T @ signs)
            rotation = left @ right
        turned = rotation.T @ directions
        return turned, turned @ mean


# Principal components, all rounded to multiples of one step.


@dataclass(frozen=True, eq=False)
class PrincipalScalar(Baseline):
    """PCA and a uniform scalar quantiser, meant for an entropy coder: most symbols are zero.

    One step for all components is optimal by rate-distortion theory (reverse water-filling); components that round to
    a single value are left out. A symbol decodes to the mean of its training rows.
    """

    directions: Matrix  # (D, V)
    mean: Matrix
    step: float
    lowest: NDArray[np.int32]  # multiples of the step in the training rows; others are clipped to this range
    highest: NDArray[np.int32]
    centres: Half  # (D, K)
    basis: Half
    origin: Half

    name = "PCA scalar"
    least_rows = 256

    @classmethod
    def fit(cls, train: Matrix, bits: int, seed: int) -> Self:
        """Find the step at which the summed entropy of the symbols is ``bits`` per row."""
        rows = np.random.default_rng([seed, 13]).permutation(len(train))[:_STEP_ROWS]
        mean, directions = principal(train, train.shape[1])
        projected = (train[rows] - mean.astype(np.float32)) @ directions.T.astype(np.float32)
        low, high = np.log(np.abs(projected).max() / (MAX_ALPHABET // 2)), np.log(np.abs(projected).max() * 2)
        most = _entropies(projected, np.exp(low)).sum()
        need_bits(bits, 0 < bits <= most, f"at the finest step that symbols can hold a row has {most:,.0f} bits")
        for _ in range(_STEP_SEARCH):
            middle = (low + high) / 2
            enough = _entropies(projected, np.exp(middle)).sum() >= bits
            low, high = (middle, high) if enough else (low, middle)
        step = float(np.exp(low))
        return cls.at_step(train, step, _entropies(projected, step) > _LEAST)

    @classmethod
    def at_step(cls, train: Matrix, step: float, kept: NDArray[np.bool_]) -> Self:
        """Quantise the components that ``kept`` marks with a given step."""
        mean, directions = principal(train, train.shape[1])
        directions = directions[kept]
        projected = (train - mean.astype(np.float32)) @ directions.T.astype(np.float32)
        levels = np.rint(projected / step).astype(np.int32)
        lowest, highest = levels.min(axis=0), levels.max(axis=0)
        alphabet = max(2, int((highest - lowest).max(initial=0)) + 1)
        wide = alphabet > MAX_ALPHABET or len(directions) * bits_per_symbol(alphabet) > MAX_DECISIONS
        need_bits(alphabet, not wide, f"{len(directions):,} components of so fine a step do not fit into a row of "
                  f"{MAX_DECISIONS:,} decisions; their symbols have up to {MAX_ALPHABET:,} values")  # fmt: skip
        centres = (lowest[:, None] + np.arange(alphabet)) * step
        for i, (symbols, values) in enumerate(zip((levels - lowest).T, projected.T, strict=True)):
            counts = np.bincount(symbols, minlength=alphabet)
            sums = np.bincount(symbols, weights=values, minlength=alphabet)
            centres[i, counts > 0] = sums[counts > 0] / counts[counts > 0]
        return cls(
            directions.astype(np.float32), mean.astype(np.float32), step, lowest, highest,
            half(centres), half(directions), half(mean),
        )  # fmt: skip

    def codes(self, vectors: Matrix) -> Codes:  # noqa: D102
        levels = np.rint((vectors - self.mean) @ self.directions.T / self.step)
        symbols = np.clip(levels, self.lowest, self.highest).astype(np.int32) - self.lowest
        return Codes.from_symbols(symbols, alphabet=self.centres.shape[1])

    def vectors(self, codes: Codes) -> Matrix:  # noqa: D102
        found = full(self.centres)[np.arange(codes.latents), codes.symbols()]
        return found @ full(self.basis) + full(self.origin)


def _entropies(projected: Matrix, step: float) -> NDArray[np.float64]:
    """Return the empirical entropy of each component's symbols, bits, shape (V,)."""
    levels = np.rint(projected / np.float32(step)).astype(np.int64)
    levels -= levels.min(axis=0)
    width = int(levels.max()) + 1
    places = levels + np.arange(levels.shape[1]) * width
    counts = np.bincount(places.reshape(-1), minlength=levels.shape[1] * width).reshape(-1, width)
    p = counts / len(levels)
    found: NDArray[np.float64] = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=1)
    return found
