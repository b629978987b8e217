"""The entropy model of independent symbols: an integer table of probabilities."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stochcl.codes import Codes, bits_per_symbol
from stochcl.errors import FormatError
from stochcl.framing import ArrayReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


DENOMINATOR = 4096
"""Denominator of the coder's probabilities, k/4096 with k in 1..4095."""

MAX_DECISIONS = 4096
"""Maximum binary decisions per row."""

_ROWS = 8192  # codes unpacked at a time


def nodes_per_symbol(alphabet: int) -> int:
    """Return the number of nodes of an alphabet's tree, ``2**bits - 1``.

    Examples
    --------
    >>> [nodes_per_symbol(k) for k in (2, 3, 4, 256)]
    [1, 3, 3, 255]
    """
    return (1 << bits_per_symbol(alphabet)) - 1


def check_sizes(latents: int, alphabet: int, what: str) -> None:
    """Raise FormatError if codes of this shape exceed the limits."""
    if not 2 <= alphabet <= MAX_DECISIONS or not 1 <= latents <= MAX_DECISIONS:
        raise FormatError(f"{what} of {latents:,} latents of {alphabet:,} values makes no sense")
    if (width := latents * bits_per_symbol(alphabet)) > MAX_DECISIONS:
        raise FormatError(f"a row has at most {MAX_DECISIONS} binary decisions, not {width:,}")


