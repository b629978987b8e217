"""Where a fit stands that is not a descent by steps."""

from __future__ import annotations

import json
import math
import signal
import threading
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from stochcl.errors import OutputError, TrainingError
from stochcl.files import replacing
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from torch import Tensor, nn

    from stochcl.encoders.encoder import Encoder


@dataclass(frozen=True)
class Fitting:
    """Where the fit of the entropy network stands, after the last step; ``fraction`` is of that."""

    fraction: float
    text: str

    def line(self) -> str:
        """Return what there is to say, on one line."""
        return self.text


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


KIND = "stochcl-checkpoint-0"


def save_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write everything that a run needs to go on as if it had not stopped."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        tensors |= {f"{prefix}.{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v).cpu().contiguous() for k, v in values.items()}
    try:
        with replacing(path) as file:
            file.write(save(tensors, {"kind": KIND, "state": json.dumps(state)}))
    except OSError as exc:
        raise OutputError(f"{escape_name(path)}: the checkpoint cannot be written: {exc.strerror}.") from exc


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, options: dict[str, Any]
) -> dict[str, Any]:
    """Restore modules and optimizer, and return the state."""
    shown = escape_name(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state: dict[str, Any] = json.loads(metadata["state"])
        stored = dict(state["options"])
        differing = sorted(k for k in options if stored.get(k) != options[k])
        if metadata["kind"] != KIND or differing:
            same = "give the same options"
            if "precision" in differing:  # which nobody need have given: auto depends on the machine and the version
                same += f" (--precision {escape_name(str(stored.get('precision')))})"
            msg = (
                f"{shown}: this checkpoint belongs to a run with another {' and '.join(differing) or 'format'}; "
                f"{same}, or delete it to start anew."
            )
            raise TrainingError(msg)
        slots = _slots(tensors, optimizer)
        for prefix, module in modules.items():
            module.load_state_dict(_below(tensors, prefix))
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as exc:
        raise TrainingError(f"{shown}: this checkpoint is damaged ({exc}); delete it to start anew.") from exc
    return state


def _slots(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state by the parameters' positions; all of it, or the run would take another turn."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer").items():
        i, _, key = name.partition(".")
        slots.setdefault(int(i), {})[key] = tensor
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    if set(slots) != set(range(len(parameters))):
        msg = f"it has optimizer states of {len(slots)} parameters, not of {len(parameters)}"
        raise ValueError(msg)
    for position, slot in slots.items():
        shapes = {parameters[position].shape, torch.Size()}
        if set(slot) != set(slots[0]) or not {v.shape for v in slot.values()} <= shapes:
            msg = f"the optimizer's state of parameter {position} is not one"
            raise ValueError(msg)
    return slots


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


class Averaged:
    """The exponential moving average of a network (Polyak and Juditsky, 1992), statistics of normalisation included.

    Parameters
    ----------
    network : Encoder
    decay : float
        Of the average, below 1. In the first steps it is (1 + t) / (10 + t), so that the beginning is forgotten.

    Attributes
    ----------
    network : Encoder
        A copy with averaged weights, in evaluation mode.
    """

    def __init__(self, network: Encoder, decay: float) -> None:
        self.decay = decay
        self.network = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: Encoder, step: int) -> None:
        """Take the weights after ``step`` steps in."""
        keep = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = self.network.state_dict(), network.state_dict()
        floating = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in floating], [theirs[n].to(ours[n].dtype) for n in floating], 1 - keep)
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])


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


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Put an interruption (Ctrl-C) off until it is asked for; a second one is not put off.

    Raised in the middle of a step it would leave weights, statistics and counter of different steps, and the
    checkpoint made of them would not go on as if nothing had happened.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            signal.default_int_handler(number, frame)
        seen.append(number)

    # Only the main thread may, and a program with a handler of its own keeps it.
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
