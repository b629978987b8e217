"""Draw the plot of README.md from recorded results: bits against accuracy, ours beside quantisers.

    python tools/plot_readme.py benchmarks/results/rate-accuracy -o readme.png

The panel of images is of cifar10-features.json, which has quantisers, or else of cifar10.json; that of text is of
text.json. `stochcl benchmark rate-accuracy` wrote them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stochcl.benchmarks.inputs import ELSEWHERE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "CIFAR-10 image features": ("cifar10-features.json", "cifar10.json"),
    "Text embeddings": ("text.json",),
}
OTHERS = {"LSQ": ("#e08e00", "D"), "RQ": ("#8d5a97", "s"), "OPQ": ("#2e8b57", "^"), "PQ": ("#d1495b", "v")}
"""Quantisers and their looks; dashed if fitted to other rows."""


def points(rows: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Return the best row of each size of a method, entropy-coded if measured."""
    found = [row for row in rows if row["method"] == method and row["input"] == "vectors"]
    coded = [row for row in found if row["coding"] != "packed"] or found
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(coded, key=lambda row: row["accuracy"]):
        best[row["code"].partition(",")[0]] = row  # "64 bits, beam 8"
    return sorted(best.values(), key=lambda row: row["bits_per_image"])


def draw_panel(axes: Axes, result: dict[str, Any], title: str) -> None:
    """Draw a result's first model, its quantisers, and its float features as a horizontal line."""
    rows = result["rows"]
    for name in dict.fromkeys(row["method"] for row in rows):
        if (base := name.removesuffix(ELSEWHERE)) in OTHERS:
            shade, marker = OTHERS[base]
            line = "--" if name != base else "-"
            draw_curve(
                axes, points(rows, name), label=name, color=shade, marker=marker, linestyle=line, linewidth=1.2
            )
    ours = points(rows, result["models"][0]["name"])
    draw_curve(axes, ours, label="stochcl", color="black", marker="o", linewidth=2.4, zorder=5)
    ends = ([100 * row[f"accuracy_{end}"] for row in ours] for end in ("low", "high"))
    axes.fill_between([row["bits_per_image"] for row in ours], *ends, color="black", alpha=0.1, linewidth=0)
    for row in rows:
        if row["method"] == "float32":
            axes.axhline(100 * row["accuracy"], color="0.4", linestyle=":", linewidth=1.2)
            said = f"float features, {row['bits_per_image']:,.0f} bits: {100 * row['accuracy']:.1f} %"
            axes.annotate(said, (7.5, 100 * row["accuracy"]), (0, -10), textcoords="offset points", color="0.3")
    axes.set_xscale("log", base=2)
    axes.set_xticks([8, 16, 32, 64, 128, 256])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set_xlim(7, 300)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"{title}, {result['classes']} classes", loc="left")
    axes.set_xlabel("bits per image" if "image" in title else "bits per row")
    axes.set_ylabel("accuracy of a linear classifier, %")
    axes.grid(visible=True, alpha=0.3, linewidth=0.5)
    axes.legend(loc="lower right", frameon=False)


def draw_curve(axes: Axes, rows: list[dict[str, Any]], **look: Any) -> None:
    axes.plot([row["bits_per_image"] for row in rows], [100 * row["accuracy"] for row in rows], markersize=5, **look)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RESULTS", help="the folder of the results")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    options = parser.parse_args(arguments)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, files) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        there = [path for path in map(options.folder.joinpath, files) if path.exists()]
        if not there:
            parser.error(f"{options.folder} has no {files[-1]}; measure it with tools/measure.py.")
        draw_panel(axes, json.loads(there[0].read_text("utf-8")), title)
    figure.savefig(options.output, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
