"""Training on images: data, model, loss, loop, from top to bottom."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.data import printable
from stochcl.encoders.augment import Augmentation
from stochcl.encoders.averaging import Averaged
from stochcl.encoders.checkpoint import load_checkpoint, save_checkpoint
from stochcl.encoders.codetables import fit_tables
from stochcl.encoders.devices import Pixels, Watch, to_device
from stochcl.encoders.distributed import anywhere, averaged, from_first, processes, rank
from stochcl.encoders.fitting import Fitting
from stochcl.encoders.keyed import as_words, keyed_uniform
from stochcl.encoders.measure import Monitor, measure_features
from stochcl.encoders.model import Encoder, EncoderConfig
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.encoders.rate import RateController
from stochcl.encoders.training.finish import latent_steps, train_latents
from stochcl.encoders.training.interruption import interruptible
from stochcl.encoders.training.logs import Log, make_log
from stochcl.encoders.training.loss import Losses, StochasticContrastive
from stochcl.encoders.training.progress import Progress
from stochcl.encoders.training.runtime import Runtime
from stochcl.encoders.training.schedule import Schedule
from stochcl.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from stochcl.encoders.backbones.published import Initialisation
    from stochcl.encoders.imageset import ImageSet
    from stochcl.encoders.latents import FittedLatents, LatentProgress
    from stochcl.encoders.training.options import TrainOptions

_FIRST_VIEW, _SECOND_VIEW, _LATENTS = range(3)  # streams of random numbers
_ENTROPY_TIME = 0.1  # of the time of a run, for the entropy network of one without a latent stage
_IMAGES_TIME = 0.75  # of the time of a run, for the steps on images where a latent stage follows
_CLEAN = 4  # one image of so many is seen as it is, too
_LARGEST_GRADIENT = 5.0
_MEASURING, _SOONEST = 0.03, 15.0  # of the time, for live figures; seconds between two of them
# May change when a run is resumed:
_NOT_OF_THE_STEPS = (
    "epochs",
    "max_time",
    "device",
    "devices",
    "compile",
    "entropy",
    "entropy_hidden",
    "latent_steps",
    "whitening",
)


class Trainer:
    """One run of training, which can stop after any step and go on from its checkpoint.

    With several processes, each has a share of every batch, and all of them together do what one would have done
    with the whole: what is random about an image is a function of the image and the epoch, statistics are those of
    the whole batch, and so are gradients. The first process alone writes, reports, and does what follows the last
    step.

    Parameters
    ----------
    config : EncoderConfig
    options : TrainOptions
    data : ImageSet
    checkpoint : Path
        Written every ``save_every`` seconds and on interruption; an existing one is continued.
    log : Path or None
        A file that figures are appended to every ``log_every`` steps: a table if its name ends in .csv, one JSON
        object a line otherwise.
    logs : sequence of Log
        What else they are written to.
    report : callable
        Told of the progress as often as it is logged.
    runtime : Runtime, optional
        Where it runs; by default where the options say.
    initialise : callable, optional
        What gives the fresh encoder a backbone with other weights to begin with, and returns what it loaded. Without
        epochs that backbone is a finished one: it stays as it was given, and latents are trained on its features.
    """

    log_every = 20
    save_every = 300.0
    measure_every = 600.0  # seconds at most; sooner where measuring takes little of the time

    def __init__(
        self, config: EncoderConfig, options: TrainOptions, data: ImageSet, *, checkpoint: Path,
        log: Path | None = None, logs: Sequence[Log] = (),
        report: Callable[[Progress | Fitting | LatentProgress], None] = lambda progress: None,
        runtime: Runtime | None = None,
        initialise: Callable[[Encoder], Initialisation | None] = lambda encoder: None,
    ) -> None:  # fmt: skip
        self.options, self.data = options, data
        self.runtime = runtime or Runtime(options)
        self.checkpoint_path, self.report = checkpoint, report
        self.logs = [*([make_log(log)] if log else []), *logs] if self.runtime.first else []
        self.device, self.processes = self.runtime.device, processes()
        self.batch = _batch(options.batch_size, len(data.train))
        self.steps_per_epoch = len(data.train) // self.batch
        torch.manual_seed(options.seed)
        self.encoder = Encoder(config)
        self.begun = initialise(self.encoder)
        self.encoder.to(self.device)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Averaged(self.encoder, options.average) if options.average else None
        self.loss = StochasticContrastive(
            self.encoder,
            options.objective,
            temperature=options.temperature,
            estimator=options.estimator,
            deterministic=options.deterministic,
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=options.lr, betas=(0.9, 0.98))
        # Where a latent stage follows, it meets the rate; the features are better off without that pressure.
        self.latent_steps = latent_steps(options, len(data.train))
        self.controller = RateController(None if self.latent_steps else options.rate, options.beta)
        most = options.max_time and options.max_time * (_IMAGES_TIME if self.latent_steps else 1)
        self.schedule = Schedule(options.epochs * self.steps_per_epoch, most, options.warmup)
        self.augmentation = Augmentation(
            options.crop, (options.area, 1.0), ratio=4 / 3 if options.area < 1 else 1.0, flip=options.flip,
            strength=options.strength, grey=options.grey, blur=options.blur,
        )  # fmt: skip
        self.monitor = Monitor(data.train, data.held, data.train_labels, data.held_labels, seed=options.seed)
        self.entropy_record: dict[str, Any] = {}
        self.latents: FittedLatents | None = None
        self.step, self.before, self.whole = 0, 0.0, True  # whole: not in the middle of a step
        if checkpoint.exists():
            self._restore()
        if options.compile:
            self.encoder.backbone.compile(dynamic=False)
        self._loss = self.runtime.prepare(self.loss)
        self.pixels, self.watch = Pixels(data.train, self.device), Watch(self.device)
        self.started = self.saved = self.measured = time.monotonic()
        self.measure_after = _SOONEST
        self.fraction = self._fraction()

    def _modules(self) -> dict[str, torch.nn.Module]:
        modules: dict[str, torch.nn.Module] = {"loss": self.loss}  # the encoder is a part of it
        return modules | ({"average": self.average.network} if self.average else {})

    def _groups(self) -> list[dict[str, Any]]:
        """Decay the weights of layers, not their biases, normalisations or the prior."""
        parameters = [p for p in self.loss.parameters() if p.requires_grad]
        decaying = [p for p in parameters if p.ndim > 1 and p is not self.encoder.prior]
        return [
            {"params": decaying, "weight_decay": self.options.decay},
            {"params": [p for p in parameters if p.ndim <= 1 or p is self.encoder.prior], "weight_decay": 0.0},
        ]

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to be continued; the length of a run may change."""
        options = asdict(self.options)
        config: dict[str, Any] = json.loads(json.dumps(asdict(self.encoder.config)))
        for free in _NOT_OF_THE_STEPS:
            options.pop(free)
            config.pop(free, None)
        options["precision"] = self.runtime.precision  # not "auto", which may be another on another machine
        options["deterministic"] = options["deterministic"] or None  # checkpoints from before do not say so
        return options | config | {"images": len(self.data.train)}

    def _restore(self) -> None:
        state = load_checkpoint(self.checkpoint_path, self._modules(), self.optimizer, self._identity())
        try:
            self.step, self.before = int(state["step"]), float(state["elapsed"])
            self.controller.beta = float(state["beta"])
            if self.step < 1 or not math.isfinite(self.before + self.controller.beta):
                raise ValueError(f"step {self.step}, {self.before} s, beta {self.controller.beta}")
        except (KeyError, TypeError, ValueError) as exc:
            msg = f"{printable(self.checkpoint_path)}: this checkpoint is damaged ({exc}); delete it to start anew."
            raise TrainingError(msg) from exc

    def save(self) -> None:
        """Write the checkpoint, in the first process."""
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "beta": self.controller.beta,
            "options": self._identity(),
        }
        self.watch.check()
        if self.runtime.first:
            save_checkpoint(self.checkpoint_path, self._modules(), self.optimizer, state)
        self.saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds trained so far, those before an interruption included."""
        return self.before + time.monotonic() - self.started

    def _fraction(self) -> float:
        """How much of the run is done, as the first process sees it: clocks differ."""
        return from_first([self.schedule.fraction(self.step, self.elapsed)], self.device)[0]

    def run(self) -> Encoder:
        """Train to the end and return the encoder, in evaluation mode, its tables fitted.

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
                    if anywhere(interrupted(), self.device):
                        raise KeyboardInterrupt
        except KeyboardInterrupt as exc:
            if self.whole and self.step:
                self.save()
            self._say_what_is_kept(exc)
            raise
        finally:
            for log in self.logs:
                log.close()
        if self.step:
            self.save()
        elif not self.begun:
            self._calibrate()
        self.runtime.close()
        self.result.eval()
        if self.runtime.first:
            try:
                self._finish()
            except KeyboardInterrupt as exc:  # the checkpoint is that of the last step
                self._say_what_is_kept(exc)
                raise
        return self.result.cpu()

    def _say_what_is_kept(self, exc: KeyboardInterrupt) -> None:
        if self.runtime.first and self.checkpoint_path is not None and self.checkpoint_path.exists():
            exc.add_note(f"What was done is kept in {printable(self.checkpoint_path)}; pass --resume to go on.")

    def _finish(self) -> None:
        """Do what follows the last step: train latents on finished features, and fit the tables of their codes."""
        options = self.options
        if self.begun and not self.step and not self.begun.statistics:
            measure_features(self.result, self.data.train, self.device, options.precision)
        if self.latent_steps and (self.step or self.begun):  # latents of a random network are worth nothing
            self.latents = train_latents(
                self.result, self.data, self.augmentation, options, self.device, report=self.report,
                fresh=not self.step or options.deterministic,
                max_time=options.max_time and options.max_time * (1 - _IMAGES_TIME if self.step else 1),
            )  # fmt: skip
            self.entropy_record = self.latents.record["entropy"]
            return
        self.entropy_record = fit_tables(
            self.result, self.data.train, self.device, entropy=options.entropy, hidden=options.entropy_hidden,
            max_time=options.max_time and options.max_time * _ENTROPY_TIME, seed=options.seed,
            precision=options.precision, progress=lambda fraction, line: self.report(Fitting(fraction, line)),
        )  # fmt: skip

    @property
    def result(self) -> Encoder:
        """The encoder as it would be written now: the average of its weights, where one is kept."""
        return self.average.network if self.average and self.step else self.encoder

    def _batches(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield this process's rows of every batch, in an order that epoch and seed decide, and their random keys."""
        n = len(self.data.train)
        while self.fraction < 1:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            order = np.random.default_rng([self.options.seed, epoch]).permutation(n)
            for i in range(first, self.steps_per_epoch):
                # Every so many, so that each process has as many of the first ones of a batch, which are seen clean.
                rows = order[i * self.batch : (i + 1) * self.batch][rank() :: processes()]
                yield rows, to_device(torch.from_numpy(rows + n * epoch), self.device)
                if self.fraction >= 1:
                    return

    def _train_step(self, rows: np.ndarray, keys: torch.Tensor) -> None:
        start = time.monotonic()
        lr = self.options.lr * self.schedule.learning_rate(self.step, self.fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.whole = False
        losses = self._losses(rows, keys)
        self.optimizer.zero_grad(set_to_none=True)
        self.runtime.backward(losses.total)
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), _LARGEST_GRADIENT)
        told = Losses(*averaged(torch.stack(losses)))
        # At every step, or before anything is saved: neither a checkpoint nor a model may be made of what follows.
        self.watch.see(told.total + norm, self.step + 1)
        self.optimizer.step()
        self.step += 1
        self.loss.step(self.fraction)
        if self.average:
            self.average.update(self.encoder, self.step)
        if self.controller.target is not None:  # a number has to be waited for
            self.controller.update(float(told.rate))
        self.whole = True
        self.fraction = self._fraction()
        if self.step % self.log_every == 0 or self.step == 1:
            self._log(told, lr, self.batch / max(time.monotonic() - start, 1e-9))
        if time.monotonic() - self.saved > self.save_every:
            self.save()

    def _losses(self, rows: np.ndarray, keys: torch.Tensor) -> Losses:
        seed, model = self.options.seed, self.encoder
        # Some networks draw themselves (dropout): what they draw must not depend on what happened before.
        torch.manual_seed((seed * 1_000_003 + self.step * processes() + rank()) % (1 << 63))
        images = self.pixels.take(rows)
        views = torch.cat([self.augmentation(images, keys, seed, s) for s in (_FIRST_VIEW, _SECOND_VIEW)])
        noise = keyed_uniform(keys, seed, _LATENTS, 2 * POSTERIORS[model.config.posterior].noise(model.config))
        rung = np.random.default_rng([seed, self.step]).choice(model.config.ladder)
        # The first quarter of the whole batch: this process has every so-many-th of it.
        clean = images[: len(range(rank(), max(1, self.batch // _CLEAN), processes()))].float()
        losses: Losses = self._loss(
            model.normalise(views), model.normalise(clean).contiguous(memory_format=torch.channels_last),
            as_words(torch.cat(noise.chunk(2, dim=1))), latents=int(rung), beta=self.controller.beta,
        )  # fmt: skip
        return losses

    def _log(self, losses: Losses, lr: float, speed: float) -> None:
        progress = Progress(
            fraction=self.fraction, step=self.step, epoch=self.step / self.steps_per_epoch,
            elapsed=self.elapsed, loss=float(losses.total), contrast=float(losses.contrast),
            contrast_codes=float(losses.contrast_codes), decorrelation=float(losses.decorrelation),
            reconstruction=float(losses.reconstruction), rate=float(losses.rate), kl=float(losses.kl),
            beta=self.controller.beta, lr=lr, images_per_second=speed,
        )  # fmt: skip
        if not self.runtime.first:
            return
        if self.step == 1 or time.monotonic() - self.measured > min(self.measure_every, self.measure_after):
            start = time.monotonic()
            found = self.monitor(self.result, self.device)
            progress.held_rate, progress.knn = found["rate"], found.get("knn", math.nan)
            self.measured = time.monotonic()
            self.measure_after = max(_SOONEST, (self.measured - start) / _MEASURING)
        for log in self.logs:
            log.write(progress)
        self.report(progress)

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Give an untrained network the normalisation statistics that training would have given it."""
        norms = [m for m in self.encoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = None  # a plain average over the batches below
            norm.reset_running_stats()
        self.encoder.train()
        for start in range(0, min(len(self.data.train), 16 * self.batch), self.batch):
            part = self.data.train[start : start + self.batch]
            if len(part) > 1:
                pixels = torch.from_numpy(part).to(self.device).permute(0, 3, 1, 2).float()
                self.encoder.features(self.encoder.normalise(pixels))


def _batch(asked: int, images: int) -> int:
    """Return how many images a step takes, of all processes together: the same number in each."""
    batch = min(asked, images) // processes() * processes()
    if batch < 2 * processes():
        msg = f"a batch of {min(asked, images)} images gives {processes()} processes fewer than two each"
        raise UsageError(f"{msg}; use more images, a larger batch, or fewer processes.")
    return batch
