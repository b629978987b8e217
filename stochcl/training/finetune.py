"""Fine-tuning: an encoder trained on labels, through its stochastic layer, and the classifier on its codes."""

from __future__ import annotations

import math
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from stochcl.encoders.encoder import Encoder
from stochcl.encoders.inference import choose_device, encode_images, precision_used
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.errors import LabelsError, TrainingError
from stochcl.messages import escape_name
from stochcl.training.augment import StrongAugmentation, keyed_uniform
from stochcl.training.entropy import fit_tables
from stochcl.training.logs import make_log
from stochcl.training.loop import Averaged, Fitting, Schedule, interruptible, load_checkpoint, save_checkpoint
from stochcl.training.runtime import Pixels, Watch, to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.encoders.posteriors import Posterior
    from stochcl.training.images import ImageSet
    from stochcl.training.options import FinetuneOptions


_CHUNK = 1024


@torch.inference_mode()
def class_scores(encoder: Encoder, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """Return the classifier's scores, log-odds, shape (N, C), of hard codes, or of features for a deterministic twin."""
    encoded = encode_images(encoder, images, device)
    if encoder.config.classifies == "features":
        rows, decode = torch.from_numpy(encoded.features), None
    else:
        rows, decode = torch.from_numpy(encoded.codes.symbols()), _form
    out = np.empty((len(images), len(encoder.config.classes)), np.float32)
    for start in range(0, len(images), _CHUNK):
        part = rows[start : start + _CHUNK].to(device)
        vectors = part if decode is None else encoder.decode(decode(encoder, part))
        out[start : start + _CHUNK] = encoder.classify(vectors).float().cpu().numpy()
    return out


def _form(encoder: Encoder, symbols: torch.Tensor) -> torch.Tensor:
    """Bring symbols to the form that the decoder takes."""
    family = POSTERIORS[encoder.config.posterior]
    nothing = torch.zeros(len(symbols), family.width(encoder.config), device=symbols.device)
    return family(nothing, encoder.config).embed(symbols)


def with_mirrored(
    encoder: Encoder, images: NDArray[np.uint8], device: torch.device, scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return mean class probabilities, shape (N, C), of images that have these scores and of their mirror images."""
    mirrored = class_scores(encoder, np.ascontiguousarray(images[:, :, ::-1]), device)
    found = [torch.from_numpy(part).softmax(1) for part in (scores, mirrored)]
    mean: NDArray[np.float32] = ((found[0] + found[1]) / 2).numpy()
    return mean


def class_indices(labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each label among the classes, int64, shape (N,)."""
    places = {name: i for i, name in enumerate(classes)}
    if unknown := sorted(set(labels) - set(places)):
        shown = ", ".join(escape_name(name) for name in unknown[:3])
        raise LabelsError(f"{len(unknown):,} labels are none of the {len(places):,} classes trained on: {shown}.")
    return np.array([places[label] for label in labels], np.int64)


def top1(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the fraction of rows whose highest score is that of their label.

    Examples
    --------
    >>> top1(np.array([[0.1, 0.9], [0.8, 0.2]], np.float32), np.array([1, 1]))
    0.5
    """
    return float((scores.argmax(axis=1) == labels).mean())


@dataclass(frozen=True)
class Losses:
    """One step's terms: the total and cross-entropies in nats, the rate in bits per image."""

    total: Tensor
    classification: Tensor
    nested: Tensor
    rate: Tensor


def soft_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return smoothed labels (Szegedy et al., arXiv 1512.00567, section 7), float32, shape (B, C)."""
    hard = functional.one_hot(labels, classes).float()
    return hard * (1 - smoothing) + smoothing / classes


def mixup(views: Tensor, targets: Tensor, alpha: float, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Mix each view, and its target, with those of the next row (Zhang et al., arXiv 1710.09412).

    Rows stand in a random order already. Each has a weight of its own from Beta(alpha, alpha), of which the larger
    part is the row's own.
    """
    if not alpha:
        return views, targets
    drawn = np.random.default_rng(seed).beta(alpha, alpha, len(views)).astype(np.float32)
    weight = to_device(torch.from_numpy(np.maximum(drawn, 1 - drawn)), views.device)
    mixed = torch.lerp(views.roll(-1, 0), views, weight.view(-1, 1, 1, 1).to(views.dtype))
    return mixed, torch.lerp(targets.roll(-1, 0), targets, weight[:, None])


def classification(
    encoder: Encoder, views: Tensor, targets: Tensor, noise: Tensor, *, latents: int, nested: float, beta: float
) -> Losses:
    r"""Return the loss of one batch.

    With the code z ~ q(z|x), z_k its first k latents, g the decoder, W the classifier, t the soft target,

        L = H(t, softmax(W g(z))) + nested * H(t, softmax(W g(z_k))) + beta * E_q[-log2 p(z)] + E[-log p(z)]

    The classifier reads the decoded vector: what a reader of a file has, whatever the family of the latents, and for
    every prefix of a code. z is sampled here (Ramapuram et al., arXiv 2110.00552, section 3), and hard at test. The
    last term has no gradient but the prior's: the prior follows the codes, as missing latents count as its mean.
    """
    posterior = encoder.posterior(encoder.features(views))
    draw = posterior.sample(noise)
    cross_entropy = functional.cross_entropy(_logits(encoder, draw, None), targets)
    short = (
        functional.cross_entropy(_logits(encoder, draw, latents), targets) if nested else cross_entropy.new_zeros(())
    )
    rate = posterior.rate(encoder.prior.detach()).sum(1).mean()
    return Losses(
        total=cross_entropy + nested * short + beta * rate + _prior_fit(encoder, posterior),
        classification=cross_entropy.detach(),
        nested=short.detach(),
        rate=rate.detach(),
    )


def deterministic_classification(encoder: Encoder, views: Tensor, targets: Tensor) -> Losses:
    """Return the loss of the deterministic twin: the classifier reads the features themselves."""
    logits = encoder.classify(encoder.features(views))
    cross_entropy = functional.cross_entropy(logits, targets)
    zero = cross_entropy.new_zeros(())
    return Losses(total=cross_entropy, classification=cross_entropy.detach(), nested=zero, rate=zero)


def _logits(encoder: Encoder, draw: Tensor, latents: int | None) -> Tensor:
    return encoder.classify(encoder.decode(draw, latents))


def _prior_fit(encoder: Encoder, posterior: Posterior) -> Tensor:
    """Return what the codes cost under the prior, in nats, less their gradient."""
    still = POSTERIORS[encoder.config.posterior](posterior.parameters.detach(), encoder.config)
    nats = still.rate(encoder.prior).sum(1).mean() * float(np.log(2))
    # Its value is of no interest beside a cross-entropy, and a thousand times as large.
    return nats - nats.detach()


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
            msg = f"{escape_name(self.checkpoint_path)}: this checkpoint is damaged ({exc}); delete it to start anew."
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
        """Train to the end and return the encoder, in evaluation mode, on its device."""
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
                    f"Step {self.step:,} is kept in {escape_name(self.checkpoint_path)}; pass --resume to go on."
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
