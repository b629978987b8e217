"""Options of training: pre-training, the latent stage and fine-tuning, and the preset files that hold them.

This module does not import PyTorch, so that ``stochcl train --help`` is instant.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.errors import UsageError
from stochcl.messages import escape_name, os_reason
from stochcl.options import Options, check_names, check_value, declared, option

if TYPE_CHECKING:
    from stochcl.encoders.config import EncoderConfig

OBJECTIVES = ("nt-xent", "byol", "vicreg", "reconstruct")
PRECISIONS = ("auto", "bf16", "fp32")
ENTROPY = ("autoregressive", "independent")
MOST_SEED = (1 << 63) - 1


def _precision() -> Any:
    return option(
        "auto", "Arithmetic; auto: bf16 if the CPU or GPU supports it, else fp32.", choices=PRECISIONS
    )  # fmt: skip


def _seed() -> Any:
    return option(0, "Seed of everything random.", at_least=0, at_most=MOST_SEED)


def _max_time() -> Any:
    return option(None, "Train for at most this long, e.g. 90m or 2h.", more_than=0, unit="TIME")


def _rate() -> Any:
    return option(None, "Target rate, in bits per image.", more_than=0, unit="BITS")


@dataclass(frozen=True)
class LatentOptions(Options):
    """How head, prior and decoder are trained on features."""

    steps: int = option(3000, "Steps of the descent; later stages take a fraction of it.", at_least=1)
    max_time: float | None = _max_time()
    batch_size: int = option(256, "Features a step.", at_least=1)
    lr: float = option(2e-3, "Peak learning rate of AdamW.", more_than=0)
    decay: float = option(1e-2, "Weight decay of AdamW.", at_least=0)
    objective: str = option(
        "nt-xent", "reconstruct keeps distances; any other also keeps what tells inputs apart.", choices=OBJECTIVES
    )
    agreement: float = option(1.0, "Weight of the objective beside the reconstruction.", at_least=0)
    temperature: float = option(0.1, "Temperature of the contrastive objective.", more_than=0)
    noise: float = option(
        0.0, "Noise that makes a view of a feature, in standard deviations along each principal axis.", at_least=0
    )
    whitening: float | None = option(
        None,
        "Power of the variance that divides an error along a principal axis, see training.quantiser.Metric.",
        at_least=0, at_most=0.5, shown="1/8; 0 for reconstruct",
    )  # fmt: skip
    rate: float | None = _rate()
    beta: float = option(1e-4, "Cost of a bit in nats, at first.", at_least=0)
    estimator: str = option(
        "straight-through", "How gradients pass the draw.", choices=("straight-through", "relaxed")
    )
    nested: bool = option(True, "Train the prefixes on the ladder to be codes in themselves.")
    prior_hidden: int | None = option(
        None, "Hidden units of the autoregressive prior.", shown="by the number of rows"
    )
    entropy: str = option("autoregressive", "Kind of entropy model.", choices=ENTROPY)
    seed: int = _seed()
    precision: str = _precision()


@dataclass(frozen=True)
class EncoderOptions(Options):
    """What a new encoder is asked to be: fields of :class:`~stochcl.encoders.config.EncoderConfig`."""

    posterior: str = option(
        "bernoulli",
        "Family of the latents.",
        choices=("bernoulli", "categorical", "gaussian", "residual"),
        shown="bernoulli; residual on a matrix",
    )
    latents: int = option(
        1024, "Number of latents; for bernoulli, bits of a code.", at_least=1, at_most=4096, unit="D"
    )
    alphabet: int = option(2, "Values of a latent.", at_least=2, unit="K")
    embedding: int = option(
        0, "Numbers that stand for a categorical symbol in the decoder.", at_least=0, unit="NUMBERS",
        shown="8, or the alphabet",
    )  # fmt: skip
    reduced: int = option(0, "Coordinates that residual words live in.", at_least=0, unit="M", shown="128 at most")
    transform: str = option("none", "What features go through before residual latents.", choices=("none", "sqrt"))
    head: tuple[int, ...] = option((), "Hidden layers between features and latents.", unit="WIDTHS")
    decoder: tuple[int, ...] = option((512,), "Hidden layers of the decoder.", unit="WIDTHS")
    ladder: tuple[int, ...] = option((), unit="WIDTHS")
    stages: tuple[int, ...] = option((), unit="BITS")
    backbone: str = option(
        "resnet10", "resnet10, 18, 34 or 50, efficientnet-lite0 or -lite2, or timm:NAME.", unit="NAME"
    )
    width: int = option(64, "Channels of a ResNet's first stage.", at_least=1)
    stem: str = option("imagenet", "small: for images of 32 pixels.", choices=("imagenet", "small"))
    pooling: str = option(
        "mean", "Features: mean of the last stage, of all stages, or with moments.",
        choices=("mean", "stages", "moments"),
    )  # fmt: skip
    size: int = option(
        64,
        "Side that images are brought to.",
        at_least=1,
        at_most=1024,
        unit="PIXELS",
        shown="64; 128 for efficientnet",
    )
    fit: str = option("crop", "What happens to images that are not square.", choices=("crop", "pad", "stretch"))
    mean: tuple[float, ...] = option(())
    std: tuple[float, ...] = option(())

    def config(self) -> EncoderConfig:
        """Return the configuration of such an encoder."""
        from stochcl.encoders.config import EncoderConfig

        return EncoderConfig(**asdict(self))


@dataclass(frozen=True)
class TrainOptions(Options):
    """How to train an encoder."""

    epochs: int = option(100, "Passes over the images; 0 with --init trains only latents.", at_least=0)
    max_time: float | None = _max_time()
    batch_size: int = option(256, "Images a step, of all processes together.", at_least=2)
    # Smaller than the encoder's size is faster, and right: objects look larger in random crops than in whole images
    # (Touvron et al., arXiv 1906.06423).
    crop: int = option(48, "Side of the views in training.", at_least=1, unit="PIXELS", shown="3/4 of the size")
    area: float = option(0.2, "Smallest part of an image that a view shows; 1: all of it.", more_than=0, at_most=1)
    flip: bool = option(True, "Mirror every second view.")
    strength: float = option(0.5, "Strength of the changes of colour.", at_least=0)
    grey: float = option(0.2, "Fraction of views without colour.", at_least=0, at_most=1)
    blur: float = option(0.0, "Fraction of views that are blurred.", at_least=0, at_most=1)
    lr: float = option(2e-3, "Peak learning rate of AdamW.", more_than=0)
    decay: float = option(1e-2, "Weight decay of AdamW.", at_least=0)
    warmup: int = option(200, "Steps until the peak learning rate.", at_least=0, unit="STEPS")
    objective: str = option("nt-xent", "Contrastive objective; reconstruct: none.", choices=OBJECTIVES)
    temperature: float = option(0.2, "Temperature of nt-xent.", more_than=0)
    estimator: str = option(
        "straight-through", "How gradients pass the draw.", choices=("straight-through", "relaxed")
    )
    rate: float | None = _rate()
    beta: float = option(1e-4, "Cost of a bit in the loss; with --rate, at first.", at_least=0, unit="NATS")
    average: float = option(
        0.0, "Decay of a moving average of the weights, which is then written; 0: none.", at_least=0, less_than=1
    )
    latent_steps: int | None = option(
        None, "Steps of the last stage, which trains latents and decoder on finished features; 0: no such stage.",
        at_least=0, unit="STEPS", shown="by the number of images; 3000 on a matrix",
    )  # fmt: skip
    whitening: float | None = option(
        None, "In the last stage, the power of the variance that divides an error. 0: errors as they are; 0.5: all "
        "directions alike.", at_least=0, at_most=0.5, unit="POWER", shown="0.125; 0 for reconstruct",
    )  # fmt: skip
    deterministic: bool = option(False, "Train without the stochastic layer, to compare with.")
    seed: int = _seed()
    precision: str = _precision()
    device: str = option("auto", "cpu, cuda, ...")
    devices: int = option(1, "Devices to train on, a process each; torchrun sets it itself.", at_least=1, unit="N")
    compile: bool = option(False, "Compile the backbone with torch.compile.")
    entropy: str = option(
        "autoregressive", "Entropy model fitted to the codes; autoregressive makes smaller files.", choices=ENTROPY
    )
    entropy_hidden: int | None = option(
        None, "Hidden units of the autoregressive entropy network.", at_least=0, at_most=4096, unit="UNITS",
        shown="by the number of images",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deterministic and self.objective == "reconstruct":
            raise UsageError("reconstruct compares codes with features, and a deterministic twin has no codes.")


@dataclass(frozen=True)
class FinetuneOptions(Options):
    """How to fine-tune an encoder on labels."""

    epochs: int = option(30, "Passes over the images.", at_least=1)
    max_time: float | None = _max_time()
    batch_size: int = option(128, "Images a step.", at_least=2)
    optimizer: str = option("sgd", "Optimizer; adamw does with few epochs.", choices=("sgd", "adamw"))
    lr: float = option(0.02, "Peak learning rate.", more_than=0)
    backbone_lr: float = option(
        1.0, "Learning rate of the backbone, as a part of that of what stands on it.", more_than=0, at_most=1
    )
    frozen: int = option(
        0, "First stages of the backbone that stay as they are, which may halve the work.", at_least=0, at_most=3,
        unit="STAGES",
    )  # fmt: skip
    momentum: float = option(0.9, "Nesterov momentum of sgd.", more_than=0, less_than=1)
    decay: float = option(5e-4, "Weight decay; biases, normalisations and the prior do not decay.", at_least=0)
    warmup: float = option(
        2.0, "Epochs until the peak learning rate; a tenth of all at most.", at_least=0, unit="EPOCHS"
    )
    smoothing: float = option(0.1, "Label smoothing.", at_least=0, at_most=1)
    mixup: float = option(0.2, "Parameter of mixup's Beta distribution; 0: none.", at_least=0)
    average: float = option(
        0.999, "Decay of the moving average of the weights, which is written; 0: none.", at_least=0, less_than=1
    )
    size: int | None = option(
        None, "Side that images are brought to.", at_least=8, at_most=1024, unit="PIXELS", shown="the model's"
    )
    crop: tuple[int, ...] = option(
        (), "Side of the views; several, such as 64,96,128: one after another, each for an equal part of the run.",
        unit="PIXELS", shown="that size",
    )  # fmt: skip
    padding: float = option(0.125, "Padding before the crop, as a fraction of the side.", at_least=0, at_most=1)
    area: float = option(1.0, "Smallest part of an image that a view shows.", more_than=0, at_most=1)
    flip: bool = option(True, "Mirror every second image.")
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
    seed: int = _seed()
    precision: str = _precision()
    device: str = option("auto", "cpu, cuda, ...")
    compile: bool = option(False, "Compile the backbone with torch.compile.")
    entropy: str = option("autoregressive", "Entropy model fitted to the codes.", choices=ENTROPY)
    entropy_hidden: int | None = option(
        None, "Hidden units of the autoregressive entropy network.", at_least=0, at_most=4096, unit="UNITS",
        shown="by the number of images",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop and min(self.crop) < 8:
            raise UsageError(f"crop must be 8 pixels or more, got {min(self.crop)}.")


@dataclass(frozen=True)
class SourceOptions(Options):
    """What a preset may say of its source."""

    source: str | None = option(None)
    hold_out: int = option(0, at_least=0)


_MOST_BITS = 256  # of a residual code, where no rate is asked for


def options_from(given: dict[str, Any]) -> tuple[EncoderConfig, TrainOptions]:
    """Sort named options, None for those left out, into what the encoder is and how it is trained."""
    from stochcl.encoders.backbones import input_size

    given = {name: value for name, value in given.items() if value is not None}
    check_names(given, [*declared(TrainOptions), *declared(EncoderOptions)], "training")
    if "latents" not in given and given.get("rate") and given.get("posterior", "bernoulli") == "bernoulli":
        given["latents"] = latents_for(float(given["rate"]))
    if given.get("posterior") == "residual":
        given.setdefault("latents", max(1, min(_MOST_BITS, round(given.get("rate") or _MOST_BITS))))
        given.setdefault("transform", "sqrt")
    given.setdefault("size", input_size(given.get("backbone", EncoderOptions.backbone)))
    encoder = EncoderOptions(**{k: v for k, v in given.items() if k in declared(EncoderOptions)})
    if encoder.posterior == "residual" and given.get("epochs") != 0 and not given.get("deterministic"):
        raise UsageError(
            "residual latents are fitted to a finished network; give --init and --epochs 0, or --deterministic."
        )
    if "crop" not in given:  # 48 of 64 pixels; a multiple of 8 wastes no convolution
        given["crop"] = max(16, encoder.size * 3 // 4 // 8 * 8)
    return encoder.config(), TrainOptions(**{k: v for k, v in given.items() if k in declared(TrainOptions)})


def finetune_options(preset: str | None, given: dict[str, Any]) -> FinetuneOptions:
    """Return the options of a preset, overridden by those that are given and not None."""
    given = {name: value for name, value in given.items() if value is not None}
    check_names(given, declared(FinetuneOptions), "fine-tuning")
    return FinetuneOptions(**(load_finetune_preset(preset) if preset else {}) | given)


def latents_for(rate: float) -> int:
    """Return how many bits a code should have that is to cost this much: twice as many, a power of two.

    With room beyond the rate, training learns which bits are worth it; with much more, silencing them takes long.

    Examples
    --------
    >>> [latents_for(rate) for rate in (10, 32, 100)]
    [32, 64, 256]
    """
    return 1 << max(4, min(12, math.ceil(math.log2(2 * rate)))) if 0 < rate < math.inf else 16


# Presets

_ENDING = ".toml"
_FINETUNE = "-finetune"


def preset_names() -> tuple[str, ...]:
    """Return the names of the training presets that come with the package."""
    return tuple(name for name in _packaged() if not name.endswith(_FINETUNE))


def finetune_preset_names() -> tuple[str, ...]:
    """Return the names of the fine-tuning presets that come with the package."""
    return tuple(name for name in _packaged() if name.endswith(_FINETUNE))


def preset_text(name: str) -> str:
    """Return the text of a training preset, by its name or from a .toml file."""
    return _text(name, preset_names())


def load_preset(name: str) -> dict[str, Any]:
    """Return the options of a training preset, by its name or from a .toml file."""
    found = _parse(name, preset_text(name), "training", EncoderOptions, TrainOptions, SourceOptions)
    if found.get("source", "digits") != "digits":
        raise UsageError(f"{escape_name(name)}: the source of a preset can only be 'digits'; name others to train.")
    return found


def load_finetune_preset(name: str) -> dict[str, Any]:
    """Return the options of a fine-tuning preset, by its name or from a .toml file."""
    return _parse(name, _text(name, finetune_preset_names()), "fine-tuning", FinetuneOptions)


def _packaged() -> list[str]:
    names = (path.name for path in _folder().iterdir())
    return sorted(name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING))


def _folder() -> Any:
    return resources.files("stochcl").joinpath("training", "presets")


def _text(name: str, known: tuple[str, ...]) -> str:
    if name in known:
        text: str = _folder().joinpath(f"{name}{_ENDING}").read_text("utf-8")
        return text
    if not name.endswith(_ENDING):
        there = ", ".join(known)
        raise UsageError(f"there is no preset {escape_name(name)!r}; choose {there}, or name a .toml file.")
    try:
        return Path(name).read_text("utf-8")
    except OSError as exc:
        raise UsageError(f"{escape_name(name)}: the preset cannot be read: {os_reason(exc)}.") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{escape_name(name)}: the preset is not UTF-8 text ({exc.reason}).") from exc


def _parse(name: str, text: str, what: str, *classes: type[Options]) -> dict[str, Any]:
    """Read a preset's options; each is a field of one of the classes."""
    known = {key: one for cls in classes for key, one in declared(cls).items()}
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{escape_name(name)}: this is not TOML ({exc}).") from exc
    try:
        check_names(found, known, what)
        for key, value in found.items():
            check_value(known[key], value)
    except UsageError as exc:
        raise UsageError(f"{escape_name(name)}: {exc}") from exc
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
