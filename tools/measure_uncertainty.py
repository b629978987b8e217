"""Measure what the uncertainty of a model's codes is worth, on CIFAR-10 and on images that are foreign to it.

    python tools/measure_uncertainty.py --data DATA -o benchmarks/results/uncertainty.json [--model general] [-n 2000]

DATA has cifar10-train.zip, cifar10-test.zip and Tiny-ImageNet as tiny-imagenet-train-0.zip to -2.zip. A probe is
trained on codes of CIFAR-10's training split and answers the test split: what finds its errors? Foreign are images of
Tiny-ImageNet that were never trained on (the last 20 of each class of each file), of classes that CIFAR-10 does not
share: ``SHARED`` says which are left out. A sample of the test images is corrupted besides, in the ways of
tools/corruptions.py. Beside the JSON goes a plot, -refusal.png. With -n, so many images of each part take part,
chosen by the seed.

Foreign images differ in more than their class: CIFAR-10 has 32 pixels, enlarged to the model's size, Tiny-ImageNet
64. So the second part of foreign images, "small", is the same ones, first brought to 32 pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from corruptions import CORRUPTIONS, STRENGTHS, corrupt
from PIL import Image

import stochcl
from stochcl.api.codec import Codec
from stochcl.api.evaluate import ProbeOptions, read_data
from stochcl.api.labels import LabelSource
from stochcl.api.uncertainty import Answers, measure_uncertainty, told_apart
from stochcl.benchmarks.run import commit, hardware, versions
from stochcl.codes import folder_label
from stochcl.compress import open_archive
from stochcl.data import ImageSource, held_out, open_source
from stochcl.data.open import SubsetSource
from stochcl.downstream.uncertainty import Auroc, CodeBatch, auroc
from stochcl.entropy.model import code_lengths

SHARED = {
    "n04008634": "airplane: missile",
    "n02814533": "automobile: station wagon",
    "n03100240": "automobile: convertible",
    "n03444034": "automobile: go-kart",
    "n03670208": "automobile: limousine",
    "n03977966": "automobile: police van",
    "n04285008": "automobile: sports car",
    "n01855672": "bird: goose",
    "n02002724": "bird: black stork",
    "n02056570": "bird: king penguin",
    "n02058221": "bird: albatross",
    "n02123045": "cat: tabby",
    "n02123394": "cat: Persian",
    "n02124075": "cat: Egyptian",
    "n02125311": "cat: cougar",
    "n02129165": "cat: lion",
    "n02423022": "deer: gazelle",
    "n02085620": "dog: Chihuahua",
    "n02094433": "dog: Yorkshire terrier",
    "n02099601": "dog: golden retriever",
    "n02099712": "dog: Labrador retriever",
    "n02106662": "dog: German shepherd",
    "n02113799": "dog: standard poodle",
    "n01641577": "frog: bullfrog",
    "n01644900": "frog: tailed frog",
    "n03447447": "ship: gondola",
    "n03662601": "ship: lifeboat",
    "n03796401": "truck: moving van",
    "n04146614": "truck: school bus",
    "n04465501": "truck: tractor",
    "n04487081": "truck: trolleybus",
}
"""Classes of Tiny-ImageNet that are one of CIFAR-10's, or near to it; no horse is there."""

BATCH = 256


def images(path: Path) -> ImageSource:
    source = open_source(path)
    if not isinstance(source, ImageSource):
        sys.exit(f"{path}: these are not images.")
    return source


def chosen(source: ImageSource, most: int | None, seed: int, *, foreign: bool = False) -> list[int]:
    """Positions of the images that take part."""
    rows = np.arange(len(source.entries))
    if foreign:
        held = held_out(source.entries)
        rows = np.array([i for i in rows if held[i] and folder_label(source.entries[i].name) not in SHARED])
    if most is not None and len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return rows.tolist()


def small(pixels: np.ndarray) -> np.ndarray:
    """Bring images to 32 pixels as a JPEG of CIFAR-10's kind, and back to their size."""
    out = np.empty_like(pixels)
    for i, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image).resize((32, 32), Image.Resampling.BOX).save(file, "JPEG", quality=75)
        out[i] = np.asarray(Image.open(file).resize(image.shape[:2], Image.Resampling.BICUBIC))
    return out


