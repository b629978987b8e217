"""Accuracy of classifiers on decoded codes of a model, beside its float features and raw pixels.

    python tools/measure_classification.py --data DATA -o benchmarks/results/classification.json [--model general]

Sets are
- cifar10: DATA/cifar10-train.zip to learn from, DATA/cifar10-test.zip to score on;
- tiny-imagenet: of DATA/tiny-imagenet-train-0.zip to -2.zip the images that models train on to learn from, and the
  last 20 of each class of each file, which none has seen, to score on;
- digits: those that scikit-learn carries, with a model of their own, trained here by `--preset digits`; scored on the
  last 30 of each class, which it has not seen.

Images are encoded as `stochcl compress` does, to archives that are read back; bits are those of the codes in the
archive of the images that are scored on. Every classifier is the same: logistic regression on standardised columns,
fitted in 100 steps of L-BFGS at most, with a penalty that is chosen on a fifth of (at most 15,000) rows to learn
from. Raw pixels are those of the images at 32 x 32, of Tiny-ImageNet's 200 classes at 16 x 16. With -n, a seeded
choice of so many images of each part takes part.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import stochcl
from stochcl.api import train as training
from stochcl.api.codec import Codec
from stochcl.api.evaluate import has_categories
from stochcl.benchmarks.probes import answers
from stochcl.benchmarks.run import commit, hardware, versions
from stochcl.codes import folder_label
from stochcl.data import ImageSource, Preprocess, SubsetSource, held_out, open_source
from stochcl.data.builtin import DigitsSource
from stochcl.data.open import JoinedSource
from stochcl.downstream import wilson

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 512
DIGITS_HELD_OUT = 30  # of each class, as in the preset


@dataclass(frozen=True)
class Task:
    """Labelled images to learn from and to score on, and the side of raw pixels."""

    name: str
    train: ImageSource
    test: ImageSource
    side: int = 32


@dataclass(frozen=True, eq=False)
class Part:
    """What is known of some images: what codes of them decode to, features, pixels, classes."""

    symbols: np.ndarray
    vectors: np.ndarray | None
    features: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray
    bits: float


def opened(path: Path) -> ImageSource:
    source = open_source(path)
    if not isinstance(source, ImageSource):
        sys.exit(f"{path}: these are not images.")
    return source


def some(source: ImageSource, rows: np.ndarray, most: int | None, seed: int) -> ImageSource:
    """Return at most so many of these images, a seeded choice."""
    if most is not None and len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return SubsetSource(source, rows.tolist())


def cifar10(data: Path, most: int | None, seed: int) -> Task:
    parts = [opened(data / f"cifar10-{part}.zip") for part in ("train", "test")]
    train, test = (some(part, np.arange(len(part)), most, seed) for part in parts)
    return Task("cifar10", train, test)


def tiny_imagenet(data: Path, most: int | None, seed: int) -> Task:
    files = [opened(data / f"tiny-imagenet-train-{i}.zip") for i in range(3)]
    held = np.concatenate([held_out(source.entries) for source in files])
    whole = JoinedSource(files)
    train, test = (some(whole, np.flatnonzero(rows), most, seed) for rows in (~held, held))
    return Task("tiny-imagenet", train, test, side=16)


def digits(most: int | None, seed: int) -> Task:
    source = DigitsSource()
    held = held_out(source.entries, DIGITS_HELD_OUT)
    train, test = (some(source, np.flatnonzero(rows), most, seed) for rows in (~held, held))
    return Task("digits", train, test)


def part_of(codec: Codec, source: ImageSource, side: int, path: Path) -> Part:
    """Encode images to an archive, and read it back."""
    features, labels = [], []
    with stochcl.writer(path, codec, force=True) as out:
        for batch in source.batches(codec.preprocess, batch_size=BATCH, workers=1):
            found = codec.encode_pixels(batch.images)
            names = tuple(f"{folder_label(name)}/{at}" for name, at in zip(batch.names, batch.positions, strict=True))
            out.add(replace(found.codes, names=names, uncertainty=None))
            features.append(found.features)
            labels += [folder_label(name) for name in batch.names]
            say(f"  {path.stem}: {batch.rows.stop:,} of {len(source):,} images encoded", end="\r")
    say("")
    small = source.batches(Preprocess(side), batch_size=BATCH, workers=1)
    pixels = [batch.images.reshape(len(batch.images), -1) for batch in small]
    with stochcl.open(path) as archive:
        vectors = archive.to_vectors() if archive.has_decoder else None
        symbols = archive.to_numpy()
        if has_categories(archive):  # to a linear probe their numbers say nothing
            symbols = np.eye(archive.header.alphabet, dtype=np.uint8)[symbols].reshape(len(symbols), -1)
        bits = archive.parts()["codes"] * 8 / len(archive)
    return Part(symbols, vectors, np.concatenate(features), np.concatenate(pixels), np.array(labels), bits)


def measure(codec: Codec, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    """Return what every input gives on a task."""
    started = time.monotonic()
    train = part_of(codec, task.train, task.side, folder / "train.bin")
    test = part_of(codec, task.test, task.side, folder / "test.bin")
    given = {
        "vectors": ("decoded vectors", train.vectors, test.vectors, test.bits),
        "symbols": ("symbols", train.symbols, test.symbols, test.bits),
        "features": ("float32 features", train.features, test.features, 32 * test.features.shape[1]),
        "pixels": (f"pixels, {task.side} x {task.side}", train.pixels, test.pixels, 8 * test.pixels.shape[1]),
    }
    rows = []
    for name, (what, x, x_test, bits) in given.items():
        if x is None:
            continue
        at = time.monotonic()
        fitted, scored = x.astype(np.float32), x_test.astype(np.float32)
        right, penalty = answers("logistic", fitted, train.labels, scored, test.labels, seed=seed)
        accuracy, (low, high) = float(right.mean()), wilson(int(right.sum()), len(scored))
        rows.append({
            "input": name,
            "columns": fitted.shape[1],
            "bits_per_image": round(bits, 2),
            "accuracy": accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "penalty": penalty,
            "seconds": round(time.monotonic() - at, 1),
        })  # fmt: skip
        say(f"  {what:<18} {bits:>10,.1f} bits/image {accuracy:>8.2%}  ({low:.1%} to {high:.1%})")
    classes, counts = np.unique(test.labels, return_counts=True)
    return {
        "set": task.name,
        "model": {"name": codec.model.name, "sha256": codec.model.sha256},
        "latents": codec.latents,
        "alphabet": codec.alphabet,
        "external_bytes": len(codec.tables.data),
        "train_images": len(train.labels),
        "test_images": len(test.labels),
        "classes": len(classes),
        "largest_class": float(counts.max() / counts.sum()),
        "seconds": round(time.monotonic() - started, 1),
        "rows": rows,
    }


def digits_model(folder: Path, options: argparse.Namespace) -> Codec:
    """Train a model on digits, or load the one that was given."""
    path = options.digits_model
    if path is None:
        path = folder / "digits.safetensors"
        epochs = {} if options.epochs is None else {"epochs": options.epochs}
        say("  training on digits")
        training.train([], path, preset="digits", device=options.device, seed=options.seed, **epochs)
    return Codec(path, device=options.device)


def say(text: str, **options: str) -> None:
    print(text, file=sys.stderr, flush=True, **options)  # type: ignore[call-overload]


SETS = ("cifar10", "tiny-imagenet", "digits")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="general")
    parser.add_argument("--digits-model", type=Path, help="In place of one that is trained here.")
    parser.add_argument("--epochs", type=int, help="Of training on digits.  [default: the preset's]")
    parser.add_argument("--data", type=Path, help="The folder of the zips.")
    parser.add_argument("--only", action="append", choices=SETS, help="This set; may be repeated.  [default: all]")
    parser.add_argument("-n", type=int, help="So many images of each part.  [default: all]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.data is None and set(options.only or SETS) != {"digits"}:
        parser.error("--data names the folder of CIFAR-10 and Tiny-ImageNet; --only digits needs none")
    return options


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options, started, ran = parsed(arguments), time.monotonic(), commit()
    tasks: dict[str, Callable[[], Task]] = {
        "cifar10": lambda: cifar10(options.data, options.n, options.seed),
        "tiny-imagenet": lambda: tiny_imagenet(options.data, options.n, options.seed),
        "digits": lambda: digits(options.n, options.seed),
    }
    found = []
    for name in options.only or SETS:
        say(f"{name}:")
        with tempfile.TemporaryDirectory(prefix="stochcl-") as made:
            folder = Path(made)
            own = name == "digits"
            codec = digits_model(folder, options) if own else Codec(options.model, device=options.device)
            found.append(measure(codec, tasks[name](), folder, options.seed))
    words = [word if word.startswith("-") else Path(word).name for word in arguments]  # no folders of this machine
    result = {
        "schema": "stochcl.classification/0",
        "command": shlex.join(["python", "tools/measure_classification.py", *words]),
        "commit": ran,
        "seed": options.seed,
        "estimator": "logistic regression, penalty chosen on rows to learn from",
        "hardware": hardware(),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
        "sets": found,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
