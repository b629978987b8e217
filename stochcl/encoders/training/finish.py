"""What follows the last step on images: head, prior and decoder trained on the features that came of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from stochcl.encoders.entropy import MIN_CODES, smaller_images
from stochcl.encoders.inference import encode_images
from stochcl.encoders.latents import FittedLatents, LatentOptions, LatentStage, start_latents

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stochcl.encoders.augment import Augmentation
    from stochcl.encoders.fitting import Fitting
    from stochcl.encoders.imageset import ImageSet
    from stochcl.encoders.latents import LatentProgress
    from stochcl.encoders.model import Encoder
    from stochcl.encoders.training.options import TrainOptions

_MOST_IMAGES = 200_000
_HELD = 2000  # images that rate and calibration are measured on
_LEAST_STEPS, _MOST_STEPS, _PASSES = 200, 3000, 60
_ROWS = 128
_VIEWS = 3  # the stream of random numbers that views of held-out images are drawn from


def latent_steps(options: TrainOptions, images: int) -> int:
    """Return how many steps the latent stage takes: about sixty passes over few images, fewer over many.

    Examples
    --------
    >>> from stochcl.encoders.training import TrainOptions
    >>> [latent_steps(TrainOptions(), n) for n in (100, 10_000, 1_000_000)]
    [200, 2343, 3000]
    """
    if options.latent_steps is not None:
        return options.latent_steps
    return max(_LEAST_STEPS, min(_MOST_STEPS, _PASSES * images // LatentOptions().batch_size))


def train_latents(
    encoder: Encoder,
    data: ImageSet,
    augmentation: Augmentation,
    options: TrainOptions,
    device: torch.device,
    *,
    max_time: float | None,
    report: Callable[[LatentProgress | Fitting], None],
    fresh: bool = False,
) -> FittedLatents:
    """Train what is behind the features once more, now that they stand still, to the rate that was asked for.

    Features are those of at most 200,000 images, a seeded choice; the stage itself runs on the processor. A head that
    is ``fresh``, not trained beside the network, begins where a classic quantiser of the features would be.
    """
    order = np.random.default_rng(options.seed).permutation(len(data.train))
    images = data.train[np.sort(order[:_MOST_IMAGES])]
    held = data.held[np.sort(np.random.default_rng(options.seed).permutation(len(data.held))[:_HELD])]
    encode = partial(encode_images, encoder, device=device, precision=options.precision)
    features, kept = (encode(part).features for part in (images, held))
    networked = options.entropy == "autoregressive" and len(images) >= MIN_CODES
    if networked:
        # What is asked of a code is asked of small images, too: they come enlarged, and lack fine detail.
        small = encode(smaller_images(images, options.seed)).features
        features = np.concatenate([features, small])
    views = _view_features(encoder, held, augmentation, options.seed, device)
    settings = LatentOptions(
        steps=latent_steps(options, len(data.train)), max_time=max_time, objective=options.objective,
        estimator=options.estimator, rate=options.rate, beta=options.beta, prior_hidden=options.entropy_hidden,
        entropy=options.entropy, seed=options.seed, precision=options.precision, whitening=options.whitening,
    )  # fmt: skip
    encoder.cpu()
    stage = LatentStage(encoder, features, kept, settings, versions=1 + networked, views=views, report=report)
    begun = start_latents(encoder, features, stage.metric, seed=options.seed) if fresh else "the head trained so far"
    fitted = stage.run()
    return replace(fitted, record={"start": begun} | fitted.record)


@torch.inference_mode()
def _view_features(
    encoder: Encoder, images: NDArray[np.uint8], augmentation: Augmentation, seed: int, device: torch.device
) -> NDArray[np.float32]:
    """Return features of one augmented view of each image, shape (N, V)."""
    out = np.empty((len(images), encoder.feature_dim), np.float32)
    for start in range(0, len(images), _ROWS):
        part = torch.from_numpy(images[start : start + _ROWS]).to(device).permute(0, 3, 1, 2)
        keys = torch.arange(start, start + len(part), device=device)
        views = encoder.normalise(augmentation(part, keys, seed, _VIEWS))
        features = encoder.features(views.contiguous(memory_format=torch.channels_last))
        out[start : start + _ROWS] = features.float().cpu().numpy()
    return out
