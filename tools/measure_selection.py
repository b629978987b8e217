"""Accuracy against real bytes of latents that were chosen for a task, beside a prefix, random ones, and the label.

    python tools/measure_selection.py train.bin test.bin --labels labels.csv -o benchmarks/results/selection.json

Latents are chosen by the training archive's labels only; the test archive is then transcoded with what was chosen, so
that its bytes are what a user's file takes (codes, tables refitted to them and counted; names and index left out, as
they are the same for all). A probe on symbols is trained on the training archive's rows and scored on the test rows.

- chosen: K latents by `stochcl select`, K = 8, 16 ... D;
- prefix: the first latents, the widest whose file takes no more bytes than the chosen ones';
- random: K latents drawn by chance, the mean of three draws;
- label: log2 C bits an image, which is all that a classifier needs, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import stochcl
from stochcl.api.editing import transcode
from stochcl.api.targets import labels_of
from stochcl.downstream import LatentSelector, evaluate_split
from stochcl.downstream.rows import labelled

DRAWS = 3


class Measure:
    """Two archives of one model, and what a choice of latents costs and gives."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.test, self.folder, self.args = args.test, folder, args
        with stochcl.open(args.train) as train, stochcl.open(args.test) as test:
            if train.header.model_sha256 != test.header.model_sha256:
                sys.exit(f"{args.test}: it was made by another model than {args.train}.")
            self.model, self.model_sha256 = test.header.model, test.header.model_sha256
            self.x, self.x_test = train.to_numpy(), test.to_numpy()
            self.y = labels_of(train, args.train, args.labels, args.column)
            self.y_test = labels_of(test, args.test, args.labels, args.column)
        self.latents = self.x.shape[1]

    def accuracy(self, columns: list[int]) -> dict[str, object]:
        found = evaluate_split(
            self.x[:, columns], self.y, self.x_test[:, columns], self.y_test,
            estimator=self.args.estimator, seed=self.args.seed,
        )  # fmt: skip
        return {"accuracy": found.score, "interval": list(found.interval or ())}

    def bytes_of(self, **how: object) -> int:
        """Bytes of codes and refitted models in the transcoded test archive, tables beside it left out."""
        out = self.folder / "out.bin"
        transcode(self.test, out, refit=True, external_tables=True, names=False, force=True, **how)
        with stochcl.open(out) as archive:
            return archive.parts()["codes"] + archive.parts()["tables"]

    def row(self, columns: list[int], **how: object) -> dict[str, object]:
        size = self.bytes_of(**how)
        bits = 8 * size / len(self.x_test)
        return {"latents": len(columns), "bytes": size, "bits_per_image": bits} | self.accuracy(columns)

    def prefix(self, most: int) -> dict[str, object]:
        """Return the widest prefix that takes at most so many bytes, by bisection."""
        low, high = 1, self.latents
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.bytes_of(latents=middle) <= most else (low, middle - 1)
        return self.row(list(range(low)), latents=low)

    def label(self) -> dict[str, object]:
        classes = len(set(self.y))
        bits = math.log2(classes)
        return {"classes": classes, "bits_per_image": bits, "bytes": math.ceil(bits * len(self.y_test) / 8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--column")
    parser.add_argument("--estimator", default="logistic")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        measure = Measure(args, Path(folder))
        rows = labelled(measure.x, measure.y, "classification")
        order = LatentSelector(measure.latents).fit(rows.x, rows.y).order_.tolist()
        ladder = [k for k in (8 << i for i in range(12)) if k < measure.latents]
        table = []
        for count in ladder:
            columns = sorted(order[:count])
            chosen = measure.row(columns, select=columns)
            rng = np.random.default_rng(args.seed)
            draws = [sorted(rng.choice(measure.latents, count, replace=False).tolist()) for _ in range(DRAWS)]
            random = [measure.row(draw, select=draw) for draw in draws]
            prefix = measure.prefix(int(str(chosen["bytes"])))
            table.append({"latents": count, "chosen": chosen, "prefix": prefix, "random": random})
            print(
                f"{count:5} latents: chosen {chosen['accuracy']:.2%} at {chosen['bytes']:,} bytes, "
                f"prefix of {prefix['latents']:,} {prefix['accuracy']:.2%}, "
                f"random {np.mean([r['accuracy'] for r in random]):.2%}",
                file=sys.stderr,
                flush=True,
            )
        full = measure.row(list(range(measure.latents)), latents=measure.latents)
    result = {
        "schema": "stochcl.selection/0",
        "command": "python tools/measure_selection.py " + " ".join(sys.argv[1:]),
        "commit": _commit(),
        "model": measure.model,
        "model_sha256": measure.model_sha256,
        "train_images": len(measure.y),
        "test_images": len(measure.y_test),
        "estimator": args.estimator,
        "seed": args.seed,
        "seconds": round(time.time() - started, 1),
        "full": full,
        "label": measure.label(),
        "rows": table,
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
