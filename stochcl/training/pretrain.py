"""Pre-training: an encoder trained on images without labels, then its latents on the finished features."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from stochcl.encoders.encoder import Encoder
from stochcl.encoders.engine import features as features_of
from stochcl.encoders.inference import network_of
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.errors import UsageError
from stochcl.training.augment import Augmentation, as_words, counter_rng
from stochcl.training.entropy import MIN_CODES, fit_tables, smaller_images
from stochcl.training.latents import FittedLatents, LatentStage, RateController
from stochcl.training.loop import EMA, EpochOrder, Schedule, TrainingLoop, decay_groups
from stochcl.training.monitor import Monitor, measure_features
from stochcl.training.objectives import Losses, StochasticContrastive
from stochcl.training.options import LatentOptions, TrainOptions
from stochcl.training.outputs import FileLog
from stochcl.training.quantiser import start_latents
from stochcl.training.residual import check_objective, fit_residual
from stochcl.training.runtime import DeviceImages, Runtime, rank, to_device, world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.engine import Network
    from stochcl.encoders.pretrained import Initialisation
    from stochcl.training.images import ImageSet


_MOST_IMAGES = 200_000
_HELD = 2000  # images for measuring rate and calibration
_LEAST_STEPS, _MOST_STEPS, _PASSES = 200, 3000, 60
_ROWS = 128
_FIRST_VIEW, _SECOND_VIEW, _LATENTS, _HELD_VIEWS = range(4)  # streams of random numbers
_ENTROPY_TIME = 0.1  # share of a run's time for the entropy network, without a latent stage
_IMAGES_TIME = 0.75  # share of a run's time for the image steps before a latent stage
_METRIC_AREA, _METRIC_BLUR = 0.4, 0.5  # of the views for residual latents' metric
_METRIC_SIDES = (24, 64)  # pixels to which those views are shrunk
_CLEAN = 4  # one image in this many is also seen without augmentation
_BETWEEN_RESUMES = (
    "epochs", "max_time", "device", "devices", "compile", "entropy", "entropy_hidden", "latent_steps", "whitening",
)  # fmt: skip
"""Options that may change when a run is resumed."""
_ALSO_OF_LATENTS = (
    "objective", "estimator", "rate", "beta", "entropy", "seed", "whitening",
)  # fmt: skip


@dataclass
class TrainProgress:
    """Progress of pre-training; ``fraction`` is of the whole run, rates are in bits, times in seconds.

    ``rate`` is the expected cost of the batch's sampled codes, ``kl`` their posterior's divergence from the prior;
    ``held_rate`` is the cost of held-out images' hard codes.
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
        """Return the main figures with units on one line."""
        text = (
            f"step {self.step:,}, epoch {self.epoch:.1f}, loss {self.loss:.3f} nats, "
            f"rate {self.rate:,.0f} bits/image, {self.images_per_second:,.0f} images/s"
        )
        return text if math.isnan(self.knn) else f"{text}, kNN {self.knn:.1%}"