def compress(
    codec: Codec,
    paths: list[Path],
    out: Path,
    most: int | None,
    seed: int,
    *,
    foreign: bool = False,
    shrink: bool = False,
) -> Path:
    """Write an archive of the images of some files, named by their files where there are several."""
    with stochcl.writer(out, codec, uncertainty=True, force=True) as writer:
        for path in paths:
            source = images(path)
            share = None if most is None else -(-most // len(paths))
            part = SubsetSource(source, chosen(source, share, seed, foreign=foreign))
            for batch in part.batches(codec.preprocess, batch_size=BATCH, workers=1):
                codes = codec.encode_pixels(small(batch.images) if shrink else batch.images).codes
                names = batch.names if len(paths) == 1 else [f"{path.stem}/{name}" for name in batch.names]
                writer.add(replace(codes, names=tuple(names)))
                say(f"  {out.stem}: {writer.rows:,} images", end="\r")
    say("")
    return out


def sampled(answers: Answers, names: list[str], path: Path, codec: Codec, sample: int, seed: int):
    """A seeded sample of the answered images, found in their source by name: places among them, and pixels."""
    source = images(path)
    there = {entry.name: row for row, entry in enumerate(source.entries)}
    places = answers.kept[answers.own]
    found = [(i, there[name]) for i, place in enumerate(places) if (name := names[place]) in there]
    if not found:
        sys.exit(f"{path}: none of its images has the name of one that was answered.")
    picked = [found[i] for i in np.sort(np.random.default_rng(seed).permutation(len(found))[:sample])]
    kept, parts = [], []
    subset = SubsetSource(source, [row for _, row in picked])
    for batch in subset.batches(codec.preprocess, batch_size=BATCH, workers=1):
        parts.append(batch.images)
        kept += [picked[i][0] for i in batch.positions]
    return np.array(kept, np.intp), np.concatenate(parts)


def corrupted(
    train: Path, test: Path, path: Path, codec: Codec, asked: ProbeOptions, sample: int
) -> tuple[list[dict], dict]:
    """Tell images that were made worse from what they were: each way and strength, and all copies together."""
    data = read_data(train, test, LabelSource(), None, asked, [codec.tables], lengths=True)
    answers = Answers(data, asked)
    with open_archive(test, tables=[codec.tables]) as archive:
        own, pixels = sampled(answers, archive.names, path, codec, sample, asked.seed)
    inside = {name: values[own] for name, values in answers.own_scores.items()}
    truth, first = answers.truth[answers.own][own], answers.wrong[answers.own][own]
    out = [{"what": "clean", "images": len(own), "accuracy": round(float(1 - first.mean()), 4), "scores": {}}]
    wrong, copies = [first], {name: [values] for name, values in inside.items()}
    for what in CORRUPTIONS:
        for strength in STRENGTHS:
            codes = codec.encode_prepared(corrupt(pixels, what, strength, seed=asked.seed)).codes.prefix(data.width)
            symbols = codes.symbols()
            x = symbols if data.used == "symbols" else codec.tables.decoder.decode(symbols)
            rows = CodeBatch(
                x,
                symbols,
                code_lengths(codes, codec.tables.candidates(codes.latents, None)[-1].model),
                codes.uncertainty,
            )
            found, scores = answers.scorer.answers(rows)
            wrong.append(found != truth)
            for name, values in copies.items():
                values.append(scores[name])
            out.append({
                "what": what, "strength": strength, "images": len(own),
                "accuracy": round(float((found == truth).mean()), 4), "scores": told_apart(scores, inside),
            })  # fmt: skip
            say(f"  corrupted: {len(out) - 1} of {len(CORRUPTIONS) * len(STRENGTHS)}", end="\r")
    bad = np.stack(wrong)
    told = {name: auroc_of_copies(bad, np.stack(values), seed=asked.seed) for name, values in copies.items()}
    return out, {
        "images": bad.size,
        "accuracy": round(float(1 - bad.mean()), 4),
        "scores": {name: found.to_json() for name, found in told.items() if found is not None},
    }


def auroc_of_copies(positive: np.ndarray, score: np.ndarray, *, seed: int = 0, resamples: int = 200) -> Auroc | None:
    """The AUROC over several copies of each image, both of shape (copies, N).

    What is wrong in one copy is likely wrong in the next: the interval is of a bootstrap over images.
    """
    whole = auroc(positive.ravel(), score.ravel())
    if whole is None:
        return None
    rng, values = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = rng.integers(0, positive.shape[1], positive.shape[1])
        again = auroc(positive[:, drawn].ravel(), score[:, drawn].ravel())
        if again is not None:
            values.append(again.value)
    low, high = np.quantile([whole.value, *values], [0.025, 0.975])
    return Auroc(whole.value, float(low), float(high), whole.positives, whole.negatives)


def say(text: str, **options: str) -> None:
    print(text, file=sys.stderr, flush=True, **options)  # type: ignore[call-overload]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="general")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the zips")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .json; the plot is put beside it")
    parser.add_argument("-n", type=int, help="so many images of each part  [default: all]")
    parser.add_argument("--sample", type=int, default=500, help="images that are corrupted")
    parser.add_argument("--input", default="auto", choices=["auto", "symbols", "vectors"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    codec, ran = Codec(options.model), commit()
    plot = options.output.with_name(f"{options.output.stem}-refusal.png")
    data, most, seed = options.data, options.n, options.seed
    tiny = [data / f"tiny-imagenet-train-{i}.zip" for i in range(3)]
    test = data / "cifar10-test.zip"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archives = {
            "train": compress(codec, [data / "cifar10-train.zip"], folder / "cifar10-train.bin", most, seed),
            "test": compress(codec, [test], folder / "cifar10-test.bin", most, seed),
        }
        outside = [
            compress(codec, tiny, folder / "tiny-imagenet.bin", most, seed, foreign=True),
            compress(codec, tiny, folder / "tiny-imagenet-small.bin", most, seed, foreign=True, shrink=True),
        ]
        with stochcl.open(archives["test"]) as archive:
            spent = archive.parts()["uncertainty"] * 8 / len(archive)
            entropy = archive.uncertainty
        found = measure_uncertainty(
            archives["train"], test=archives["test"], outside=outside, output=options.input, seed=seed, plot=plot,
            tables=[codec.tables],
        )  # fmt: skip
        asked = ProbeOptions(output=options.input, seed=seed)
        worse, shifted = corrupted(archives["train"], archives["test"], test, codec, asked, options.sample)
        found["outside"] += worse
        found["shifted"] = shifted
    for key in ("path", "test", "plot"):
        found[key] = Path(found[key]).name  # no folders of this machine
    for one in found["outside"]:
        one["what"] = Path(one["what"]).name
    words = [word if word.startswith("-") else Path(word).name for word in sys.argv[1:]]
    result = {
        "schema": "stochcl.measure-uncertainty/0",
        "command": shlex.join(["python", "tools/measure_uncertainty.py", *words]),
        "commit": ran,
        "model": {"name": codec.model.name, "sha256": codec.model.sha256},
        "temperature": codec.model.encoder.config.temperature,
        "uncertainty_bits_per_image": round(spent, 2),
        "entropy": {"mean": round(float(entropy.mean()), 2), "deviation": round(float(entropy.std()), 2)},
        "shared_classes": SHARED,
        "hardware": hardware(),
        "versions": versions(),
        "found": found,
    }
    options.output.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")
    say("")
    errors = {name: score["auroc"] for name, score in found["shifted"]["scores"].items()}
    print(f"accuracy {found['accuracy']:.2%}; errors among clean and corrupted images together: {errors}")
    for name, score in found["scores"].items():
        low, high = score["interval"]
        told = ", ".join(f"{one['what']} {one['scores'][name]['auroc']:.3f}" for one in found["outside"][:2])
        print(f"{name:<12} errors {score['auroc']:.3f} ({low:.3f} to {high:.3f}); foreign: {told}")


if __name__ == "__main__":
    main()
