"""How to fine-tune."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stochcl.encoders.precision import PRECISIONS
from stochcl.errors import UsageError

_POSITIVE = ("lr",)
_FRACTIONS = ("smoothing", "average", "padding", "strength", "cutout")
_FROM_ZERO = ("decay", "warmup", "mixup", "nested", "beta")


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
        See :class:`~stochcl.encoders.finetuning.strong.StrongAugmentation`.
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
        auto, bf16 (autocast) or fp32, see :func:`~stochcl.encoders.precision.computes_in_bf16`.
    device : str
        auto, cpu, cuda...
    compile : bool
        Whether torch.compile makes the backbone's kernels; on a machine with a compiler, and for long runs.
    entropy, entropy_hidden
        Of the entropy model that is fitted to the codes, see :class:`~stochcl.encoders.training.TrainOptions`.
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
        for name in _POSITIVE:
            self._check(name, 0 < getattr(self, name) < math.inf, "more than 0")
        for name in _FRACTIONS:
            self._check(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        for name in _FROM_ZERO:
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
        self._check("precision", self.precision in PRECISIONS, "auto, bf16 or fp32")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UsageError(f"{name} is {expected}, not {getattr(self, name)}.")