class Trainer(TrainingLoop):
    """Pre-trains an encoder, then runs the latent stage or fits the tables of its codes.

    Several processes share every batch, and together do what one would do with the whole: an image's random numbers
    depend only on the image and epoch; statistics and gradients cover the whole batch. Only the first process writes,
    reports, and does the work after the last step.

    ``initialise`` loads other weights into the fresh encoder's backbone, and returns a description. Without epochs
    that backbone is not changed, and latents are trained on its features.
    """

    progress_type = TrainProgress

    def __init__(
        self, config: EncoderConfig, options: TrainOptions, data: ImageSet, *, checkpoint: Path,
        log: Path | None = None, logs: Sequence[Any] = (), report: Callable[[Any], None] = lambda progress: None,
        runtime: Runtime | None = None,
        initialise: Callable[[Encoder], Initialisation | None] = lambda encoder: None,
    ) -> None:  # fmt: skip
        self.options, self.data = options, data
        self.runtime = runtime or Runtime(options)
        device, self.world_size = self.runtime.device, world_size()
        self.precision = "int8" if options.precision == "int8" else self.runtime.precision
        self.batch = batch_of_all(options.batch_size, len(data.train))
        self.order = EpochOrder(len(data.train), self.batch, options.seed)
        torch.manual_seed(options.seed)
        self.encoder = Encoder(config)
        self.initialisation = initialise(self.encoder)
        self.encoder.to(device)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = EMA(self.encoder, options.average) if options.average else None
        self.loss = StochasticContrastive(
            self.encoder, options.objective, temperature=options.temperature, estimator=options.estimator,
            deterministic=options.deterministic,
        ).to(device)  # fmt: skip
        # A latent stage meets the rate itself; the features are better without that pressure.
        self.latent_steps = latent_steps(options, len(data.train))
        self.controller = RateController(None if self.latent_steps else options.rate, options.beta)
        max_time = options.max_time and options.max_time * (_IMAGES_TIME if self.latent_steps else 1)
        self.augmentation = Augmentation(
            options.crop, (options.area, 1.0), ratio=4 / 3 if options.area < 1 else 1.0, flip=options.flip,
            strength=options.strength, grey=options.grey, blur=options.blur,
        )  # fmt: skip
        self.monitor = Monitor(
            data.train, data.held, data.train_labels, data.held_labels, seed=options.seed,
            precision="fp32" if options.epochs else self.precision,
        )  # fmt: skip
        self.entropy_record: dict[str, Any] = {}
        self.latents: FittedLatents | None = None
        trained = (p for p in self.loss.parameters() if p.requires_grad)
        super().__init__(
            Schedule(options.epochs * self.order.steps_per_epoch, max_time, options.warmup),
            torch.optim.AdamW(
                decay_groups(trained, self.encoder.prior, options.decay), lr=options.lr, betas=(0.9, 0.98)
            ),
            clipped=self.encoder.parameters(), device=device, ema=ema, checkpoint=checkpoint,
            logs=[*([FileLog(log)] if log else []), *logs], report=report,
        )  # fmt: skip
        if options.compile:
            self.encoder.backbone.compile(dynamic=False)
        self._prepared = self.runtime.prepare(self.loss)
        self.images = DeviceImages(data.train, device)

    def losses(self) -> Losses:  # noqa: D102
        seed, model, processes = self.options.seed, self.encoder, world_size()
        # Some networks draw random numbers (dropout), which must not depend on earlier steps.
        torch.manual_seed((seed * 1_000_003 + self.step * processes + rank()) % (1 << 63))
        # Strided rows give each process an equal share of a batch's first rows, which are also seen clean.
        rows, row_keys = (part[rank() :: processes] for part in self.order.take(self.step))
        keys = to_device(torch.from_numpy(row_keys), self.device)
        images = self.images.take(rows)
        views = torch.cat([self.augmentation(images, keys, seed, s) for s in (_FIRST_VIEW, _SECOND_VIEW)])
        family = POSTERIORS.get(model.config.posterior)  # none for a twin whose residual latents are fitted later
        noise = counter_rng(keys, seed, _LATENTS, 2 * family.noise(model.config) if family else 2)
        rung = np.random.default_rng([seed, self.step]).choice(model.config.ladder)
        # The first quarter of the whole batch, of which this process has a strided share.
        clean = images[: len(range(rank(), max(1, self.batch // _CLEAN), processes))].float()
        found: Losses = self._prepared(
            model.normalise(views), model.normalise(clean).contiguous(memory_format=torch.channels_last),
            as_words(torch.cat(noise.chunk(2, dim=1))), latents=int(rung), beta=self.controller.beta,
        )  # fmt: skip
        return found

    def backward(self, loss: Tensor) -> None:  # noqa: D102
        self.runtime.backward(loss)

    def after_step(self, losses: Losses, fraction: float) -> None:  # noqa: D102
        self.loss.step(fraction)
        if self.controller.target is not None:  # reading a number waits for the GPU
            self.controller.update(float(losses.rate))

    def figures(self, losses: Losses) -> dict[str, Any]:  # noqa: D102
        terms = {name: float(value) for name, value in losses._asdict().items()}
        return terms | {
            "loss": terms["total"], "epoch": self.step / self.order.steps_per_epoch, "beta": self.controller.beta,
        }  # fmt: skip

    def measure(self) -> dict[str, float]:  # noqa: D102
        measured = self.monitor(self.result, self.device)
        return {"held_rate": measured["rate"], "knn": measured.get("knn", math.nan)}

    def modules(self) -> dict[str, nn.Module]:  # noqa: D102
        return {"loss": self.loss} | super().modules()  # the encoder is a part of the loss

    def identity(self) -> dict[str, Any]:  # noqa: D102
        options = asdict(self.options)
        config: dict[str, Any] = json.loads(json.dumps(asdict(self.encoder.config)))
        for name in _BETWEEN_RESUMES:
            options.pop(name)
            config.pop(name, None)
        options["precision"] = self.precision  # not "auto", which may differ on another machine
        options["deterministic"] = options["deterministic"] or None  # older checkpoints lack it
        return options | config | {"images": len(self.data.train)}

    def state(self) -> dict[str, float]:  # noqa: D102
        return {"beta": self.controller.beta}

    def load_state(self, state: dict[str, float]) -> None:  # noqa: D102
        self.controller.beta = state["beta"]

    @property
    def result(self) -> Encoder:
        """The current result: the averaged weights, if there is an average."""
        return self.ema.network if self.ema and self.step else self.encoder

    def run(self) -> Encoder:
        """Train to the end, fit the tables, and return the encoder in evaluation mode."""
        self.run_steps()
        if not self.step and not self.initialisation:
            self._calibrate_norms()
        self.runtime.close()
        self.result.eval()
        if self.is_first:
            try:
                self._finish()
            except KeyboardInterrupt as exc:  # the checkpoint is that of the last step
                self.add_resume_hint(exc)
                raise
        return self.result.cpu()

    def _finish(self) -> None:
        """Train latents on the finished features, and fit the tables of their codes."""
        options, initialised = self.options, self.initialisation
        if initialised and not self.step and not initialised.statistics:
            measure_features(self.result, self.data.train, self.device, options.precision)
        fitted = self.result.config.posterior == "residual"
        trained = self.latent_steps and (self.step or initialised)  # latents of a random network are useless
        if fitted or trained:
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
            precision=options.precision, report=self.report,
        )  # fmt: skip

    @torch.no_grad()
    def _calibrate_norms(self) -> None:
        """Give an untrained network the normalisation statistics that training would give it."""
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


def batch_of_all(batch_size: int, images: int) -> int:
    """Return the images of a step over all processes, an equal number in each."""
    processes = world_size()
    batch = min(batch_size, images) // processes * processes
    if batch < 2 * processes:
        msg = f"a batch of {min(batch_size, images)} images gives {processes} processes fewer than two each"
        raise UsageError(f"{msg}; use more images, a larger batch, or fewer processes.")
    return batch


def latent_steps(options: TrainOptions, images: int) -> int:
    """Return the steps of the latent stage: about sixty passes over few images, fewer over many.

    Examples
    --------
    >>> from stochcl.training.options import TrainOptions
    >>> [latent_steps(TrainOptions(), n) for n in (100, 10_000, 1_000_000)]
    [200, 2343, 3000]
    """
    if options.latent_steps is not None:
        return options.latent_steps
    return max(_LEAST_STEPS, min(_MOST_STEPS, _PASSES * images // LatentOptions().batch_size))


def train_latents(
    encoder: Encoder, data: ImageSet, augmentation: Augmentation, options: TrainOptions, device: torch.device, *,
    max_time: float | None, report: Callable[[Any], None], fresh: bool = False,
) -> FittedLatents:  # fmt: skip
    """Train head, prior and decoder on the finished features, to the target rate.

    Features come from a seeded sample of at most 200,000 images; the stage itself runs on the CPU. A ``fresh`` head,
    not trained with the network, starts as a classic quantiser of the features.
    """
    order = np.random.default_rng(options.seed).permutation(len(data.train))
    few = len(data.train) <= _MOST_IMAGES  # a sample is a copy in memory, even of memory-mapped images
    images = data.train if few else data.train[np.sort(order[:_MOST_IMAGES])]
    held = data.held[np.sort(np.random.default_rng(options.seed).permutation(len(data.held))[:_HELD])]

    network = network_of(encoder, device, options.precision)
    features, held_features = (features_of(network, given, encoder.feature_dim) for given in (images, held))
    settings = LatentOptions(
        steps=latent_steps(options, len(data.train)), max_time=max_time, prior_hidden=options.entropy_hidden,
        precision="fp32" if options.precision == "int8" else options.precision,
        **{name: getattr(options, name) for name in _ALSO_OF_LATENTS},
    )  # fmt: skip
    if encoder.config.posterior == "residual":
        check_objective(options.objective)
        gentle = _metric_views(encoder.config.size, options)
        seen = _view_features(network, features.shape[1], images, gentle, options.seed, device, _METRIC_SIDES)
        latents = fit_residual(encoder.cpu(), features, held_features, settings, views=seen, report=report)
        return replace(latents, record={"start": "residual quantisation"} | latents.record)
    networked = options.entropy == "autoregressive" and len(images) >= MIN_CODES
    if networked:  # codes of enlarged small images, which lack fine detail, should be good too
        smaller = smaller_images(images, options.seed)
        features = np.concatenate([features, features_of(network, smaller, encoder.feature_dim)])
    views = _view_features(network, features.shape[1], held, augmentation, options.seed, device)
    encoder.cpu()
    stage = LatentStage(
        encoder, features, held_features, settings, versions=1 + networked, views=views, report=report
    )
    start = start_latents(encoder, features, stage.metric, seed=options.seed) if fresh else "the head trained so far"
    fitted = stage.run()
    return replace(fitted, record={"start": start} | fitted.record)


def _metric_views(size: int, options: TrainOptions) -> Augmentation:
    """Return gentle, full-size views, which show how an image varies without becoming another."""
    return Augmentation(
        size, (max(options.area, _METRIC_AREA), 1.0), flip=options.flip, strength=options.strength, grey=options.grey,
        blur=max(options.blur, _METRIC_BLUR),
    )  # fmt: skip


def _view_features(
    network: Network, width: int, images: NDArray[np.uint8], augmentation: Augmentation, seed: int,
    device: torch.device, shrunk: tuple[int, int] | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """Return features of one augmented view of each image, shape (N, V), optionally shrunk to sides of ``shrunk``."""
    out, block = np.empty((len(images), width), np.float32), max(_ROWS, network.chunk)
    for start in range(0, len(images), block):
        rows = images[start : start + block]
        if shrunk:
            rows = smaller_images(rows, seed + start, shrunk)
        part = torch.from_numpy(rows).to(device).permute(0, 3, 1, 2)
        keys = torch.arange(start, start + len(part), device=device)
        views = augmentation(part, keys, seed, _HELD_VIEWS).round().to(torch.uint8).permute(0, 2, 3, 1)
        out[start : start + len(rows)] = features_of(network, views.cpu().numpy(), width)
    return out
