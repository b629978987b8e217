"""Measure what a model's codes are worth: accuracy of a linear probe along the ladder, and what it is held against.

    python tools/measure_model.py MODEL --train TRAIN --test TEST -o results.json [--untrained MODEL]

TRAIN and TEST are labelled images (folders of classes, also in a .zip). Codes are written to archives, one for each
rung of the ladder, and read back; the probe is fitted on what was read. Beside them stand the features before the
latents, the codes of an untrained network, and the pixels at half the model's input size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import stochcl
from stochcl.api.codec import Codec
from stochcl.data import ImageSource, Preprocess, folder_label, open_source, printable
from stochcl.downstream import evaluate_split

CODES, FEATURES, UNTRAINED, PIXELS = "codes", "features", "untrained", "pixels"


@dataclass
class Encoded:
    """One part of the data: codes with labels, and float32 features of shape (N, V)."""

    codes: stochcl.Codes
    features: np.ndarray
    labels: list[str]


def images(path: Path) -> ImageSource:
    source = open_source(path)
    if not isinstance(source, ImageSource):
        sys.exit(f"{printable(path)}: these are not images.")
    return source


def encode(codec: Codec, path: Path) -> Encoded:
    codes, features = [], []
    for batch in images(path).batches(codec.preprocess, batch_size=1024, workers=os.cpu_count() or 1):
        found = codec.encode_pixels(batch.images)
        labels = tuple(folder_label(name) for name in batch.names)
        codes.append(replace(found.codes, labels=labels, uncertainty=None))
        features.append(found.features)
        say(f"  {printable(path.name)}: {batch.rows.stop:,} images", end="\r")
    say("")
    joined = stochcl.Codes.concatenate(codes)
    return Encoded(joined, np.concatenate(features), list(joined.labels or ()))


def pixels(path: Path, size: int) -> np.ndarray:
    parts = [batch.images for batch in images(path).batches(Preprocess(size), workers=os.cpu_count() or 1)]
    return np.concatenate(parts).reshape(-1, size * size * 3).astype(np.float32)


def through_a_file(codec: Codec, part: Encoded, latents: int, folder: Path) -> tuple[stochcl.Archive, float]:
    """Write codes of this width, read them back; return the archive and its bits per image without labels."""
    path = folder / "codes.bin"
    with stochcl.writer(path, codec, latents=latents, force=True) as out:
        out.add(part.codes.prefix(latents))
    archive = stochcl.open(path)
    spent = archive.size - archive.parts()["names"] - archive.parts()["tables"]
    return archive, spent * 8 / len(archive)


def say(text: str, **options: Any) -> None:
    print(text, file=sys.stderr, flush=True, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    for name in ("train", "test", "output"):
        parser.add_argument(f"--{name}", *(["-o"] if name == "output" else []), type=Path, required=True)
    parser.add_argument("--untrained", type=Path, help="an untrained network's model file")
    parser.add_argument("--no-pixels", action="store_true", help="leave out the probe on pixels, which is slow")
    options = parser.parse_args()

    started = time.monotonic()
    rows: list[dict[str, Any]] = []

    def probe(method: str, given: str, bits: float, latents: int | None, *parts: Any) -> None:
        found = evaluate_split(*parts)
        low, high = found.interval or (0.0, 1.0)
        width = {} if latents is None else {"latents": latents}
        facts = {
            "bits_per_image": round(bits, 2),
            "accuracy": found.score,
            "accuracy_low": low,
            "accuracy_high": high,
        }
        rows.append({"method": method, "input": given} | width | facts | {"estimator": found.estimator})
        if found.notes:
            rows[-1]["notes"] = list(found.notes)
        name = f"{method} ({given})" + ("" if latents is None else f", {latents:,} latents")
        say(f"{name:<34} {bits:>12,.1f} bits/image {found.score:>8.2%}   {time.monotonic() - started:,.0f} s")

    def codes_of(method: str, codec: Codec, train: Encoded, test: Encoded, rungs: tuple[int, ...]) -> None:
        for latents in rungs:
            with tempfile.TemporaryDirectory() as name:
                a, _ = through_a_file(codec, train, latents, Path(name))
                symbols, vectors = a.to_numpy(), a.to_vectors()
                b, bits = through_a_file(codec, test, latents, Path(name))
                if method == CODES:
                    probe(method, "vectors", bits, latents, vectors, train.labels, b.to_vectors(), test.labels)
                if latents == codec.latents:
                    probe(method, "symbols", bits, latents, symbols, train.labels, b.to_numpy(), test.labels)

    codec = Codec(options.model)
    train, test = encode(codec, options.train), encode(codec, options.test)
    width = train.features.shape[1]
    probe(FEATURES, "float32", width * 32, None, train.features, train.labels, test.features, test.labels)
    codes_of(CODES, codec, train, test, codec.tables.ladder)
    if options.untrained:
        other = Codec(options.untrained)
        raw_train, raw_test = encode(other, options.train), encode(other, options.test)
        codes_of(UNTRAINED, other, raw_train, raw_test, (other.latents,))
        probe(
            UNTRAINED, "features", width * 32, None,
            raw_train.features, train.labels, raw_test.features, test.labels,
        )  # fmt: skip
    if not options.no_pixels:
        side = codec.size // 2
        probe(
            PIXELS, f"{side} x {side}", side * side * 24, None,
            pixels(options.train, side), train.labels, pixels(options.test, side), test.labels,
        )  # fmt: skip
    words = [word if word.startswith("-") else Path(word).name for word in sys.argv[1:]]  # no folders of this machine
    result = {
        "schema": "stochcl.measure/0",
        "command": shlex.join(["python", sys.argv[0], *words]),
        "model": {"name": codec.model.name, "sha256": codec.model.sha256},
        "train": {"name": options.train.name, "images": len(train.labels)},
        "test": {"name": options.test.name, "images": len(test.labels)},
        "hardware": f"{codec.device.type}, {os.cpu_count()} cores, {platform.machine()}",
        "versions": {"stochcl": stochcl.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "seconds": round(time.monotonic() - started),
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    say(f"{options.output}: {len(rows)} rows")


if __name__ == "__main__":
    main()
