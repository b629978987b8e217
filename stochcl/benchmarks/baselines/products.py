"""Codebooks of 256 vectors, one byte an index: product, optimised product and residual quantisation, by faiss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from stochcl.benchmarks.baselines.base import Baseline, full, half, need_bits, need_rows
from stochcl.benchmarks.extras import need
from stochcl.codes import Codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

CENTROIDS = 256
"""Vectors of a codebook."""

_ROWS = 65_536  # 256 a centroid, what faiss takes of more
_ROTATION_ROWS = 16_384
_ROTATION_STEPS = 25
_RESIDUAL_ROWS = 32_768
_RESIDUAL_STEPS = 10
_MOST_BOOKS = 512
_BITS = 8


@dataclass(frozen=True, eq=False)
class Trained:
    """A product quantiser after a rotation, both as faiss has them.

    Parameters
    ----------
    quantise : callable
        From vectors, shape (N, V), to indices, shape (N, M), uint8.
    rotation : ndarray of float32, shape (W, V)
        Orthogonal; W is V, or what of it splits evenly.
    centroids : ndarray of float32, shape (M, 256, W / M)
    """

    quantise: Callable[[NDArray[np.float32]], NDArray[np.uint8]]
    rotation: NDArray[np.float32] | None
    centroids: NDArray[np.float32]


def train_product(
    vectors: NDArray[np.float32],
    indices: int,
    seed: int,
    *,
    rotation_steps: int = 10,
    rotation_rows: int = 12_000,
    rows: int = 12_000,
) -> Trained:
    """Train a rotation (Ge et al., CVPR 2013), if it has steps to go, and a product quantiser after it; seeded."""
    import faiss

    faiss.omp_set_num_threads(1)  # sums in another order would give other indices on another machine
    width = -(-vectors.shape[1] // indices) * indices
    pq = faiss.ProductQuantizer(width, indices, _BITS)
    pq.cp.seed = seed % (1 << 31)
    pq.cp.min_points_per_centroid = 1
    rotation: NDArray[np.float32] | None = None
    apply: Callable[[NDArray[np.float32]], NDArray[np.float32]] = partial(_padded, width=width)
    if rotation_steps:
        before = faiss.OPQMatrix(vectors.shape[1], indices, width)
        before.pq = pq
        before.niter = rotation_steps
        before.max_train_points = rotation_rows
        before.train(vectors)
        rotation, apply = faiss.vector_to_array(before.A).reshape(width, vectors.shape[1]), before.apply
    pq.train(apply(vectors[:rows]))

    def quantise(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        codes: NDArray[np.uint8] = pq.compute_codes(apply(np.ascontiguousarray(values, np.float32)))
        return codes

    centroids = faiss.vector_to_array(pq.centroids).reshape(indices, CENTROIDS, width // indices)
    return Trained(quantise, rotation, centroids)


def _padded(vectors: NDArray[np.float32], *, width: int) -> NDArray[np.float32]:
    """Add columns of zeros, so that groups of columns are of one size."""
    return np.pad(vectors, ((0, 0), (0, width - vectors.shape[1])))


def _shuffled(train: NDArray[np.float32], seed: int, most: int = _ROWS) -> NDArray[np.float32]:
    """Return rows in a seeded order: faiss takes the first, and a matrix may be sorted."""
    need_rows(len(train), 2 * CENTROIDS, f"a codebook of {CENTROIDS} vectors")
    order = np.random.default_rng([seed, 11]).permutation(len(train))[:most]
    return np.ascontiguousarray(train[order], np.float32)


def _indices(bits: int, width: int, most: int, each: int = _BITS) -> int:
    """Return how many indices of so many bits each a code has."""
    possible = bits % each == 0 and 1 <= bits // each <= most
    need_bits(bits, possible, f"{width:,} columns have codes of {each} bits an index and up to {most:,} indices")
    return bits // each


@dataclass(frozen=True, eq=False)
class Product(Baseline):
    """Product quantisation (Jegou, Douze and Schmid, TPAMI 2011): columns in groups, each with its codebook.

    Parameters
    ----------
    quantise : callable
    centroids : ndarray of float16, shape (M, 256, W / M)
    rotation : ndarray of float16, shape (W, V), or None
    width : int
        V.
    """

    quantise: Any
    centroids: NDArray[np.float16]
    rotation: NDArray[np.float16] | None
    width: int

    name: ClassVar[str] = "PQ"
    module: ClassVar[str | None] = "faiss"
    rotation_steps: ClassVar[int] = 0

    @classmethod
    def fit(cls, train: NDArray[np.float32], bits: int, seed: int) -> Self:  # noqa: D102
        need("faiss", cls.name)
        width = train.shape[1]
        trained = train_product(
            _shuffled(train, seed),
            _indices(bits, width, width),
            seed,
            rotation_steps=cls.rotation_steps,
            rotation_rows=_ROTATION_ROWS,
            rows=_ROWS,
        )
        rotation = None if trained.rotation is None else half(trained.rotation)
        return cls(trained.quantise, half(trained.centroids), rotation, width)

    def codes(self, vectors: NDArray[np.float32]) -> Codes:  # noqa: D102
        return Codes.from_symbols(self.quantise(vectors), alphabet=CENTROIDS)

    def vectors(self, codes: Codes) -> NDArray[np.float32]:  # noqa: D102
        indices = np.arange(codes.latents)
        found = full(self.centroids)[indices, codes.symbols()].reshape(len(codes), -1)
        return found[:, : self.width] if self.rotation is None else found @ full(self.rotation)

    @property
    def side(self) -> tuple[NDArray[np.float16], ...]:  # noqa: D102
        return (self.centroids,) if self.rotation is None else (self.centroids, self.rotation)


class OptimisedProduct(Product):
    """Optimised product quantisation (Ge et al., CVPR 2013): a rotation learned before the groups are made."""

    name: ClassVar[str] = "OPQ"
    rotation_steps: ClassVar[int] = _ROTATION_STEPS


@dataclass(frozen=True, eq=False)
class Residual(Baseline):
    """Residual quantisation: each codebook for what those before have left, codes found by a beam (faiss).

    Parameters
    ----------
    quantise : callable
    codebooks : ndarray of float16, shape (M, K, V)
    """

    quantise: Any
    codebooks: NDArray[np.float16]

    name: ClassVar[str] = "RQ"
    module: ClassVar[str | None] = "faiss"
    index_bits: ClassVar[int] = _BITS

    @classmethod
    def fit(cls, train: NDArray[np.float32], bits: int, seed: int) -> Self:  # noqa: D102
        need("faiss", cls.name)
        import faiss

        faiss.omp_set_num_threads(1)
        rows, width = _shuffled(train, seed, _RESIDUAL_ROWS), train.shape[1]
        rq = faiss.ResidualQuantizer(width, _indices(bits, width, _MOST_BOOKS, cls.index_bits), cls.index_bits)
        rq.cp.seed = seed % (1 << 31)
        rq.cp.min_points_per_centroid = 1
        # Half an hour against minutes, for a hundredth of the error: no k-means over growing dimensions, few steps,
        # and distances from tables.
        rq.train_type = faiss.ResidualQuantizer.Train_default
        rq.cp.niter = _RESIDUAL_STEPS
        rq.use_beam_LUT = 1
        rq.train(rows)
        codebooks = faiss.vector_to_array(rq.codebooks).reshape(rq.M, 1 << cls.index_bits, width)

        def quantise(values: NDArray[np.float32]) -> NDArray[np.uint8]:
            packed: NDArray[np.uint8] = rq.compute_codes(np.ascontiguousarray(values, np.float32))
            if cls.index_bits == _BITS:
                return packed
            halves = np.stack([packed & 15, packed >> 4], axis=2)  # the first index is in the lower half of a byte
            return halves.reshape(len(packed), -1)[:, : rq.M]

        return cls(quantise, half(codebooks))

    def codes(self, vectors: NDArray[np.float32]) -> Codes:  # noqa: D102
        return Codes.from_symbols(self.quantise(vectors), alphabet=self.codebooks.shape[1])

    def vectors(self, codes: Codes) -> NDArray[np.float32]:  # noqa: D102
        symbols = codes.symbols()
        out = np.zeros((len(codes), self.codebooks.shape[2]), np.float32)
        for book, chosen in zip(full(self.codebooks), symbols.T, strict=True):
            out += book[chosen]
        return out

    @property
    def side(self) -> tuple[NDArray[np.float16], ...]:  # noqa: D102
        return (self.codebooks,)


class SmallResidual(Residual):
    """Residual quantisation with codebooks of 16 vectors: twice as many indices, an eighth of the side bytes."""

    name: ClassVar[str] = "RQ 4-bit"
    index_bits: ClassVar[int] = 4
