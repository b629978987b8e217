"""Accuracy against real bytes of latents that were chosen for a task, beside a prefix, random ones, and the label.

    stochcl compress cifar10-train.zip -o train.bin && stochcl compress cifar10-test.zip -o test.bin
    python tools/measure_selection.py train.bin test.bin -o benchmarks/results/selection.json

Latents are chosen by the training archive's labels only; the test archive is then transcoded with what was chosen, so
that its bytes are those of a user's file. A probe is trained on the training archive's rows and scored on the
test rows.

- chosen: K latents by `stochcl select`, K = 8, 16 ... D;
- prefix: the first latents, the widest prefix that takes no more than the chosen ones;
- random: K latents drawn by chance, the mean of some draws;
- all: every latent, as the archive has them, and refitted;
- label: log2 C bits an image, which is all that a classifier needs, and nothing else.

``bytes`` are codes and all entropy models that the file holds, those fitted to it included; names and index are left
out, as they are the same for all. ``external_bytes`` are the model's own decoding tables, which no file holds and all
lean on: a prefix is coded with their network; chosen latents with models fitted to them, which they pay for. TRAIN
and TEST may also be images, which are encoded by --model first.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import stochcl
from stochcl.api.archives import transcode
from stochcl.api.evaluate import has_categories, latents_of_task
from stochcl.api.labels import labels_of
from stochcl.benchmarks.run import commit, hardware, versions
from stochcl.downstream import evaluate_split
from stochcl.downstream.metrics import labelled
from stochcl.errors import UsageError

LEAST = 8  # latents


class Measure:
    """Two archives of one model, and the cost and accuracy of a choice of latents."""

    def __init__(self, train: Path, test: Path, folder: Path, options: argparse.Namespace) -> None:
        self.test, self.folder, self.options = test, folder, options
        with stochcl.open(train) as a, stochcl.open(test) as b:
            if a.header.model_sha256 != b.header.model_sha256:
                sys.exit(f"{test}: it was made by another model than {train}.")
            self.header, self.external = b.header, len(b.tables.data)
            self.given = options.given if options.given != "auto" else "vectors" if b.has_decoder else "symbols"
            self.categorical = has_categories(b)
            self.decoder = b.decoder if self.given == "vectors" else None
            self.x, self.x_test = a.to_numpy(), b.to_numpy()
            self.y = labels_of(a, train, options.labels, options.column)
            rows = labelled(self.x, self.y, "classification")
            self.order = latents_of_task(a, rows.x, rows.y, self.x.shape[1])[0].tolist()
            self.y_test = labels_of(b, test, options.labels, options.column)
        self.latents = self.x.shape[1]

    def row(self, columns: list[int], **how: Any) -> dict[str, Any]:
        """Return the size of these latents in a transcoded test archive, and their accuracy."""
        _, size, tables = self.transcoded(**how)
        scored = evaluate_split(
            self.seen(self.x, columns), self.y, self.seen(self.x_test, columns), self.y_test,
            estimator=self.options.estimator, seed=self.options.seed,
        )  # fmt: skip
        return {
            "latents": len(columns),
            "bytes": size,
            "fitted_table_bytes": tables,
            "bits_per_image": round(8 * size / len(self.y_test), 2),
            "accuracy": scored.score,
            "interval": list(scored.interval or ()),
        }

    def transcoded(self, **how: Any) -> tuple[int, int, int]:
        """Return the latents of a transcoded test archive, its bytes, and the bytes of its models."""
        out = self.folder / "out.bin"
        transcode(self.test, out, names=False, external_tables=True, force=True, **how)
        with stochcl.open(out) as archive:
            parts = archive.parts()
            return archive.header.latents, parts["codes"] + parts["tables"], parts["tables"]

    def seen(self, symbols: np.ndarray, columns: list[int]) -> np.ndarray:
        """Return the probe's input for these latents: symbols, or decoded vectors."""
        kept = symbols[:, columns]
        if self.decoder is not None:
            return self.decoder.select(columns).decode(kept)
        if self.categorical:  # category numbers mean nothing to a linear probe
            return np.eye(self.header.alphabet, dtype=np.uint8)[kept].reshape(len(kept), -1)
        return kept

    def chosen(self, columns: list[int]) -> dict[str, Any]:
        """Return the row of these latents, with models fitted to them."""
        columns = sorted(columns)
        numbers = range(self.header.latents) if self.header.selection is None else self.header.selection
        return self.row(columns, select=[numbers[column] for column in columns])

    def whole(self, **how: Any) -> dict[str, Any]:
        return self.row(list(range(self.latents)), **how)

    def prefix(self, most: int) -> dict[str, Any] | None:
        """Return the row of the widest prefix of at most ``most`` bytes; None if no latent fits."""
        try:
            latents, size, _ = self.transcoded(rate=8 * most / len(self.y_test))
        except UsageError:  # not even one latent fits
            return None
        while size > most and latents > 1:  # the rate excludes the archive's own tables
            latents, size, _ = self.transcoded(latents=latents - 1)
        return None if size > most else self.row(list(range(latents)), latents=latents)

    def random(self, count: int) -> dict[str, Any]:
        """Return the mean of several random choices of ``count`` latents."""
        rng = np.random.default_rng([self.options.seed, count])
        draws = [rng.choice(self.latents, count, replace=False).tolist() for _ in range(self.options.draws)]
        rows = [self.chosen(draw) for draw in draws]
        mean = {name: float(np.mean([row[name] for row in rows])) for name in ("bytes", "bits_per_image", "accuracy")}
        return {"latents": count, "draws": len(rows)} | mean

    def label(self) -> dict[str, Any]:
        """Return the cost of storing only the classes."""
        bits = math.log2(len(set(self.y)))
        return {"classes": len(set(self.y)), "bits_per_image": bits, "bytes": math.ceil(bits * len(self.y_test) / 8)}


