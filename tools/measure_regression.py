"""R2 of places and sizes from codes, float features and pixels, with a model blind to place and one that keeps it.

    python tools/measure_regression.py --data DATA -o benchmarks/results/regression.json [-n 20000]

Sets are
- sprites: `tools/sprites.py`, --sprites of them to learn from and half as many, of another seed, to score on; shape
  (one of three, scored by accuracy), scale, rotation, x and y. Rotation is within 40 degrees either way, where each
  of the three shapes shows its angle and no two angles look alike, so that it is a number like the others.
- boxes: DATA/tiny-imagenet-train-0.zip to -2.zip with the boxes of DATA/tiny-imagenet-train-boxes.csv, learned from
  images that models train on, scored on the last 20 of each class of each file, which none has seen: the centre, the
  width and the height of the object's box, in pixels of 64.

Models are `general`, trained on crops of images, to which place and size are what does not matter, and one trained by
--preset keep-position: on sprites (here, five times as many, of another seed, unless --sprites-model names one), and
of images of Tiny-ImageNet that may be trained on, any that --boxes-model names.

All inputs get the same probes on standardised columns: ridge, whose penalty leave-one-out chooses for each number,
and the mean of nearest neighbours, whose count a fifth of the rows to learn from chooses; for shape logistic
regression and a vote of neighbours. Pixels of sprites get gradient boosting besides, which codes do without. Raw
pixels are those of 32 x 32, grey where all images are. Sets that an earlier run wrote to the same file stay in it.
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
from sprites import FACTORS, IMAGES, SHAPES, TABLE, write_sprites

import stochcl
from stochcl.api import train as training
from stochcl.api.codec import Codec
from stochcl.api.evaluate import has_categories
from stochcl.benchmarks.probes import NEAREST, answers
from stochcl.benchmarks.run import commit, hardware, versions
from stochcl.data import ImageSource, Preprocess, SubsetSource, held_out, open_source
from stochcl.data.labels import read_labels
from stochcl.data.open import JoinedSource
from stochcl.downstream import wilson
from stochcl.downstream.metrics import bootstrap_r_squared, r_squared

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 512
SIDE = 32
BOX = ("x", "y", "width", "height")
PROBES = ("linear", "neighbours")
ALPHAS = np.logspace(0, 5, 11)  # as in `stochcl evaluate`
SETS = ("sprites", "boxes")
TRAINED = 5  # sprites to train on per sprite for probes; they are cheap


@dataclass(frozen=True, eq=False)
class Task:
    """Images with targets, shape (N, T), to learn from and to score on; the first target may be classes."""

    name: str
    train: ImageSource
    test: ImageSource
    targets: NDArray[np.float64]
    test_targets: NDArray[np.float64]
    names: tuple[str, ...]
    classes: tuple[bool, ...]
    boosted: bool
    """Whether pixels also get gradient boosting."""


@dataclass(frozen=True, eq=False)
class Part:
    """A model's outputs for some images."""

    vectors: NDArray[np.float32]
    symbols: NDArray[np.float32]
    features: NDArray[np.float32]
    bits: float


def opened(path: Path) -> ImageSource:
    source = open_source(path)
    if not isinstance(source, ImageSource):
        sys.exit(f"{path}: these are not images.")
    return source


