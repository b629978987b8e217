"""Sets of images and runs small enough that a test of them takes a moment."""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits

from stochcl.encoders.config import EncoderConfig
from stochcl.training.images import ImageSet
from stochcl.training.options import TrainOptions
from stochcl.training.pretrain import Trainer
from tests.encoders.making import make_config, make_images


def make_set(train: int, held: int = 0, size: int = 16, labels: tuple[str, ...] = ("a", "b")) -> ImageSet:
    pixels = make_images(train + held, size)
    names = tuple(labels[i % len(labels)] for i in range(train + held))
    return ImageSet(pixels[:train], pixels[train:], names[:train], names[train:], ())


@cache
def digits(train: int = 1200, held: int = 400) -> ImageSet:
    """Handwritten digits, 8 x 8 grey, enlarged to 16 x 16 RGB."""
    data = load_digits()
    pixels = np.kron(data.images * 15, np.ones((2, 2)))[..., None].repeat(3, 3).astype(np.uint8)
    labels = tuple(map(str, data.target))
    end = train + held
    return ImageSet(pixels[:train], pixels[train:end], labels[:train], labels[train:end], ())


def make_trainer(folder, data: ImageSet, config: EncoderConfig | None = None, log=None, **options):
    extra = {name: options.pop(name) for name in ("report", "initialise", "logs") if name in options}
    given = {"epochs": 1, "batch_size": 8, "crop": 16, "precision": "fp32", "device": "cpu", "latent_steps": 0}
    given |= options
    checkpoint = folder / "checkpoint"
    return Trainer(config or make_config(), TrainOptions(**given), data, checkpoint=checkpoint, log=log, **extra)
