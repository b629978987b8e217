"""How to train."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from stochcl.encoders.entropy import MAX_HIDDEN
from stochcl.encoders.model import ENTROPY, EncoderConfig
from stochcl.encoders.objectives import OBJECTIVES
from stochcl.encoders.posteriors import ESTIMATORS
from stochcl.encoders.precision import PRECISIONS
from stochcl.errors import UsageError

_NAMED = {
    "objective": tuple(OBJECTIVES),
    "estimator": ESTIMATORS,
    "precision": PRECISIONS,
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
        Of the views, see :class:`~stochcl.encoders.augment.Augmentation`; ``area`` is the smallest part of an image
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
        :class:`~stochcl.encoders.latents.LatentOptions`; None leaves it to the objective.
    deterministic : bool
        Train the network without its stochastic layer, features standing where codes stood: the twin to compare
        with. The latent stage then makes codes of its finished features.
    seed : int
        Of everything random.
    precision : str
        auto, bf16 (autocast) or fp32, see :func:`~stochcl.encoders.precision.computes_in_bf16`.
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


def options_from(given: dict[str, Any]) -> tuple[EncoderConfig, TrainOptions]:
    """Sort named options, None for those left out, into what the encoder is and how it is trained.

    Raises
    ------
    UsageError
        If a name is in neither, or a value makes no sense.
    """
    given = {name: value for name, value in given.items() if value is not None}
    names = {f.name for f in fields(TrainOptions)}
    if unknown := sorted(set(given) - config_names() - names):
        raise UsageError(f"there is no training option {', '.join(unknown)}.")
    if "latents" not in given and given.get("rate") and given.get("posterior", "bernoulli") == "bernoulli":
        given["latents"] = latents_for(float(given["rate"]))
    config = EncoderConfig(**{k: v for k, v in given.items() if k in config_names()})
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
