"""Holding a rate: the price of a bit at which codes cost what was asked for."""

from __future__ import annotations

_MISSED = 0.05  # by how much, relative to the target, before it is said


class RateController:
    """Finds the beta at which codes cost the bits that were asked for.

    beta moves by a bounded factor a step, in proportion to how far the measured rate is off, and stays between
    two bounds: it starts feasible and cannot wind up, as dual ascent from zero does. Without a target it is
    constant.

    What is measured at every step is the rate of sampled codes; what a file holds are hard ones. Their ratio is
    measured now and then, and the target is meant for hard codes.

    Parameters
    ----------
    target : float or None
        Bits per image.
    beta : float
        Where to start, in nats a bit.
    gain : float
        Of a step: how far beta moves, relative to itself, where the rate is twice the target.
    """

    LOWEST, HIGHEST, GAIN = 1e-6, 3.0, 0.03

    def __init__(self, target: float | None, beta: float = 1e-4, gain: float = GAIN) -> None:
        self.target = target
        self.beta = beta
        self.gain = gain
        self.hard_ratio = 1.0

    def jump(self, rate: float, target: float, factor: float) -> None:
        """Make bits dearer, or cheaper, by a factor: whichever takes the rate to the target."""
        beta = self.beta * factor if rate > target else self.beta / factor
        self.beta = max(self.LOWEST, min(self.HIGHEST, beta))

    def measured(self, hard: float, sampled: float) -> None:
        """Take the rate of hard codes beside that of sampled ones, in bits, as the ratio from now on."""
        if sampled > 0:
            self.hard_ratio = max(0.1, min(2.0, hard / sampled))

    def update(self, rate: float) -> None:
        """Take the rate of one step's sampled codes, in bits per image, into account."""
        if self.target is None:
            return
        off = max(-1.0, min(1.0, rate * self.hard_ratio / self.target - 1))
        self.beta = max(self.LOWEST, min(self.HIGHEST, self.beta * (1 + self.gain * off)))


def said_of_rate(rate: float, target: float | None, unit: str = "image") -> tuple[str, ...]:
    """Return a warning, as a sentence, where hard codes miss the rate that was asked for; none without a target.

    Examples
    --------
    >>> said_of_rate(63, 64), said_of_rate(63, None)
    ((), ())
    """
    if target is None or abs(rate / target - 1) <= _MISSED:
        return ()
    missed = f"the codes take {rate:,.1f} bits per {unit}, and {target:,g} were asked for"
    advice = f"more steps or more {unit}s to train on bring the rate closer; --latents and --alphabet bound it"
    return (f"warning: {missed}; {advice}",)
