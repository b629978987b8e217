"""Hold codes computed in bf16 or int8 against those in fp32: how many agree, and whether a probe minds.

    python tools/measure_precision.py TRAIN TEST -o precision.json [--precision int8] [--latents 8 64 256]
        [--model general] [--images 10000] [--test-images 10000] [--device cpu]

TRAIN and TEST are labelled images (folders of classes, also in a .zip). Both are encoded in both precisions; a probe
is trained on the decoded vectors of each and scored on those of each, for every number of latents. ``lost`` is the
loss in percentage points if the scored codes have another precision than the training codes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import stochcl
from stochcl.benchmarks import run
from stochcl.codes import folder_label
from stochcl.data import open_source
from stochcl.downstream import evaluate_split

if TYPE_CHECKING:
    from stochcl.api.codec import Codec


@dataclass(frozen=True)
class Part:
    """One split in one precision: symbols and vectors by number of latents."""

    symbols: dict[int, np.ndarray]
    vectors: dict[int, np.ndarray]
    labels: list[str]
    seconds: float


def read(path: Path, codec: Codec, most: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Read a seeded sample of images, preprocessed, and their labels."""
    source = open_source(path)
    rows = np.sort(np.random.default_rng(seed).permutation(len(source))[:most])
    pixels = np.stack([source.load(int(row), codec.preprocess) for row in rows])
    return pixels, [folder_label(source.entries[row].name) for row in rows]


def encode(codec: Codec, pixels: np.ndarray, labels: list[str], widths: list[int]) -> Part:
    codec.encode_prepared(pixels[:64])  # the first batch of a shape is slower
    started = time.process_time()
    found = codec.encode_prepared(pixels)
    seconds = time.process_time() - started
    codes = {width: codec.narrowed(found.codes, found.features, width) for width in widths}
    return Part(
        {k: c.symbols() for k, c in codes.items()}, {k: codec.decode(c) for k, c in codes.items()}, labels, seconds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="general")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("bf16", "int8"), default="bf16")
    parser.add_argument("--latents", type=int, nargs="+", help="all by default")
    parser.add_argument("--images", type=int, default=10_000, help="to train on, at most; 10000 by default")
    parser.add_argument("--test-images", type=int, help="to score on, at most; by default as many as to train on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    precisions = ("fp32", args.precision)
    codecs = {name: stochcl.load(args.model, device=args.device, precision=name) for name in precisions}
    widths = args.latents or [codecs["fp32"].latents]
    parts: dict[tuple[str, str], Part] = {}
    for split, path, most in (
        ("train", args.train, args.images),
        ("test", args.test, args.test_images or args.images),
    ):
        pixels, labels = read(path, codecs["fp32"], most, args.seed)
        for name, codec in codecs.items():
            parts[split, name] = found = encode(codec, pixels, labels, widths)
            print(f"{split}, {name}: {len(labels) / found.seconds:,.0f} images per core-second", flush=True)
    rungs = [rung(parts, precisions, width) for width in widths]
    count = {split: len(parts[split, "fp32"].labels) for split in ("train", "test")}
    result = {
        "schema": "stochcl.precision/1",
        "seed": args.seed,
        "hardware": run.hardware(),
        "versions": run.versions(),
        "commit": run.commit(),
        "command": shlex.join(["python", *(Path(a).name if "/" in a else a for a in sys.argv)]),
        "model": codecs["fp32"].model.sha256,
        "images": count,
        "images_per_core_second": {n: count["test"] / parts["test", n].seconds for n in precisions},
        "rungs": rungs,
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")


def rung(parts: dict[tuple[str, str], Part], precisions: tuple[str, str], width: int) -> dict[str, Any]:
    """Compare codes with ``width`` latents in two precisions."""
    same = np.equal(*(parts["test", name].symbols[width] for name in precisions))
    rows: list[dict[str, Any]] = []
    for a in precisions:
        for b in precisions:
            train, test = parts["train", a], parts["test", b]
            found = evaluate_split(train.vectors[width], train.labels, test.vectors[width], test.labels)
            low, high = found.interval or (0.0, 1.0)
            rows.append({"train": a, "test": b, "accuracy": found.score, "accuracy_low": low, "accuracy_high": high})
            print(f"{width} latents, trained on {a}, scored on {b}: {found.score:.2%}", flush=True)
    score = {(row["train"], row["test"]): row["accuracy"] for row in rows}
    lost = {f"{a} to {b}": 100 * (score[a, a] - score[a, b]) for a, b in (precisions, precisions[::-1])}
    print(f"{same.mean():.3%} of the symbols and {same.all(axis=1).mean():.2%} of the images agree; lost: {lost}")
    return {
        "latents": width,
        "symbols_that_agree": float(same.mean()),
        "images_that_agree": float(same.all(axis=1).mean()),
        "rows": rows,
        "lost_percentage_points": lost,
    }


if __name__ == "__main__":
    main()
