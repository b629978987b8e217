"""How the latent stage trains."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from stochcl.encoders.backbones import input_size
from stochcl.encoders.config import ENTROPY, EncoderConfig
from stochcl.encoders.inference import TRAIN_PRECISIONS
from stochcl.encoders.posteriors import ESTIMATORS
from stochcl.entropy.autoregressive import MAX_HIDDEN
from stochcl.errors import UsageError
from stochcl.messages import escape_name, os_reason
from stochcl.training.objectives import OBJECTIVES

_ENDING = ".toml"
_FINETUNE = "-finetune"


def recipe_names(*, finetuning: bool) -> tuple[str, ...]:
    """Return the names of the recipes that come with the package, of fine-tuning or of training."""
    names = (p.name.removesuffix(_ENDING) for p in _folder().iterdir() if p.name.endswith(_ENDING))
    return tuple(sorted(name for name in names if name.endswith(_FINETUNE) == finetuning))


def recipe_text(name: str, known: tuple[str, ...]) -> str:
    """Return a recipe as it is written, by its name among those known or from a .toml file of one's own."""
    if name in known:
        text: str = _folder().joinpath(f"{name}{_ENDING}").read_text("utf-8")
        return text
    if not name.endswith(_ENDING):
        there = ", ".join(known)
        raise UsageError(f"there is no preset {escape_name(name)!r}; there are {there}, or name a .toml file.")
    try:
        return Path(name).read_text("utf-8")
    except OSError as exc:
        raise UsageError(f"{escape_name(name)}: the preset cannot be read: {os_reason(exc)}.") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{escape_name(name)}: the preset is not UTF-8 text ({exc.reason}).") from exc


def read_recipe(name: str, text: str, types: dict[str, str], what: str) -> dict[str, Any]:
    """Read a recipe's options."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{escape_name(name)}: this is not TOML ({exc}).") from exc
    for key, value in found.items():
        if key not in types:
            raise UsageError(f"{escape_name(name)}: {what} has no option {escape_name(key)!r}.")
        if not _fits(value, types[key]):
            raise UsageError(f"{escape_name(name)}: {key} is of the type {types[key]}, not {value!r}.")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _fits(value: object, declared: str) -> bool:
    """Tell whether a value is of a field's type; whole numbers are numbers, truth values are not."""
    if declared.startswith("tuple"):
        item = declared.removeprefix("tuple[").partition(",")[0]
        return isinstance(value, list) and all(_fits(v, item) for v in value)
    names = {"int": (int,), "float": (int, float), "bool": (bool,)}
    allowed = names.get(declared.partition(" ")[0], (str,))
    return isinstance(value, allowed) and (isinstance(value, bool) == (declared == "bool"))


def _folder() -> Any:
    return resources.files("stochcl").joinpath("training", "presets")


