"""Training an encoder from images."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stochcl.encoders.encoder import Encoder
from stochcl.encoders.inference import encode_images
from stochcl.encoders.posteriors import BIT, POSTERIORS
from stochcl.errors import TrainingError, UsageError
from stochcl.messages import escape_name
from stochcl.training.augment import Augmentation, as_words, from_words, keyed_uniform
from stochcl.training.distributed import anywhere, averaged, from_first, processes, rank
from stochcl.training.entropy import MIN_CODES, fit_tables, smaller_images
from stochcl.training.latents import FittedLatents, LatentStage
from stochcl.training.logs import Log, make_log
from stochcl.training.loop import (
    Averaged,
    Fitting,
    Progress,
    RateController,
    Schedule,
    interruptible,
    load_checkpoint,
    save_checkpoint,
)
from stochcl.training.monitor import Monitor, measure_features
from stochcl.training.objectives import OBJECTIVES, Follower, Objective, decorrelation, momentum, relative_error
from stochcl.training.options import LatentOptions
from stochcl.training.quantiser import start_latents
from stochcl.training.runtime import Pixels, Runtime, Watch, to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.pretrained import Initialisation
    from stochcl.training.images import ImageSet
    from stochcl.training.latents import LatentProgress
    from stochcl.training.options import TrainOptions


_MOST_IMAGES = 200_000
_HELD = 2000  # images that rate and calibration are measured on
_LEAST_STEPS, _MOST_STEPS, _PASSES = 200, 3000, 60
_ROWS = 128
_VIEWS = 3  # the stream of random numbers that views of held-out images are drawn from


def latent_steps(options: TrainOptions, images: int) -> int:
    """Return how many steps the latent stage takes: about sixty passes over few images, fewer over many.

    Examples
    --------
    >>> from stochcl.training.pretrain import TrainOptions
    >>> [latent_steps(TrainOptions(), n) for n in (100, 10_000, 1_000_000)]
    [200, 2343, 3000]
    """
    if options.latent_steps is not None:
        return options.latent_steps
    return max(_LEAST_STEPS, min(_MOST_STEPS, _PASSES * images // LatentOptions().batch_size))


def train_latents(
    encoder: Encoder,
    data: ImageSet,
    augmentation: Augmentation,
    options: TrainOptions,
    device: torch.device,
    *,
    max_time: float | None,
    report: Callable[[LatentProgress | Fitting], None],
    fresh: bool = False,
) -> FittedLatents:
    """Train what is behind the features once more, now that they stand still, to the rate that was asked for.

    Features are those of at most 200,000 images, a seeded choice; the stage itself runs on the processor. A head that
    is ``fresh``, not trained beside the network, begins where a classic quantiser of the features would be.
    """
    order = np.random.default_rng(options.seed).permutation(len(data.train))
    images = data.train[np.sort(order[:_MOST_IMAGES])]
    held = data.held[np.sort(np.random.default_rng(options.seed).permutation(len(data.held))[:_HELD])]
    encode = partial(encode_images, encoder, device=device, precision=options.precision)
    features, kept = (encode(part).features for part in (images, held))
    networked = options.entropy == "autoregressive" and len(images) >= MIN_CODES
    if networked:
        # What is asked of a code is asked of small images, too: they come enlarged, and lack fine detail.
        small = encode(smaller_images(images, options.seed)).features
        features = np.concatenate([features, small])
    views = _view_features(encoder, held, augmentation, options.seed, device)
    settings = LatentOptions(
        steps=latent_steps(options, len(data.train)), max_time=max_time, objective=options.objective,
        estimator=options.estimator, rate=options.rate, beta=options.beta, prior_hidden=options.entropy_hidden,
        entropy=options.entropy, seed=options.seed, precision=options.precision, whitening=options.whitening,
    )  # fmt: skip
    encoder.cpu()
    stage = LatentStage(encoder, features, kept, settings, versions=1 + networked, views=views, report=report)
    begun = start_latents(encoder, features, stage.metric, seed=options.seed) if fresh else "the head trained so far"
    fitted = stage.run()
    return replace(fitted, record={"start": begun} | fitted.record)


@torch.inference_mode()
def _view_features(
    encoder: Encoder, images: NDArray[np.uint8], augmentation: Augmentation, seed: int, device: torch.device
) -> NDArray[np.float32]:
    """Return features of one augmented view of each image, shape (N, V)."""
    out = np.empty((len(images), encoder.feature_dim), np.float32)
    for start in range(0, len(images), _ROWS):
        part = torch.from_numpy(images[start : start + _ROWS]).to(device).permute(0, 3, 1, 2)
        keys = torch.arange(start, start + len(part), device=device)
        views = encoder.normalise(augmentation(part, keys, seed, _VIEWS))
        features = encoder.features(views.contiguous(memory_format=torch.channels_last))
        out[start : start + _ROWS] = features.float().cpu().numpy()
    return out


DECORRELATION = 0.02
"""gamma: what the covariance term is multiplied by."""

Pair = tuple[Tensor, Tensor]


class Losses(NamedTuple):
    """One step's terms: agreements and the total in nats, the next two mean squares, rates in bits."""

    total: Tensor
    contrast: Tensor
    contrast_codes: Tensor
    decorrelation: Tensor
    reconstruction: Tensor
    rate: Tensor
    kl: Tensor


