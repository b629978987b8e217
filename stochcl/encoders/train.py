"""Training: data, model, loss, loop, from top to bottom."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.codes import Codes
from stochcl.data import printable
from stochcl.encoders.augment import Augmentation
from stochcl.encoders.checkpoint import load_checkpoint, save_checkpoint
from stochcl.encoders.entropy import MAX_HIDDEN, MIN_CODES, fit_entropy, smaller_images
from stochcl.encoders.inference import choose_device, encode_images
from stochcl.encoders.keyed import keyed_uniform
from stochcl.encoders.measure import Monitor, measure_ones
from stochcl.encoders.model import ENTROPY, Encoder, EncoderConfig
from stochcl.encoders.objective import Losses, Projectors, stochastic_contrastive
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.encoders.rate import RateController
from stochcl.errors import OutputError, TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from stochcl.encoders.imageset import ImageSet

_FIRST_VIEW, _SECOND_VIEW, _LATENTS = range(3)  # streams of random numbers
_MEASURED_IMAGES = {"independent": 20_000, "autoregressive": 100_000}  # training images whose codes make the tables
_ENTROPY_TIME = 0.1  # of the time of a run, for its entropy network
_NOT_OF_THE_STEPS = ("epochs", "max_time", "device", "entropy", "entropy_hidden")  # may change when a run is resumed


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Parameters
    ----------
    epochs : int
        Passes over the images; 0 writes the untrained network, to compare with.
    max_time : float or None
        Seconds after which training ends, whatever the epochs; the learning rate falls to zero by then.
    batch_size : int
        Images a step; each gives two views.
    crop : int
        Side of a view in pixels. Smaller than the encoder's size is faster, and right: objects look larger in
        random crops than in whole images (Touvron et al., arXiv 1906.06423).
    lr, decay : float
        Peak learning rate and weight decay of AdamW.
    temperature : float
        Of the contrastive loss.
    rate : float or None
        Target in bits per image; None leaves ``beta`` as it is.
    beta : float
        Nats that a bit costs, to begin with.
    seed : int
        Of everything random.
    precision : str
        bf16 (autocast) or fp32.
    device : str
        auto, cpu, cuda...
    entropy : str
        autoregressive (a network is fitted to the codes at the end, in a tenth of ``max_time`` at most, and kept
        where it saves anything) or independent.
    entropy_hidden : int or None
        Hidden units of that network; None lets the number of codes decide.
    """

    epochs: int = 100
    max_time: float | None = None
    batch_size: int = 256
    crop: int = 48
    lr: float = 2e-3
    decay: float = 1e-2
    temperature: float = 0.2
    rate: float | None = None
    beta: float = 1e-4
    seed: int = 0
    precision: str = "bf16"
    device: str = "auto"
    entropy: str = "autoregressive"
    entropy_hidden: int | None = None

    def __post_init__(self) -> None:
        positive = {
            "batch_size": self.batch_size - 1,
            "crop": self.crop,
            "lr": self.lr,
            "temperature": self.temperature,
        }
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise UsageError(f"{name} cannot be {getattr(self, name)}.")
        if self.epochs < 0 or (self.rate is not None and not 0 < self.rate < math.inf):
            raise UsageError("epochs cannot be negative, and a rate is more than 0 bits per image.")
        if self.max_time is not None and not self.max_time > 0:
            raise UsageError(f"training cannot end after {self.max_time} seconds.")
        if not (0 <= self.decay < math.inf and 0 <= self.beta < math.inf):
            raise UsageError(f"decay ({self.decay}) and beta ({self.beta}) are numbers from 0 on.")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"a seed is 0 to 2**63 - 1, not {self.seed}.")
        if self.precision not in ("bf16", "fp32"):
            raise UsageError(f"there is no training precision {self.precision!r}; there are bf16 and fp32.")
        if self.entropy not in ENTROPY:
            raise UsageError(f"there is no entropy {self.entropy!r}; there are {', '.join(ENTROPY)}.")
        if self.entropy_hidden is not None and not 0 <= self.entropy_hidden <= MAX_HIDDEN:
            raise UsageError(f"an entropy network has 0 to {MAX_HIDDEN} hidden units, not {self.entropy_hidden}.")


