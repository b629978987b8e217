"""How the latent stage trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stochcl.encoders.objectives import OBJECTIVES
from stochcl.encoders.posteriors import ESTIMATORS
from stochcl.encoders.precision import PRECISIONS
from stochcl.errors import UsageError


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
        :class:`~stochcl.encoders.latents.metric.Metric`; None is 1/8, and 0 for ``reconstruct``.
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
        auto, bf16 (autocast) or fp32, see :func:`~stochcl.encoders.precision.computes_in_bf16`.
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
        if self.precision not in PRECISIONS:
            raise UsageError(f"there is no training precision {self.precision!r}; there are {', '.join(PRECISIONS)}.")
