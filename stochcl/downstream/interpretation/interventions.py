"""What happens when one latent is flipped and all others stay: where the vector goes, and what a probe says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream.nearest import DISTANCES, Nearest, without_own

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stochcl.downstream.interpretation.sample import Sample

    Answers = Callable[[NDArray[Any]], NDArray[np.float64]]

_NEIGHBOURS = 10
_EXAMPLE = 6  # neighbours of the one row that is shown


@dataclass(frozen=True, eq=False)
class Effect:
    """What flipping a latent does to one row.

    Parameters
    ----------
    row : int
    before, after : ndarray of int
        Its nearest rows, itself left out, as it is and flipped.
    answers : ndarray of float64, shape (2, C), optional
        The probe's, before and after.
    to : str
        What the latent is flipped to.
    """

    row: int
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    answers: NDArray[np.float64] | None
    to: str


@dataclass(frozen=True, eq=False)
class Intervention:
    """What flipping a latent does to rows, one by one.

    Parameters
    ----------
    column : int
    moved : float
        Median distance that flipping moves a row.
    nearest : float
        Median distance of a row to its nearest other one, to hold that against.
    kept : float
        Of a row's 10 nearest ones, the share that stays, on average.
    changed : float or None
        Share of rows for which the probe gives another answer; None without classes.
    means : ndarray of float64, shape (2, C), or None
        Mean of the probe's answers with the latent at its one end (off, low) in all rows, and at the other.
    example : Effect
        On the row whose nearest ones change most, of those that are no example of a latent before.
    """

    column: int
    moved: float
    nearest: float
    kept: float
    changed: float | None
    means: NDArray[np.float64] | None
    example: Effect


def intervene(
    sample: Sample,
    columns: Sequence[int],
    *,
    rows: NDArray[np.integer],
    known: NDArray[np.integer],
    probe: Answers | None = None,
    classes: bool = True,
) -> list[Intervention]:
    """Flip latents, one at a time, in some rows, and look where they go among others.

    Parameters
    ----------
    sample : Sample
    columns : sequence of int
        Which latents.
    rows : ndarray of int
        Which rows they are flipped in.
    known : ndarray of int
        Among which rows the nearest ones are sought.
    probe : callable, optional
        From what is compared, shape (n, V), to answers, shape (n, C): probabilities of classes, or a number.
    classes : bool
        Whether they are probabilities, of which the greatest is the answer.
    """
    flips = _Flips(sample, rows, known, probe, classes=classes)
    return [flips.of(column) for column in columns]


class _Flips:
    """Rows as they are, to hold them against what flips make of them."""

    def __init__(
        self,
        sample: Sample,
        rows: NDArray[np.integer],
        known: NDArray[np.integer],
        probe: Answers | None,
        *,
        classes: bool,
    ) -> None:
        self.sample, self.rows, self.known, self.classes = sample, rows, known, classes
        self.probe = probe
        self._distance = DISTANCES[sample.distance]
        self._known = self._distance.prepare(sample.x[known])
        own = np.searchsorted(known, rows)  # where each row is among those known, or -1
        own[(own == len(known)) | (known[np.minimum(own, len(known) - 1)] != rows)] = -1
        self._own = own
        self._base = self._distance.prepare(sample.x[rows])
        distances, self._before = self._nearest(self._base)
        self._typical = _median(distances[:, 0]) if distances.shape[1] else 0.0
        self._said = None if probe is None else probe(sample.x[rows])
        self._taken: set[int] = set()  # rows that are an example already

    def of(self, column: int) -> Intervention:
        """Flip one latent."""
        symbols = self.sample.flipped(column, self.rows)
        x = self.sample.decode(symbols)
        flipped = self._distance.prepare(x)
        _, after = self._nearest(flipped)
        moved = np.nan_to_num(_rowwise(self._distance, self._base, flipped))
        shared = (self._before[:, :, None] == after[:, None, :]).any(axis=2)
        then = None if self.probe is None else self.probe(x)
        order = np.lexsort((-moved, shared.sum(axis=1))).tolist()  # of equal ones, what moves most
        most = next((row for row in order if row not in self._taken), order[0])
        self._taken.add(most)
        example = Effect(
            int(self.rows[most]),
            self.known[self._before[most][:_EXAMPLE]],
            self.known[after[most][:_EXAMPLE]],
            None if self._said is None or then is None else np.stack([self._said[most], then[most]]),
            _called(self.sample, column, int(symbols[most, column])),
        )
        changed = None
        if self._said is not None and then is not None and self.classes:
            changed = float((self._said.argmax(axis=1) != then.argmax(axis=1)).mean())
        kept = float(shared.mean()) if shared.size else 1.0
        return Intervention(column, _median(moved), self._typical, kept, changed, self._means(column), example)

    def _means(self, column: int) -> NDArray[np.float64] | None:
        """Return the probe's mean answers with a latent at its one end, and at the other, in all rows."""
        if self.probe is None:
            return None
        symbols = self.sample.symbols[self.rows]
        ends = [self.sample.switched(symbols, column, end) for end in self.sample.ends(column)]
        return np.stack([self.probe(self.sample.decode(end)).mean(axis=0) for end in ends])

    def _nearest(self, queries: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest of the known rows, without the queries themselves."""
        found = Nearest(queries, self._distance, min(_NEIGHBOURS + 1, len(self._known)), prepared=True)
        found.add_prepared(self._known)
        return without_own(*found.sorted(), self._own)


def _rowwise(distance: Any, one: NDArray[Any], other: NDArray[Any], step: int = 64) -> NDArray[np.float64]:
    """Return the distance of each row to its counterpart."""
    parts = [
        np.diagonal(distance.between(one[start : start + step], other[start : start + step]))
        for start in range(0, len(one), step)
    ]
    return np.concatenate(parts).astype(np.float64)


def _median(values: NDArray[Any]) -> float:
    return float(np.median(np.nan_to_num(values, posinf=0)))


def _called(sample: Sample, column: int, value: int) -> str:
    if sample.kind == "bits":
        return "on" if value else "off"
    if sample.kind == "levels":
        return "high" if value == sample.ends(column)[1] else "low"
    return f"value {value}"