def ladder(latents: int, steps: list[int] | None) -> list[int]:
    """Return the numbers of latents to choose: the requested ones, or 8, 16 ... below the total."""
    if steps is None:
        return [LEAST << i for i in range(16) if LEAST << i < latents] or [max(1, latents // 2)]
    if wrong := [k for k in steps if not 1 <= k <= latents]:
        sys.exit(f"--latents {wrong[0]}: the archives have 1 to {latents:,} latents.")
    return steps


def measure(train: Path, test: Path, options: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stochcl-") as name:
        folder = Path(name)
        parts = {"train": train, "test": test}
        if options.model is not None:
            parts = {part: encoded(path, folder / f"{part}.bin", options.model) for part, path in parts.items()}
        found = Measure(**parts, folder=folder, options=options)
        order, rows = found.order, []
        whole = {"as_compressed": found.whole(), "refitted": found.whole(refit=True)}
        say(f"  all {found.latents:,} latents", whole["as_compressed"])
        for count in ladder(found.latents, options.latents):
            chosen = found.chosen(order[:count])
            rows.append({"chosen": chosen, "prefix": found.prefix(chosen["bytes"]), "random": found.random(count)})
            for kind, row in rows[-1].items():
                say(f"  {kind}", row)
    return {
        "schema": "stochcl.selection/1",
        "commit": commit(),
        "model": {"name": found.header.model, "sha256": found.header.model_sha256},
        "latents": found.latents,
        "alphabet": found.header.alphabet,
        "train_images": len(found.y),
        "test_images": len(found.y_test),
        "input": found.given,
        "estimator": options.estimator,
        "seed": options.seed,
        "external_bytes": found.external,
        "hardware": hardware(),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
        "order": order,
        "all": whole,
        "label": found.label(),
        "rows": rows,
    }


def encoded(path: Path, out: Path, model: str) -> Path:
    stochcl.load(model).compress(path, out)
    return out


def say(what: str, row: dict[str, Any] | None) -> None:
    text = "none is so small" if row is None else (
        f"{row['latents']:5,} latents {row['bits_per_image']:8.1f} bits/image {row['accuracy']:.2%}"
    )  # fmt: skip
    print(f"{what:<18} {text}", file=sys.stderr, flush=True)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--model", help="TRAIN and TEST are images, to be encoded by this model.")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--column")
    parser.add_argument("--latents", type=int, nargs="+", metavar="K", help="How many to choose.  [8, 16 ...]")
    parser.add_argument("--input", dest="given", choices=["auto", "symbols", "vectors"], default="symbols")
    parser.add_argument("--estimator", default="logistic")
    parser.add_argument("--draws", type=int, default=3, help="Of random latents.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parsed(arguments)
    words = [word if word.startswith("-") else Path(word).name for word in arguments]  # no folders of this machine
    command = shlex.join(["python", "tools/measure_selection.py", *words])
    result = {"command": command} | measure(options.train, options.test, options)
    options.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
