"""Say what codes are worth at a 588th of three things, from a file that `stochcl benchmark rate-accuracy` wrote.

    python tools/reductions.py results/results.json --side 32

588 is 224 x 224 x 3 bytes over 2,048 bits (Ramapuram et al., arXiv 2110.00552, section 1). The three are pixels at
224 x 224, pixels at the images' own size (SIDE) and float32 features. For each, the most accurate code of at most a
588th of its bits is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

PAPER = 588
PIXEL_BITS, FLOAT_BITS = 24, 32


def reductions(result: dict[str, Any], side: int | None) -> list[dict[str, Any]]:
    """Return each quantity (``of``), its 588th in ``bits``, and our best code that fits, with its accuracy."""
    whole = {"pixels at 224 x 224": 224 * 224 * PIXEL_BITS}
    if side is not None:
        whole[f"pixels at the images' own {side} x {side}"] = side * side * PIXEL_BITS
    whole[f"float32 features, {result['features']}"] = result["features"] * FLOAT_BITS
    reference = next((row["accuracy"] for row in result["rows"] if row["method"] == "float32"), None)
    found = []
    for of, bits in whole.items():
        least = bits / PAPER
        ours = [row for row in result["rows"] if row["group"] == "ours" and row["bits_per_image"] <= least]
        best = max(ours, key=lambda row: row["accuracy"], default=None)
        line: dict[str, Any] = {"of": of, "bits": round(least, 1), "code": None}
        if best is not None:
            line |= {key: best[key] for key in ("method", "code", "input", "bits_per_image", "accuracy")}
            line["relative"] = best["accuracy"] / reference if reference else None
        found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--side", type=int, help="Pixels of the images themselves, where they are squares of a size.")
    options = parser.parse_args()
    for line in reductions(json.loads(options.results.read_text("utf-8")), options.side):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
