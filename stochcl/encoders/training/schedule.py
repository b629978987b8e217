"""How far a run is, and what follows from that."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The course of a run.

    Parameters
    ----------
    steps : int
        How many there are in all.
    max_time : float or None
        Seconds, if time may end it before.
    warmup : int
        Steps in which the learning rate rises.
    """

    steps: int
    max_time: float | None
    warmup: int

    def fraction(self, step: int, elapsed: float) -> float:
        """Return how much of the run is done, by steps or by time, whichever ends it first."""
        done = step / self.steps if self.steps else 1.0
        if self.max_time:
            done = max(done, elapsed / self.max_time)
        return min(1.0, done)

    def learning_rate(self, step: int, fraction: float) -> float:
        """Return what the peak is multiplied by: it rises with the steps, then falls as a cosine.

        Examples
        --------
        >>> schedule = Schedule(steps=1000, max_time=None, warmup=200)
        >>> [round(schedule.learning_rate(step, step / 1000), 2) for step in (0, 99, 500, 1000)]
        [0.01, 0.49, 0.5, 0.0]
        """
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * fraction))
