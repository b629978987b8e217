"""Principal components, each rounded to multiples of one step: what transform coding makes of a Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from stochcl.benchmarks.baselines.base import Baseline, full, half, need_bits, need_rows, principal
from stochcl.codes import MAX_ALPHABET, Codes, bits_per_symbol
from stochcl.entropy.independent import MAX_DECISIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 10_000  # that the step is searched on
_SEARCH = 24  # halvings
_LEAST = 1e-3  # bits of a component that is worth a symbol


@dataclass(frozen=True, eq=False)
class PrincipalScalar(Baseline):
    """PCA and a uniform scalar quantiser, for an entropy coder: packed as they are, its symbols are mostly zeros.

    One step serves all components, which is what rate-distortion theory asks for (reverse water-filling); those
    that round to one value are left out. A symbol decodes to the mean of the training rows that it stands for.

    Parameters
    ----------
    directions : ndarray of float32, shape (D, V)
    mean : ndarray of float32, shape (V,)
    step : float
    lowest, highest : ndarray of int32, shape (D,)
        The multiples of the step that training rows had; others are clipped to these. The lowest is symbol 0.
    centres : ndarray of float16, shape (D, K)
    basis : ndarray of float16, shape (D, V)
    origin : ndarray of float16, shape (V,)
    """

    directions: NDArray[np.float32]
    mean: NDArray[np.float32]
    step: float
    lowest: NDArray[np.int32]
    highest: NDArray[np.int32]
    centres: NDArray[np.float16]
    basis: NDArray[np.float16]
    origin: NDArray[np.float16]

    name: ClassVar[str] = "PCA scalar"

    @classmethod
    def fit(cls, train: NDArray[np.float32], bits: int, seed: int) -> Self:
        """Find the step at which the symbols' entropy, each on its own, is ``bits`` a row."""
        need_rows(len(train), 256, cls.name)
        rows = np.random.default_rng([seed, 13]).permutation(len(train))[:_ROWS]
        mean, directions = principal(train, train.shape[1])
        projected = (train[rows] - mean.astype(np.float32)) @ directions.T.astype(np.float32)
        low, high = np.log(np.abs(projected).max() / (MAX_ALPHABET // 2)), np.log(np.abs(projected).max() * 2)
        most = _entropies(projected, np.exp(low)).sum()
        need_bits(bits, 0 < bits <= most, f"at the finest step that symbols can hold a row has {most:,.0f} bits")
        for _ in range(_SEARCH):
            middle = (low + high) / 2
            enough = _entropies(projected, np.exp(middle)).sum() >= bits
            low, high = (middle, high) if enough else (low, middle)
        step = float(np.exp(low))
        return cls.at_step(train, step, _entropies(projected, step) > _LEAST)

    @classmethod
    def at_step(cls, train: NDArray[np.float32], step: float, kept: NDArray[np.bool_] | None = None) -> Self:
        """Quantise at a given step, the components of a mask or all that do not round to one value."""
        mean, directions = principal(train, train.shape[1])
        directions = directions if kept is None else directions[kept]
        projected = (train - mean.astype(np.float32)) @ directions.T.astype(np.float32)
        levels = np.rint(projected / step).astype(np.int32)
        lowest, highest = levels.min(axis=0), levels.max(axis=0)
        if kept is None:
            used = highest > lowest
            directions, projected, levels = directions[used], projected[:, used], levels[:, used]
            lowest, highest = lowest[used], highest[used]
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
            directions.astype(np.float32),
            mean.astype(np.float32),
            step,
            lowest,
            highest,
            half(centres),
            half(directions),
            half(mean),
        )

    def codes(self, vectors: NDArray[np.float32]) -> Codes:  # noqa: D102
        levels = np.rint((vectors - self.mean) @ self.directions.T / self.step)
        symbols = np.clip(levels, self.lowest, self.highest).astype(np.int32) - self.lowest
        return Codes.from_symbols(symbols, alphabet=self.centres.shape[1])

    def vectors(self, codes: Codes) -> NDArray[np.float32]:  # noqa: D102
        found = full(self.centres)[np.arange(codes.latents), codes.symbols()]
        return found @ full(self.basis) + full(self.origin)

    @property
    def side(self) -> tuple[NDArray[np.float16], ...]:  # noqa: D102
        return self.centres, self.basis, self.origin


def _entropies(projected: NDArray[np.float32], step: float) -> NDArray[np.float64]:
    """Return the empirical entropy of each component's symbols, bits, shape (V,)."""
    levels = np.rint(projected / np.float32(step)).astype(np.int64)
    levels -= levels.min(axis=0)
    width = int(levels.max()) + 1
    places = levels + np.arange(levels.shape[1]) * width
    counts = np.bincount(places.reshape(-1), minlength=levels.shape[1] * width).reshape(-1, width)
    p = counts / len(levels)
    entropies: NDArray[np.float64] = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=1)
    return entropies
