"""Work measured side by side: rounds of all of it, interleaved, so that a busy machine is as unfair to each."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stochcl.benchmarks.worker import _peak, _restart_peak

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass
class Times:
    """What one piece of work took, a number a round.

    Parameters
    ----------
    core : list of float
        Core-seconds: processor time of all threads of this process, which other programs do not add to.
    wall : list of float
        Seconds on the clock.
    peak_bytes : int
        What a first, unmeasured round added at its highest to the process as it stood before.
    """

    core: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def interleave(
    work: Mapping[str, Callable[[], object]],
    repeat: int,
    *,
    wait: Callable[[], None] = lambda: None,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Times]:
    """Do all of the work once to warm up and see its memory, then ``repeat`` times, one piece after the other.

    Examples
    --------
    >>> times = interleave({"sum": lambda: sum(range(1000))}, 3)
    >>> len(times["sum"].core), len(times["sum"].wall)
    (3, 3)
    """
    times = {name: Times() for name in work}
    for turn in range(repeat + 1):
        for done, (name, function) in enumerate(work.items()):
            progress(turn * len(work) + done, (repeat + 1) * len(work), name)
            before = 0 if turn else _restart_peak()
            wait()
            wall, core = time.perf_counter(), time.process_time()
            function()
            wait()
            if turn:
                times[name].core.append(time.process_time() - core)
                times[name].wall.append(time.perf_counter() - wall)
            else:
                times[name].peak_bytes = max(0, _peak() - before)
    return times


def ratio(times: Mapping[str, Times], above: Sequence[str], below: str, clock: str = "core") -> dict[str, float]:
    """Return what some work takes together, by what other work takes: median and range over the rounds.

    Examples
    --------
    >>> ratio({"a": Times([1, 2, 3]), "b": Times([2, 4, 4])}, ["a"], "b")
    {'median': 0.5, 'low': 0.5, 'high': 0.75}
    """
    rounds = zip(*(getattr(times[name], clock) for name in (*above, below)), strict=True)
    found = [sum(parts) / max(whole, 1e-12) for *parts, whole in rounds]
    return {"median": round(statistics.median(found), 4), "low": round(min(found), 4), "high": round(max(found), 4)}


def row(stage: str, times: Times, count: int) -> dict[str, Any]:
    """Return a row of results: milliseconds of one image, or view, on either clock, how many a second, and memory."""
    core, wall = statistics.median(times.core), statistics.median(times.wall)
    return {
        "stage": stage,
        "n": count,
        "core_ms_each": round(core / count * 1e3, 5),
        "core_ms_each_low": round(min(times.core) / count * 1e3, 5),
        "core_ms_each_high": round(max(times.core) / count * 1e3, 5),
        "wall_ms_each": round(wall / count * 1e3, 5),
        "each_per_core_second": round(count / max(core, 1e-9), 1),
        "each_per_second": round(count / max(wall, 1e-9), 1),
        "repeats": len(times.core),
        "peak_bytes": times.peak_bytes,
    }


COLUMNS = ("stage", "core ms", "low", "high", "wall ms", "a core-second", "a second", "peak MB")
"""Of the table for people: milliseconds of one image or view, and how many in a second."""


def lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table."""
    return [
        (
            row["stage"],
            *(f"{row[name]:,.3f}" for name in ("core_ms_each", "core_ms_each_low", "core_ms_each_high")),
            f"{row['wall_ms_each']:,.3f}",
            f"{row['each_per_core_second']:,.0f}",
            f"{row['each_per_second']:,.0f}",
            f"{row['peak_bytes'] / 1e6:,.1f}",
        )
        for row in result["rows"]
    ]
