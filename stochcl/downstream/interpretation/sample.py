"""Rows of codes to look at: symbols, what they decode to, and what may be done with their values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream.nearest import OF_KINDS
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.compress import VectorDecoder

KINDS = tuple(OF_KINDS)
"""What symbols are: 0 or 1, numbers in order, or names."""

_LOW, _HIGH = 0.1, 0.9  # quantiles that stand for a low and a high level


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of codes.

    Parameters
    ----------
    symbols : ndarray of int, shape (N, D)
    kind : str
        One of :data:`KINDS`.
    decoder : VectorDecoder, optional
        What makes vectors of these latents.

    Raises
    ------
    UsageError
        If there are no rows, or there is no such kind.

    Examples
    --------
    >>> sample = Sample(np.array([[0, 1], [1, 1]], np.uint8), "bits")
    >>> sample.x.shape, sample.ends(0)
    ((2, 2), (0, 1))
    >>> sample.flipped(0)[:, 0].tolist()
    [1, 0]
    """

    symbols: NDArray[Any]
    kind: str
    decoder: VectorDecoder | None = None
    x: NDArray[Any] = field(init=False, repr=False)
    """What is compared: vectors, float32, shape (N, V), or the symbols where there is no decoder."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"latents are {', '.join(KINDS)}, not {self.kind!r}.")
        if self.symbols.ndim != 2 or not len(self.symbols):
            raise UsageError(f"codes to look at have shape (N, D), at least one row, not {self.symbols.shape}.")
        object.__setattr__(self, "x", self.decode(self.symbols))

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def latents(self) -> int:
        """D."""
        return int(self.symbols.shape[1])

    @property
    def distance(self) -> str:
        """By which of :data:`~stochcl.downstream.nearest.DISTANCES` rows are compared."""
        return OF_KINDS[self.kind] if self.decoder is None else "cosine"

    def decode(self, symbols: NDArray[Any]) -> NDArray[Any]:
        """Return what is compared of symbols, shape (n, D)."""
        return symbols if self.decoder is None else self.decoder.decode(symbols)

    def ends(self, column: int) -> tuple[int, int]:
        """Return the two values that a latent is switched between.

        Of bits 0 and 1; of levels the 10th and the 90th percentile, or the least and the greatest where these are
        equal; of categories the two most frequent ones. Of a latent that never changes both are the same.
        """
        values = self.symbols[:, column]
        if self.kind == "bits":
            return 0, 1
        if self.kind == "levels":
            low, high = np.quantile(values, [_LOW, _HIGH], method="nearest")
            return (int(low), int(high)) if low < high else (int(values.min()), int(values.max()))
        found, counts = np.unique(values, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return int(found[order[0]]), int(found[order[min(1, len(order) - 1)]])

    def switched(self, symbols: NDArray[Any], column: int, value: int) -> NDArray[Any]:
        """Return a copy of symbols, shape (n, D), with a latent at this value."""
        out = symbols.copy()
        out[:, column] = value
        return out

    def flipped(self, column: int, rows: NDArray[np.integer] | slice = slice(None)) -> NDArray[Any]:
        """Return rows' symbols with a latent at the other one of its :meth:`ends`: that which it is farther from."""
        low, high = self.ends(column)
        out = self.symbols[rows].copy()
        values = out[:, column].astype(np.int64)
        nearer_low = values == low if self.kind == "categories" else np.abs(values - low) < np.abs(values - high)
        out[:, column] = np.where(nearer_low, high, low)
        return out
