"""Fit the entropy network of a trained model to the codes of its training images; all else stays.

    python tools/fit_entropy.py MODEL SOURCE... -o OUTPUT [--hold-out 20] [--hidden 1024] [--passes 20]
        [--max-time 900] [--seed 0] [--measure SOURCE]

SOURCE must be the images that the model was trained on, with the same --hold-out, because the network is part of the
model. It is fitted to the images as they are and, again, as if their sources were smaller. Its savings are measured
on held-out codes and, with --measure, on images of another source. Codes do not change, but the model's hash does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from stochcl.codes import Codes
from stochcl.data import Preprocess, open_source
from stochcl.encoders.inference import encode
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import latent_lengths
from stochcl.training.entropy import fit_entropy, smaller_images
from stochcl.training.images import read_images

if TYPE_CHECKING:
    from stochcl.training.loop import FitProgress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    for name, value in (("hold-out", 0), ("passes", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} by default")
    parser.add_argument("--hidden", type=int, help="hidden units; by the number of codes by default")
    parser.add_argument("--max-time", type=float, help="seconds for the fit")
    parser.add_argument("--measure", type=Path, help="images whose bits are printed, not fitted to")
    options = parser.parse_args()

    loaded = load_model(options.model)
    encoder, config = loaded.encoder, loaded.encoder.config
    preprocess = Preprocess(config.size, config.fit)

    def images_of(paths: list[Path], hold_out: int) -> np.ndarray:
        images = read_images([open_source(path) for path in paths], preprocess, hold_out=hold_out).train
        print(f"{len(images):,} images", flush=True)
        return images

    def codes_of(images: np.ndarray) -> Codes:
        return encode(encoder, images, torch.device("cpu")).codes

    def report(progress: FitProgress) -> None:
        print(f"{progress.fraction:.0%} {progress.line()}", flush=True)

    images = images_of(options.sources, options.hold_out)
    parts = [codes_of(part).packed for part in (images, smaller_images(images, options.seed))]
    fitted = fit_entropy(
        Codes(np.concatenate(parts), config.latents), config.ladder, versions=len(parts), hidden=options.hidden,
        passes=options.passes, max_time=options.max_time, seed=options.seed, report=report,
    )  # fmt: skip
    record = fitted.record | {"from": loaded.sha256}
    encoder.set_entropy(fitted.network)
    print(json.dumps(record, indent=1))
    if options.measure and fitted.network:
        codes = codes_of(images_of([options.measure], 0))
        table = IndependentModel(encoder.ones.numpy().astype(np.uint16), config.alphabet)
        alone, together = latent_lengths(codes, table), encoder.bits_by_latent(codes)
        for k in config.ladder:
            ours, theirs = together[:k].sum(), alone[:k].sum()
            print(f"{k:,} latents: independent {theirs:,.2f}, autoregressive {ours:,.2f} bits ({ours / theirs:.3f})")
    print(save_model(encoder, options.output, loaded.record | {"entropy": record}))


if __name__ == "__main__":
    main()
