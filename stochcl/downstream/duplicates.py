"""Rows to score on whose codes stand, the same or nearly, among the rows that were trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.downstream.splits import Split

_ROWS = 2000  # rows that are looked up: among 50,000 of 1,024 bits in 3 s of a core
_SHARE = 64  # near: at most a 64th of the latents differ


@dataclass(frozen=True)
class Duplicates:
    """How many of the rows to score on have a near duplicate among those to train on.

    Parameters
    ----------
    checked : int
        Rows that were looked up: a seeded sample, where there are more than 2,000.
    identical : int
        Those whose code is also in a training row.
    near : int
        Those whose code differs from a training row's in ``differ`` latents at most, the identical among them.
    differ : int
        A 64th of the latents.
    """

    checked: int
    identical: int
    near: int
    differ: int

    def to_json(self) -> dict[str, Any]:
        """Return the counts by name."""
        return asdict(self)

    def line(self) -> str:
        """Return the counts for people."""
        return (
            f"of {self.checked:,} images looked up, {self.identical:,} have the same code as one trained on, and "
            f"{self.near:,} one that differs in at most {self.differ:,} latents"
        )


def find_duplicates(symbols: NDArray[np.integer], splits: Sequence[Split], seed: int) -> Duplicates:
    """Look up rows to score on among the rows of their split to train on.

    Parameters
    ----------
    symbols : ndarray of int, shape (N, D)
    splits : sequence of (train, test)
        Row numbers.
    seed : int
        Of the sample.

    Examples
    --------
    >>> symbols = np.zeros((3, 64), int)
    >>> symbols[2, 0] = 1
    >>> find_duplicates(symbols, [(np.array([0]), np.array([1, 2]))], seed=0)
    Duplicates(checked=2, identical=1, near=2, differ=1)
    """
    from stochcl.downstream.nearest import nearest

    packed, bits = _one_hot(symbols)
    differ = symbols.shape[1] // _SHARE
    total = sum(len(test) for _, test in splits)
    rng = np.random.default_rng(seed)
    checked = identical = near = 0
    for train, test in splits:
        share = len(test) if total <= _ROWS else max(1, _ROWS * len(test) // total)
        sample = rng.choice(test, share, replace=False)
        distances = nearest(packed[sample], packed[train], 1)[0][:, 0] // bits
        checked += len(sample)
        identical += int((distances == 0).sum())
        near += int((distances <= differ).sum())
    return Duplicates(checked, identical, near, differ)


def _one_hot(symbols: NDArray[np.integer]) -> tuple[NDArray[np.uint64], int]:
    """Pack symbols so that each that differs changes the same number of bits: one, of bits; two, of more values."""
    from stochcl.downstream.nearest import pack_bits

    alphabet = int(symbols.max(initial=1)) + 1
    if alphabet == 2:
        return pack_bits(symbols.astype(bool)), 1
    parts = [pack_bits(symbols == value) for value in range(alphabet)]
    return np.concatenate(parts, axis=1), 2
