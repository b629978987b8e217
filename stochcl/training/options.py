"""Options of pre-training, the latent stage and fine-tuning, and the preset files that hold them.

This module does not import PyTorch, so that ``stochcl train --help`` is instant.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import Field, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from stochcl.encoders.config import ENTROPY, EncoderConfig, input_size
from stochcl.entropy.autoregressive import MAX_HIDDEN
from stochcl.errors import UsageError, error_of
from stochcl.messages import escape_name, os_reason
from stochcl.options import Options, check_names, check_value, declared, option

__all__ = ["EncoderConfig", "FinetuneOptions", "LatentOptions", "TrainOptions", "finetune_options", "options_from"]

_FOLDER = resources.files("stochcl").joinpath("training", "presets")

OBJECTIVES = ("nt-xent", "byol", "vicreg", "reconstruct")
_PRECISION = "Numeric precision; auto: bf16 if the CPU or GPU supports it, else fp32."
_ALSO_FINISHED = f"{_PRECISION[:-1]}; with --epochs 0, that of compress, and then also int8."
_WHITENING = (
    "In the last stage, the power of the variance that divides an error. 0: errors as they are; 0.5: all "
    "directions alike."
)


def _hidden(shown: str) -> Any:
    help_text = "Hidden units of the autoregressive entropy network."
    return option(None, help_text, at_least=0, at_most=MAX_HIDDEN, unit="UNITS", shown=shown)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Options of every kind of training."""

    max_time: float | None = option(None, "Train for at most this long, e.g. 90m or 2h.", more_than=0, unit="TIME")
    seed: int = option(0, "Random seed.", at_least=0, at_most=(1 << 63) - 1)
    precision: str = option("auto", _PRECISION, choices=("auto", "bf16", "fp32"))
    entropy: str = option("autoregressive", "Entropy model; autoregressive makes smaller files.", choices=ENTROPY)


@dataclass(frozen=True, kw_only=True)
class CodeOptions(RunOptions):
    """Options of training to a target rate."""

    objective: str = option("nt-xent", "Contrastive objective; reconstruct: none.", choices=OBJECTIVES)
    estimator: str = option(
        "straight-through", "Gradient estimator of drawn latents.", choices=("straight-through", "relaxed")
    )
    lr: float = option(2e-3, "Peak learning rate of AdamW.", more_than=0)
    decay: float = option(1e-2, "Weight decay of AdamW.", at_least=0)
    rate: float | None = option(None, "Target rate, in bits per image.", more_than=0, unit="BITS")
    beta: float = option(1e-4, "Cost of a bit in the loss; with --rate, at first.", at_least=0, unit="NATS")
    whitening: float | None = option(
        None, _WHITENING, at_least=0, at_most=0.5, unit="POWER", shown="0.125; 0 for reconstruct"
    )


@dataclass(frozen=True, kw_only=True)
class LatentOptions(CodeOptions):
    """Options of training head, prior and decoder on features."""

    steps: int = option(3000, "Steps of the descent; later stages take a fraction of it.", at_least=1)
    batch_size: int = option(256, "Features a step.", at_least=1)
    temperature: float = option(0.1, "Temperature of the contrastive objective.", more_than=0)
    nested: bool = option(True, "Train the prefixes on the ladder to be codes in themselves.")
    prior_hidden: int | None = _hidden("by the number of rows")


