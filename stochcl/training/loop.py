"""The training loop shared by pre-training, latents, fine-tuning and the entropy network."""

from __future__ import annotations

import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch

from stochcl.errors import TrainingError, for_caller
from stochcl.messages import escape_name
from stochcl.training.outputs import damaged, load_checkpoint, save_checkpoint
from stochcl.training.runtime import all_reduce_mean, any_rank, broadcast, rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import FrameType

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from stochcl.encoders.encoder import Encoder


_MEASURE_SHARE, _MEASURE_SOONEST = 0.03, 15.0  # share of the time for live figures; least seconds between two of them
_NEVER = 1 << 62


class Losses(Protocol):
    """The terms of a step's loss, a named tuple of scalars; ``total`` is minimised."""

    @property
    def total(self) -> Tensor:
        """The loss to minimise."""

    def __iter__(self) -> Iterator[Tensor]: ...


class TotalLoss(NamedTuple):
    """A loss of one term."""

    total: Tensor


@dataclass(frozen=True)
class FitProgress:
    """Progress of a fit as a line of text; ``fraction`` is of that fit."""

    fraction: float
    text: str

    def line(self) -> str:
        """Return the line."""
        return self.text


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a stage.

    ``max_time`` seconds may end it; ``warmup`` is in steps.
    """

    steps: int
    max_time: float | None = None
    warmup: float = 1

    def fraction(self, step: int, elapsed: float) -> float:
        """Return the finished fraction of the stage, by steps or by time, whichever is further."""
        done = step / self.steps if self.steps else 1.0
        if self.max_time:
            done = max(done, elapsed / self.max_time)
        return min(1.0, done)

    def learning_rate(self, step: int, fraction: float) -> float:
        """Return the factor of the peak learning rate: it rises with the steps, then falls as a cosine.

        Examples
        --------
        >>> schedule = Schedule(steps=1000, max_time=None, warmup=200)
        >>> [round(schedule.learning_rate(step, step / 1000), 2) for step in (0, 99, 500, 1000)]
        [0.01, 0.49, 0.5, 0.0]
        """
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * fraction))


class EpochOrder:
    """Batches of every epoch in an order set by seed and epoch; an incomplete last batch is left out."""

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.batch, self.steps_per_epoch = batch, rows // batch
        self._rows, self._seed = rows, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def take(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return a step's rows and their random keys, which are unique per row and epoch."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._rows)
        rows = self._order[i * self.batch : (i + 1) * self.batch]
        return rows, rows + self._rows * epoch


class EMA:
    """The exponential moving average of a network (Polyak and Juditsky, 1992), including normalisation statistics.

    ``network`` is a copy in evaluation mode. In the first steps the decay is (1 + t) / (10 + t), so that the initial
    weights fade quickly.
    """

    def __init__(self, network: Encoder, decay: float) -> None:
        self._source, self.decay = network, decay
        self.network = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the network's weights after ``step`` steps to the average."""
        keep = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = self.network.state_dict(), self._source.state_dict()
        floating = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([ours[n] for n in floating], [theirs[n].to(ours[n].dtype) for n in floating], 1 - keep)
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])


def decay_groups(parameters: Iterable[nn.Parameter], prior: nn.Parameter, decay: float) -> list[dict[str, Any]]:
    """Return parameter groups in which layer weights decay, but not biases, normalisations and the prior."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in parameters:
        (decayed if parameter.ndim > 1 and parameter is not prior else others).append(parameter)
    return [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


class NonFiniteGuard:
    """Raises TrainingError once a value is not finite.

    On a CPU it checks at once. Reading a value from a GPU stalls it, so there it checks every 20 steps, and before
    anything is written (:meth:`check`).
    """

    def __init__(self, device: torch.device, every: int | None = None) -> None:
        self.every = (1 if device.type == "cpu" else 20) if every is None else every
        self._first: Tensor | None = None

    @torch.no_grad()
    def observe(self, value: Tensor, step: int) -> None:
        """Record whether a step's value is finite, before its weights change."""
        bad = torch.where(value.detach().isfinite(), _NEVER, step)
        self._first = bad if self._first is None else torch.minimum(self._first, bad)
        if step % self.every == 0:
            self.check()

    def check(self) -> None:
        """Raise TrainingError if any observed value was not finite."""
        first, self._first = self._first, None
        if first is not None and (step := int(first)) < _NEVER:
            raise TrainingError(f"the loss is not finite at step {step:,}; try a lower learning rate.")