def options_from(given: dict[str, Any]) -> tuple[EncoderConfig, TrainOptions]:
    """Sort named options, None for those left out, into what the encoder is and how it is trained.

    Raises
    ------
    UsageError
        If a name is in neither, or a value makes no sense.
    """
    given = {name: value for name, value in given.items() if value is not None}
    names = {f.name for f in fields(TrainOptions)}
    config_names = {
        f.name for f in fields(EncoderConfig)
    } - names  # what is asked of the entropy network is no fact yet
    if unknown := sorted(set(given) - config_names - names):
        raise UsageError(f"there is no training option {', '.join(unknown)}.")
    config = EncoderConfig(**{k: v for k, v in given.items() if k in config_names})
    if "crop" not in given:  # 48 of 64 pixels; a multiple of 8 wastes no convolution
        given["crop"] = max(16, config.size * 3 // 4 // 8 * 8)
    return config, TrainOptions(**{k: v for k, v in given.items() if k in names})


@dataclass(frozen=True)
class Fitting:
    """Where the fit of the entropy network stands, after the last step; ``fraction`` is of that."""

    fraction: float
    text: str

    def line(self) -> str:
        """Return what there is to say, on one line."""
        return self.text


@dataclass
class Progress:
    """Where a run stands; ``fraction`` is of the whole run, rates are in bits, times in seconds."""

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


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
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


class Trainer:
    """One run of training, which can stop after any step and go on from its checkpoint.

    Parameters
    ----------
    config : EncoderConfig
    options : TrainOptions
    data : ImageSet
    checkpoint : Path
        Written every ``save_every`` seconds and on interruption; an existing one is continued.
    log : Path or None
        One JSON object a line is appended, every ``log_every`` steps.
    report : callable
        Told of the progress as often as it is logged.
    """

    log_every = 20
    save_every = 300.0
    measure_every = 600.0

    def __init__(
        self, config: EncoderConfig, options: TrainOptions, data: ImageSet, *, checkpoint: Path,
        log: Path | None = None, report: Callable[[Progress | Fitting], None] = lambda progress: None,
    ) -> None:  # fmt: skip
        self.options, self.data = options, data
        self.checkpoint_path, self.log_path, self.report = checkpoint, log, report
        self.device = choose_device(options.device)
        torch.manual_seed(options.seed)
        self.encoder = Encoder(config).to(self.device)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.projectors = Projectors(self.encoder.feature_dim).to(self.device)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=options.lr, betas=(0.9, 0.98))
        self.controller = RateController(options.rate, options.beta)
        self.augmentation = Augmentation(options.crop)
        self.monitor = Monitor(data.train, data.held, data.train_labels, data.held_labels, seed=options.seed)
        self.batch = min(options.batch_size, len(data.train))
        self.steps_per_epoch = len(data.train) // self.batch
        self.entropy_record: dict[str, Any] = {}
        self.step, self.before, self.whole = 0, 0.0, True  # whole: not in the middle of a step
        if checkpoint.exists():
            self._restore()
        self.started = self.saved = self.measured = time.monotonic()

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"encoder": self.encoder, "projectors": self.projectors}

    def _groups(self) -> list[dict[str, Any]]:
        """Decay the weights of layers, not their biases, normalisations or the prior."""
        parameters = [p for module in self._modules().values() for p in module.parameters()]
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.options.decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a checkpoint to be continued; the length of a run may change."""
        options = asdict(self.options)
        config: dict[str, Any] = json.loads(json.dumps(asdict(self.encoder.config)))
        for free in _NOT_OF_THE_STEPS:
            options.pop(free)
            config.pop(free, None)
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
        """Write the checkpoint."""
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "beta": self.controller.beta,
            "options": self._identity(),
        }
        save_checkpoint(self.checkpoint_path, self._modules(), self.optimizer, state)
        self.saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds trained so far, those before an interruption included."""
        return self.before + time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        """How much of the run is done, by steps or by time, whichever ends it first."""
        total = self.options.epochs * self.steps_per_epoch
        done = self.step / total if total else 1.0
        if self.options.max_time:
            done = max(done, self.elapsed / self.options.max_time)
        return min(1.0, done)

    def run(self) -> Encoder:
        """Train to the end and return the encoder, in evaluation mode, its table measured.

        Raises
        ------
        TrainingError
            If the loss is not finite.
        KeyboardInterrupt
            Passed on after the step has ended and the checkpoint has been written; a second one at once, and
            then the checkpoint is an earlier one.
        """
        try:
            with _interruptible() as interrupted:
                for rows, keys in self._batches():
                    self._train_step(rows, keys)
                    if interrupted():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            if self.whole and self.step:
                self.save()
            raise
        if self.step:
            self.save()
        else:
            self._calibrate()
        self.encoder.eval()
        self._fit_tables()
        return self.encoder.cpu()

    def _fit_tables(self) -> None:
        """Measure the table of independent symbols, and fit the entropy network, on codes of training images."""
        options, n = self.options, len(self.data.train)
        chosen = np.random.default_rng(options.seed).permutation(n)[: _MEASURED_IMAGES[options.entropy]]
        images = self.data.train[np.sort(chosen)]
        codes, versions = encode_images(self.encoder, images, self.device).codes, 1
        self.encoder.ones.copy_(torch.from_numpy(measure_ones(codes)))
        if options.entropy == "autoregressive" and len(codes) >= MIN_CODES:
            smaller = encode_images(self.encoder, smaller_images(images, options.seed), self.device).codes
            codes = Codes(np.concatenate([codes.packed, smaller.packed]), codes.latents, codes.alphabet)
            versions = 2
            fitted = fit_entropy(
                codes, self.encoder.config.ladder, versions=versions, hidden=options.entropy_hidden,
                max_time=options.max_time and options.max_time * _ENTROPY_TIME, seed=options.seed,
                precision=options.precision, progress=lambda fraction, line: self.report(Fitting(fraction, line)),
            )  # fmt: skip
            self.encoder.set_entropy(fitted.network)
            self.entropy_record = fitted.record

    def _batches(self) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield rows of the training images, in an order that epoch and seed decide, and their random keys."""
        n = len(self.data.train)
        while self.fraction < 1:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            order = np.random.default_rng([self.options.seed, epoch]).permutation(n)
            for i in range(first, self.steps_per_epoch):
                rows = order[i * self.batch : (i + 1) * self.batch]
                yield rows, torch.from_numpy(rows + n * epoch).to(self.device)
                if self.fraction >= 1:
                    return

    def _train_step(self, rows: np.ndarray, keys: torch.Tensor) -> None:
        start = time.monotonic()
        lr = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.whole = False
        losses = self._losses(rows, keys)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 5.0)
        # At every step, and before the weights change: neither a checkpoint nor a model may be made of what follows.
        if not math.isfinite(float(losses.total.detach()) + float(norm)):
            raise TrainingError(f"the loss is not finite at step {self.step + 1:,}; try a lower learning rate.")
        self.optimizer.step()
        self.step += 1
        self.controller.update(float(losses.rate))
        self.whole = True
        if self.step % self.log_every == 0 or self.step == 1:
            self._log(losses, lr, len(rows) / max(time.monotonic() - start, 1e-9))
        if time.monotonic() - self.saved > self.save_every:
            self.save()

    def _losses(self, rows: np.ndarray, keys: torch.Tensor) -> Losses:
        seed, model = self.options.seed, self.encoder
        images = torch.from_numpy(self.data.train[rows]).to(self.device).permute(0, 3, 1, 2)
        views = torch.cat([self.augmentation(images, keys, seed, s) for s in (_FIRST_VIEW, _SECOND_VIEW)])
        noise = keyed_uniform(keys, seed, _LATENTS, 2 * POSTERIORS[model.config.posterior].noise(model.config))
        rung = np.random.default_rng([seed, self.step]).choice(model.config.ladder)
        clean = images[: max(1, len(images) // 4)].float()
        bf16 = self.options.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return stochastic_contrastive(
                model, self.projectors, model.normalise(views),
                model.normalise(clean).contiguous(memory_format=torch.channels_last),
                torch.cat(noise.chunk(2, dim=1)),
                latents=int(rung), beta=self.controller.beta, temperature=self.options.temperature,
            )  # fmt: skip

    def _learning_rate(self) -> float:
        """Warm up over 200 steps (or the first epoch, where that is longer than nothing), then fall as a cosine."""
        warm = min(1.0, (self.step + 1) / 200)
        return self.options.lr * warm * 0.5 * (1 + math.cos(math.pi * self.fraction))

    def _log(self, losses: Losses, lr: float, speed: float) -> None:
        progress = Progress(
            fraction=self.fraction, step=self.step, epoch=self.step / self.steps_per_epoch,
            elapsed=self.elapsed, loss=float(losses.total.detach()), contrast=float(losses.contrast),
            contrast_codes=float(losses.contrast_codes), decorrelation=float(losses.decorrelation),
            reconstruction=float(losses.reconstruction), rate=float(losses.rate), kl=float(losses.kl),
            beta=self.controller.beta, lr=lr, images_per_second=speed,
        )  # fmt: skip
        if self.step == 1 or time.monotonic() - self.measured > self.measure_every:
            found = self.monitor(self.encoder, self.device)
            progress.held_rate, progress.knn = found["rate"], found.get("knn", math.nan)
            self.measured = time.monotonic()
        if self.log_path:
            finite = {
                k: round(v, 6) for k, v in asdict(progress).items() if not isinstance(v, str) and math.isfinite(v)
            }
            try:
                with self.log_path.open("a") as file:
                    file.write(json.dumps(finite) + "\n")
            except OSError as exc:
                raise OutputError(f"{printable(self.log_path)}: the log cannot be written: {exc.strerror}.") from exc
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
