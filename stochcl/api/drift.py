"""Drift: the bits of new rows' codes compared with what the model expects of rows like its training rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stochcl.codes import Codes, bits_per_symbol
from stochcl.entropy.model import code_lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.api.encode import CodecBase

_DECISIONS = 12  # most decisions per word, so that all words can be enumerated
_LEAST = 0.5  # bits; if all words are equally frequent, the deviation is almost 0
_FEWER = 0.5  # ratio of the rows' own entropy to their bits; images of one class of CIFAR-10 have 0.6


@dataclass(frozen=True, eq=False)
class Drift:
    """Bits of the first word of some rows, compared with what the model expects.

    The first word is the value of the first latents: the cluster of a row. Later latents give the position in the
    cluster, and cost as much for rows of any kind. (Detecting digits among CIFAR-10 with the default model: AUROC
    0.96 by the length of 8 latents, 0.33 by that of all 256.) The model expects its own entropy, which is the mean
    of rows like those it was fitted to.

    Parameters
    ----------
    latents : int
        Latents per word.
    lengths : ndarray of float64, shape (W,)
        Bits of every possible word under the model.
    counts : ndarray of int64, shape (W,)
        Number of rows with each word.
    """

    latents: int
    lengths: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, codec: CodecBase, width: int) -> Self | None:
        """Return the drift of no rows yet, at this width; None if a code is narrower than a word."""
        bits = bits_per_symbol(codec.alphabet)
        latents = min(codec.config.ladder[0], _DECISIONS // bits)
        if not 1 <= latents <= width:
            return None
        words = np.array(list(product(range(codec.alphabet), repeat=latents)), np.uint16)
        model = codec.tables.candidates(latents)[-1].model
        lengths = code_lengths(Codes.from_symbols(words, alphabet=codec.alphabet), model).astype(np.float64)
        return cls(latents, lengths, np.zeros(len(lengths), np.int64))

    def plus(self, codes: Codes) -> Self:
        """Return the drift with these rows added."""
        symbols = codes.prefix(self.latents).symbols().astype(np.int64)
        words = np.ravel_multi_index(tuple(symbols.T), (codes.alphabet,) * self.latents)
        return replace(self, counts=self.counts + np.bincount(words, minlength=len(self.counts)))

    @classmethod
    def total(cls, parts: Sequence[Self]) -> Self | None:
        """Return the drift of several parts together, or None without parts."""
        return replace(parts[0], counts=np.sum([part.counts for part in parts], axis=0)) if parts else None

    @property
    def rows(self) -> int:
        """Number of rows counted."""
        return int(self.counts.sum())

    @property
    def bits(self) -> float:
        """Mean bits of a row's first word under the model."""
        return float(self.counts @ self.lengths) / max(1, self.rows)

    @property
    def own_bits(self) -> float:
        """Mean bits with these rows' own frequencies: their entropy with the Miller-Madow correction."""
        shares = self.counts[self.counts > 0] / max(1, self.rows)
        return float(-(shares @ np.log2(shares)) + (len(shares) - 1) / (2 * max(1, self.rows) * np.log(2)))

    @property
    def expected(self) -> tuple[float, float]:
        """The mean that the model expects, and the standard deviation of a row."""
        shares = 2.0**-self.lengths
        shares /= shares.sum()  # some words are impossible unless the alphabet is a power of two
        mean = float(shares @ self.lengths)
        return mean, float(np.sqrt(shares @ (self.lengths - mean) ** 2))

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        mean, deviation = self.expected
        values = {"bits": self.bits, "expected": mean, "deviation": deviation, "own_bits": self.own_bits}
        return {"rows": self.rows, "latents": self.latents} | {name: round(one, 3) for name, one in values.items()}

    def finding(self, unit: str) -> str | None:
        """Describe how rows differ from training rows; None if they do not, or are too few to tell."""
        mean, deviation = self.expected
        take = f"the first {self.latents} latents of these {unit}s take {self.bits:.1f} bits"
        if self.rows < len(self.counts):  # a few photographs also lie in few clusters
            return None
        if self.bits - mean > max(deviation, _LEAST):
            return f"{take}, and of the model's training {unit}s {mean:.1f}"
        if self.own_bits < _FEWER * self.bits:
            return f"{take}, and with their own frequencies {self.own_bits:.1f}: they lie in few of its clusters"
        return None
