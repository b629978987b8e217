"""The configuration of an encoder: what it is, apart from its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stochcl.codes import MAX_ALPHABET, bits_per_symbol
from stochcl.data.preprocess import FITS, MAX_SIZE
from stochcl.encoders.backbones import POOLINGS, STEMS, check_backbone, feature_width, input_colours
from stochcl.entropy.autoregressive import MAX_HIDDEN
from stochcl.entropy.residual import MAX_RESIDUAL, MAX_STAGE_BITS
from stochcl.entropy.vectors import MAX_WIDTH
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from stochcl.data.preprocess import Fit


FAMILIES = {"bernoulli": (2, 2), "categorical": (2, MAX_ALPHABET), "gaussian": (3, MAX_ALPHABET), "residual": (2, 2)}
"""Families of posteriors by the name that a model file holds: the least and the most values of a latent."""

MAX_LATENTS = 4096
"""Most latents of a Bernoulli encoder: the most binary decisions that a row of an archive may have."""

MAX_DECODER_INPUTS = 1 << 16
"""Most inputs of the vector decoder."""

MAX_CODEBOOK_NUMBERS = 1 << 25
"""Most numbers in the codebooks of a categorical code: 64 MB of decoding tables."""

ENTROPY = ("independent", "autoregressive")
"""Kinds of entropy model that an encoder can bring along."""

CLASSIFIES = ("vectors", "features")
"""What a classifier can read."""

MAX_CLASSES = 100_000
"""Most classes of a classifier."""

TRANSFORMS = ("none", "sqrt")
"""What a residual encoder does to features first."""

_NAMED = {
    "stem": STEMS, "posterior": FAMILIES, "fit": FITS, "entropy": ENTROPY, "classifies": CLASSIFIES,
    "pooling": POOLINGS, "transform": TRANSFORMS,
}  # fmt: skip
_EMBEDDING = 8

# Bits of the stages: 16, 32 and 64 bits end one. On embeddings of text four stages of 256 words are worth half a
# point at 32 bits, and a point at 64.
_WORDS = {"images": (8, 8, *(6, 5, 5) * 3), "vectors": (*(8,) * 4, *(6, 5, 5) * 2)}
_REDUCED = {"images": 128, "vectors": 320}  # numbers of the reduced space, where nobody says how many
_SIGN_RUNGS = (16, 128, 32)  # bits between rungs of sign stages, up to where, and from there on


def residual_stages(latents: int, most: int = 8, kind: str = "images") -> tuple[int, ...]:
    """Return the bits of the stages of a residual code: words first, then signs; ``most`` bounds a word's bits.

    ``kind`` is what is coded, images or vectors.

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
    """Return the prefixes of a residual code that are codes in themselves: ends of words, and some of the signs.

    Examples
    --------
    >>> residual_ladder(residual_stages(140))
    (8, 16, 22, 27, 32, 38, 43, 48, 54, 59, 64, 80, 96, 112, 128, 140)
    """
    ends = [sum(stages[: i + 1]) for i in range(len(stages))]
    near, far, apart = _SIGN_RUNGS
    kept = [
        end for end, bits in zip(ends, stages, strict=True)
        if bits > 1 or end % (near if end <= far else apart) == 0 or end == ends[-1]
    ]  # fmt: skip
    return tuple(kept)