@dataclass(frozen=True)
class LatentOptions:
    """How head, prior and decoder are trained on features.

    Parameters
    ----------
    steps : int
        Of the descent that trains all three; what follows (the decoder on finished codes, the entropy network) is
        a fraction of it.
    max_time : float or None
        Seconds that the whole stage may take.
    batch_size : int
        Features a step.
    lr, decay : float
        Peak learning rate and weight decay of AdamW.
    objective : str
        ``reconstruct``: the decoded vector is to be the feature, which keeps distances; any other objective besides
        agrees on what tells one input from another, which keeps what classifiers want.
    agreement : float
        Weight of that other objective.
    temperature : float
        Of the contrastive objective.
    noise : float
        Deviation of the noise on a feature that makes a view of it, in units of the features' own deviation along
        each principal axis.
    whitening : float or None
        Power of the variance by which an error along a principal axis is divided, 0 to 1/2, see
        :class:`~stochcl.training.quantiser.Metric`; None is 1/8, and 0 for ``reconstruct``.
    rate : float or None
        Target in bits per input, of the codes that a file holds.
    beta : float
        Nats that a bit costs, to begin with.
    estimator : str
        How gradients pass the draw: straight-through or relaxed.
    nested : bool
        Whether prefixes on the ladder are trained to be codes in themselves.
    prior_hidden : int or None
        Hidden units of the autoregressive prior; None lets the rows decide.
    entropy : str
        autoregressive or independent.
    seed : int
        Of everything random.
    precision : str
        auto, bf16 (autocast) or fp32, see :func:`~stochcl.encoders.inference.computes_in_bf16`.
    """

    steps: int = 3000
    max_time: float | None = None
    batch_size: int = 256
    lr: float = 2e-3
    decay: float = 1e-2
    objective: str = "nt-xent"
    agreement: float = 1.0
    temperature: float = 0.1
    noise: float = 0.0
    whitening: float | None = None
    rate: float | None = None
    beta: float = 1e-4
    estimator: str = "straight-through"
    nested: bool = True
    prior_hidden: int | None = None
    entropy: str = "autoregressive"
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name.replace('_', '-')} is more than 0, not {getattr(self, name)}.")
        for name in ("decay", "agreement", "noise", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is 0 or more, not {getattr(self, name)}.")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"a rate is more than 0 bits per image, not {self.rate}.")
        if self.whitening is not None and not 0 <= self.whitening <= 0.5:
            raise UsageError(f"whitening is 0 to 0.5, not {self.whitening}.")
        if self.objective not in OBJECTIVES:
            raise UsageError(f"there is no objective {self.objective!r}; there are {', '.join(OBJECTIVES)}.")
        if self.estimator not in ESTIMATORS:
            raise UsageError(f"there is no estimator {self.estimator!r}; there are {', '.join(ESTIMATORS)}.")
        if self.precision not in TRAIN_PRECISIONS:
            raise UsageError(
                f"there is no training precision {self.precision!r}; there are {', '.join(TRAIN_PRECISIONS)}."
            )


_NAMED = {
    "objective": tuple(OBJECTIVES),
    "estimator": ESTIMATORS,
    "precision": TRAIN_PRECISIONS,
    "entropy": ENTROPY,
}
_POSITIVE = ("crop", "lr", "temperature")
_FROM_ZERO = ("epochs", "decay", "beta", "warmup", "strength")
_FRACTIONS = ("grey", "blur")


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Parameters
    ----------
    epochs : int
        Passes over the images; 0 writes the untrained network, to compare with. Of a network that begins with given
        weights, 0 keeps these as they are and trains latents on its features.
    max_time : float or None
        Seconds after which training ends, whatever the epochs; the learning rate falls to zero by then.
    batch_size : int
        Images a step, of all processes together; each gives two views.
    crop : int
        Side of a view in pixels. Smaller than the encoder's size is faster, and right: objects look larger in
        random crops than in whole images (Touvron et al., arXiv 1906.06423).
    area, flip, strength, grey, blur
        Of the views, see :class:`~stochcl.training.augment.Augmentation`; ``area`` is the smallest part of an image
        that a view shows; 1 shows whole images, so that codes keep where things are.
    lr, decay : float
        Peak learning rate and weight decay of AdamW.
    warmup : int
        Steps in which the learning rate rises.
    objective : str
        What says that two views belong together: nt-xent, byol, vicreg or reconstruct.
    temperature : float
        Of the contrastive objective.
    estimator : str
        How gradients pass the draw of a code: straight-through or relaxed.
    rate : float or None
        Target in bits per image; None leaves ``beta`` as it is.
    beta : float
        Nats that a bit costs, to begin with.
    average : float
        Decay of a moving average of the encoder's weights, which is then what is written; 0 keeps none.
    latent_steps : int or None
        Steps in which head, prior and decoder are trained once more when the features are finished, to the rate that
        is asked for; 0 leaves them as they are, None lets the number of images decide.
    whitening : float or None
        How that stage weighs errors along directions of little variance, 0 to 0.5, see
        :class:`~stochcl.training.options.LatentOptions`; None leaves it to the objective.
    deterministic : bool
        Train the network without its stochastic layer, features standing where codes stood: the twin to compare
        with. The latent stage then makes codes of its finished features.
    seed : int
        Of everything random.
    precision : str
        auto, bf16 (autocast) or fp32, see :func:`~stochcl.encoders.inference.computes_in_bf16`.
    device : str
        auto, cpu, cuda...
    devices : int
        How many of these train together, each in a process of its own; torchrun says so itself.
    compile : bool
        Whether torch.compile makes the backbone's kernels; on a machine with a compiler, and for long runs.
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
    area: float = 0.2
    flip: bool = True
    strength: float = 0.5
    grey: float = 0.2
    blur: float = 0.0
    lr: float = 2e-3
    decay: float = 1e-2
    warmup: int = 200
    objective: str = "nt-xent"
    temperature: float = 0.2
    estimator: str = "straight-through"
    rate: float | None = None
    beta: float = 1e-4
    average: float = 0.0
    latent_steps: int | None = None
    whitening: float | None = None
    deterministic: bool = False
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    devices: int = 1
    compile: bool = False
    entropy: str = "autoregressive"
    entropy_hidden: int | None = None

    def __post_init__(self) -> None:
        for name, known in _NAMED.items():
            if (value := getattr(self, name)) not in known:
                what = "training precision" if name == "precision" else name
                raise UsageError(f"there is no {what} {value!r}; there are {', '.join(known)}.")
        for name in _POSITIVE:
            self._check(name, 0 < getattr(self, name) < math.inf, "more than 0")
        for name in _FROM_ZERO:
            self._check(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        for name in _FRACTIONS:
            self._check(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        self._check("area", 0 < self.area <= 1, "more than 0 and at most 1")
        self._check("average", 0 <= self.average < 1, "0 or more, and less than 1")
        self._check("batch_size", self.batch_size >= 2, "2 or more")
        self._check("devices", self.devices >= 1, "1 or more")
        if self.deterministic and self.objective == "reconstruct":
            raise UsageError("reconstruct compares codes with features, and a deterministic twin has no codes.")
        if self.latent_steps is not None and self.latent_steps < 0:
            raise UsageError(f"latent-steps is 0 or more, not {self.latent_steps}.")
        self._check("whitening", self.whitening is None or 0 <= self.whitening <= 0.5, "0 to 0.5")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"a rate is more than 0 bits per image, not {self.rate}.")
        if self.max_time is not None and not self.max_time > 0:
            raise UsageError(f"training cannot end after {self.max_time} seconds.")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"a seed is 0 to 2**63 - 1, not {self.seed}.")
        if self.entropy_hidden is not None and not 0 <= self.entropy_hidden <= MAX_HIDDEN:
            raise UsageError(f"an entropy network has 0 to {MAX_HIDDEN} hidden units, not {self.entropy_hidden}.")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UsageError(f"{name.replace('_', '-')} is {expected}, not {getattr(self, name)}.")


_MOST_BITS = 256  # of a residual code, where no rate is asked for


def options_from(given: dict[str, Any]) -> tuple[EncoderConfig, TrainOptions]:
    """Sort named options, None for those left out, into what the encoder is and how it is trained."""
    given = {name: value for name, value in given.items() if value is not None}
    names = {f.name for f in fields(TrainOptions)}
    if unknown := sorted(set(given) - config_names() - names):
        raise UsageError(f"there is no training option {', '.join(unknown)}.")
    if "latents" not in given and given.get("rate") and given.get("posterior", "bernoulli") == "bernoulli":
        given["latents"] = latents_for(float(given["rate"]))
    if given.get("posterior") == "residual":
        given.setdefault("latents", max(1, min(_MOST_BITS, round(given.get("rate") or _MOST_BITS))))
        given.setdefault("transform", "sqrt")
    given.setdefault("size", input_size(given.get("backbone", EncoderConfig.backbone)))
    config = EncoderConfig(**{k: v for k, v in given.items() if k in config_names()})
    if config.posterior == "residual" and given.get("epochs") != 0 and not given.get("deterministic"):
        raise UsageError(
            "residual latents are fitted to a finished network; give --init and --epochs 0, or --deterministic."
        )
    if "crop" not in given:  # 48 of 64 pixels; a multiple of 8 wastes no convolution
        given["crop"] = max(16, config.size * 3 // 4 // 8 * 8)
    return config, TrainOptions(**{k: v for k, v in given.items() if k in names})


def latents_for(rate: float) -> int:
    """Return how many bits a code should have that is to cost this much: twice as many, a power of two.

    With room beyond the rate, which bits are worth it is learned; with much more, they take long to be silenced.

    Examples
    --------
    >>> [latents_for(rate) for rate in (10, 32, 100)]
    [32, 64, 256]
    """
    return 1 << max(4, min(12, math.ceil(math.log2(2 * rate)))) if 0 < rate < math.inf else 16


def config_names() -> set[str]:
    """Return the fields of an encoder's configuration that may be asked for."""
    # What is asked of the entropy network is no fact yet.
    return {f.name for f in fields(EncoderConfig)} - {f.name for f in fields(TrainOptions)}


_BESIDE = {"source": "str", "hold_out": "int"}


def preset_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    return recipe_names(finetuning=False)


def preset_text(name: str) -> str:
    """Return a recipe as it is written, by its name or from a .toml file of one's own."""
    return recipe_text(name, preset_names())


def load_preset(name: str) -> dict[str, Any]:
    """Read a recipe, by its name or from a .toml file of one's own."""
    types = {f.name: str(f.type) for f in fields(EncoderConfig) if f.name in config_names()}
    types |= {f.name: str(f.type) for f in fields(TrainOptions)} | _BESIDE
    found = read_recipe(name, preset_text(name), types, "training")
    if found.get("source", "digits") != "digits":
        raise UsageError(f"{escape_name(name)}: the source of a preset can only be 'digits'; name others to train.")
    return found


_FINETUNE_POSITIVE = ("lr",)
_FINETUNE_FRACTIONS = ("smoothing", "average", "padding", "strength", "cutout")
_FINETUNE_FROM_ZERO = ("decay", "warmup", "mixup", "nested", "beta")


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune.

    Parameters
    ----------
    epochs : int
        Passes over the images.
    max_time : float or None
        Seconds after which training ends, whatever the epochs; the learning rate falls to zero by then.
    batch_size : int
        Images a step.
    lr, momentum, decay : float
        Peak learning rate, Nesterov momentum and weight decay of SGD. Biases, normalisations and the prior do not
        decay.
    warmup : float
        Epochs in which the learning rate rises, a tenth of all at most.
    smoothing : float
        Of the labels: this part of the probability is spread over all classes.
    mixup : float
        Parameter of the Beta distribution of mixing weights; 0 mixes nothing.
    average : float
        Decay of the moving average of the weights, which is what is written; 0 writes the weights themselves.
    crop : int or None
        Side of a view in pixels; None takes the encoder's size.
    padding, area, flip, operations, strength, cutout
        See :class:`~stochcl.training.augment.StrongAugmentation`.
    nested : float
        Weight of the classification from a random prefix of the code; 0 trains the full width alone.
    beta : float
        Nats that a bit of rate costs.
    deterministic : bool
        Classify the features themselves, without the stochastic layer: the twin to compare with.
    from_scratch : bool
        Begin with fresh weights rather than the model's.
    seed : int
        Of everything random.
    precision : str
        auto, bf16 (autocast) or fp32, see :func:`~stochcl.encoders.inference.computes_in_bf16`.
    device : str
        auto, cpu, cuda...
    compile : bool
        Whether torch.compile makes the backbone's kernels; on a machine with a compiler, and for long runs.
    entropy, entropy_hidden
        Of the entropy model that is fitted to the codes, see :class:`~stochcl.training.options.TrainOptions`.
    """

    epochs: int = 30
    max_time: float | None = None
    batch_size: int = 128
    lr: float = 0.02
    momentum: float = 0.9
    decay: float = 5e-4
    warmup: float = 2.0
    smoothing: float = 0.1
    mixup: float = 0.2
    average: float = 0.999
    crop: int | None = None
    padding: float = 0.125
    area: float = 1.0
    flip: bool = True
    operations: int = 1
    strength: float = 1.0
    cutout: float = 0.25
    nested: float = 0.2
    beta: float = 0.0
    deterministic: bool = False
    from_scratch: bool = False
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    entropy: str = "autoregressive"
    entropy_hidden: int | None = None

    def __post_init__(self) -> None:
        for name in _FINETUNE_POSITIVE:
            self._check(name, 0 < getattr(self, name) < math.inf, "more than 0")
        for name in _FINETUNE_FRACTIONS:
            self._check(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        for name in _FINETUNE_FROM_ZERO:
            self._check(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self._check("momentum", 0 < self.momentum < 1, "more than 0 and less than 1")
        self._check("average", self.average < 1, "less than 1")
        self._check("area", 0 < self.area <= 1, "more than 0 and at most 1")
        self._check("epochs", self.epochs >= 1, "1 or more")
        self._check("batch_size", self.batch_size >= 2, "2 or more")
        self._check("crop", self.crop is None or self.crop >= 8, "8 pixels or more")
        self._check("operations", 0 <= self.operations <= 14, "0 to 14")
        self._check("max_time", self.max_time is None or self.max_time > 0, "more than 0 seconds")
        self._check("seed", 0 <= self.seed < 1 << 63, "0 to 2**63 - 1")
        self._check("precision", self.precision in TRAIN_PRECISIONS, "auto, bf16 or fp32")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UsageError(f"{name} is {expected}, not {getattr(self, name)}.")


def finetune_preset_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package."""
    return recipe_names(finetuning=True)


def load_finetune_preset(name: str) -> dict[str, Any]:
    """Read a recipe, by its name or from a .toml file of one's own."""
    types = {f.name: str(f.type) for f in fields(FinetuneOptions)}
    return read_recipe(name, recipe_text(name, finetune_preset_names()), types, "fine-tuning")