def sprites(folder: Path, count: int, size: int, seed: int) -> Task:
    """Make sprites to learn from and half as many to score on, with seeds not used in training."""
    parts, targets = [], []
    for at, many in enumerate((count, max(10, count // 2))):
        place = folder / f"sprites-{size}-{at}"
        write_sprites(place, images=many, size=size, seed=seed + 1 + at, force=True)
        source = opened(place / IMAGES)
        table = read_labels(place / TABLE)
        names = [entry.name for entry in source.entries]
        shape = [SHAPES.index(name) for name in table.match(names, "shape")]
        numbers = [np.array(table.match(names, column), np.float64) for column in FACTORS[1:]]
        parts.append(source)
        targets.append(np.stack([np.array(shape, np.float64), *numbers], axis=1))
    return Task(
        "sprites", *parts, *targets, FACTORS, (True, False, False, False, False), boosted=True
    )  # fmt: skip


def boxes(data: Path, most: int | None, seed: int) -> Task:
    """Return images of Tiny-ImageNet with their object's box."""
    files = [opened(data / f"tiny-imagenet-train-{i}.zip") for i in range(3)]
    held = np.concatenate([held_out(source.entries) for source in files])
    whole = JoinedSource(files)
    table = read_labels(data / "tiny-imagenet-train-boxes.csv")
    parts, targets = [], []
    for part in (~held, held):
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(part))[:most]
        rows.sort()
        source = SubsetSource(whole, rows.tolist())
        names = [entry.name for entry in source.entries]
        x0, y0, x1, y1 = (np.array(table.match(names, column), np.float64) for column in ("x0", "y0", "x1", "y1"))
        parts.append(source)
        targets.append(np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1))
    return Task("boxes", *parts, *targets, BOX, (False,) * 4, boosted=False)


def part_of(codec: Codec, source: ImageSource, path: Path) -> Part:
    """Encode images to an archive, and read it back."""
    features = []
    with stochcl.writer(path, codec, force=True) as out:
        for batch in source.batches(codec.preprocess, batch_size=BATCH, workers=1):
            found = codec.encode_prepared(batch.images)
            names = tuple(f"{row:09d}" for row in range(batch.rows.start, batch.rows.stop))
            out.add(replace(found.codes, names=names, uncertainty=None))
            features.append(found.features)
            say(f"  {path.stem}: {batch.rows.stop:,} of {len(source):,} images encoded", end="\r")
    say("")
    with stochcl.open(path) as archive:
        symbols = archive.to_numpy()
        if has_categories(archive):  # category numbers mean nothing to a linear model
            symbols = np.eye(archive.header.alphabet, dtype=np.uint8)[symbols].reshape(len(symbols), -1)
        bits = archive.parts()["codes"] * 8 / len(archive)
        return Part(archive.to_vectors(), symbols.astype(np.float32), np.concatenate(features), bits)


def pixels_of(source: ImageSource) -> NDArray[np.float32]:
    """Return images at 32 x 32 as numbers; grey ones have one channel."""
    parts = [batch.images for batch in source.batches(Preprocess(SIDE), batch_size=BATCH, workers=1)]
    images = np.concatenate(parts)
    if (images == images[..., :1]).all():
        images = images[..., :1]
    return images.reshape(len(images), -1).astype(np.float32)


def predict(
    probe: str, train: NDArray[np.float32], test: NDArray[np.float32], targets: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Return a probe's predictions of numbers, shape (M, T)."""
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV

    if probe == "linear":
        return np.asarray(RidgeCV(ALPHAS, alpha_per_target=True).fit(train, targets).predict(test), np.float64)
    if probe == "neighbours":
        return neighbours(train, test, targets, seed)
    fits = [HistGradientBoostingRegressor(random_state=seed).fit(train, column) for column in targets.T]
    return np.stack([fit.predict(test) for fit in fits], axis=1)


def neighbours(
    train: NDArray[np.float32], test: NDArray[np.float32], targets: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Return the mean of the nearest rows' numbers; a fifth of the rows chooses the count for each number."""
    from sklearn.neighbors import NearestNeighbors

    rows = np.random.default_rng([seed, 17]).permutation(len(train))
    kept, fitted = rows[: len(rows) // 5], rows[len(rows) // 5 :]

    def means(
        x: NDArray[np.float32], y: NDArray[np.float64], asked: NDArray[np.float32]
    ) -> list[NDArray[np.float64]]:
        most = min(max(NEAREST), len(x))
        near = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(x).kneighbors(asked, return_distance=False)
        return [y[near[:, :k]].mean(axis=1) for k in NEAREST]

    errors = [
        ((found - targets[kept]) ** 2).mean(axis=0) for found in means(train[fitted], targets[fitted], train[kept])
    ]
    best = np.argmin(errors, axis=0)
    found = means(train, targets, test)
    return np.stack([found[choice][:, t] for t, choice in enumerate(best)], axis=1)


def classify(
    probe: str, train: NDArray[np.float32], test: NDArray[np.float32], y: NDArray[np.int64],
    y_test: NDArray[np.int64], seed: int,
) -> NDArray[np.bool_]:  # fmt: skip
    """Return which rows a probe classifies correctly."""
    if probe == "boosting":
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(random_state=seed).fit(train, y).predict(test) == y_test
    return answers({"linear": "logistic", "neighbours": "knn"}[probe], train, y, test, y_test, seed=seed)[0]


def scores(
    task: Task, train: NDArray[np.float32], test: NDArray[np.float32], seed: int, probes: tuple[str, ...] = PROBES
) -> list[dict[str, Any]]:
    from sklearn.metrics import mean_absolute_error
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    numbers = np.flatnonzero(~np.array(task.classes))
    found = []
    for probe in probes:
        started = time.monotonic()
        said = predict(probe, train, test, task.targets[:, numbers], seed)
        for k, name in enumerate(task.names):
            truth = task.test_targets[:, k]
            if task.classes[k]:
                right = classify(
                    probe, train, test, task.targets[:, k].astype(np.int64), truth.astype(np.int64), seed
                )  # fmt: skip
                low, high = wilson(int(right.sum()), len(right))
                row = {"score": float(right.mean()), "low": low, "high": high}
            else:
                answer = said[:, numbers.tolist().index(k)]
                low, high = bootstrap_r_squared(truth, answer, seed) or (None, None)
                row = {"score": r_squared(truth, answer), "low": low, "high": high,
                       "mean_absolute_error": float(mean_absolute_error(truth, answer))}  # fmt: skip
            found.append({"probe": probe, "target": name} | row)
        told = " ".join(f"{row['target']} {row['score']:.3f}" for row in found[-len(task.names) :])
        say(f"    {probe:<11} {told}   ({time.monotonic() - started:.0f} s)")
    return found


def measure(codec: Codec, task: Task, folder: Path, seed: int) -> dict[str, Any]:
    """Return the scores of a model's decoded codes, symbols and features on a task."""
    train, test = part_of(codec, task.train, folder / "train.bin"), part_of(codec, task.test, folder / "test.bin")
    rows = []
    for name in ("vectors", "symbols", "features"):
        x, x_test = getattr(train, name), getattr(test, name)
        bits = 32 * x.shape[1] if name == "features" else round(test.bits, 2)
        say(f"  {name}, {bits:,.0f} bits/image")
        rows += [{"input": name, "bits_per_image": bits} | row for row in scores(task, x, x_test, seed)]
    return {
        "model": {"name": codec.model.name, "sha256": codec.model.sha256},
        "latents": codec.latents,
        "size": codec.preprocess.size,
        "rows": rows,
        "kept": kept(rows, task),
    }


def best(rows: list[dict[str, Any]], given: str, target: str) -> dict[str, Any]:
    return max(
        (row for row in rows if (row["input"], row["target"]) == (given, target)), key=lambda row: row["score"]
    )


def kept(rows: list[dict[str, Any]], task: Task) -> dict[str, float | None]:
    """Return the best score from codes divided by the best from features; None if features score nothing."""
    found = {}
    for name in task.names:
        features = best(rows, "features", name)["score"]
        codes = max(best(rows, given, name)["score"] for given in ("vectors", "symbols"))
        found[name] = round(codes / features, 4) if features > 0.01 else None
    return found


def position_model(folder: Path, options: argparse.Namespace) -> Codec:
    """Train a model on sprites, or load the given one."""
    path = options.sprites_model
    if path is None:
        place, path = folder / "own", folder / "keep-position.safetensors"
        write_sprites(place, images=TRAINED * options.sprites, size=SIDE, seed=options.seed)
        epochs = {} if options.epochs is None else {"epochs": options.epochs}
        say("  training on sprites")
        training.train(
            [place / IMAGES], path, preset="keep-position", device=options.device, seed=options.seed, **epochs
        )
    return Codec(path, device=options.device)


def say(text: str, **options: str) -> None:
    print(text, file=sys.stderr, flush=True, **options)  # type: ignore[call-overload]


def of_set(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    models = []
    if name == "sprites":
        models = [position_model(folder, options)]
    else:
        models = [Codec(path, device=options.device) for path in options.boxes_model]
    models.insert(0, Codec(options.model, device=options.device))
    found, tasks = [], []
    for codec in models:
        say(f"{name}, {codec.model.name}:")
        if name == "sprites":
            task = sprites(folder, options.sprites, codec.preprocess.size, options.seed)
        else:
            task = boxes(options.data, options.n, options.seed)
        tasks.append(task)
        found.append(measure(codec, task, folder, options.seed))
    last = tasks[-1]  # its sprites have the side at which pixels are taken
    say(f"{name}, pixels of {SIDE} x {SIDE}:")
    train, test = pixels_of(last.train), pixels_of(last.test)
    bits, probes = 8 * train.shape[1], (*PROBES, "boosting") if last.boosted else PROBES
    rows = [
        {"input": "pixels", "bits_per_image": bits} | row for row in scores(last, train, test, options.seed, probes)
    ]
    beaten = {
        target: {
            "pixels": best(rows, "pixels", target)["score"],
            "codes": [
                max(best(one["rows"], given, target)["score"] for given in ("vectors", "symbols")) for one in found
            ],
        }
        for target in last.names
    }
    return {
        "set": name,
        "train_images": len(last.train),
        "test_images": len(last.test),
        "targets": list(last.names),
        "models": found,
        "pixels": rows,
        "best": beaten,
    }


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="general", help="The one that is blind to place.")
    parser.add_argument("--sprites-model", type=Path, help="In place of one that is trained here.")
    parser.add_argument(
        "--boxes-model", type=Path, action="append", default=[], help="Of Tiny-ImageNet; may be repeated."
    )
    parser.add_argument("--epochs", type=int, help="Of training on sprites.  [default: the preset's]")
    parser.add_argument("--sprites", type=int, default=4000, help="So many of them.  [default: 4000]")
    parser.add_argument("--data", type=Path, help="The folder of Tiny-ImageNet.")
    parser.add_argument("--only", action="append", choices=SETS, help="This set; may be repeated.  [default: all]")
    parser.add_argument("-n", type=int, help="So many images of each part of Tiny-ImageNet.  [default: all]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.data is None and "boxes" in (options.only or SETS):
        parser.error("--data names the folder of Tiny-ImageNet; --only sprites needs none")
    return options


def kept_sets(path: Path, measured: list[str]) -> list[dict[str, Any]]:
    """Return the sets of an earlier file that this run does not measure again."""
    if not path.exists():
        return []
    before = json.loads(path.read_text("utf-8"))
    return [one for one in before.get("sets", ()) if one["set"] not in measured]


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options, ran = parsed(arguments), commit()
    names = options.only or list(SETS)
    words = [word if word.startswith("-") else Path(word).name for word in arguments]  # no folders of this machine
    found = kept_sets(options.output, names)
    for name in names:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="stochcl-") as made:
            one = of_set(name, options, Path(made))
        found.append({
            "command": shlex.join(["python", "tools/measure_regression.py", *words]),
            "commit": ran,
            "seed": options.seed,
            "seconds": round(time.monotonic() - started, 1),
        } | one)  # fmt: skip
    result = {
        "schema": "stochcl.regression/0",
        "hardware": hardware(),
        "versions": versions(),
        "sets": sorted(found, key=lambda one: SETS.index(one["set"])),
    }
    options.output.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