@dataclass(frozen=True, kw_only=True)
class _NetworkOptions(RunOptions):
    """Options of training that changes the network."""

    device: str = option("auto", "cpu, cuda, ...")
    compile: bool = option(False, "Compile the backbone with torch.compile.")
    entropy_hidden: int | None = _hidden("by the number of images")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(CodeOptions, _NetworkOptions):
    """Options of training an encoder."""

    precision: str = option("auto", _ALSO_FINISHED, choices=("auto", "bf16", "fp32", "int8"))
    epochs: int = option(100, "Passes over the images; 0 with --init trains only latents.", at_least=0)
    batch_size: int = option(256, "Images a step, of all processes together.", at_least=2)
    # A crop smaller than the encoder's size is faster, and right: objects look larger in random crops than in whole
    # images (Touvron et al., arXiv 1906.06423).
    crop: int = option(48, "Side of the views in training.", at_least=1, unit="PIXELS", shown="3/4 of the size")
    area: float = option(0.2, "Smallest part of an image that a view shows; 1: all of it.", more_than=0, at_most=1)
    flip: bool = option(True, "Mirror half of the views.")
    strength: float = option(0.5, "Strength of colour jitter.", at_least=0)
    grey: float = option(0.2, "Fraction of views without colour.", at_least=0, at_most=1)
    blur: float = option(0.0, "Fraction of views that are blurred.", at_least=0, at_most=1)
    warmup: int = option(200, "Steps until the peak learning rate.", at_least=0, unit="STEPS")
    temperature: float = option(0.2, "Temperature of nt-xent.", more_than=0)
    average: float = option(0.0, "Decay of the average of weights that is written; 0: none.", at_least=0, less_than=1)
    latent_steps: int | None = option(
        None, "Steps of the last stage, which trains latents and decoder on finished features; 0: no such stage.",
        at_least=0, unit="STEPS", shown="by the number of images; 3000 on a matrix",
    )  # fmt: skip
    deterministic: bool = option(False, "Train without the stochastic layer, to compare with.")
    devices: int = option(1, "Devices to train on, a process each; torchrun sets it itself.", at_least=1, unit="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deterministic and self.objective == "reconstruct":
            raise UsageError("--objective reconstruct needs codes, and --deterministic makes none; omit one of them.")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(_NetworkOptions):
    """Options of fine-tuning an encoder on labels."""

    epochs: int = option(30, "Passes over the images.", at_least=1)
    batch_size: int = option(128, "Images a step.", at_least=2)
    optimizer: str = option("sgd", "Optimizer; adamw needs fewer epochs.", choices=("sgd", "adamw"))
    lr: float = option(0.02, "Peak learning rate.", more_than=0)
    backbone_lr: float = option(1.0, "Learning rate of the backbone, as a fraction of --lr.", more_than=0, at_most=1)
    frozen: int = option(
        0, "First stages of the backbone to freeze; it may halve the work.", at_least=0, at_most=3,
        unit="STAGES",
    )  # fmt: skip
    momentum: float = option(0.9, "Nesterov momentum of sgd.", more_than=0, less_than=1)
    decay: float = option(5e-4, "Weight decay; biases, normalisations and the prior do not decay.", at_least=0)
    warmup: float = option(2.0, "Epochs until the peak learning rate; at most a tenth.", at_least=0, unit="EPOCHS")
    smoothing: float = option(0.1, "Label smoothing.", at_least=0, at_most=1)
    mixup: float = option(0.2, "Parameter of mixup's Beta distribution; 0: none.", at_least=0)
    average: float = option(
        0.999, "Decay of the average of weights that is written; 0: none.", at_least=0, less_than=1
    )
    size: int | None = option(None, "Side of images.", at_least=8, at_most=1024, unit="PIXELS", shown="the model's")
    crop: tuple[int, ...] = option(
        (), "Side of the views; several, such as 64,96,128: one after another, each for an equal part of the run.",
        unit="PIXELS", shown="that size",
    )  # fmt: skip
    padding: float = option(0.125, "Padding before the crop, as a fraction of the side.", at_least=0, at_most=1)
    area: float = option(1.0, "Smallest part of an image that a view shows.", more_than=0, at_most=1)
    flip: bool = option(True, "Mirror half of the images.")
    operations: int = option(1, "RandAugment operations an image.", at_least=0, at_most=14)
    strength: float = option(1.0, "Strength of RandAugment.", at_least=0, at_most=1)
    cutout: float = option(0.25, "Side of the cutout, as a fraction of the view's.", at_least=0, at_most=1)
    nested: float = option(0.2, "Weight of a random prefix's loss; 0: only the full width.", at_least=0)
    beta: float = option(0.0, "Cost of a bit in nats.", at_least=0, unit="NATS")
    posterior: str | None = option(
        None, "Family of fresh latents, in place of the model's.", choices=("bernoulli", "categorical", "gaussian"),
        shown="the model's; gaussian in place of residual ones",
    )  # fmt: skip
    latents: int | None = option(
        None, "Number of fresh latents.", at_least=1, at_most=4096, unit="D",
        shown="the model's; 16 in place of residual ones",
    )  # fmt: skip
    alphabet: int | None = option(
        None, "Values of a fresh latent.", at_least=2, unit="K", shown="the model's; 4 in place of residual ones"
    )
    deterministic: bool = option(False, "Classify features without the stochastic layer, to compare with.")
    from_scratch: bool = option(False, "Begin with fresh weights, not the model's.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop and min(self.crop) < 8:
            raise UsageError(f"crop must be 8 pixels or more, got {min(self.crop)}.")


@dataclass(frozen=True)
class SourceOptions(Options):
    """A preset's options of its source."""

    source: str | None = option(None)
    hold_out: int = option(0, at_least=0)


def encoder_fields() -> dict[str, Field[Any]]:
    """Return the fields of an encoder's configuration that are options of training."""
    return {name: one for name, one in declared(EncoderConfig).items() if "option" in one.metadata}


_MOST_BITS = 256  # of a residual code without a target rate


def options_from(given: dict[str, Any]) -> tuple[EncoderConfig, TrainOptions]:
    """Split named options, None if left out, into the encoder's configuration and its training options."""
    given = {name: value for name, value in given.items() if value is not None}
    check_names(given, [*declared(TrainOptions), *encoder_fields()], "training")
    if "latents" not in given and given.get("rate") and given.get("posterior", "bernoulli") == "bernoulli":
        given["latents"] = latents_for(float(given["rate"]))
    if given.get("posterior") == "residual":
        given.setdefault("latents", max(1, min(_MOST_BITS, round(given.get("rate") or _MOST_BITS))))
        given.setdefault("transform", "sqrt")
    given.setdefault("size", input_size(given.get("backbone", EncoderConfig.backbone)))
    encoder = EncoderConfig(**{k: v for k, v in given.items() if k in encoder_fields()})
    if encoder.posterior == "residual" and given.get("epochs") != 0 and not given.get("deterministic"):
        raise UsageError(
            "residual latents are fitted to a finished network; give --init with --epochs 0 or --deterministic."
        )
    if "crop" not in given:  # 48 of 64 pixels; a multiple of 8 wastes no convolution
        given["crop"] = max(16, encoder.size * 3 // 4 // 8 * 8)
    return encoder, TrainOptions(**{k: v for k, v in given.items() if k in declared(TrainOptions)})


def finetune_options(preset: str | None, given: dict[str, Any]) -> FinetuneOptions:
    """Return a preset's options, overridden by the given ones that are not None."""
    given = {name: value for name, value in given.items() if value is not None}
    check_names(given, declared(FinetuneOptions), "fine-tuning")
    return FinetuneOptions(**(load_finetune_preset(preset) if preset else {}) | given)


def latents_for(rate: float) -> int:
    """Return the number of bits of a code for a target rate: twice the rate, rounded up to a power of two.

    With room beyond the rate, training learns which bits are worth their cost; with much more, silencing them is
    slow.

    Examples
    --------
    >>> [latents_for(rate) for rate in (10, 32, 100)]
    [32, 64, 256]
    """
    return 1 << max(4, min(12, math.ceil(math.log2(2 * rate)))) if 0 < rate < math.inf else 16


# Presets

_FINETUNE = "-finetune"


def preset_names(*, finetune: bool = False) -> tuple[str, ...]:
    """Return the names of the packaged presets for training or fine-tuning."""
    names = sorted(path.name.removesuffix(".toml") for path in _FOLDER.iterdir() if path.name.endswith(".toml"))
    return tuple(name for name in names if name.endswith(_FINETUNE) == finetune)


def preset_text(name: str, *, finetune: bool = False) -> str:
    """Return the text of a packaged preset, or of a .toml file."""
    known = preset_names(finetune=finetune)
    if name not in known and not name.endswith(".toml"):
        raise UsageError(f"there is no preset {escape_name(name)!r}; choose {', '.join(known)} or a .toml file.")
    try:
        return (_FOLDER.joinpath(f"{name}.toml") if name in known else Path(name)).read_text("utf-8")
    except OSError as exc:
        raise error_of(UsageError, exc, f"{escape_name(name)}: the preset cannot be read: {os_reason(exc)}.") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{escape_name(name)}: the preset is not UTF-8 text ({exc.reason}).") from exc


def load_preset(name: str) -> dict[str, Any]:
    """Return the options of a training preset, packaged or from a .toml file."""
    known = encoder_fields() | declared(TrainOptions) | declared(SourceOptions)
    found = _parse(name, preset_text(name), "training", known)
    if found.get("source", "digits") != "digits":
        raise UsageError(f"{escape_name(name)}: the source of a preset can only be 'digits'; name others to train.")
    return found


def load_finetune_preset(name: str) -> dict[str, Any]:
    """Return the options of a fine-tuning preset, packaged or from a .toml file."""
    return _parse(name, preset_text(name, finetune=True), "fine-tuning", declared(FinetuneOptions))


def _parse(name: str, text: str, what: str, known: dict[str, Field[Any]]) -> dict[str, Any]:
    """Parse a preset's options; each must be a known field."""
    try:
        found = tomllib.loads(text)
        check_names(found, known, what)
        for key, value in found.items():
            check_value(known[key], value)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{escape_name(name)}: this is not TOML ({exc}).") from exc
    except UsageError as exc:
        raise UsageError(f"{escape_name(name)}: {exc}") from exc
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
