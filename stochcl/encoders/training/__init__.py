"""Training an encoder from images."""

from stochcl.encoders.training.options import TrainOptions, options_from
from stochcl.encoders.training.progress import Fitting, Progress
from stochcl.encoders.training.trainer import Trainer

__all__ = ["Fitting", "Progress", "TrainOptions", "Trainer", "options_from"]
