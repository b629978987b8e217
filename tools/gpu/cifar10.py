"""One row of the CIFAR-10 table: pre-train, probe, fine-tune, score; one JSON file of figures.

    python tools/gpu/cifar10.py --arm latent --backbone resnet50 --seed 0 --train cifar10-train.zip \
        --test cifar10-test.zip --minutes 25 -o results/

Arms, which have the fine-tuning recipe (preset cifar10-finetune) in common:

    scratch         no pre-training; supervised, from features: the reference on the same files
    scratch-latent  no pre-training; supervised, through the latents
    twin            pre-trained without latents (train --deterministic), fine-tuned from features
    latent          pre-trained and fine-tuned through the latents, which are sampled in training and hard at test

TRAIN and TEST are sources of labelled images: zips or folders of classes, or CIFAR-10 as published
(cifar-10-batches-py/data_batch_*, .../test_batch). Options of either stage are given as in presets: --pretrain
epochs=60 --finetune epochs=30. After --minutes the run stops with a checkpoint and exit code 75; the same command
goes on from there. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
import time
import tomllib
import zipfile
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from stochcl.api.codec import Codec

SCHEMA = "stochcl.gpu.cifar10/0"
ARMS = ("scratch", "scratch-latent", "twin", "latent")
NOT_FINISHED = 75  # sysexits.h's temporary failure: run it again
_SIDE = 32
_BLOCK = 1000  # queries per block of similarities
_TOLD_EVERY = 15.0  # seconds


def main() -> None:
    options = parse()
    name = f"cifar10-{options.arm}-{options.backbone}-{options.seed}"
    options.output.mkdir(parents=True, exist_ok=True)
    work = options.work or options.output / "work"
    work.mkdir(parents=True, exist_ok=True)
    result = options.output / f"{name}.json"
    if result.exists():
        say(f"{result}: it is there already")
        return
    stop_after(options.minutes)
    try:
        found = run(options, work, name)
    except KeyboardInterrupt as exc:
        say(f"{name}: not finished; the same command goes on. {' '.join(getattr(exc, '__notes__', []))}")
        sys.exit(NOT_FINISHED)
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=2) + "\n")
    partial.replace(result)
    say(f"{result}: top-1 of {found['test']['images']:,} test images {found['test_top1']:.2f} %")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, required=True, action="append", help="may be repeated")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--images-per-class", type=int, help="of the training images, the first so many")
    parser.add_argument("--pretrain", action="append", default=[], metavar="KEY=VALUE", help="in the preset's place")
    parser.add_argument("--finetune", action="append", default=[], metavar="KEY=VALUE", help="in the preset's place")
    parser.add_argument("--pretrain-preset", default="cifar10-resnet50")
    parser.add_argument("--finetune-preset", default="cifar10-finetune")
    parser.add_argument("--minutes", type=float, help="stop after so many, to go on later")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, help="for models and checkpoints; a folder in OUTPUT by default")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args(words)


def stop_after(minutes: float | None) -> None:
    """Interrupt this process after some minutes, as Ctrl-C does, so that training writes its checkpoint."""
    # A background process may have inherited ignored interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    if minutes is not None:
        timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()


def run(options: argparse.Namespace, work: Path, name: str) -> dict[str, Any]:
    """Run the unfinished stages, and return the figures."""
    from stochcl.api.finetune import score
    from stochcl.benchmarks.run import commit, versions
    from stochcl.encoders.inference import choose_device
    from stochcl.encoders.modelfile import load_model

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from throughput import facts

    started = time.monotonic()
    sources = options.train
    if options.images_per_class:
        sources = [subset(sources, options.images_per_class, work)]
    base, tuned = work / f"{name}.pretrained.safetensors", work / f"{name}.finetuned.safetensors"
    pretrain(options, sources, base)
    before = {} if options.arm.startswith("scratch") else probed(options, sources, base, work / f"{name}.before.json")
    finetune(options, sources, base, tuned)
    scores = score(tuned, options.test, workers=os.cpu_count() or 1, device=options.device)
    first, second = load_model(base).record, load_model(tuned)
    figures = asdict(scores)
    right = round(scores.test_top1 / 100 * scores.images)
    return {
        "schema": SCHEMA,
        "arm": options.arm,
        "backbone": options.backbone,
        "width": second.encoder.config.width,
        "stem": second.encoder.config.stem,
        "latents": second.encoder.config.latents,
        "seed": options.seed,
        "command": shlex.join(["python", "tools/gpu/cifar10.py", *said(sys.argv[1:])]),
        "commit": commit(),
        "train": {"names": [path.name for path in options.train], "images": second.record["images"]},
        "test": {"name": scores.source, "images": scores.images},
        "pretraining": stage_facts(first) if first["steps"] else None,
        "before_finetuning": before,
        "finetuning": stage_facts(second.record),
        "test_top1": scores.test_top1,
        "test_top1_interval": interval(right, scores.images),
        "test_top1_mirrored": scores.test_top1_mirrored,
        **{key: figures[key] for key in figures if key.startswith("codes_")},
        "model_sha256": second.sha256,
        "seconds": first["seconds"] * bool(first["steps"]) + second.record["seconds"],
        "seconds_of_this_call": round(time.monotonic() - started),
        "hardware": facts(choose_device(options.device)) | {"threads": threads()},
        "versions": versions(),
    }


def pretrain(options: argparse.Namespace, sources: list[Path], output: Path) -> None:
    """Train without labels; for the arms from scratch, write the untrained network."""
    from stochcl.api.train import train

    if output.exists():
        return
    given = {"latents": 2048, "entropy": "independent", "latent_steps": 0} | pairs(options.pretrain)
    if options.arm.startswith("scratch"):
        given |= {"epochs": 0}
    train(
        sources, output, preset=options.pretrain_preset, backbone=options.backbone, seed=options.seed,
        deterministic=options.arm == "twin", device=options.device, workers=os.cpu_count() or 1,
        resume=begun(output), report=telling("pre-training"), log=output.with_suffix(".csv"), **given,
    )  # fmt: skip


def finetune(options: argparse.Namespace, sources: list[Path], base: Path, output: Path) -> None:
    from stochcl.api.finetune import finetune as tune

    if output.exists():
        return
    tune(
        base, sources, output, preset=options.finetune_preset, seed=options.seed, device=options.device,
        deterministic=options.arm in ("scratch", "twin"), from_scratch=options.arm.startswith("scratch"),
        workers=os.cpu_count() or 1, resume=begun(output), report=telling("fine-tuning"),
        log=output.with_suffix(".csv"), **{"entropy": "independent"} | pairs(options.finetune),
    )  # fmt: skip


def begun(output: Path) -> bool:
    """Tell whether there is a checkpoint to resume from."""
    return output.with_name(output.name + ".checkpoint").exists()


def probed(options: argparse.Namespace, sources: list[Path], model: Path, output: Path) -> dict[str, float]:
    """Return linear and kNN accuracy on test images, in percent, of a model's output before fine-tuning."""
    from stochcl.api.codec import Codec
    from stochcl.benchmarks.probes import answers

    if output.exists():
        found: dict[str, float] = json.loads(output.read_text())
        return found
    codec = Codec(model, device=options.device)
    train, test = encoded(codec, sources), encoded(codec, [options.test])
    given = {"features": ("features",), "latent": ("features", "vectors", "symbols")}
    found = {}
    for what in given["latent" if options.arm == "latent" else "features"]:
        rows = train[what], train["labels"], test[what], test["labels"]
        found[f"{what}_linear"] = round(100 * float(answers("logistic", *rows, seed=options.seed)[0].mean()), 3)
        found[f"{what}_knn"] = round(100 * knn(*rows), 3)
        say(f"  before fine-tuning, {what}: linear {found[f'{what}_linear']} %, kNN {found[f'{what}_knn']} %")
    output.write_text(json.dumps(found) + "\n")
    return found