class TrainingLoop(ABC):
    """The training loop. A stage is a subclass with its data and loss (:meth:`losses`) and its parameter groups.

    Randomness in a step depends only on the seed and the step's number, so a stage resumed from its checkpoint ends
    with the same weights, bit for bit.

    The optimizer's groups hold their peak learning rates, and gradients of ``clipped`` are clipped together. The
    checkpoint is written every ``save_every`` seconds, on interruption and at the end; figures go to ``logs`` and
    ``report`` every ``log_every`` steps.
    """

    progress_type: type[Any]
    batch, world_size = 0, 1  # images of a step, and processes
    log_every, first_log = 20, 1  # steps between reports, and the step of an early one
    save_every = 300.0  # seconds
    measure_every = 600.0  # seconds at most; sooner if measuring is quick
    max_gradient = 5.0  # norm of all gradients together

    def __init__(
        self, schedule: Schedule, optimizer: torch.optim.Optimizer | None = None, *,
        clipped: Iterable[nn.Parameter] = (), device: torch.device | None = None, ema: EMA | None = None,
        checkpoint: Path | None = None, logs: Sequence[Any] = (),
        report: Callable[[Any], None] = lambda progress: None,
    ) -> None:  # fmt: skip
        self.schedule, self.clipped, self.ema = schedule, list(clipped), ema
        if optimizer is not None:
            self.optimizer = optimizer
        self.device = torch.device("cpu") if device is None else device
        self.checkpoint_path, self.report = checkpoint, report
        self.is_first = rank() == 0  # still true after the processes have separated
        self.logs = list(logs) if self.is_first else []
        self.guard = NonFiniteGuard(self.device)
        self.step, self._elapsed_before, self._step_complete, self._kept_step = 0, 0.0, True, 0
        if checkpoint is not None and checkpoint.exists():
            self._restore(checkpoint)
        self._started = self._saved = self._measured = time.monotonic()
        self._measure_after = _MEASURE_SOONEST
        self.fraction = self._fraction()

    # What a stage is

    @abstractmethod
    def losses(self) -> Losses:
        """Return the loss of the next step's batch, with its gradients."""

    def backward(self, loss: Tensor) -> None:
        """Compute gradients, averaged over processes."""
        loss.backward()  # type: ignore[no-untyped-call]

    def after_step(self, losses: Any, fraction: float) -> None:  # noqa: B027 - few stages need it
        """Update state after a step that began at ``fraction`` of the stage."""

    def figures(self, losses: Any) -> dict[str, Any]:
        """Return the stage's fields of its progress."""
        return {"loss": float(losses.total)}

    def measure(self) -> dict[str, float]:
        """Return the fields of its progress that are measured only periodically."""
        return {}

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules of a checkpoint by prefix."""
        return {"average": self.ema.network} if self.ema else {}

    def identity(self) -> dict[str, Any]:
        """Return the settings that must match for a checkpoint to be resumed."""
        return {}

    def state(self) -> dict[str, float]:
        """Return the stage's numbers to checkpoint, all finite."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:  # noqa: B027
        """Restore the numbers of :meth:`state`."""

    # The loop

    def run_steps(self) -> None:
        """Train to the end of the schedule; on interruption keep a checkpoint of the last complete step."""
        self._started = self._saved = self._measured = time.monotonic()
        try:
            with deferred_interrupts() as interrupted:
                while self.fraction < 1:
                    self.run_step()
                    exc = interrupted()
                    if any_rank(exc is not None, self.device):
                        raise exc or KeyboardInterrupt
        except KeyboardInterrupt as exc:
            if self._step_complete and self.step:
                self.save()
            self.add_resume_hint(exc)
            raise
        if self.step:
            self.save()

    def run_step(self) -> None:
        """Take one step: weights, dependent state, log, checkpoint."""
        start, fraction = time.monotonic(), self.fraction
        factor = self.schedule.learning_rate(self.step, fraction)
        self._step_complete = False
        losses = self.descend(factor)
        self.after_step(losses, fraction)
        self._step_complete = True
        self.fraction = self._fraction()
        if self.step % self.log_every == 0 or self.step == self.first_log:
            self._log(losses, time.monotonic() - start)
        if time.monotonic() - self._saved > self.save_every:
            self.save()

    def descend(self, factor: float) -> Losses:
        """Take one optimizer step at ``factor`` times the peak learning rates.

        Return the losses, averaged over processes, without gradients.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * factor
        losses = self.losses()
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(losses.total)
        reduced: Losses = type(losses)(*all_reduce_mean(torch.stack(tuple(losses))))
        checked = reduced.total
        if self.clipped:
            checked = checked + torch.nn.utils.clip_grad_norm_(self.clipped, self.max_gradient)
        # Before the weights change, so that no checkpoint or model is made of bad ones.
        self.guard.observe(checked, self.step + 1)
        self.optimizer.step()
        self.step += 1
        if self.ema:
            self.ema.update(self.step)
        return reduced

    def _log(self, losses: Losses, seconds: float) -> None:
        if not self.is_first:
            return
        values: dict[str, Any] = {
            "fraction": self.fraction, "step": self.step, "elapsed": self.elapsed,
            "lr": self.optimizer.param_groups[0]["lr"], "images_per_second": self.batch / max(seconds, 1e-9),
        } | self.figures(losses)  # fmt: skip
        due = min(self.measure_every, self._measure_after)
        if self.step == self.first_log or time.monotonic() - self._measured > due:
            start = time.monotonic()
            values |= self.measure()
            self._measured = time.monotonic()
            self._measure_after = max(_MEASURE_SOONEST, (self._measured - start) / _MEASURE_SHARE)
        names = {f.name for f in fields(self.progress_type)}
        progress = self.progress_type(**{name: value for name, value in values.items() if name in names})
        for log in self.logs:
            log.write(progress)
        self.report(progress)

    @property
    def elapsed(self) -> float:
        """Seconds trained so far, including those before an interruption."""
        return self._elapsed_before + time.monotonic() - self._started

    def _fraction(self) -> float:
        """Return the finished fraction as the first process sees it, because clocks differ."""
        return broadcast(self.schedule.fraction(self.step, self.elapsed), self.device)

    def save(self) -> None:
        """Write the checkpoint, if any, in the first process."""
        self.guard.check()
        if self.checkpoint_path is not None and self.is_first:
            state = {"step": self.step, "elapsed": self.elapsed, "options": self.identity()} | self.state()
            save_checkpoint(self.checkpoint_path, self.modules(), self.optimizer, state)
            self._kept_step = self.step
        self._saved = time.monotonic()

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path, self.modules(), self.optimizer, self.identity())
        try:
            self.step, self._elapsed_before = int(state["step"]), float(state["elapsed"])
            own = {name: float(state[name]) for name in self.state()}
            if self.step < 1 or not all(map(math.isfinite, (self._elapsed_before, *own.values()))):
                raise ValueError(f"step {self.step}, {self._elapsed_before} s, {own}")
        except (KeyError, TypeError, ValueError) as exc:
            raise damaged(path, exc) from exc
        self.load_state(own)
        self._kept_step = self.step

    def add_resume_hint(self, exc: KeyboardInterrupt) -> None:
        """Add the checkpoint's place, if there is one, to an interruption."""
        path = self.checkpoint_path
        if self.is_first and path is not None and path.exists():
            exc.add_note(
                for_caller(f"Step {self._kept_step:,} is kept in {escape_name(path)}; pass --resume to continue.")
            )


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], type[KeyboardInterrupt] | None]]:
    """Defer SIGINT (Ctrl-C) and SIGTERM, but not a second one; yield a function that returns what to raise, or None.

    Raised within a step, an interruption would leave weights, statistics and counter of different steps, and a run
    resumed from that checkpoint would end with other weights.
    """
    seen: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(signal.Signals(number))

    replaced: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
        for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            handler = signal.getsignal(number)
            if handler == default or hasattr(handler, "raises"):  # a program's own handler is kept
                replaced[number] = signal.signal(number, note)
    try:
        yield lambda: getattr(replaced[seen[0]], "raises", KeyboardInterrupt) if seen else None
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
