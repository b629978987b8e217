"""Where a run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Progress:
    """Where a run stands; ``fraction`` is of the whole run, rates are in bits, times in seconds.

    ``rate`` is what the sampled codes of the batch cost in expectation, ``kl`` how far their posterior is from the
    prior; ``held_rate`` is what the hard codes of held-out images cost.
    """

    fraction: float
    step: int
    epoch: float
    elapsed: float
    loss: float = math.nan
    contrast: float = math.nan
    contrast_codes: float = math.nan
    decorrelation: float = math.nan
    reconstruction: float = math.nan
    rate: float = math.nan
    kl: float = math.nan
    beta: float = math.nan
    lr: float = 0.0
    images_per_second: float = 0.0
    held_rate: float = math.nan
    knn: float = math.nan

    def line(self) -> str:
        """Return the figures that matter, with their units, on one line."""
        text = (
            f"step {self.step:,}, epoch {self.epoch:.1f}, loss {self.loss:.3f} nats, "
            f"rate {self.rate:,.0f} bits/image, {self.images_per_second:,.0f} images/s"
        )
        return text if math.isnan(self.knn) else f"{text}, kNN {self.knn:.1%}"
