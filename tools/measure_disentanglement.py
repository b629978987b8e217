"""Whether latents of sprites go with one factor each, and whether models of other seeds have the same ones.

    python tools/measure_disentanglement.py -o benchmarks/results/disentanglement.json [--models A B C]

Three models are trained by --preset keep-position on the same sprites, from --seed and the two after it (or come
from --models). Scored are sprites of other seeds, --sprites of them and half as many that nothing is fitted to:

- MIG (Chen et al., arXiv 1802.04942): mutual information of each latent's symbol with each factor by the factor's
  entropy; numbers are cut into 20 bins of equal count. Beside it the most that a symbol's values allow, what is left
  when factors are shuffled among images (chance), and the same of float features, each cut into 20 bins, too.
- DCI (Eastwood and Williams, ICLR 2018), by lasso and by forests, of symbols, and of features by lasso. Columns of
  importances are brought to a sum of 1, so that each factor has the same weight.
- Stability, of each two models: latents are paired one to one (Hungarian method) so that the sum of differences of
  their normalised mutual information with the factors is least. Reported is how many pairs have the same factor, that
  the pair's latents say most of, and how strongly their symbols correlate over the same images, each beside what
  chance gives; and the same when they are paired by that correlation. And for each factor what its best latent says
  of it in each model: alike where the least is 0.8 of the most.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from factors import BINS, SIMILAR, best_latents, correlations, dci, entropy, gaps, in_bins, information, match
from measure_regression import SIDE, TRAINED, Task, part_of, say, sprites
from sprites import FACTORS, IMAGES, write_sprites

from stochcl.api import train as training
from stochcl.api.codec import Codec
from stochcl.benchmarks.run import commit, hardware, versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEDS = 3
TRAINING_SEED = 100  # of the sprites for training models
FORESTS = 2000  # images to fit forests and lasso to


def models_of(options: argparse.Namespace, folder: Path) -> list[Path]:
    """Train models of several seeds on the same sprites, or use given or kept ones."""
    if options.models:
        return list(options.models)
    kept = options.keep or folder
    place = folder / "own"
    write_sprites(place, images=TRAINED * options.sprites, size=SIDE, seed=TRAINING_SEED, force=True)
    asked = {"epochs": options.epochs, "latents": options.latents}
    changed = {name: value for name, value in asked.items() if value is not None}
    paths = []
    for seed in range(options.seed, options.seed + SEEDS):
        path = kept / f"keep-position-{seed}.safetensors"
        if not path.exists():
            say(f"  training from seed {seed}")
            begun = path.with_name(f"{path.name}.checkpoint").exists()
            training.train(
                [place / IMAGES],
                path,
                preset="keep-position",
                device=options.device,
                seed=seed,
                resume=begun,
                **changed,
            )
        paths.append(path)
    return paths


def binned(task: Task) -> NDArray[np.int64]:
    """Return the factors of all images as classes: shapes unchanged, numbers in bins."""
    both = np.concatenate([task.targets, task.test_targets])
    columns = [both[:, k].astype(np.int64) if task.classes[k] else in_bins(both[:, k]) for k in range(len(FACTORS))]
    return np.stack(columns, axis=1)


def by_factor(values: Any) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(FACTORS, values, strict=True)}


def mig(codes: NDArray[np.int64], factors: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """Return each factor's gap and their mean, beside the possible maximum and chance."""
    each = gaps(information(codes, factors))
    values = int(codes.max()) + 1
    most = [min(1.0, np.log(values) / entropy(column)) for column in factors.T]
    shuffled = np.random.default_rng(seed).permutation(factors)
    chance = gaps(information(codes, shuffled))
    return {
        "mig": round(float(each.mean()), 4),
        "most": round(float(np.mean(most)), 4),
        "chance": round(float(chance.mean()), 4),
        "gaps": by_factor(each),
    }


