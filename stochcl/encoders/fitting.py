"""Where a fit stands that is not a descent by steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fitting:
    """Where the fit of the entropy network stands, after the last step; ``fraction`` is of that."""

    fraction: float
    text: str

    def line(self) -> str:
        """Return what there is to say, on one line."""
        return self.text
