"""Hold codes computed in bf16 against those in fp32: how many agree, and whether a probe minds.

    python tools/measure_precision.py TRAIN TEST -o precision.json [--model general] [--images 10000] [--device cpu]

TRAIN and TEST are labelled images (folders of classes, also in a .zip). Both are encoded in both precisions; a probe
is trained on the decoded vectors of either and scored on those of either. ``lost`` is what is lost, in percentage
points, where the codes that a probe is scored on have another precision than those it was trained on.
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

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Part:
    """One split in one precision."""

    symbols: np.ndarray
    vectors: np.ndarray
    labels: list[str]
    seconds: float


def read(path: Path, codec: Codec, most: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Read a seeded choice of images, preprocessed, and their labels."""
    source = open_source(path)
    rows = np.sort(np.random.default_rng(seed).permutation(len(source))[:most])
    pixels = np.stack([source.load(int(row), codec.preprocess) for row in rows])
    return pixels, [folder_label(source.entries[row].name) for row in rows]


def encode(codec: Codec, pixels: np.ndarray, labels: list[str]) -> Part:
    codec.encode_pixels(pixels[:64])  # the first batch of a shape is slower than those that follow
    started = time.process_time()
    codes = codec.encode_pixels(pixels).codes
    seconds = time.process_time() - started
    return Part(codes.symbols(), codec.tables.decoder.decode(codes.symbols()), labels, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="general")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=10_000, help="of each split at most; 10000 by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    codecs = {name: stochcl.load(args.model, device=args.device, precision=name) for name in PRECISIONS}
    parts: dict[tuple[str, str], Part] = {}
    for split, path in (("train", args.train), ("test", args.test)):
        pixels, labels = read(path, codecs["fp32"], args.images, args.seed)
        for name, codec in codecs.items():
            parts[split, name] = found = encode(codec, pixels, labels)
            print(f"{split}, {name}: {len(labels) / found.seconds:,.0f} images per core-second", flush=True)
    same = parts["test", "fp32"].symbols == parts["test", "bf16"].symbols
    rows: list[dict[str, Any]] = []
    for a in PRECISIONS:
        for b in PRECISIONS:
            train, test = parts["train", a], parts["test", b]
            found = evaluate_split(train.vectors, train.labels, test.vectors, test.labels)
            low, high = found.interval or (0.0, 1.0)
            rows.append({"train": a, "test": b, "accuracy": found.score, "accuracy_low": low, "accuracy_high": high})
            print(f"trained on {a}, scored on {b}: {found.score:.2%}", flush=True)
    score = {(row["train"], row["test"]): row["accuracy"] for row in rows}
    lost = {f"{a} to {b}": 100 * (score[a, a] - score[a, b]) for a, b in (PRECISIONS, PRECISIONS[::-1])}
    result = {
        "schema": "stochcl.precision/0",
        "seed": args.seed,
        "hardware": run.hardware(),
        "versions": run.versions(),
        "commit": run.commit(),
        "command": shlex.join(["python", *(Path(a).name if "/" in a else a for a in sys.argv)]),
        "model": codecs["fp32"].model.sha256,
        "images": {split: len(parts[split, "fp32"].labels) for split in ("train", "test")},
        "symbols_that_agree": float(same.mean()),
        "images_that_agree": float(same.all(axis=1).mean()),
        "images_per_core_second": {n: len(same) / parts["test", n].seconds for n in PRECISIONS},
        "rows": rows,
        "lost_percentage_points": lost,
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{same.mean():.3%} of the symbols and {same.all(axis=1).mean():.2%} of the images agree; lost: {lost}")


if __name__ == "__main__":
    main()
