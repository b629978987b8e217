"""Product, residual and local-search quantisation by faiss: codebooks of 256 vectors, one byte per index."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from stochcl.benchmarks.baselines import Baseline, Half, Matrix, full, half, need_bits
from stochcl.benchmarks.run import need
from stochcl.codes import Codes
from stochcl.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Quantise = Callable[[Matrix], NDArray[np.uint8]]

CENTROIDS = 256
"""Vectors per codebook."""

_BITS = 8
_ROWS = 65_536  # 256 per centroid, all that faiss uses
_ROTATION_ROWS = 16_384
_ROTATION_STEPS = 25
_RESIDUAL_STEPS = 10
_LOCAL_STEPS = 10  # more steps lower the error only a little
_MOST_BOOKS = 512
_MOST_LOCAL = 8  # quadratic in codebooks: on 20,000 rows 8 fit in half a minute, 32 in a quarter of an hour


class Native(Baseline):
    """A faiss baseline; it is pickled back from its child process without its encoder."""

    native = True
    index_bits: ClassVar[int] = _BITS
    least_rows = 2 * CENTROIDS
    quantise: Any

    @classmethod
    def check(cls, rows: int, width: int, bits: int) -> None:  # noqa: D102
        need("faiss")
        super().check(rows, width, bits)
        each, most = cls.index_bits, cls._most_indices(width)
        need_bits(bits, bits % each == 0 and 1 <= bits // each <= most,
                  f"{width:,} columns have codes of {each} bits an index and up to {most:,} indices")  # fmt: skip

    @classmethod
    def _most_indices(cls, width: int) -> int:
        return _MOST_BOOKS

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"quantise": None}  # type: ignore[arg-type]


def faiss_on_one_thread() -> Any:
    """Return faiss limited to one thread, because another order of sums would give other indices."""
    import faiss

    faiss.omp_set_num_threads(1)
    return faiss


def _shuffled(train: Matrix, seed: int) -> Matrix:
    """Return rows in a seeded order: faiss takes the first ones, and a matrix may be sorted."""
    order = np.random.default_rng([seed, 11]).permutation(len(train))[:_ROWS]
    return np.ascontiguousarray(train[order], np.float32)


@dataclass(frozen=True, eq=False)
class Product(Native):
    """Product quantisation (Jegou, Douze and Schmid, TPAMI 2011): groups of columns, each with a codebook."""

    quantise: Quantise | None
    centroids: Half
    rotation: Half | None
    width: int

    name = "PQ"
    rotation_steps: ClassVar[int] = 0

    @classmethod
    def _most_indices(cls, width: int) -> int:
        return width

    @classmethod
    def fit(cls, train: Matrix, bits: int, seed: int) -> Self:  # noqa: D102
        quantise, rotation, centroids = train_product(
            _shuffled(train, seed), bits // _BITS, seed, rotation_steps=cls.rotation_steps,
            rotation_rows=_ROTATION_ROWS, rows=_ROWS,
        )  # fmt: skip
        return cls(quantise, half(centroids), None if rotation is None else half(rotation), train.shape[1])

    def codes(self, vectors: Matrix) -> Codes:  # noqa: D102
        assert self.quantise is not None
        return Codes.from_symbols(self.quantise(vectors), alphabet=CENTROIDS)

    def vectors(self, codes: Codes) -> Matrix:  # noqa: D102
        indices = np.arange(codes.latents)
        found = full(self.centroids)[indices, codes.symbols()].reshape(len(codes), -1)
        return found[:, : self.width] if self.rotation is None else found @ full(self.rotation)


def train_product(
    vectors: Matrix, indices: int, seed: int, *, rotation_steps: int = 10, rotation_rows: int = 12_000,
    rows: int = 12_000,
) -> tuple[Quantise, Matrix | None, Matrix]:  # fmt: skip
    """Train an optional rotation (Ge et al., CVPR 2013) and a product quantiser after it; seeded.

    Returns the function from vectors to indices, shape (N, M); the rotation, shape (W, V), or None; and the
    centroids, shape (M, 256, W / M).
    """
    faiss = faiss_on_one_thread()
    width = _padded_width(vectors.shape[1], indices)
    pq = faiss.ProductQuantizer(width, indices, _BITS)
    pq.cp.seed = seed % (1 << 31)
    pq.cp.min_points_per_centroid = 1
    rotation: Matrix | None = None
    apply: Callable[[Matrix], Matrix] = partial(np.pad, pad_width=((0, 0), (0, width - vectors.shape[1])))
    if rotation_steps:
        before = faiss.OPQMatrix(vectors.shape[1], indices, width)
        before.pq = pq
        before.niter = rotation_steps
        before.max_train_points = rotation_rows
        before.train(vectors)
        rotation, apply = faiss.vector_to_array(before.A).reshape(width, vectors.shape[1]), before.apply
    pq.train(apply(vectors[:rows]))

    def quantise(values: Matrix) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = pq.compute_codes(apply(np.ascontiguousarray(values, np.float32)))
        return found

    return quantise, rotation, faiss.vector_to_array(pq.centroids).reshape(indices, CENTROIDS, width // indices)


def _padded_width(width: int, indices: int) -> int:
    return -(-width // indices) * indices


class OptimisedProduct(Product):
    """Optimised product quantisation (Ge et al., CVPR 2013): product quantisation after a learned rotation."""

    name = "OPQ"
    rotation_steps = _ROTATION_STEPS

    @classmethod
    def check(cls, rows: int, width: int, bits: int) -> None:  # noqa: D102
        super().check(rows, width, bits)
        wide = _padded_width(width, bits // _BITS)
        if min(rows, _ROTATION_ROWS) < wide:  # faiss would write out of bounds
            raise SourceError(
                f"{cls.name} needs as many rows as columns to learn its rotation from, got {rows:,} rows (of which "
                f"it takes {_ROTATION_ROWS:,}) of {wide:,} columns."
            )


@dataclass(frozen=True, eq=False)
class Additive(Native):
    """A sum of one vector from each codebook."""

    quantise: Quantise | None
    codebooks: Half

    @classmethod
    def _of(cls, trained: Any, width: int) -> Self:
        books = faiss_on_one_thread().vector_to_array(trained.codebooks)

        def quantise(values: Matrix) -> NDArray[np.uint8]:
            packed: NDArray[np.uint8] = trained.compute_codes(np.ascontiguousarray(values, np.float32))
            if cls.index_bits == _BITS:
                return packed
            halves = np.stack([packed & 15, packed >> 4], axis=2)  # the first index is the low half of a byte
            return halves.reshape(len(packed), -1)[:, : trained.M]

        return cls(quantise, half(books[: (trained.M << cls.index_bits) * width].reshape(trained.M, -1, width)))

    def codes(self, vectors: Matrix) -> Codes:  # noqa: D102
        assert self.quantise is not None
        return Codes.from_symbols(self.quantise(vectors), alphabet=self.codebooks.shape[1])

    def vectors(self, codes: Codes) -> Matrix:  # noqa: D102
        out = np.zeros((len(codes), self.codebooks.shape[2]), np.float32)
        for book, chosen in zip(full(self.codebooks), codes.symbols().T, strict=True):
            out += book[chosen]
        return out


class Residual(Additive):
    """Residual quantisation (faiss): each codebook fits the residual of those before; a beam search finds codes."""

    name = "RQ"

    @classmethod
    def variants(cls, beams: Sequence[int], trials: int) -> Iterator[tuple[str, dict[str, int]]]:  # noqa: D102
        for beam in beams:
            for trial in range(trials):
                yield f", beam {beam}" + (f", trial {trial}" if trial else ""), {"beam": beam, "trial": trial}

    @classmethod
    def fit(cls, train: Matrix, bits: int, seed: int, *, beam: int = 8, trial: int = 0) -> Self:  # noqa: D102
        faiss = faiss_on_one_thread()
        width = train.shape[1]
        rq = faiss.ResidualQuantizer(width, bits // cls.index_bits, cls.index_bits)
        rq.cp.seed = (seed + 1000 * trial) % (1 << 31)
        rq.cp.min_points_per_centroid = 1
        rq.max_beam_size = beam
        # Minutes instead of half an hour, for 1 % more error: no k-means over growing dimensions, few steps, and
        # distances from tables.
        rq.train_type = faiss.ResidualQuantizer.Train_default
        rq.cp.niter = _RESIDUAL_STEPS
        rq.use_beam_LUT = 1
        rq.train(_shuffled(train, seed))
        return cls._of(rq, width)


class SmallResidual(Residual):
    """Residual quantisation with codebooks of 16 vectors: twice the indices, an eighth of the side bytes."""

    name = "RQ 4-bit"
    index_bits = 4


class LocalSearch(Additive):
    """LSQ++ (Martinez et al., ECCV 2018, faiss): codebooks refined jointly, codes found by local search."""

    name = "LSQ"

    @classmethod
    def _most_indices(cls, width: int) -> int:
        return _MOST_LOCAL

    @classmethod
    def fit(cls, train: Matrix, bits: int, seed: int) -> Self:  # noqa: D102
        faiss = faiss_on_one_thread()
        lsq = faiss.LocalSearchQuantizer(train.shape[1], bits // _BITS, _BITS)
        lsq.random_seed = seed % (1 << 31)
        lsq.train_iters = _LOCAL_STEPS
        lsq.train(_shuffled(train, seed))
        return cls._of(lsq, train.shape[1])
