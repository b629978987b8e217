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
    distance = DISTANCES[sample.distance]
    prepared = distance.prepare(sample.x[known])
    own = np.searchsorted(known, rows)
    own[(own == len(known)) | (known[np.minimum(own, len(known) - 1)] != rows)] = -1
    base = distance.prepare(sample.x[rows])
    distances, before = _nearest(base, prepared, distance, own)
    said = None if probe is None else probe(sample.x[rows])
    typical = _median(distances[:, 0]) if distances.shape[1] else 0.0
    out, taken = [], set[int]()
    for column in columns:
        symbols = sample.flipped(column, rows)
        x = sample.decode(symbols)
        after_x = distance.prepare(x)
        _, after = _nearest(after_x, prepared, distance, own)
        moved = np.nan_to_num(_rowwise(distance, base, after_x))
        shared = (before[:, :, None] == after[:, None, :]).any(axis=2)
        then = None if probe is None else probe(x)
        changed = None
        if said is not None and then is not None and classes:
            changed = float((said.argmax(axis=1) != then.argmax(axis=1)).mean())
        means = None if probe is None else np.stack([
            probe(sample.decode(sample.switched(sample.symbols[rows], column, end))).mean(axis=0)
            for end in sample.ends(column)
        ])  # fmt: skip
        order = np.lexsort((-moved, shared.sum(axis=1))).tolist()  # of equal ones, what moves most
        most = next((row for row in order if row not in taken), order[0])
        taken.add(most)
        example = Effect(
            int(rows[most]), known[before[most][:_EXAMPLE]], known[after[most][:_EXAMPLE]],
            None if said is None or then is None else np.stack([said[most], then[most]]),
            _called(sample, column, int(symbols[most, column])),
        )  # fmt: skip
        kept = float(shared.mean()) if shared.size else 1.0
        out.append(Intervention(column, _median(moved), typical, kept, changed, means, example))
    return out


def _nearest(
    queries: NDArray[Any], rows: NDArray[Any], distance: Any, own: NDArray[np.integer]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    found = Nearest(queries, distance, min(_NEIGHBOURS + 1, len(rows)), prepared=True)
    found.add_prepared(rows)
    return without_own(*found.sorted(), own)


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
