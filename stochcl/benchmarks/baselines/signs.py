"""One bit a direction: random or principal directions cut at their medians, and ITQ's learned rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from stochcl.benchmarks.baselines.base import Baseline, full, half, need_bits, need_rows, principal
from stochcl.codes import Codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 20_000  # that ITQ's rotation is learned from
_STEPS = 50  # as in the paper


@dataclass(frozen=True, eq=False)
class Signs(Baseline):
    """On which side of a threshold a vector lies, direction by direction.

    Bits are decoded by least squares on the training rows, one vector for each bit that is set and one for none:
    never worse, on those rows, than the mean of each side projected back, and no more to keep.

    Parameters
    ----------
    directions : ndarray of float32, shape (bits, V)
    thresholds : ndarray of float32, shape (bits,)
    weight : ndarray of float16, shape (bits, V)
    bias : ndarray of float16, shape (V,)
    """

    directions: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    weight: NDArray[np.float16]
    bias: NDArray[np.float16]

    @classmethod
    def fit(cls, train: NDArray[np.float32], bits: int, seed: int) -> Self:  # noqa: D102
        need_rows(len(train), 2, cls.name)
        directions, thresholds = cls._cuts(train, bits, np.random.default_rng([seed, 7]))
        directions, thresholds = directions.astype(np.float32), thresholds.astype(np.float32)
        ones = (train @ directions.T > thresholds).astype(np.float32)
        mean, target = ones.mean(axis=0), train.mean(axis=0)
        centred = ones - mean
        gram = (centred.T @ centred).astype(np.float64)
        gram += np.eye(bits) * max(gram.trace() / bits, 1.0) * 1e-6  # bits that are always the same
        weight = np.linalg.solve(gram, (centred.T @ (train - target)).astype(np.float64))
        return cls(directions, thresholds, half(weight), half(target - mean @ weight))

    @classmethod
    def _cuts(
        cls, train: NDArray[np.float32], bits: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        raise NotImplementedError

    def codes(self, vectors: NDArray[np.float32]) -> Codes:  # noqa: D102
        return Codes.from_symbols(vectors @ self.directions.T > self.thresholds)

    def vectors(self, codes: Codes) -> NDArray[np.float32]:  # noqa: D102
        return codes.symbols().astype(np.float32) @ full(self.weight) + full(self.bias)

    @property
    def side(self) -> tuple[NDArray[np.float16], ...]:  # noqa: D102
        return self.weight, self.bias


class RandomSigns(Signs):
    """Random directions, orthogonal as far as there are as many as dimensions, cut at their medians."""

    name: ClassVar[str] = "random signs"

    @classmethod
    def _cuts(
        cls, train: NDArray[np.float32], bits: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        width = train.shape[1]
        frames = [np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(-(-bits // width))]
        directions = np.concatenate(frames)[:bits]
        return directions, np.median(train @ directions.T.astype(np.float32), axis=0)


class PrincipalSigns(Signs):
    """The first principal directions, cut at their medians."""

    name: ClassVar[str] = "PCA signs"

    @classmethod
    def _cuts(
        cls, train: NDArray[np.float32], bits: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        width = train.shape[1]
        need_bits(bits, bits <= width, f"there is one bit for each of at most {width:,} principal directions")
        _, directions = principal(train, bits)
        return directions, np.median(train @ directions.T.astype(np.float32), axis=0)


class Itq(Signs):
    """Iterative quantisation (Gong and Lazebnik, CVPR 2011, 2.2): principal directions, rotated to fit signs."""

    name: ClassVar[str] = "ITQ"

    @classmethod
    def _cuts(
        cls, train: NDArray[np.float32], bits: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        width = train.shape[1]
        need_bits(bits, bits <= width, f"there is one bit for each of at most {width:,} principal directions")
        mean, directions = principal(train, bits)
        rows = train[rng.permutation(len(train))[:_ROWS]]
        projected = (rows - mean.astype(np.float32)) @ directions.T.astype(np.float32)
        rotation = np.linalg.qr(rng.normal(size=(bits, bits)))[0].astype(np.float32)
        for _ in range(_STEPS):
            signs = np.where(projected @ rotation > 0, np.float32(1), np.float32(-1))
            left, _, right = np.linalg.svd(projected.T @ signs)
            rotation = left @ right
        turned = rotation.T @ directions
        return turned, turned @ mean
