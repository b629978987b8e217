"""Top-1 of fine-tuned models, one row each, and what their codes keep for other tasks.

    python tools/measure_finetuned.py latents.safetensors twin.safetensors scratch.safetensors \
        --test cifar10-test.zip --data DATA --trained-at COMMIT -o benchmarks/results/NAME.json

Models are those that `stochcl finetune` wrote. The test images are scored once for each: a model whose row is in the
result already is not scored again. A log beside a model (MODEL.jsonl) is copied beside the result.

Other tasks, for codes of the first model that classifies codes and for as many bits of the packaged model: a quarter
turn of test images (four classes), and Tiny-ImageNet (tiny-imagenet-train-0.zip in DATA, its last images). A probe is
fitted to 70 % of the images, and scored on the others; without --data, none of this is done.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stochcl.api.codec import Codec
from stochcl.api.evaluate import evaluate
from stochcl.api.finetune import score
from stochcl.benchmarks.run import commit, hardware, versions
from stochcl.codes import bits_per_symbol
from stochcl.compress import Archive
from stochcl.data import Preprocess, open_source
from stochcl.downstream import wilson
from stochcl.encoders.modelfile import load_model
from stochcl.training.options import FinetuneOptions, finetune_options

SCHEMA = "stochcl.finetuned/0"
PRESET = "cifar10-lite0-finetune"
_TURNED, _PER_CLASS = 1000, 15  # test images to rotate; images per class of Tiny-ImageNet
_HOUR = 3600
_KEPT = ("finetuned_from", "images", "steps", "images_seen", "precision", "hardware")  # fields of a model's record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="where tiny-imagenet-train-0.zip is")
    parser.add_argument("--trained-at", metavar="COMMIT", help="of the code that trained")
    parser.add_argument("--note", help="what else a reader must know")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    for path in options.models:
        model, found = load_model(path), read(options.output)
        arms, others = [], {}
        if model.sha256 not in [one["model_sha256"] for one in found.get("arms", ())]:
            arms = [row(path, options.test, options.trained_at, options.output)]
        if "other_tasks" not in found and options.data and model.encoder.config.classifies == "vectors":
            others = {"other_tasks": other_tasks(path, options.test, options.data)}
        found = read(options.output)  # read again: another process may have scored another arm
        found |= {
            "schema": SCHEMA, "command": shlex.join(["python", "tools/measure_finetuned.py", *words]),
            "commit": commit(), "hardware": hardware(), "versions": versions(), "note": options.note,
            "arms": [*found.get("arms", ()), *arms],
        } | others  # fmt: skip
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def row(path: Path, test: Path, trained_at: str | None, output: Path) -> dict[str, Any]:
    """Score a model, and describe how it was made."""
    model, started = load_model(path), time.monotonic()
    record, found = model.record, asdict(score(path, test))
    found["test_images"] = found.pop("images")
    settings = record["options"]
    arm = "deterministic twin" if settings["deterministic"] else "latents"
    arm = f"from scratch, {arm}" if settings["from_scratch"] else arm
    print(f"{arm}: {found['test_top1']:.2f} %", file=sys.stderr, flush=True)
    log, copied = path.with_suffix(".jsonl"), None
    if log.exists():
        copied = output.with_name(f"{output.stem}-{path.stem}.jsonl")
        shutil.copyfile(log, copied)
    right = round(found["test_top1"] / 100 * found["test_images"])
    return {
        "arm": arm,
        "command": command(record, path.name),
        "trained_at": trained_at,
        "model_sha256": model.sha256,
        "model_bytes": path.stat().st_size,
        "log": copied and copied.name,
        "seed": settings["seed"],
        **{name: record[name] for name in _KEPT},
        "epochs": round(record["images_seen"] / record["images"], 2),
        "hours": round(record["seconds"] / _HOUR, 3),
        "options": settings,
        "test_top1_interval": [round(100 * bound, 2) for bound in wilson(right, found["test_images"])],
        **{name: value for name, value in found.items() if name != "skipped"},
        "seconds_to_score": round(time.monotonic() - started),
    }


def command(record: dict[str, Any], output: str) -> str:
    """Return the command for a record's options."""
    base = asdict(finetune_options(PRESET, {}))
    words = ["stochcl", "finetune", record["finetuned_from"]["name"], *record["sources"], "-o", output]
    words += ["--preset", PRESET]
    for one in fields(FinetuneOptions):
        value, usual = record["options"][one.name], base[one.name]
        if value == (list(usual) if isinstance(usual, tuple) else usual):
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += [f"--{one.name.replace('_', '-')}", *([] if value is True else [text])]
    return shlex.join(words)


def other_tasks(path: Path, test: Path, data: Path) -> list[dict[str, Any]]:
    """Return the accuracy of probes on a model's codes, and on as many bits of the packaged model."""
    out = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {
            "quarter turns": turned(test, folder / "turned.zip"),
            "Tiny-ImageNet": last_of_each(data / "tiny-imagenet-train-0.zip", folder / "tiny.zip"),
        }
        config = load_model(path).encoder.config
        bits = config.latents * bits_per_symbol(config.alphabet)
        for model, latents in ((path, config.latents), ("general", bits)):
            codec = Codec(model)
            for task, source in sources.items():
                codes = folder / "codes.bin"
                codec.compress(source, codes, latents=latents, force=True)
                with Archive(codes, tables=[codec.tables]) as archive:
                    size, images = archive.parts()["codes"] * 8 / len(archive), len(archive)
                found, _ = evaluate(codes, test_size=0.3, tables=[codec.tables])
                out.append({
                    "task": task, "codes": str(getattr(model, "stem", model)), "raw_bits": bits, "images": images,
                    "bits_per_image": round(size, 2), "top1": round(100 * found.score, 2),
                })  # fmt: skip
                print(out[-1], file=sys.stderr, flush=True)
    return out


def turned(source: Path, output: Path) -> Path:
    """Write a seeded sample of images in four rotations to a zip of four folders."""
    opened = open_source(source)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(output, "w") as archive:
        for i in np.sort(rng.permutation(len(opened))[:_TURNED]):
            image = opened.load(int(i), Preprocess(32))
            for turns in range(4):
                file = BytesIO()
                Image.fromarray(np.rot90(image, turns)).save(file, "PNG")
                archive.writestr(f"{90 * turns}/{i}.png", file.getvalue())
    return output


def last_of_each(source: Path, output: Path) -> Path:
    """Write the last images of each class of a zip to another."""
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(output, "w") as archive:
        classes: dict[str, list[str]] = {}
        for name in sorted(whole.namelist()):
            classes.setdefault(name.partition("/")[0], []).append(name)
        for names in classes.values():
            for name in names[-_PER_CLASS:]:
                archive.writestr(name, whole.read(name))
    return output


if __name__ == "__main__":
    main()
