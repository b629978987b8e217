"""Measure what a model's codes are worth: accuracy along the ladder, linear and of nearest neighbours.

    python tools/measure_model.py MODEL --data DATA -o RESULTS.json [--untrained MODEL] [--before MODEL] [--work WORK]
        [--set cifar10] [--set tiny-imagenet] [--kind FOLDER ...] [--probe logistic ...]
        [--train-images 20000] [--precision bf16] [--seed 0]

Sets are
- cifar10: DATA/cifar10-train.zip to learn from, DATA/cifar10-test.zip to score on;
- tiny-imagenet: of DATA/tiny-imagenet-train-0.zip to -2.zip the last 20 images of each class of each file to score
  on, which training with `--hold-out 20` leaves alone, the others to learn from;
- every FOLDER, whose classes are its folders, such as tools/make_kinds.py makes: a fifth of each to score on.

Each is a run of `stochcl benchmark rate-accuracy` (whose result file explains its rows) for each probe and model, so
codes come from archives that are written and read back; the third probe, retrieval, is mAP@1000. MODEL is measured at
all rungs of its ladder, BEFORE and UNTRAINED at full width, and the features of each as float32. WORK keeps finished
measurements, so that an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stochcl.api.codec import Codec
from stochcl.benchmarks import run
from stochcl.benchmarks.inputs import RateAccuracyConfig
from stochcl.benchmarks.rate_accuracy import benchmark_rate_accuracy

PROBES = {"logistic": "accuracy", "knn": "accuracy", "retrieval": "map@1000"}
SETS = ("cifar10", "tiny-imagenet")
ROLES = ("model", "before", "untrained")


def requests(data: Path, options: argparse.Namespace) -> dict[str, RateAccuracyConfig]:
    """Return the configuration of each set, without a model."""
    shared = {
        "train_images": options.train_images, "precision": options.precision, "seed": options.seed,
        "baselines": ("float32",),
    }  # fmt: skip
    tiny = tuple(data / f"tiny-imagenet-train-{i}.zip" for i in range(3))
    kinds = {folder.name: RateAccuracyConfig((folder,), **shared) for folder in options.kind}
    return kinds | {
        "cifar10": RateAccuracyConfig((data / "cifar10-train.zip",), test=data / "cifar10-test.zip", **shared),
        "tiny-imagenet": RateAccuracyConfig(tiny, hold_out=20, **shared),
    }


def say(text: str, **options: Any) -> None:
    print(text, file=sys.stderr, flush=True, **options)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    started, rows, models, counts = time.monotonic(), [], {}, {}
    given = {role: getattr(options, role) for role in ROLES if getattr(options, role)}
    for role, path in given.items():
        codec = Codec(path)
        models[role] = {"name": codec.model.name, "sha256": codec.model.sha256}
    for name, request in requests(options.data, options).items():
        if name in SETS and name not in options.set:
            continue
        for role, path in given.items():
            ladder = () if role == "model" else (Codec(path).latents,)
            for probe in options.probe or PROBES:
                asked = replace(request, model=(path,), ladder=ladder, metric=(PROBES[probe],))
                asked = asked if probe == "retrieval" else replace(asked, probe=probe)
                found = benchmark_rate_accuracy(asked, work / name, say=say)
                counts[name] = found["n"]
                for row in found["rows"]:
                    rows.append({"set": name, "model": role, "probe": probe} | row)
                    del rows[-1]["method"], rows[-1]["seconds"]
                    line = f"{name}, {role}, {probe}, {row['code']} ({row['input']})"
                    score = row["accuracy"] if "accuracy" in row else row["map"]
                    seconds = time.monotonic() - started
                    say(f"{line:<60} {row['bits_per_image']:>10,.1f} bits an image {score:>8.2%} {seconds:>8,.0f} s")
    words = [word if word.startswith("-") else Path(word).name for word in sys.argv[1:]]  # no folders of this machine
    return {
        "schema": "stochcl.measure/1",
        "command": shlex.join(["python", "tools/measure_model.py", *words]),
        "commit": run.commit(), "seed": options.seed, "hardware": run.hardware(),
        "versions": run.versions(), "precision": options.precision, "models": models, "n": counts, "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--untrained", type=Path, help="An untrained network's model file.")
    parser.add_argument("--before", type=Path, help="The model that it is to replace.")
    parser.add_argument("--work", type=Path, help="Where what has been measured is kept.")
    parser.add_argument("--set", action="append", choices=SETS, help="Both by default; none beside --kind.")
    parser.add_argument("--kind", action="append", default=[], type=Path, help="A folder of labelled images.")
    parser.add_argument("--probe", action="append", choices=PROBES, help="All by default.")
    parser.add_argument("--train-images", type=int, default=20_000, help="At most, the same share of every class.")
    parser.add_argument("--precision", default="bf16", help="Of the networks.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.set = options.set or ([] if options.kind else list(SETS))
    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        result = measure(options, options.work or Path(folder))
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    say(f"{options.output}: {len(result['rows'])} rows")


if __name__ == "__main__":
    main()
