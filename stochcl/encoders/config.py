"""The configuration of an encoder, without its weights and without PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from stochcl.codes import MAX_ALPHABET, bits_per_symbol
from stochcl.data.preprocess import FITS, MAX_SIZE, Fit
from stochcl.entropy.autoregressive import MAX_HIDDEN
from stochcl.entropy.vectors import MAX_RESIDUAL, MAX_STAGE_BITS, MAX_WIDTH
from stochcl.errors import UsageError
from stochcl.options import Options, option

FAMILIES = {"bernoulli": (2, 2), "categorical": (2, MAX_ALPHABET), "gaussian": (3, MAX_ALPHABET), "residual": (2, 2)}
"""Families of posteriors by their name in a model file: the fewest and the most values of a latent."""

RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50")

EFFICIENTNETS = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite2": (1.1, 1.2)}
"""EfficientNet-Lite by name: its width and depth relative to the smallest."""

TIMM_PREFIX, OPEN_CLIP_PREFIX, FEATURES_PREFIX = "timm:", "open_clip:", "features:"
"""Prefixes of the names of models of timm and open_clip, and of the width of vectors."""
FOREIGN = (TIMM_PREFIX, OPEN_CLIP_PREFIX)

STEMS = ("imagenet", "small")
"""First layers: 7 x 7 by 2 and a pooling by 2 (torchvision's), or 3 x 3 by 1 for images of 32 to 64 pixels."""

POOLINGS = ("mean", "stages", "moments")
"""Features: the last stage's mean; the means of all stages; or the earlier stages' moments and the last's mean."""

MAX_LATENTS = 4096
"""Most latents of a Bernoulli encoder, which is the most binary decisions of a row in an archive."""

ENTROPY = ("autoregressive", "independent")
"""Kinds of entropy model in a model file."""

_MAX_CODEBOOK_NUMBERS = 1 << 25  # in the codebooks of a categorical code: 64 MB of decoding tables
_MAX_CLASSES = 100_000
_EMBEDDING = 8
# Bits of the stages; stages end at 16, 32 and 64 bits. On text embeddings, four stages of 256 words gain half a point
# at 32 bits and a point at 64.
_WORDS = {"images": (8, 8, *(6, 5, 5) * 3), "vectors": (*(8,) * 4, *(6, 5, 5) * 2)}
_REDUCED = {"images": 128, "vectors": 320}  # default dimensions of the reduced space
_SIGN_RUNGS = (16, 128, 32)  # bits between rungs of sign stages, up to which bit, and beyond it


def feature_width(name: str) -> int | None:
    """Return W of ``features:W``, or None for a backbone that takes images.

    Examples
    --------
    >>> feature_width("features:512"), feature_width("resnet18")
    (512, None)
    """
    if not name.startswith(FEATURES_PREFIX):
        return None
    digits = name.removeprefix(FEATURES_PREFIX)
    if not (digits.isascii() and digits.isdecimal() and 1 <= int(digits[:9]) <= MAX_WIDTH and digits[0] != "0"):
        raise UsageError(f"the backbone {name!r} is not features:W with a width W of 1 to {MAX_WIDTH:,}.")
    return int(digits)


def check_backbone(name: str) -> None:
    """Refuse an unknown backbone; names of timm and open_clip are left to them."""
    known = (*RESNETS, *EFFICIENTNETS)
    if not (name in known or feature_width(name) or (name.startswith(FOREIGN) and not name.endswith(":"))):
        shown = ", ".join((*known, "timm:NAME", "open_clip:NAME"))
        raise UsageError(f"there is no backbone {name!r}; there are {shown} and features:W.")


def input_size(backbone: str) -> int:
    """Return the default side of input images, in pixels.

    128 takes a third of the time of 224, and enlarged small images gain nothing from more.
    """
    return 128 if backbone in EFFICIENTNETS else 64


def input_colours(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each colour channel, for values in 0..1, that a backbone expects."""
    if backbone in EFFICIENTNETS:  # these networks take (pixel - 127) / 128
        return (127 / 255,) * 3, (128 / 255,) * 3
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def residual_stages(latents: int, most: int = 8, kind: str = "images") -> tuple[int, ...]:
    """Return the bits of the stages of a residual code: words first, then signs; ``most`` bounds a word's bits.

    ``kind`` is ``images`` or ``vectors``.

    Examples
    --------
    >>> residual_stages(20)
    (8, 8, 4)
    >>> residual_stages(68)[-5:]
    (5, 1, 1, 1, 1)
    """
    stages: list[int] = []
    for bits in _WORDS[kind]:
        left = latents - sum(stages)
        if left > 0:
            stages.append(min(bits, most, left))
    return (*stages, *[1] * (latents - sum(stages)))


def residual_ladder(stages: tuple[int, ...]) -> tuple[int, ...]:
    """Return the usable prefixes of a residual code: ends of words, and some of the signs.

    Examples
    --------
    >>> residual_ladder(residual_stages(140))
    (8, 16, 22, 27, 32, 38, 43, 48, 54, 59, 64, 80, 96, 112, 128, 140)
    """
    near, far, apart = _SIGN_RUNGS
    ends = list(accumulate(stages))
    return tuple(
        end for end, bits in zip(ends, stages, strict=True)
        if bits > 1 or end % (near if end <= far else apart) == 0 or end == ends[-1]
    )  # fmt: skip


def default_ladder(latents: int) -> tuple[int, ...]:
    """Return the prefixes at which a nested code is trained: powers of two from 8, and the full width.

    Examples
    --------
    >>> default_ladder(48)
    (8, 16, 32, 48)
    """
    return (*(1 << i for i in range(3, (latents - 1).bit_length())), latents)


@dataclass(frozen=True)
class EncoderConfig(Options):
    """The configuration of an encoder, without its weights.

    Options of the command line carry their help in the field. ``backbone`` may be ``features:W``, for an encoder of
    vectors of W numbers, which ignores ``width``, ``stem``, ``size``, ``fit``, ``mean`` and ``std``.

    Parameters
    ----------
    ladder : tuple of int
        Usable prefixes of the code, ascending; the last is ``latents``.
    mean, std : tuple of float
        Of each colour channel, for values in 0..1; by default the backbone's.
    entropy, entropy_hidden
        Kind of the entropy model, and the hidden units of its network (0: linear, or none).
    temperature : float
        Divides the posterior's logits in computing its uncertainty.
    classes : tuple of str
        Classes of a fine-tuned encoder's classifier, in the order of its rows.
    classifies : str
        The classifier's input: decoded ``vectors``, or the ``features`` before the latents.
    stages : tuple of int
        Bits of the stages of residual latents, those of two or more bits first; they add up to ``latents``.

    Raises
    ------
    UsageError
        If the configuration is invalid.
    """

    backbone: str = option(
        "resnet10", "resnet10, 18, 34, 50, efficientnet-lite0, -lite2, timm:NAME or open_clip:NAME.", unit="NAME"
    )
    width: int = option(64, "Channels of a ResNet's first stage.", at_least=1)
    stem: str = option("imagenet", "small: for images of 32 pixels.", choices=STEMS)
    posterior: str = option(
        "bernoulli", "Family of the latents.", choices=FAMILIES, shown="bernoulli; residual on a matrix"
    )
    latents: int = option(1024, "Number of latents (bernoulli: bits).", at_least=1, at_most=MAX_LATENTS, unit="D")
    ladder: tuple[int, ...] = option((), unit="WIDTHS")
    decoder: tuple[int, ...] = option((512,), "Hidden layers of the decoder.", unit="WIDTHS")
    size: int = option(
        64, "Side of the images that the network takes.", at_least=1, at_most=MAX_SIZE, unit="PIXELS",
        shown="64; 128 for efficientnet",
    )  # fmt: skip
    fit: Fit = option("crop", "How to fit images that are not square.", choices=FITS)
    mean: tuple[float, ...] = option(())
    std: tuple[float, ...] = option(())
    entropy: str = "independent"
    entropy_hidden: int = 0
    alphabet: int = option(2, "Values of a latent.", at_least=2, unit="K")
    head: tuple[int, ...] = option((), "Hidden layers between features and latents.", unit="WIDTHS")
    embedding: int = option(
        0, "Width of a categorical symbol's embedding in the decoder.", at_least=0, unit="NUMBERS",
        shown="8, or the alphabet",
    )  # fmt: skip
    temperature: float = 1.0
    classes: tuple[str, ...] = ()
    classifies: str = "vectors"
    pooling: str = option("mean", "Features: mean of last stage, of all stages, or with moments.", choices=POOLINGS)
    stages: tuple[int, ...] = option((), unit="BITS")
    reduced: int = option(
        0, "Dimensions of the space of residual words.", at_least=0, at_most=MAX_WIDTH, unit="M", shown="128 at most"
    )
    transform: str = option("none", "Transform of features before residual latents.", choices=("none", "sqrt"))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_backbone(self.backbone)
        if self.posterior == "residual":
            self._fill_residual()
        mean, std = input_colours(self.backbone)
        embedding = min(_EMBEDDING, self.alphabet) if self.posterior == "categorical" else 0
        self._fill(ladder=default_ladder(self.latents), embedding=embedding, mean=mean, std=std)
        self._check_residual()
        self._check_code()
        self._check_network()

    @property
    def columns(self) -> int | None:
        """W, the width of input vectors; None for an encoder of images."""
        return feature_width(self.backbone)

    @property
    def decoder_inputs(self) -> int:
        """The number of inputs of the vector decoder's first layer."""
        return self.latents * max(1, self.embedding)

    def _fill(self, **values: object) -> None:
        """Set fields that are left at their empty default."""
        for name, value in values.items():
            object.__setattr__(self, name, getattr(self, name) or value)

    def _fill_residual(self) -> None:
        for name in ("head", "decoder"):  # a residual code has no perceptrons
            object.__setattr__(self, name, ())
        kind, columns = ("images", MAX_WIDTH) if self.columns is None else ("vectors", self.columns)
        self._fill(stages=residual_stages(self.latents, kind=kind), reduced=min(columns, _REDUCED[kind]))
        self._fill(ladder=residual_ladder(self.stages))

    def _check_residual(self) -> None:
        bits = self.stages
        if self.posterior != "residual":
            if bits or self.reduced or self.transform != "none":
                raise UsageError(f"only residual latents have stages, and these are {self.posterior}.")
            return
        if self.latents > MAX_RESIDUAL:
            raise UsageError(f"a residual code has 1 to {MAX_RESIDUAL} bits, not {self.latents}.")
        ordered = sorted(bits, key=lambda b: b == 1)
        if sum(bits) != self.latents or list(bits) != ordered or not all(1 <= b <= MAX_STAGE_BITS for b in bits):
            raise UsageError(
                f"the stages {bits} of a residual code have 1 to {MAX_STAGE_BITS} bits each, those of one bit last, "
                f"and {self.latents} together."
            )

    def _check_code(self) -> None:
        least, most = FAMILIES[self.posterior]
        if not least <= self.alphabet <= most:
            values = f"{least} values" if least == most else f"{least} to {most} values (--alphabet)"
            raise UsageError(f"a {self.posterior} latent has {values}, not {self.alphabet}.")
        most = MAX_LATENTS // bits_per_symbol(self.alphabet)
        if self.latents > most:
            raise UsageError(f"an encoder has 1 to {most} latents of {self.alphabet} values, not {self.latents}.")
        ascends = list(self.ladder) == sorted(set(self.ladder))
        if not ascends or self.ladder[0] < 1 or self.ladder[-1] != self.latents:
            raise UsageError(f"the ladder {self.ladder} must ascend to the full width, {self.latents}.")
        if self.posterior != "categorical" and self.embedding:
            raise UsageError(f"only categorical symbols have embeddings, and these latents are {self.posterior}.")
        if self.decoder_inputs > MAX_WIDTH or self.embedding * self.latents * self.alphabet > _MAX_CODEBOOK_NUMBERS:
            raise UsageError(
                f"embeddings of {self.latents} latents x {self.alphabet} symbols x {self.embedding} numbers are too "
                f"many: a row has at most {MAX_WIDTH:,}, and all of them are at most {_MAX_CODEBOOK_NUMBERS:,}."
            )

    def _check_network(self) -> None:
        if min((1, *self.decoder, *self.head)) < 1:
            raise UsageError(f"the layers of an encoder cannot have widths of {self.decoder} and {self.head}.")
        most = {"autoregressive": MAX_HIDDEN, "independent": 0}.get(self.entropy, -1)
        if not 0 <= self.entropy_hidden <= most:
            raise UsageError(f"there is no entropy model {self.entropy!r} of {self.entropy_hidden} hidden units.")
        colours = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, colours)) or min(self.std) <= 0:
            raise UsageError(f"colours cannot have a mean of {self.mean} and a deviation of {self.std}.")
        if self.temperature <= 0:
            raise UsageError(f"a posterior's temperature is more than 0, not {self.temperature}.")
        count = len(self.classes)
        if not all(self.classes) or len(set(self.classes)) < count or count == 1 or count > _MAX_CLASSES:
            raise UsageError(f"a classifier has 2 to {_MAX_CLASSES:,} classes with names, all different.")
        if self.classifies not in ("vectors", "features") or (not self.classes and self.classifies != "vectors"):
            raise UsageError(f"an encoder with {count:,} classes does not classify {self.classifies}.")