def places(codes: Codes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return each decision's latent, shape (T,), and its node in the symbol's tree, shape (N, T)."""
    bits = bits_per_symbol(codes.alphabet)
    latent = np.repeat(np.arange(codes.latents), bits)
    if bits == 1:
        return latent, np.zeros((1, codes.latents), np.intp)
    symbols = codes.symbols().astype(np.intp)
    nodes = [(1 << level) - 1 + (symbols >> (bits - level)) for level in range(bits)]
    return latent, np.stack(nodes, axis=2).reshape(len(codes), -1)


def node_counts(codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count ones and visits at each node of each latent's tree, both shape (D, 2**bits - 1)."""
    bits = bits_per_symbol(codes.alphabet)
    leaves = np.zeros((codes.latents, 1 << bits), np.int64)
    for start in range(0, len(codes), _ROWS):
        symbols = codes[start : start + _ROWS].symbols()
        if bits == 1:
            ones = symbols.sum(axis=0, dtype=np.int64)
            leaves += np.stack([len(symbols) - ones, ones], axis=1)
        else:
            at = symbols + (np.arange(codes.latents, dtype=np.int64) << bits)
            leaves += np.bincount(at.reshape(-1), minlength=leaves.size).reshape(leaves.shape)
    # Children of the nodes of each level, shape (latent, node, decision).
    levels = [leaves.reshape(codes.latents, 1 << level, 2, -1).sum(axis=3) for level in range(bits)]
    ones = np.concatenate([level[:, :, 1] for level in levels], axis=1)
    visits = np.concatenate([level.sum(axis=2) for level in levels], axis=1)
    return ones, visits


def quantised(probabilities: NDArray[np.floating]) -> NDArray[np.int32]:
    """Round probabilities to multiples of 1/4096, numerators 1..4095, so that nothing is impossible."""
    rounded = np.rint(np.asarray(probabilities, np.float64) * DENOMINATOR)
    return np.clip(rounded, 1, DENOMINATOR - 1).astype(np.int32)


_HEAD = struct.Struct("<II")

# Numerators that `fit` chooses from: 101 steps of at most 0.16 in log-odds. One coder call handles all decisions of
# one probability, so fewer distinct ones are faster (about 100 instead of 600 for 1,024 latents); the coarser steps
# cost less than 0.03 % of the rate.
_STEPS = np.unique(
    np.clip(np.rint(DENOMINATOR / (1 + np.exp(np.linspace(-8, 8, 101)))), 1, DENOMINATOR - 1).astype(np.uint16)
)


@dataclass(frozen=True, eq=False)
class IndependentModel:
    """A binary tree of probabilities for each latent; symbols are independent.

    ``ones``, uint16, shape (D, 2**bits - 1), are the numerators k of P(decision is 1) = k/4096. A symbol's decisions
    go down a tree, most significant first; the node after decisions d1..dl is number 2**l - 1 + (d1..dl as an
    integer). ``alphabet`` is K, the number of values a latent takes; bits = ceil(log2 K).
    """

    ones: NDArray[np.uint16]
    alphabet: int = 2

    kind = "independent"

    def __post_init__(self) -> None:
        nodes = nodes_per_symbol(self.alphabet)
        if self.ones.dtype != np.uint16 or self.ones.ndim != 2 or self.ones.shape[1] != nodes:
            msg = f"a table for {self.alphabet} values has {nodes} columns of uint16, not {self.ones.shape[1:]}"
            raise FormatError(msg)
        if not 1 <= self.decisions_per_row <= MAX_DECISIONS:
            raise FormatError(f"a row has 1 to {MAX_DECISIONS} binary decisions, not {self.decisions_per_row}")
        if self.ones.min() < 1 or self.ones.max() >= DENOMINATOR:
            raise FormatError(f"probabilities are k/{DENOMINATOR} with k in 1..{DENOMINATOR - 1}")

    @property
    def latents(self) -> int:
        """D, the number of latents per row."""
        return len(self.ones)

    @property
    def decisions_per_row(self) -> int:
        """Binary decisions per row: latents times bits per symbol."""
        return self.latents * bits_per_symbol(self.alphabet)

    @classmethod
    def fit(cls, codes: Codes) -> IndependentModel:
        """Return the table with the lowest cost for these codes, to within the steps of its probabilities."""
        ones, visits = node_counts(codes)
        return cls.nearest((ones + 0.5) / (visits + 1), codes.alphabet)

    @classmethod
    def nearest(cls, probabilities: NDArray[np.floating], alphabet: int = 2) -> IndependentModel:
        """Round probabilities of a one, shape (D, 2**bits - 1), to the nearest steps of `_STEPS`."""
        exact = np.asarray(probabilities, np.float64) * DENOMINATOR
        above = np.clip(np.searchsorted(_STEPS, exact), 1, len(_STEPS) - 1)
        lower, upper = _STEPS[above - 1].astype(np.float64), _STEPS[above].astype(np.float64)
        nearer = np.where(exact - lower <= upper - exact, lower, upper)
        return cls(nearer.astype(np.uint16), alphabet)

    def bits_by_latent(self, codes: Codes) -> NDArray[np.float64]:
        """Return the bits of these codes under the table, summed over rows, shape (D,)."""
        ones, visits = node_counts(codes)
        p = self.ones / DENOMINATOR
        return -(ones * np.log2(p) + (visits - ones) * np.log2(1 - p)).sum(axis=1)

    def ideal_bits(self, codes: Codes) -> float:
        """Return the total bits of these codes under the table: the lower bound for a coder."""
        return float(self.bits_by_latent(codes).sum())

    def prefix(self, latents: int) -> IndependentModel:
        """Keep the probabilities of the first latents."""
        return IndependentModel(self.ones[:latents], self.alphabet)

    def select(self, latents: Sequence[int]) -> IndependentModel:
        """Keep the probabilities of these latents."""
        return IndependentModel(self.ones[list(latents)], self.alphabet)

    def to_bytes(self) -> bytes:
        """Write latents and alphabet, uint32, then the numerators, uint16; little-endian.

        Not deflated: tables are named by the hash of their bytes, and zlib versions differ in output.
        """
        return _HEAD.pack(self.latents, self.alphabet) + self.ones.astype("<u2").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> IndependentModel:
        """Read what :meth:`to_bytes` wrote."""
        reader = ArrayReader(data, "a probability table")
        latents, alphabet = reader.take("<u4", 2).tolist()
        check_sizes(latents, alphabet, "a probability table")
        ones = reader.take("<u2", latents, nodes_per_symbol(alphabet))
        reader.end()
        return cls(ones, alphabet)