class StochasticContrastive(nn.Module):
    r"""The loss of one batch, with the heads that are thrown away after training.

    With features f, code z ~ q(z|f), z_k its first k latents, g the decoder, A and A' objectives that compare views
    (:mod:`stochcl.training.objectives`), f* the features of the clean image (in evaluation mode, no gradient),

        L = A(f) + A'(g(z)) / 2 + A'(g(z_k)) / 2 + gamma * C(f)
            + |g(z) - f*|^2 / 2|f*|^2 + |g(z_k) - f*|^2 / 2|f*|^2 + beta * E_q[-log2 p(z)]

    The agreement of decoded codes is that of Ramapuram et al. (arXiv 2110.00552, section 3); the
    one of features keeps the backbone learning while codes are still noise. z_k makes the code nested
    (Rippel et al., arXiv 1402.0915). Reconstructing the clean image's features, from the codes of its views
    and from its own, makes the decoded vector worth what the features are worth. It trains latents and decoder
    only, lest the backbone make features that are easy to reconstruct rather than useful; C is the covariance
    term of VICReg, against variance that gathers in few directions, which a squared error counts by their variance
    and a classifier does not. (Both came in together, on ResNet-10 and Tiny-ImageNet: 84 % of the variance in 8 of
    512 directions before, 45 % after further training with both; which of the two did it was not measured.)
    The rate is the posterior's cross-entropy with the prior: what a file pays.

    Where A follows a slow copy (BYOL), the copy is of the whole encoder: its features are the targets of A, what it
    decodes from its own draws of full codes those of A'.

    Its deterministic twin has features where codes stood, and nothing that only codes have:

        L = A(f) + A'(f) + gamma * C(f)

    Parameters
    ----------
    encoder : Encoder
    objective : str
    temperature : float
        Of a contrastive objective.
    estimator : str
        How gradients pass the draw.
    deterministic : bool
        Whether it is the twin's: head, decoder and prior then have no gradient.
    """

    def __init__(
        self, encoder: Encoder, objective: str = "nt-xent", *, temperature: float = 0.2,
        estimator: str = "straight-through", deterministic: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.estimator, self.deterministic = encoder, estimator, deterministic
        if deterministic:
            for name, parameter in encoder.named_parameters():
                parameter.requires_grad_(name.startswith("backbone."))
        self.features, self.codes = (OBJECTIVES[objective](encoder.feature_dim, temperature) for _ in range(2))
        self.slow = Follower(encoder) if self.features.follows else None

    def forward(self, views: Tensor, clean: Tensor, noise: Tensor, latents: int, beta: float) -> Losses:
        """Return the terms."""
        model = self.encoder
        if self.deterministic:
            return self._twin(views)
        if not noise.is_floating_point():
            noise = from_words(noise)
        model.eval()
        with torch.no_grad():
            target = model.features(clean)
        model.train()

        features = model.features(views)
        posterior = model.posterior(features)
        symbols = posterior.sample(noise, self.estimator)
        vectors, short = model.decode(symbols), model.decode(symbols, latents)

        slow_features, slow_vectors = self._slow(views, noise)
        contrast = _agreement(self.features, features, slow_features)
        contrast_codes = (
            _agreement(self.codes, vectors, slow_vectors) / 2 + _agreement(self.codes, short, slow_vectors) / 2
        )

        c, b = len(clean), len(views) // 2
        rows = torch.cat([features[:c], features[b : b + c], target]).detach()
        symbols = model.posterior(rows).sample(torch.cat([noise[:c], noise[b : b + c], noise[:c]]), self.estimator)
        guesses = torch.stack([model.decode(symbols), model.decode(symbols, latents)])
        # Relative to the target's own power: while the running statistics lag behind the first, large steps,
        # "standardised" features are anything but, and an absolute error drowns the other terms.
        reconstruction = relative_error(guesses, target.repeat(2, 3, 1))

        spread = decorrelation(features)
        rate = posterior.rate(model.prior).sum(1).mean()
        with torch.no_grad():  # looked at only
            kl = posterior.kl(model.prior).sum(1).mean() / BIT
        total = contrast + contrast_codes + DECORRELATION * spread + reconstruction + beta * rate
        terms = (contrast, contrast_codes, spread, reconstruction, rate, kl)
        return Losses(total, *(term.detach() for term in terms))

    def _twin(self, views: Tensor) -> Losses:
        """Return the terms of the twin without latents."""
        self.encoder.train()
        features = self.encoder.features(views)
        slow = None
        if self.slow is not None:
            with torch.no_grad():
                slow = _halves(self.slow.network.features(views))
        contrast, again = (_agreement(objective, features, slow) for objective in (self.features, self.codes))
        spread, zero = decorrelation(features), features.new_zeros(())
        total = contrast + again + DECORRELATION * spread
        return Losses(total, contrast.detach(), again.detach(), spread.detach(), zero, zero, zero)

    @torch.no_grad()
    def _slow(self, views: Tensor, noise: Tensor) -> tuple[Pair | None, Pair | None]:
        """Return what the slow copy makes of first and second views: features, and vectors decoded from codes."""
        if self.slow is None:
            return None, None
        network = self.slow.network
        features = network.features(views)
        vectors = network.decode(network.posterior(features).sample(noise))
        return _halves(features), _halves(vectors)

    def step(self, fraction: float) -> None:
        """Let everything that follows the weights do so, after a step of the optimizer."""
        self.features.step(fraction)
        self.codes.step(fraction)
        if self.slow is not None:
            self.slow.step(self.encoder, momentum(fraction))


def _agreement(objective: Objective, vectors: Tensor, targets: Pair | None) -> Tensor:
    compared: Tensor = objective(*_halves(vectors), targets)
    return compared


def _halves(rows: Tensor) -> Pair:
    first, second = rows.chunk(2)
    return first, second


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
            msg = f"{escape_name(self.checkpoint_path)}: this checkpoint is damaged ({exc}); delete it to start anew."
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
        """Train to the end and return the encoder, in evaluation mode, its tables fitted."""
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
            exc.add_note(f"What was done is kept in {escape_name(self.checkpoint_path)}; pass --resume to go on.")

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