def encoded(codec: Codec, sources: list[Path]) -> dict[str, np.ndarray]:
    """Return features, hard codes and decoded vectors, float32, one row per image, and labels."""
    from stochcl.codes import folder_label
    from stochcl.data import open_source

    parts: dict[str, list[np.ndarray]] = {"features": [], "symbols": [], "vectors": [], "labels": []}
    for path in sources:
        for batch in open_source(path).batches(codec.preprocess, batch_size=2048, workers=os.cpu_count() or 1):
            found = codec.encode_prepared(batch.images)
            symbols = found.codes.symbols()
            parts["features"].append(found.features)
            parts["symbols"].append(symbols.astype(np.float32))
            parts["vectors"].append(codec.tables.decoder.decode(symbols))
            parts["labels"].append(np.array([folder_label(name) for name in batch.names]))
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def knn(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> float:
    """Return the accuracy of the 20 nearest rows by cosine, after subtracting the mean."""
    from stochcl.training.monitor import knn_accuracy

    mean = bank.mean(axis=0)
    starts = range(0, len(queries), _BLOCK)
    parts = [(queries[i : i + _BLOCK] - mean, truth[i : i + _BLOCK]) for i in starts]
    right = sum(knn_accuracy(bank - mean, labels, rows, wanted) * len(rows) for rows, wanted in parts)
    return float(right / len(queries))


def subset(sources: list[Path], per_class: int, work: Path) -> Path:
    """Write the first images of each class to a zip of lossless PNGs."""
    from PIL import Image

    from stochcl.codes import folder_label
    from stochcl.data import Preprocess, open_source

    path = work / f"first-{per_class}.zip"
    if path.exists():
        return path
    seen: dict[str, int] = {}
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for source in map(open_source, sources):
            for i, entry in enumerate(source.entries):
                label = folder_label(entry.name)
                seen[label] = seen.get(label, 0) + 1
                if seen[label] > per_class:
                    continue
                file = BytesIO()
                Image.fromarray(source.load(i, Preprocess(_SIDE))).save(file, "PNG")
                archive.writestr(str(Path(entry.name).with_suffix(".png")), file.getvalue())
    partial.replace(path)
    return path


def pairs(given: list[str]) -> dict[str, Any]:
    """Parse KEY=VALUE as in presets; a value that is not TOML is text."""
    found: dict[str, Any] = {}
    for pair in given:
        key, _, value = pair.partition("=")
        try:
            found |= tomllib.loads(f"{key} = {value}")
        except tomllib.TOMLDecodeError:
            found[key] = value
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def stage_facts(record: dict[str, Any]) -> dict[str, Any]:
    facts = {name: record[name] for name in ("steps", "images_seen", "seconds", "options")}
    return facts | {"epochs": round(record["images_seen"] / record["images"], 2)}


def interval(right: int, total: int) -> list[float]:
    from stochcl.downstream.metrics import wilson

    return [round(100 * bound, 3) for bound in wilson(right, total)]


def threads() -> int:
    import torch

    return torch.get_num_threads()


def said(words: list[str]) -> list[str]:
    """Leave out folders of the machine."""
    return [Path(word).name if "/" in word and "=" not in word else word for word in words]


def telling(what: str) -> Callable[[Any], None]:
    """Return a function that prints a line of progress at intervals."""
    told = [0.0]

    def report(progress: Any) -> None:
        if time.monotonic() - told[0] > _TOLD_EVERY or progress.fraction >= 1:
            told[0] = time.monotonic()
            say(f"{what} {progress.fraction:.1%}: {progress.line()}")

    return report


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
