"""Fine-tuning: an encoder trained on labels through its stochastic layer, and a classifier on its codes."""

from __future__ import annotations

import math
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from stochcl.codes import bits_per_symbol
from stochcl.encoders.backbones import EfficientNetLite, ResNet
from stochcl.encoders.config import FAMILIES, EncoderConfig
from stochcl.encoders.encoder import Encoder
from stochcl.encoders.inference import choose_device, encode, precision_used
from stochcl.encoders.posteriors import POSTERIORS, Posterior
from stochcl.errors import LabelsError, UsageError
from stochcl.messages import escape_name
from stochcl.training.augment import StrongAugmentation, counter_rng
from stochcl.training.entropy import MIN_CODES, fit_tables
from stochcl.training.loop import EMA, EpochOrder, Schedule, TrainingLoop, decay_groups
from stochcl.training.outputs import FileLog
from stochcl.training.runtime import DeviceImages, to_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.training.images import ImageSet
    from stochcl.training.options import FinetuneOptions


_CHUNK = 1024


@torch.inference_mode()
def class_scores(encoder: Encoder, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """Return the classifier's log-odds, shape (N, C), of hard codes, or of features for a deterministic twin."""
    encoded = encode(encoder, images, device)
    out = np.empty((len(images), len(encoder.config.classes)), np.float32)
    if encoder.config.classifies == "features":
        rows = torch.from_numpy(encoded.features)
    else:
        rows = torch.from_numpy(encoded.codes.symbols())
    for start in range(0, len(images), _CHUNK):
        part = rows[start : start + _CHUNK].to(device)
        vectors = part if encoder.config.classifies == "features" else encoder.decode(encoder.embed(part))
        out[start : start + _CHUNK] = encoder.classify(vectors).float().cpu().numpy()
    return out


def with_mirrored(
    encoder: Encoder, images: NDArray[np.uint8], device: torch.device, scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return class probabilities, shape (N, C), averaged over images with these scores and their mirror images."""
    mirrored = class_scores(encoder, np.ascontiguousarray(images[:, :, ::-1]), device)
    first, second = (torch.from_numpy(part).softmax(1) for part in (scores, mirrored))
    return ((first + second) / 2).numpy()


def class_indices(labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the index of each label among the classes, int64, shape (N,)."""
    places = {name: i for i, name in enumerate(classes)}
    if unknown := sorted(set(labels) - set(places)):
        shown = ", ".join(escape_name(name) for name in unknown[:3])
        raise LabelsError(f"{len(unknown):,} labels are not among the {len(places):,} training classes: {shown}.")
    return np.array([places[label] for label in labels], np.int64)


def top1(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the fraction of rows whose highest score is that of their label.

    Examples
    --------
    >>> top1(np.array([[0.1, 0.9], [0.8, 0.2]], np.float32), np.array([1, 1]))
    0.5
    """
    return float((scores.argmax(axis=1) == labels).mean())


class Losses(NamedTuple):
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
    """Mix each view and target with the next row's (Zhang et al., arXiv 1710.09412).

    Rows are already in random order. Each has its own weight from Beta(alpha, alpha), and keeps the larger part.
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

    The classifier reads the decoded vector, which any reader of a file has, for all families and prefixes. z is
    sampled here (Ramapuram et al., arXiv 2110.00552, section 3), and hard at test. The last term trains only the
    prior, which follows the codes because missing latents are replaced by its mean.
    """
    posterior = encoder.posterior(encoder.features(views))
    draw = posterior.sample(noise)
    cross_entropy = functional.cross_entropy(encoder.classify(encoder.decode(draw)), targets)
    short = cross_entropy.new_zeros(())
    if nested:
        short = functional.cross_entropy(encoder.classify(encoder.decode(draw, latents)), targets)
    rate = posterior.rate(encoder.prior.detach()).sum(1).mean()
    total = cross_entropy + nested * short + beta * rate + _prior_fit(encoder, posterior)
    return Losses(total, cross_entropy.detach(), short.detach(), rate.detach())


def deterministic_classification(encoder: Encoder, views: Tensor, targets: Tensor) -> Losses:
    """Return the loss of the deterministic twin: the classifier reads the features."""
    logits = encoder.classify(encoder.features(views))
    cross_entropy = functional.cross_entropy(logits, targets)
    zero = cross_entropy.new_zeros(())
    return Losses(total=cross_entropy, classification=cross_entropy.detach(), nested=zero, rate=zero)


def _prior_fit(encoder: Encoder, posterior: Posterior) -> Tensor:
    """Return the codes' cost under the prior, in nats, as a term of value 0 that trains only the prior."""
    still = POSTERIORS[encoder.config.posterior](posterior.parameters.detach(), encoder.config)
    nats = still.rate(encoder.prior).sum(1).mean() * float(np.log(2))
    # Its value is a thousand times a cross-entropy and of no interest.
    return nats - nats.detach()


_VIEW, _LATENTS, _MIXING, _PREFIX, _TABLES = range(5)  # streams of random numbers
_BETWEEN_RESUMES = ("epochs", "max_time", "device", "compile", "entropy", "entropy_hidden")
"""Options that may change when a run is resumed."""
_MOST_WARMUP = 0.1  # of the run
_TABLE_IMAGES = 200  # per bit of a code
_ENTROPY_TIME = 0.1  # share of a run's time for its entropy network


@dataclass
class FinetuneProgress:
    """Progress of fine-tuning; ``fraction`` is of the whole run, the rate in bits, times in seconds."""

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
        """Return the main figures with units on one line."""
        text = (
            f"step {self.step:,}, epoch {self.epoch:.1f}, loss {self.loss:.3f} nats, "
            f"{self.images_per_second:,.0f} images/s"
        )
        return text if math.isnan(self.held_top1) else f"{text}, held-out top-1 {self.held_top1:.1%}"


_IN_PLACE = {"posterior": "gaussian", "latents": 16, "alphabet": 4}
"""Latents that replace residual ones, which are fitted, not trained: 32 bits.

On features of a frozen network, 16 numbers of four values kept more of the classes than 32 sampled bits, or 8 symbols
of 16 values.
"""


def starting_point(base: Encoder, options: FinetuneOptions) -> Encoder:
    """Return the encoder to start from: with the base's weights, with fresh latents, or all fresh."""
    asked = {name: getattr(options, name) for name in ("posterior", "latents", "alphabet")}
    asked = {name: value for name, value in asked.items() if value is not None}
    residual = base.config.posterior == "residual"
    config = replace(base.config, size=options.size or base.config.size)
    if asked or residual:
        config = _with_latents(config, asked)
    if not (asked or residual or options.from_scratch):
        encoder = copy(base)
        encoder.config = config
        return encoder
    torch.manual_seed(options.seed)
    encoder = Encoder(config)
    if not options.from_scratch:
        encoder.backbone.load_state_dict(base.backbone.state_dict())
        encoder.norm.load_state_dict(base.norm.state_dict())
    return encoder


def _with_latents(config: EncoderConfig, asked: dict[str, Any]) -> EncoderConfig:
    """Return a configuration with other latents; unset options are kept, except those of residual latents."""
    changed: dict[str, Any] = {"ladder": (), "embedding": 0, "temperature": 1.0}
    if config.posterior == "residual":
        changed |= _IN_PLACE | {"stages": (), "reduced": 0, "transform": "none"}
    family = changed.get("posterior", config.posterior)
    if asked.get("posterior", family) != family:
        changed["alphabet"] = FAMILIES[asked["posterior"]][0]
    return replace(config, **changed | asked, entropy="independent", entropy_hidden=0)


def _first_stages(encoder: Encoder, count: int) -> list[torch.nn.Module]:
    """Freeze the first stages, and return their modules."""
    if not count:
        return []
    if not isinstance(encoder.backbone, ResNet | EfficientNetLite):
        raise UsageError(f"--frozen: the backbone {encoder.config.backbone} has no stages to freeze; omit it.")
    return [module.requires_grad_(False) for module in encoder.backbone.first_stages(count)]


def _optimizer(groups: list[dict[str, Any]], options: FinetuneOptions) -> torch.optim.Optimizer:
    if options.optimizer == "adamw":
        # Not fused: a checkpoint does not keep the memory layout of the moments, on which fused code depends.
        return torch.optim.AdamW(groups, lr=options.lr)
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=True)


class Finetuner(TrainingLoop):
    """Fine-tunes an encoder on labels.

    ``base`` is not changed, see :func:`starting_point`; a checkpoint must agree with ``base_sha256``. Every image has
    a label; ``classes`` are in the order of the classifier's rows.
    """

    progress_type = FinetuneProgress
    measure_every = 300.0

    def __init__(
        self, base: Encoder, base_sha256: str, options: FinetuneOptions, data: ImageSet, classes: tuple[str, ...], *,
        checkpoint: Path, log: Path | None = None, report: Callable[[Any], None] = lambda progress: None,
    ) -> None:  # fmt: skip
        self.options, self.data, self.base_sha256 = options, data, base_sha256
        device = choose_device(options.device)
        self.precision = precision_used(options.precision, device.type)
        self.encoder = deepcopy(base)
        self.encoder.set_entropy(None)  # it fits codes that will change
        self.encoder.set_classes(classes, "features" if options.deterministic else "vectors")
        self.encoder.to(device)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoder.requires_grad_(True)
        self.frozen = _first_stages(self.encoder, options.frozen)
        self.labels = class_indices(data.train_labels, classes)
        self.held_labels = class_indices(data.held_labels, classes)
        strong = (options.padding, options.area, options.flip, options.operations, options.strength, options.cutout)
        self.augmentations = [StrongAugmentation(side, *strong) for side in options.crop or (base.config.size,)]
        self.batch = min(options.batch_size, len(data.train))
        self.order = EpochOrder(len(data.train), self.batch, options.seed)
        steps = options.epochs * self.order.steps_per_epoch
        warmup = round(min(options.warmup * self.order.steps_per_epoch, _MOST_WARMUP * steps)) + 1
        self.entropy_record: dict[str, Any] = {}
        parts = ("backbone.", "classifier.") if options.deterministic else ("",)  # this twin has no latents
        trained = [p for name, p in self.encoder.named_parameters() if name.startswith(parts) and p.requires_grad]
        below = {id(p) for p in self.encoder.backbone.parameters()}
        groups = []
        for factor, own in ((1.0, False), (options.backbone_lr, True)):
            part = decay_groups((p for p in trained if (id(p) in below) == own), self.encoder.prior, options.decay)
            groups += [group | {"lr": options.lr * factor} for group in part]
        super().__init__(
            Schedule(steps, options.max_time, warmup),
            _optimizer(groups, options),
            clipped=(p for p in trained if p is not self.encoder.prior), device=device,
            ema=EMA(self.encoder, options.average) if options.average else None, checkpoint=checkpoint,
            logs=[FileLog(log)] if log else [], report=report,
        )  # fmt: skip
        if options.compile:
            self.encoder.backbone.compile(dynamic=False)
        self.images = DeviceImages(data.train, device)

    def losses(self) -> Losses:  # noqa: D102
        options, model = self.options, self.encoder.train()
        for module in self.frozen:
            module.eval()
        # Some networks draw random numbers (dropout), which must not depend on earlier steps.
        torch.manual_seed((options.seed * 1_000_003 + self.step) % (1 << 63))
        rows, row_keys = self.order.take(self.step)
        keys = torch.from_numpy(row_keys)  # on the CPU, where operations are chosen
        phase = min(int(self.fraction * len(self.augmentations)), len(self.augmentations) - 1)
        augment = self.augmentations[phase]
        views = model.normalise(augment(self.images.take(rows), keys, options.seed, _VIEW, model.mean))
        labels = to_device(torch.from_numpy(self.labels[rows]), self.device)
        targets = soft_targets(labels, len(model.config.classes), options.smoothing)
        views, targets = mixup(views, targets, options.mixup, [options.seed, self.step, _MIXING])
        views = views.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if options.deterministic:
                return deterministic_classification(model, views, targets)
            count = POSTERIORS[model.config.posterior].noise(model.config)
            noise = counter_rng(to_device(keys, self.device), options.seed, _LATENTS, count)
            rung = np.random.default_rng([options.seed, self.step, _PREFIX]).choice(model.config.ladder)
            return classification(
                model, views, targets, noise, latents=int(rung), nested=options.nested, beta=options.beta
            )

    def figures(self, losses: Losses) -> dict[str, Any]:  # noqa: D102
        return {
            "loss": float(losses.classification), "nested": float(losses.nested), "rate": float(losses.rate),
            "epoch": self.step / self.order.steps_per_epoch,
        }  # fmt: skip

    def measure(self) -> dict[str, float]:  # noqa: D102
        return {"held_top1": self.held_top1()} if len(self.data.held) else {}

    def modules(self) -> dict[str, torch.nn.Module]:  # noqa: D102
        return {"encoder": self.encoder} | super().modules()

    def identity(self) -> dict[str, Any]:  # noqa: D102
        options = {k: v for k, v in asdict(self.options).items() if k not in _BETWEEN_RESUMES}
        options["crop"] = list(options["crop"])  # as JSON returns it
        options["precision"] = self.precision  # not "auto", which may differ on another machine
        classes = list(self.encoder.config.classes)
        return options | {"model": self.base_sha256, "classes": classes, "images": len(self.data.train)}

    @property
    def result(self) -> Encoder:
        """The current result: the averaged weights, if there is an average."""
        return self.ema.network if self.ema else self.encoder

    def held_top1(self) -> float:
        """Return the accuracy on held-out images, from hard codes."""
        self.result.eval()
        return top1(class_scores(self.result, self.data.held, self.device), self.held_labels)

    def run(self) -> Encoder:
        """Train to the end, fit the tables, and return the encoder in evaluation mode on its device."""
        self.run_steps()
        options = self.options
        self.entropy_record = fit_tables(
            self.result.eval(), self._for_tables(), self.device, seed=options.seed, precision=options.precision,
            # A twin's codes are not worth a network.
            entropy="independent" if options.deterministic else options.entropy, hidden=options.entropy_hidden,
            max_time=options.max_time and options.max_time * _ENTROPY_TIME, report=self.report,
        )  # fmt: skip
        return self.result

    def _for_tables(self) -> NDArray[np.uint8]:
        """Return images for fitting the tables; short codes need few."""
        images, config = self.data.train, self.encoder.config
        most = max(MIN_CODES, _TABLE_IMAGES * config.latents * bits_per_symbol(config.alphabet))
        if len(images) <= most:
            return images
        chosen = np.random.default_rng([self.options.seed, _TABLES]).permutation(len(images))[:most]
        return images[np.sort(chosen)]
