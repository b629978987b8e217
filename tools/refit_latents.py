"""Train new latents on a finished network: head, prior, decoder and tables of another code; the backbone stays.

    python tools/refit_latents.py MODEL SOURCE... -o OUTPUT --rate BITS [--posterior FAMILY] [--latents D]
        [--ladder D1,D2,...,D] [--alphabet K] [--pooling mean|stages] [--head WIDTHS] [--decoder WIDTHS]
        [--hold-out 20] [--steps 3000] [--whitening POWER] [--precision fp32|bf16|auto] [--seed 0]

It is the last stage of ``stochcl train`` (docs/explanation/method.md), on images of SOURCE and on the same images
shrunk and enlarged again, because users' images have all sizes. The user's command for this is ``stochcl train
SOURCE... --init MODEL --epochs 0 --rate BITS``; here the network is MODEL's without describing it again, the ladder
can be chosen, and MODEL's training record is kept beside that of the new latents.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from stochcl.data import Preprocess, open_source
from stochcl.encoders.config import default_ladder
from stochcl.encoders.encoder import Encoder
from stochcl.encoders.inference import encode
from stochcl.encoders.modelfile import load_model, save_model
from stochcl.messages import escape_name
from stochcl.training.augment import Augmentation
from stochcl.training.images import read_images
from stochcl.training.monitor import code_health, measure_features
from stochcl.training.options import TrainOptions
from stochcl.training.pretrain import train_latents

CPU = torch.device("cpu")


def widths(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True, help="Bits per image of the full code.")
    parser.add_argument("--posterior", default="gaussian")
    parser.add_argument("--ladder", help="Nested prefixes, D1,D2,...; powers of two from 8 by default.")
    parser.add_argument("--pooling", help="What the features are; as MODEL has it by default.")
    for name, what in (("head", "between features and latents"), ("decoder", "between latents and vectors")):
        parser.add_argument(f"--{name}", type=widths, help=f"Hidden layers {what}, W1,W2,...; as MODEL's by default.")
    parser.add_argument("--whitening", type=float, help="Of errors, 0 to 0.5; 0.125 by default.")
    parser.add_argument("--precision", default="fp32", help="Of the network's arithmetic.")
    for name, value in (("latents", 256), ("alphabet", 16), ("hold-out", 0), ("steps", 3000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} by default")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    loaded = load_model(options.model)
    ladder = tuple(map(int, options.ladder.split(","))) if options.ladder else default_ladder(options.latents)
    shape = {"posterior": options.posterior, "latents": options.latents, "alphabet": options.alphabet}
    config = replace(
        loaded.encoder.config, **shape, ladder=ladder, embedding=0, temperature=1.0,
        entropy="independent", entropy_hidden=0, pooling=options.pooling or loaded.encoder.config.pooling,
        head=loaded.encoder.config.head if options.head is None else options.head,
        decoder=loaded.encoder.config.decoder if options.decoder is None else options.decoder,
    )  # fmt: skip
    encoder = Encoder(config).eval()
    encoder.backbone.load_state_dict(loaded.encoder.backbone.state_dict())
    sources = [open_source(path) for path in options.sources]
    data = read_images(sources, Preprocess(config.size, config.fit), hold_out=options.hold_out, workers=2)
    print(f"{len(data.train):,} images, {len(data.held):,} held out", flush=True)
    if config.pooling == loaded.encoder.config.pooling:
        encoder.norm.load_state_dict(loaded.encoder.norm.state_dict())
    else:
        measure_features(encoder, data.train, CPU, options.precision)
    settings = TrainOptions(
        rate=options.rate,
        latent_steps=options.steps,
        whitening=options.whitening,
        seed=options.seed,
        precision=options.precision,
    )
    told = time.monotonic()

    def report(progress: object) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(progress.line(), flush=True)  # type: ignore[attr-defined]

    augmentation = Augmentation(settings.crop)
    fitted = train_latents(encoder, data, augmentation, settings, CPU, max_time=None, report=report, fresh=True)
    health = code_health(
        encode(encoder, data.held if len(data.held) else data.train[:4000], CPU).codes, config.posterior
    )
    record = loaded.record | {
        "latents_refit": {
            "from": loaded.sha256, "sources": [escape_name(path.name) for path in options.sources],
            "images": len(data.train), "held_out": len(data.held),
        },
        "latents": fitted.record, "entropy": fitted.record["entropy"], "health": health,
    }  # fmt: skip
    record.pop("decoder_refit", None)
    record.pop("figures", None)
    print(f"{fitted.rate:.1f} bits per held-out image; hash {save_model(encoder, options.output, record)}")


if __name__ == "__main__":
    main()
