"""Fit a trained model's vector decoder again, to the codes that its finished network gives; all else stays.

    python tools/refit_decoder.py MODEL SOURCE... -o OUTPUT [--hold-out 20] [--steps 1500] [--seed 0]

In training, the decoder follows features that move, and its squared error weights directions of the features by their
variance, unlike a classifier. Here the features are fixed and whitened.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from stochcl.data import Preprocess, open_source
from stochcl.encoders.inference import encode
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.training.images import read_images

SHRINKAGE = 0.01  # share of the mean variance added to each direction's before whitening
BATCH, LR = 512, 1e-3


def whitening(features: torch.Tensor) -> torch.Tensor:
    """Return the matrix, shape (V, V), that decorrelates features and makes their variances about equal."""
    variance, directions = torch.linalg.eigh(torch.cov(features.T.double()))
    scaled = directions / (variance + SHRINKAGE * variance.mean()).sqrt()
    return scaled.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    for name, value in (("hold-out", 0), ("steps", 1500), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} by default")
    options = parser.parse_args()

    loaded = load_model(options.model)
    encoder, config = loaded.encoder, loaded.encoder.config
    sources = [open_source(path) for path in options.sources]
    images = read_images(sources, Preprocess(config.size, config.fit), hold_out=options.hold_out, workers=2).train
    print(f"{len(images):,} images", flush=True)
    encoded = encode(encoder, images, torch.device("cpu"))
    features = torch.from_numpy(encoded.features)
    symbols = encoded.codes.symbols()
    whiten = whitening(features)
    power = ((features - features.mean(0)) @ whiten).square().mean()

    optimizer = torch.optim.AdamW(encoder.decoder.parameters(), lr=LR, weight_decay=1e-2)
    rng = np.random.default_rng(options.seed)
    rungs = config.ladder[:-1] or config.ladder
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        rows = rng.integers(len(features), size=BATCH)
        target, codes = features[rows], torch.from_numpy(symbols[rows]).float()
        guesses = torch.stack([encoder.decode(codes), encoder.decode(codes, int(rng.choice(rungs)))])
        errors = ((guesses - target) @ whiten).square().mean(dim=(1, 2)) / power
        optimizer.zero_grad()
        errors.sum().backward()
        optimizer.step()
        if step % 100 == 0 or step == options.steps - 1:
            full, prefix = errors.tolist()
            print(f"step {step:,}: relative error {full:.3f} at full width, {prefix:.3f} at a prefix", flush=True)
    refit = {"images": len(images), "steps": options.steps, "seed": options.seed, "from": loaded.sha256}
    print(save_model(encoder, options.output, loaded.record | {"decoder_refit": refit}))


if __name__ == "__main__":
    main()
