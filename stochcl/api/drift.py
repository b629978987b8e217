"""Drift: what the codes of new rows cost, beside what the model expects of rows like those of its training."""

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

_DECISIONS = 12  # of the first latents: as many words as can be gone through
_LEAST = 0.5  # bits: where all words are as frequent, the deviation is next to nothing
_FEWER = 0.5  # of the bits with frequencies of their own; images of one class of CIFAR-10 take 0.6 of them


@dataclass(frozen=True, eq=False)
class Drift:
    """The bits of the first word of each of some rows, beside those that their model expects.

    The first word is what the first latents say: which cluster a row is in. Later latents say where it is in there,
    and cost as much for rows of any kind. (Digits told from CIFAR-10 by the default model: AUROC 0.96 by the length
    of 8 latents, 0.33 by that of all 256.) What a model expects is its own entropy, and so the mean of rows like
    those that it was fitted to.

    Parameters
    ----------
    latents : int
        Of a word.
    lengths : ndarray of float64, shape (W,)
        Bits of every word that there can be, under the model.
    counts : ndarray of int64, shape (W,)
        How many rows have each.
    """

    latents: int
    lengths: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, codec: CodecBase, width: int) -> Self | None:
        """Return that of no rows, of this width; None where a code is narrower than a word."""
        bits = bits_per_symbol(codec.alphabet)
        latents = min(codec.config.ladder[0], _DECISIONS // bits)
        if not 1 <= latents <= width:
            return None
        words = np.array(list(product(range(codec.alphabet), repeat=latents)), np.uint16)
        model = codec.tables.candidates(latents)[-1].model
        lengths = code_lengths(Codes.from_symbols(words, alphabet=codec.alphabet), model).astype(np.float64)
        return cls(latents, lengths, np.zeros(len(lengths), np.int64))

    def plus(self, codes: Codes) -> Self:
        """Return that of these rows, too."""
        symbols = codes.prefix(self.latents).symbols().astype(np.int64)
        words = np.ravel_multi_index(tuple(symbols.T), (codes.alphabet,) * self.latents)
        return replace(self, counts=self.counts + np.bincount(words, minlength=len(self.counts)))

    @classmethod
    def total(cls, parts: Sequence[Self]) -> Self | None:
        """Return that of several parts' rows; None of none."""
        return replace(parts[0], counts=np.sum([part.counts for part in parts], axis=0)) if parts else None

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return int(self.counts.sum())

    @property
    def bits(self) -> float:
        """What a row's first word takes under the model, on average."""
        return float(self.counts @ self.lengths) / max(1, self.rows)

    @property
    def own_bits(self) -> float:
        """What it would take with these rows' own frequencies: their entropy, after Miller and Madow."""
        shares = self.counts[self.counts > 0] / max(1, self.rows)
        return float(-(shares @ np.log2(shares)) + (len(shares) - 1) / (2 * max(1, self.rows) * np.log(2)))

    @property
    def expected(self) -> tuple[float, float]:
        """The mean that the model expects, and the deviation of a row."""
        shares = 2.0**-self.lengths
        shares /= shares.sum()  # of an alphabet that is no power of two some words cannot be
        mean = float(shares @ self.lengths)
        return mean, float(np.sqrt(shares @ (self.lengths - mean) ** 2))

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        mean, deviation = self.expected
        values = {"bits": self.bits, "expected": mean, "deviation": deviation, "own_bits": self.own_bits}
        return {"rows": self.rows, "latents": self.latents} | {name: round(one, 3) for name, one in values.items()}

    def finding(self, unit: str) -> str | None:
        """Say how rows differ from those of training, None where they do not or are too few to tell."""
        mean, deviation = self.expected
        take = f"the first {self.latents} latents of these {unit}s take {self.bits:.1f} bits"
        if self.rows < len(self.counts):  # a few photographs lie in few clusters, too
            return None
        if self.bits - mean > max(deviation, _LEAST):
            return f"{take}, and of the model's training {unit}s {mean:.1f}"
        if self.own_bits < _FEWER * self.bits:
            return f"{take}, and with their own frequencies {self.own_bits:.1f}: they lie in few of its clusters"
        return None