def default_ladder(latents: int) -> tuple[int, ...]:
    """Return the prefixes that a nested code is trained at: powers of two from 8, and the full width.

    Examples
    --------
    >>> default_ladder(48)
    (8, 16, 32, 48)
    """
    ladder = []
    k = 8
    while k < latents:
        ladder.append(k)
        k *= 2
    return (*ladder, latents)


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder is, apart from its weights.

    Parameters
    ----------
    backbone : str
        ``resnet10|18|34|50``, ``efficientnet-lite0|2``, ``timm:NAME``, or ``features:W`` for an encoder of vectors of
        W numbers, to which ``width``, ``stem``, ``size``, ``fit``, ``mean`` and ``std`` mean nothing.
    width, stem
        Of a residual network, see :class:`~stochcl.encoders.backbones.ResNet`.
    posterior : str
        Family of the latents, one of :data:`FAMILIES`.
    latents : int
        D, the full width of a code.
    ladder : tuple of int
        Prefixes that are codes in themselves, ascending, the last of them ``latents``.
    decoder : tuple of int
        Widths of the vector decoder's hidden layers.
    size : int
        Side of the square that images are brought to, in pixels.
    fit : str
        What happens to an image that is not square: crop, pad or stretch.
    mean, std : tuple of float
        Of each colour channel, of values in 0..1; by default what the backbone expects, which is mostly their
        statistics over ImageNet.
    entropy : str
        Kind of the entropy model: independent symbols, or autoregressive (an entropy network beside them).
    entropy_hidden : int
        Hidden units of the entropy network; 0 where it is linear, or where there is none.
    alphabet : int
        K, the most values of a latent: 2 for Bernoulli latents; the levels of the quantiser for Gaussian ones.
    head : tuple of int
        Widths of the hidden layers between features and posterior.
    embedding : int
        e, the numbers that stand for a categorical symbol in the decoder; 0 lets the alphabet decide (8 at most), and
        is right for the other families.
    temperature : float
        What the posterior's logits are divided by where its uncertainty is asked for: fitted to how often symbols
        change.
    classes : tuple of str
        What the classifier of a fine-tuned encoder tells apart, in the order of its rows; none where there is none.
    classifies : str
        What that classifier reads: the vectors that codes decode to, or the features before the latents.
    pooling : str
        What the features of a residual network or an EfficientNet-Lite are: the mean of the last stage or of all of
        them side by side, or (of the first kind) with where and how widely the earlier ones answer.

    stages : tuple of int
        Bits of the stages of residual latents, those of two bits and more first; together they are ``latents``.
    reduced : int
        m, the numbers of the space in which residual words add up.
    transform : str
        What features of a residual encoder go through first: none or sqrt, a signed square root.

    Raises
    ------
    UsageError
        If it makes no sense.
    """

    backbone: str = "resnet10"
    width: int = 64
    stem: str = "imagenet"
    posterior: str = "bernoulli"
    latents: int = 1024
    ladder: tuple[int, ...] = ()
    decoder: tuple[int, ...] = (512,)
    size: int = 64
    fit: Fit = "crop"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    entropy: str = "independent"
    entropy_hidden: int = 0
    alphabet: int = 2
    head: tuple[int, ...] = ()
    embedding: int = 0
    temperature: float = 1.0
    classes: tuple[str, ...] = ()
    classifies: str = "vectors"
    pooling: str = "mean"
    stages: tuple[int, ...] = ()
    reduced: int = 0
    transform: str = "none"

    def __post_init__(self) -> None:
        if self.posterior == "residual":
            self._fill_residual()
        if not self.ladder:
            object.__setattr__(self, "ladder", default_ladder(self.latents))
        if self.posterior == "categorical" and self.embedding == 0:
            object.__setattr__(self, "embedding", min(_EMBEDDING, self.alphabet))
        for name, known in _NAMED.items():
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"there is no {name} {value!r}; there are {', '.join(known)}.")
        check_backbone(self.backbone)
        mean, std = input_colours(self.backbone)
        object.__setattr__(self, "mean", self.mean or mean)
        object.__setattr__(self, "std", self.std or std)
        self._check_code()
        self._check_layers()
        self._check_images()
        self._check_classes()

    @property
    def columns(self) -> int | None:
        """W, the width of the vectors that the encoder takes; None where it takes images."""
        return feature_width(self.backbone)

    @property
    def decoder_inputs(self) -> int:
        """How many numbers the vector decoder's first layer takes."""
        return self.latents * max(1, self.embedding)

    def _fill_residual(self) -> None:
        """Fill in what a residual code leaves open; it has no perceptrons."""
        for name in ("head", "decoder"):
            object.__setattr__(self, name, ())
        kind, columns = ("images", MAX_WIDTH) if self.columns is None else ("vectors", self.columns)
        if isinstance(self.latents, int) and not self.stages and 1 <= self.latents <= MAX_RESIDUAL:
            object.__setattr__(self, "stages", residual_stages(self.latents, kind=kind))
        if not self.reduced:
            object.__setattr__(self, "reduced", min(columns, _REDUCED[kind]))
        if not self.ladder and self.stages:
            object.__setattr__(self, "ladder", residual_ladder(self.stages))

    def _check_residual(self) -> None:
        bits = self.stages
        if self.posterior != "residual":
            if bits or self.reduced or self.transform != "none":
                raise UsageError(f"only residual latents have stages, and these are {self.posterior}.")
            return
        if self.latents > MAX_RESIDUAL:
            raise UsageError(f"a residual code has 1 to {MAX_RESIDUAL} bits, not {self.latents}.")
        ordered = [b for b in bits if b > 1] + [b for b in bits if b == 1]
        if sum(bits) != self.latents or list(bits) != ordered or not all(1 <= b <= MAX_STAGE_BITS for b in bits):
            raise UsageError(
                f"the stages {bits} of a residual code have 1 to {MAX_STAGE_BITS} bits each, those of one bit last, "
                f"and {self.latents} together."
            )
        if not isinstance(self.reduced, int) or not 1 <= self.reduced <= MAX_WIDTH:
            raise UsageError(f"words of a residual code have 1 to {MAX_WIDTH:,} numbers, not {self.reduced}.")

    def _check_code(self) -> None:
        self._check_residual()
        least, most = FAMILIES[self.posterior]
        if not isinstance(self.alphabet, int) or not least <= self.alphabet <= most:
            values = f"{least} values" if least == most else f"{least} to {most} values (--alphabet)"
            raise UsageError(f"a {self.posterior} latent has {values}, not {self.alphabet}.")
        most = MAX_LATENTS // bits_per_symbol(self.alphabet)
        if not isinstance(self.latents, int) or not 1 <= self.latents <= most:
            of = "" if self.alphabet == 2 else f" of {self.alphabet} values"
            raise UsageError(f"an encoder has 1 to {most} latents{of}, not {self.latents}.")
        ascends = list(self.ladder) == sorted(set(self.ladder))
        if not ascends or self.ladder[0] < 1 or self.ladder[-1] != self.latents:
            raise UsageError(f"the ladder {self.ladder} must ascend to the full width, {self.latents}.")
        if self.posterior != "categorical" and self.embedding != 0:
            raise UsageError(f"only categorical symbols have embeddings, and these latents are {self.posterior}.")
        if not isinstance(self.embedding, int) or self.embedding < 0 or self.decoder_inputs > MAX_DECODER_INPUTS:
            raise UsageError(
                f"embeddings of {self.embedding} numbers for {self.latents} latents are not 1 to "
                f"{MAX_DECODER_INPUTS:,} numbers together."
            )
        if not (isinstance(self.temperature, float | int) and 0 < self.temperature < math.inf):
            raise UsageError(f"a posterior's temperature is more than 0, not {self.temperature}.")
        if self.decoder_inputs * self.alphabet > MAX_CODEBOOK_NUMBERS and self.embedding:
            raise UsageError(
                f"codebooks of {self.latents} x {self.alphabet} x {self.embedding} numbers are more than "
                f"{MAX_CODEBOOK_NUMBERS:,}; take fewer latents, symbols or numbers."
            )

    def _check_layers(self) -> None:
        if min((self.width, *self.decoder, *self.head)) < 1:
            layers = " and ".join(str(w) for w in (self.width, self.decoder, self.head) if w != ())
            raise UsageError(f"the layers of an encoder cannot have widths of {layers}.")
        most = MAX_HIDDEN if self.entropy == "autoregressive" else 0
        if not isinstance(self.entropy_hidden, int) or not 0 <= self.entropy_hidden <= most:
            msg = f"an entropy model of {self.entropy} symbols has 0 to {most} hidden units"
            raise UsageError(f"{msg}, not {self.entropy_hidden}.")

    def _check_images(self) -> None:
        if not isinstance(self.size, int) or not 1 <= self.size <= MAX_SIZE:
            raise UsageError(f"images are brought to 1 to {MAX_SIZE} pixels a side, not {self.size}.")
        colours = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, colours)) or min(self.std) <= 0:
            raise UsageError(f"colours cannot have a mean of {self.mean} and a deviation of {self.std}.")

    def _check_classes(self) -> None:
        named = all(isinstance(name, str) and name for name in self.classes)
        if not named or len(set(self.classes)) < len(self.classes):
            raise UsageError("the classes of a classifier are texts, none of them empty, and all different.")
        if len(self.classes) == 1 or len(self.classes) > MAX_CLASSES:
            raise UsageError(f"a classifier has 2 to {MAX_CLASSES:,} classes, not {len(self.classes):,}.")
        if not self.classes and self.classifies != "vectors":
            raise UsageError(f"an encoder without classes does not classify {self.classifies}.")
