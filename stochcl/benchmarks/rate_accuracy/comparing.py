"""What the curves come to: savings at equal accuracy, and what is left at a 588th."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks.bjontegaard import Curve, NoSavingError, saving

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAPER = 588
"""224 x 224 x 3 bytes by 2,048 bits (Ramapuram et al., arXiv 2110.00552, section 1)."""

BITS = ("bits_per_image", "bits_with_side", "bits_with_side_of_a_million")

_PIXEL_BITS, _FLOAT_BITS = 24, 32


def curve_of(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return the curve that a row is a point of: its method, how it is stored, and what the probe is given."""
    return row["method"], row["coding"], row["input"]


def savings(rows: list[dict[str, Any]], right: NDArray[np.bool_], *, seed: int) -> list[dict[str, Any]]:
    """Hold the curve of our first model's vectors against every other one that has more than one point."""
    places: dict[tuple[str, str, str], list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(curve_of(row), []).append(i)
    first = next((curve_of(row) for row in rows if row["group"] == "ours" and row["input"] == "vectors"), None)
    found = []
    for curve, at in places.items():
        if first is None or curve == first or len(at) < 2:
            continue
        for column in BITS:
            ours, other = (
                Curve(np.array([rows[i][column] for i in part]), right[part]) for part in (places[first], at)
            )
            entry: dict[str, Any] = {"ours": first[0], "against": curve[0], "coding": curve[1], "bits": column}
            try:
                held = saving(ours, other, seed=seed)
            except NoSavingError as exc:
                found.append(entry | {"saving": None, "refused": str(exc)})
                continue
            found.append(
                entry
                | {
                    "saving": held.saving, "saving_low": held.low, "saving_high": held.high,
                    "accuracies": list(held.accuracies),
                }
            )  # fmt: skip
    return found


def reductions(rows: list[dict[str, Any]], features: int, side: int | None) -> list[dict[str, Any]]:
    """Say what our codes are worth at a 588th of three things that one may mean by it."""
    whole: dict[str, float | None] = {
        "pixels at 224 x 224": 224 * 224 * _PIXEL_BITS,
        f"pixels at the images' own {side} x {side}": None if side is None else side * side * _PIXEL_BITS,
        f"float32 features, {features}": features * _FLOAT_BITS,
    }
    reference = next((row["accuracy"] for row in rows if row["method"] == "float32"), None)
    found = []
    for of, bits in whole.items():
        if bits is None:
            continue
        least = bits / PAPER
        ours = [row for row in rows if row["group"] == "ours" and row["bits_per_image"] <= least]
        best = max(ours, key=lambda row: row["accuracy"], default=None)
        line: dict[str, Any] = {"of": of, "bits": round(least, 1), "code": None}
        if best is not None:
            line |= {key: best[key] for key in ("code", "input", "bits_per_image", "accuracy")}
            line["method"] = best["method"]
            line["relative"] = None if not reference else best["accuracy"] / reference
        found.append(line)
    return found
