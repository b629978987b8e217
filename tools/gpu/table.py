"""Make tables, as Markdown, of what cifar10.py measured: label-free rows and fine-tuned ones apart.

    python tools/gpu/table.py RESULTS... [-o table.md] [--json table.json]

RESULTS are its JSON files, or folders of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import groupby
from pathlib import Path
from typing import Any

SCHEMA = "stochcl.gpu.cifar10/0"
_ORDER = {"scratch": 0, "scratch-latent": 1, "twin": 2, "latent": 3}
_SAID = {
    "scratch": "from scratch, supervised, from features",
    "scratch-latent": "from scratch, supervised, through the latents",
    "twin": "deterministic twin: pre-trained, from features",
    "latent": "pre-trained and through the latents",
}
_BEFORE = (
    ("features_linear", "linear, features"), ("features_knn", "kNN, features"), ("vectors_linear", "linear, decoded"),
    ("vectors_knn", "kNN, decoded"), ("symbols_linear", "linear, symbols"), ("symbols_knn", "kNN, symbols"),
)  # fmt: skip
_AFTER = (
    ("test_top1", "top-1"), ("test_top1_mirrored", "top-1, mirrored"), ("codes_top1", "top-1, codes.bin"),
    ("codes_bits_per_image", "bits per image"),
)  # fmt: skip


def read(paths: list[Path]) -> list[dict[str, Any]]:
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    found = [json.loads(file.read_text()) for file in files]
    rows = [row for row in found if isinstance(row, dict) and row.get("schema") == SCHEMA]
    return sorted(rows, key=lambda row: (row["backbone"], row["width"], _ORDER[row["arm"]], row["seed"]))


def group(rows: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return backbone, arm and the rows of its seeds."""
    keyed = groupby(rows, key=lambda row: (row["backbone"], row["width"], row["arm"]))
    return [(f"{backbone}, width {width}", arm, list(part)) for (backbone, width, arm), part in keyed]


def figure(values: list[float | None]) -> str:
    """Return the mean, with the lowest and highest of several seeds."""
    given = [value for value in values if value is not None]
    if not given:
        return ""
    if len(given) == 1:
        return f"{given[0]:,.2f}"
    return f"{statistics.mean(given):,.2f} ({min(given):,.2f} to {max(given):,.2f})"


def table(columns: list[str], lines: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)
    ]  # fmt: skip


def fine_tuned(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for network, arm, part in group(rows):
        cells = [figure([row[key] for row in part]) for key, _ in _AFTER]
        epochs = f"{part[0]['finetuning']['epochs']:g}"
        hours = figure([row["seconds"] / 60 for row in part])
        lines.append([network, _SAID[arm], ", ".join(str(row["seed"]) for row in part), epochs, *cells, hours])
    columns = [
        "network",
        "arm",
        "seeds",
        "epochs of fine-tuning",
        *(said for _, said in _AFTER),
        "minutes of training",
    ]
    return table(columns, lines)


def label_free(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for network, arm, part in group([row for row in rows if row["before_finetuning"]]):
        cells = [figure([row["before_finetuning"].get(key) for row in part]) for key, _ in _BEFORE]
        epochs = f"{part[0]['pretraining']['epochs']:g}"
        lines.append([network, _SAID[arm].partition(":")[0], epochs, *cells])
    return table(["network", "arm", "epochs of pre-training", *(said for _, said in _BEFORE)], lines)


def paired(rows: list[dict[str, Any]]) -> list[str]:
    """Return the differences between arms, in points, for each seed that both have."""
    tops = {(row["backbone"], row["width"], row["seed"], row["arm"]): row["test_top1"] for row in rows}
    out = []
    for first, second in (("latent", "twin"), ("latent", "scratch"), ("twin", "scratch")):
        keys = sorted({key[:3] for key in tops if (*key[:3], first) in tops and (*key[:3], second) in tops})
        for network, part in groupby(keys, key=lambda key: key[:2]):
            points = [tops[(*key, first)] - tops[(*key, second)] for key in part]
            shown = ", ".join(f"{value:+.2f}" for value in points)
            mean = statistics.mean(points)
            out.append(f"- {network[0]}: {first} less {second}, by seed: {shown} points (mean {mean:+.2f})")
    return out


def made(rows: list[dict[str, Any]]) -> str:
    train, test = ({row[part]["images"] for row in rows} for part in ("train", "test"))
    text = ["Fine-tuned on labels, accuracy in percent of test images:", "", *fine_tuned(rows), ""]
    text += [*paired(rows), ""]
    if any(row["before_finetuning"] for row in rows):
        text += ["Before fine-tuning, without labels; accuracy in percent of probes:", "", *label_free(rows), ""]
    sizes = [" or ".join(f"{n:,}" for n in sorted(part)) for part in (train, test)]
    return "\n".join([*text, f"{sizes[0]} training images, {sizes[1]} test images.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--json", type=Path, help="all results in one file")
    options = parser.parse_args()
    rows = read(options.results)
    if not rows:
        parser.error("there is no result of cifar10.py.")
    if options.json:
        options.json.write_text(json.dumps({"schema": "stochcl.gpu.cifar10-table/0", "rows": rows}, indent=1) + "\n")
    if options.output:
        options.output.write_text(made(rows))
    else:
        print(made(rows))


if __name__ == "__main__":
    main()