def scored(codec: Codec, task: Task, folder: Path, seed: int) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Return the scores of one model, and its symbols of all images."""
    train, test = part_of(codec, task.train, folder / "train.bin"), part_of(codec, task.test, folder / "test.bin")
    factors = binned(task)
    symbols = np.concatenate([train.symbols, test.symbols]).astype(np.int64)
    features = in_bins(np.concatenate([train.features, test.features]))
    found: dict[str, Any] = {
        "model": {"name": codec.model.name, "sha256": codec.model.sha256},
        "latents": codec.latents,
        "bits_per_image": round(test.bits, 2),
        "most_information": by_factor(information(symbols, factors).max(axis=0)),
        "symbols": {"mig": mig(symbols, factors, seed)},
        "features": {"columns": features.shape[1], "mig": mig(features, factors, seed)},
    }
    for given, kind in (("symbols", "lasso"), ("symbols", "forest"), ("features", "lasso")):
        started = time.monotonic()
        fitted, held = getattr(train, given)[:FORESTS], getattr(test, given)
        one = dci(
            (fitted.astype(np.float64), task.targets[: len(fitted)]), (held.astype(np.float64), task.test_targets),
            classes=task.classes, kind=kind, seed=seed,
        )  # fmt: skip
        found[given][kind] = {
            "disentanglement": round(one.disentanglement, 4),
            "completeness": round(one.completeness, 4),
            "completenesses": by_factor(one.completenesses),
            "informativeness": by_factor(one.informativeness),
        }
        say(f"  {given}, {kind}: D {one.disentanglement:.3f} C {one.completeness:.3f} "
            f"I {by_factor(one.informativeness)}   ({time.monotonic() - started:.0f} s)")  # fmt: skip
    say(f"  MIG of symbols {found['symbols']['mig']['mig']:.3f}, of features {found['features']['mig']['mig']:.3f}")
    return found, symbols


def compared(all_symbols: list[NDArray[np.int64]], factors: NDArray[np.int64]) -> dict[str, Any]:
    """Return how similar the models' latents for factors are."""
    told = [information(symbols, factors) for symbols in all_symbols]
    pairs = []
    for i, j in combinations(range(len(told)), 2):
        correlation = correlations(all_symbols[i], all_symbols[j])
        by = {
            name: match((told[i], told[j]), correlation, by=name).to_json() for name in ("information", "correlation")
        }
        pairs.append({"models": [i, j], "matched_by": by})
        say(f"  models {i} and {j}: {by}")
    owners = [np.bincount(one.argmax(axis=1), minlength=len(FACTORS)) / len(one) for one in told]
    return {
        "pairs": pairs,
        "best_latents": best_latents(told, FACTORS),
        "alike": f"the least of {len(told)} best latents' information is at least {SIMILAR} of the most",
        "latents_that_say_most_of": [by_factor(parts) for parts in owners],
    }


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", type=Path, help="In place of those that are trained here.")
    parser.add_argument(
        "--keep", type=Path, help="A folder that models are kept in, and taken from if they are there."
    )
    parser.add_argument("--epochs", type=int, help="Of training.  [default: the preset's]")
    parser.add_argument("--latents", type=int, help="Of the models.  [default: the preset's]")
    parser.add_argument("--sprites", type=int, default=4000, help="So many are scored.  [default: 4000]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="The first of three.  [default: 0]")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options, started, ran = parsed(arguments), time.monotonic(), commit()
    found, symbols = [], []
    with tempfile.TemporaryDirectory(prefix="stochcl-") as made:
        folder = Path(made)
        for path in models_of(options, folder):
            codec = Codec(path, device=options.device)
            say(f"{codec.model.name}:")
            task = sprites(folder, options.sprites, codec.preprocess.size, options.seed)
            one, codes = scored(codec, task, folder, options.seed)
            found.append(one)
            symbols.append(codes)
        factors = binned(task)
    words = [word if word.startswith("-") else Path(word).name for word in arguments]  # no folders of this machine
    result = {
        "schema": "stochcl.disentanglement/0",
        "command": shlex.join(["python", "tools/measure_disentanglement.py", *words]),
        "commit": ran,
        "seed": options.seed,
        "bins": BINS,
        "scored_images": len(factors),
        "fitted_images": min(FORESTS, len(task.targets)),
        "hardware": hardware(),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
        "models": found,
        "stability": compared(symbols, factors),
    }
    options.output.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
