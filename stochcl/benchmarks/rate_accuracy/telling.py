"""The result in words: the table, and what it comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = ("method", "code", "stored as", "bits", "+ side", "at a million", "accuracy", "95 % interval")
"""Bits per image of the test images: payload; with side information over all images here; and over a million."""

_SECOND = "bits_with_side"


def title(result: dict[str, Any]) -> str:
    """Return what stands above the table."""
    n = result["n"]
    return (
        f"{n['test']:,} test images of {result['classes']:,} classes, after {n['train']:,} to learn from; "
        f"{result['probe']} probe, bits per image"
    )


def lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table."""
    return [
        (
            row["method"],
            row["code"] + (", symbols" if row["input"] == "symbols" else ""),
            row["coding"],
            f"{row['bits_per_image']:,.1f}",
            f"{row['bits_with_side']:,.1f}",
            f"{row['bits_with_side_of_a_million']:,.1f}",
            f"{row['accuracy']:.2%}",
            f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}",
        )
        for row in result["rows"]
    ]


def summary(result: dict[str, Any]) -> Iterator[str]:
    """Yield sentences: what is saved at equal accuracy, with side information, and what is left at a 588th."""
    if (fit := result.get("fit")) is not None:
        yield (
            f"'fitted elsewhere' are quantisers fitted, with the tables of their codes, to {fit['images']:,} images "
            f"of {', '.join(fit['sources'])}; the probe learns from the same images as in all other rows"
        )
    n = sum(result["n"].values())
    refused: dict[str, list[str]] = {}
    for entry in result["savings"]:
        if entry["bits"] != _SECOND:
            continue
        against = f"{entry['against']} ({entry['coding']})"
        if entry["saving"] is None:
            refused.setdefault(entry["refused"], []).append(against)
            continue
        low, high = entry["accuracies"]
        between = f"between {low:.1%} and {high:.1%} accuracy"
        yield (
            f"against {against}: {_percent(entry['saving'])}{_interval(entry)} bits at equal accuracy, {between}, "
            f"side information over {n:,} images counted"
        )
    for reason, names in refused.items():
        yield f"not compared with {', '.join(names)}: {reason}"
    for line in result["reductions"]:
        at = f"a 588th of {line['of']} is {line['bits']:,.1f} bits per image"
        if line["code"] is None:
            yield f"{at}: none of our codes is that small"
            continue
        relative = "" if line["relative"] is None else f", {line['relative']:.1%} of what float32 features have"
        yield (
            f"{at}: {line['accuracy']:.2%} accuracy{relative} ({line['method']}, {line['code']}, "
            f"{line['bits_per_image']:,.1f} bits)"
        )


def _percent(value: float) -> str:
    if value < -1:
        return f"{1 - value:.1f} times as many"
    return f"{value:.1%} fewer" if value >= 0 else f"{-value:.1%} more"


def _interval(entry: dict[str, Any]) -> str:
    if entry["saving_low"] is None:
        return ""
    return f" (95 % interval of the saving {entry['saving_low']:.1%} to {entry['saving_high']:.1%})"
