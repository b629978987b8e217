"""Fine-tuning: labelled images, an encoder with a classifier, the loop."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.data import printable
from stochcl.encoders.averaging import Averaged
from stochcl.encoders.checkpoint import load_checkpoint, save_checkpoint
from stochcl.encoders.codetables import fit_tables
from stochcl.encoders.devices import Pixels, Watch, to_device
from stochcl.encoders.finetuning.objective import (
    Losses,
    classification,
    deterministic_classification,
    mixup,
    soft_targets,
)
from stochcl.encoders.finetuning.scoring import class_indices, class_scores, top1
from stochcl.encoders.finetuning.strong import StrongAugmentation
from stochcl.encoders.fitting import Fitting
from stochcl.encoders.inference import choose_device
from stochcl.encoders.keyed import keyed_uniform
from stochcl.encoders.model import Encoder
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.encoders.precision import precision_used
from stochcl.encoders.training.interruption import interruptible
from stochcl.encoders.training.logs import make_log
from stochcl.encoders.training.schedule import Schedule
from stochcl.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stochcl.encoders.finetuning.options import FinetuneOptions
    from stochcl.encoders.imageset import ImageSet

_VIEW, _LATENTS, _MIXING, _PREFIX = range(4)  # streams of random numbers
_NOT_OF_THE_STEPS = (
    "epochs",
    "max_time",
    "device",
    "compile",
    "entropy",
    "entropy_hidden",
)  # may change when a run is resumed
_LARGEST_GRADIENT = 5.0
_WARMED_AT_MOST = 0.1  # of the run
_ENTROPY_TIME = 0.1  # of the time of a run, for its entropy network


@dataclass
class Progress:
    """Where a run stands; ``fraction`` is of the whole run, the rate in bits, times in seconds."""

    fraction: float
    step: int
    epoch: float
    elapsed: float
    loss: float
    nested: float
    rate: float
    lr: float
    images_per_second: float
    held_top1: float = math.nan

    def line(self) -> str:
        """Return the figures that matter, with their units, on one line."""
        text = (
            f"step {self.step:,}, epoch {self.epoch:.1f}, loss {self.loss:.3f} nats, "
            f"{self.images_per_second:,.0f} images/s"
        )
        return text if math.isnan(self.held_top1) else f"{text}, held-out top-1 {self.held_top1:.1%}"


def starting_point(base: Encoder, options: FinetuneOptions) -> Encoder:
    """Return the encoder that fine-tuning begins with: the base, or one like it with fresh weights."""
    if not options.from_scratch:
        return base
    torch.manual_seed(options.seed)
    return Encoder(base.config)


class Finetuner:
    """One run of fine-tuning, which can stop after any step and go on from its checkpoint.

    Parameters
    ----------
    base : Encoder
        What to begin with, see :func:`starting_point`; it is left as it is.
    base_sha256 : str
        What tells its weights from others, which a checkpoint must agree with.
    options : FinetuneOptions
    data : ImageSet
        Every image with a label.
    classes : tuple of str
        Labels in the order of the classifier's rows.
    checkpoint : Path
        Written every ``save_every`` seconds and on interruption; an existing one is continued.
    log : Path or None
        Figures are appended every ``log_every`` steps: a table if its name ends in .csv, one JSON object a line
        otherwise.
    report : callable
        Told of the progress as often as it is logged.
    """

    log_every = 20
    save_every = 300.0
    measure_every = 300.0

    def __init__(
        self, base: Encoder, base_sha256: str, options: FinetuneOptions, data: ImageSet, classes: tuple[str, ...], *,
        checkpoint: Path, log: Path | None = None,
        report: Callable[[Progress | Fitting], None] = lambda progress: None,
    ) -> None:  # fmt: skip
        self.options, self.data, self.base_sha256 = options, data, base_sha256
        self.checkpoint_path, self.report = checkpoint, report
        self.log = make_log(log) if log else None
        self.device = choose_device(options.device)
        self.precision = precision_used(options.precision, self.device.type)
        self.encoder = deepcopy(base)
        self.encoder.set_entropy(None)  # of codes that will be others
        self.encoder.set_classes(classes, "features" if options.deterministic else "vectors")
        self.encoder.to(self.device)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoder.requires_grad_(True)
        self.average = Averaged(self.encoder, options.average) if options.average else None
        self.labels = class_indices(data.train_labels, classes)
        self.held_labels = class_indices(data.held_labels, classes)
        self.augmentation = StrongAugmentation(
            options.crop or base.config.size, options.padding, options.area, options.flip, options.operations,
            options.strength, options.cutout,
        )  # fmt: skip
        self.optimizer = torch.optim.SGD(self._groups(), lr=options.lr, momentum=options.momentum, nesterov=True)
        self.batch = min(options.batch_size, len(data.train))
        self.steps_per_epoch = len(data.train) // self.batch
        total = options.epochs * self.steps_per_epoch
        rising = min(options.warmup * self.steps_per_epoch, _WARMED_AT_MOST * total)
        self.schedule = Schedule(total, options.max_time, round(rising) + 1)
        self.entropy_record: dict[str, Any] = {}
        self.step, self.before, self.whole = 0, 0.0, True  # whole: not in the middle of a step
        if checkpoint.exists():
            self._restore()
        if options.compile:
            self.encoder.backbone.compile(dynamic=False)
        self.pixels, self.watch = Pixels(data.train, self.device), Watch(self.device)
        self.started = self.saved = self.measured = time.monotonic()

    def _modules(self) -> dict[str, torch.nn.Module]:
        modules: dict[str, torch.nn.Module] = {"encoder": self.encoder}
        return modules | ({"average": self.average.network} if self.average else {})

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the parameters that have a gradient: the twin has no latents."""
        named = list(self.encoder.named_parameters())
        if self.options.deterministic:
            named = [(name, p) for name, p in named if name.startswith(("backbone.", "classifier."))]
        return named

    def _groups(self) -> list[dict[str, Any]]:
        """Decay the weights of layers, not their biases, normalisations or the prior."""
        decaying: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in self._trained():
            (decaying if parameter.ndim > 1 and name != "prior" else others).append(parameter)
        decay = self.options.decay
        return [{"params": decaying, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to be continued; the length of a run may change."""
        options = {k: v for k, v in asdict(self.options).items() if k not in _NOT_OF_THE_STEPS}
        options["precision"] = self.precision  # not "auto", which may be another on another machine
        classes = list(self.encoder.config.classes)
        return options | {"model": self.base_sha256, "classes": classes, "images": len(self.data.train)}

    def _restore(self) -> None:
        state = load_checkpoint(self.checkpoint_path, self._modules(), self.optimizer, self._identity())
        try:
            self.step, self.before = int(state["step"]), float(state["elapsed"])
            if self.step < 1 or not math.isfinite(self.before):
                raise ValueError(f"step {self.step}, {self.before} s")
        except (KeyError, TypeError, ValueError) as exc:
            msg = f"{printable(self.checkpoint_path)}: this checkpoint is damaged ({exc}); delete it to start anew."
            raise TrainingError(msg) from exc

    def save(self) -> None:
        """Write the checkpoint."""
        self.watch.check()
        state = {"step": self.step, "elapsed": self.elapsed, "options": self._identity()}
        save_checkpoint(self.checkpoint_path, self._modules(), self.optimizer, state)
        self.saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds trained so far, those before an interruption included."""
        return self.before + time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        """How much of the run is done, by steps or by time, whichever ends it first."""
        return self.schedule.fraction(self.step, self.elapsed)

    def run(self) -> Encoder:
        """Train to the end and return the encoder, in evaluation mode, on its device.

        Raises
        ------
        TrainingError
            If the loss is not finite.
        KeyboardInterrupt
            Passed on after the step has ended and the checkpoint has been written; a second one at once, and
            then the checkpoint is an earlier one.
        """
        try:
            with interruptible() as interrupted:
                for rows, keys in self._batches():
                    self._train_step(rows, keys)
                    if interrupted():
                        raise KeyboardInterrupt
        except KeyboardInterrupt as exc:
            if self.whole and self.step:
                self.save()
                exc.add_note(
                    f"Step {self.step:,} is kept in {printable(self.checkpoint_path)}; pass --resume to go on."
                )
            raise
        self.save()
        self.result.eval()
        self._fit_tables()
        return self.result

    def _fit_tables(self) -> None:
        """Fit the entropy models to the codes; those of a twin without a stochastic layer are worth no network."""
        options = self.options
        self.entropy_record = fit_tables(
            self.result, self.data.train, self.device, seed=options.seed, precision=options.precision,
            entropy="independent" if options.deterministic else options.entropy, hidden=options.entropy_hidden,
            max_time=options.max_time and options.max_time * _ENTROPY_TIME,
            progress=lambda fraction, line: self.report(Fitting(fraction, line)),
        )  # fmt: skip

    @property
    def result(self) -> Encoder:
        """The encoder as it would be written now: the average of its weights, where one is kept."""
        return self.average.network if self.average else self.encoder

    def held_top1(self) -> float:
        """Return the accuracy on held-out images, from hard codes."""
        self.result.eval()
        return top1(class_scores(self.result, self.data.held, self.device), self.held_labels)

    def _batches(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield rows of the training images, in an order that epoch and seed decide, and their random keys."""
        n = len(self.data.train)
        while self.fraction < 1:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            order = np.random.default_rng([self.options.seed, epoch]).permutation(n)
            for i in range(first, self.steps_per_epoch):
                rows = order[i * self.batch : (i + 1) * self.batch]
                yield rows, torch.from_numpy(rows + n * epoch)
                if self.fraction >= 1:
                    return

    def _train_step(self, rows: np.ndarray, keys: torch.Tensor) -> None:
        start = time.monotonic()
        lr = self.options.lr * self.schedule.learning_rate(self.step, self.fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.whole = False
        self.encoder.train()
        losses = self._losses(rows, keys)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        clipped = [p for name, p in self._trained() if name != "prior"]
        norm = torch.nn.utils.clip_grad_norm_(clipped, _LARGEST_GRADIENT)
        # At every step, or before anything is saved: neither a checkpoint nor a model may be made of what follows.
        self.watch.see(losses.total + norm, self.step + 1)
        self.optimizer.step()
        self.step += 1
        if self.average:
            self.average.update(self.encoder, self.step)
        self.whole = True
        if self.step % self.log_every == 0 or self.step == 1:
            self._log(losses, lr, len(rows) / max(time.monotonic() - start, 1e-9))
        if time.monotonic() - self.saved > self.save_every:
            self.save()

    def _losses(self, rows: np.ndarray, keys: torch.Tensor) -> Losses:
        options, model = self.options, self.encoder
        # Some networks draw themselves (dropout): what they draw must not depend on what happened before.
        torch.manual_seed((options.seed * 1_000_003 + self.step) % (1 << 63))
        images = self.pixels.take(rows)
        views = model.normalise(self.augmentation(images, keys, options.seed, _VIEW, model.mean))
        labels = to_device(torch.from_numpy(self.labels[rows]), self.device)
        targets = soft_targets(labels, len(model.config.classes), options.smoothing)
        views, targets = mixup(views, targets, options.mixup, [options.seed, self.step, _MIXING])
        views = views.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if options.deterministic:
                return deterministic_classification(model, views, targets)
            count = POSTERIORS[model.config.posterior].noise(model.config)
            noise = keyed_uniform(to_device(keys, self.device), options.seed, _LATENTS, count)
            rung = np.random.default_rng([options.seed, self.step, _PREFIX]).choice(model.config.ladder)
            return classification(
                model, views, targets, noise, latents=int(rung), nested=options.nested, beta=options.beta
            )

    def _log(self, losses: Losses, lr: float, speed: float) -> None:
        progress = Progress(
            fraction=self.fraction, step=self.step, epoch=self.step / self.steps_per_epoch, elapsed=self.elapsed,
            loss=float(losses.classification), nested=float(losses.nested), rate=float(losses.rate), lr=lr,
            images_per_second=speed,
        )  # fmt: skip
        if len(self.data.held) and time.monotonic() - self.measured > self.measure_every:
            progress.held_top1 = self.held_top1()
            self.measured = time.monotonic()
        if self.log:
            self.log.write(progress)
        self.report(progress)
