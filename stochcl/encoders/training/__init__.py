"""Training an encoder from images."""

from stochcl.encoders.fitting import Fitting
from stochcl.encoders.training.options import TrainOptions, options_from
from stochcl.encoders.training.progress import Progress
from stochcl.encoders.training.trainer import Trainer

__all__ = ["Fitting", "Progress", "TrainOptions", "Trainer", "options_from"]
