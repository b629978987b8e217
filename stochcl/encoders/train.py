"""The names that training had before it became a package."""

from stochcl.encoders.training import Fitting, Progress, Trainer, TrainOptions, options_from
from stochcl.encoders.training.interruption import interruptible as _interruptible

__all__ = ["Fitting", "Progress", "TrainOptions", "Trainer", "_interruptible", "options_from"]
