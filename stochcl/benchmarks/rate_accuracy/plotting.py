"""The plot: log bits against accuracy, with intervals, legible without colour."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from stochcl.benchmarks.rate_accuracy.comparing import curve_of
from stochcl.benchmarks.rate_accuracy.measuring import ELSEWHERE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^v<>PX*hp"
_STYLES = ("-", "--", "-.", ":")
_SHADES = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d5a97", "#c77700", "#4d4d4d", "#00868b", "#a0522d")
_LEFT_OUT = ("packed", "files")  # where the same code is there for fewer bits
_DPI = 150


def draw(result: dict[str, Any], kind: str, column: str = "bits_per_image") -> bytes:
    """Return the plot as a file."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A fixed salt and no date: the same result gives the same file.
    with rc_context({"svg.hashsalt": "stochcl", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for curve in curves(result["rows"]):
            _draw_curve(axes, curve, column)
        axes.set_xscale("log", base=2)
        axes.set_xlabel(f"bits per image ({_LABELS[column]})")
        axes.set_ylabel(f"accuracy of a {result['probe']} probe, %")
        axes.set_title(f"{result['n']['test']:,} test images, {result['classes']:,} classes", loc="left")
        axes.grid(visible=True, alpha=0.3, linewidth=0.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else {"Software": None}
        )
    return buffer.getvalue()


_LABELS = {
    "bits_per_image": "payload",
    "bits_with_side": "with side information over these images",
    "bits_with_side_of_a_million": "with side information over a million images",
}


@dataclass(frozen=True)
class Curve:
    """Points that are joined, and how they look.

    Parameters
    ----------
    label : str
    rows : list of dict
    marker, style, shade : str
        As matplotlib names them.
    filled : bool
        Whether markers are.
    ours : bool
    """

    label: str
    rows: list[dict[str, Any]]
    marker: str
    style: str
    shade: str
    filled: bool
    ours: bool


def curves(rows: list[dict[str, Any]]) -> list[Curve]:
    """Return the curves that are drawn of rows.

    A quantiser that is fitted to other sources has the marker and the shade of the one that is not, hollow and
    dashed; where there is such a one, nothing else is dashed.
    """
    points: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        points.setdefault(curve_of(row), []).append(row)
    codings: dict[str, set[str]] = {}
    for method, coding, _ in points:
        codings.setdefault(method, set()).add(coding)
    two = any(method.endswith(ELSEWHERE) for method in codings)
    free = zip(cycle(_MARKERS), cycle(_STYLES), cycle(_SHADES), strict=False)
    looks: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    found = []
    for (method, coding, given), part in points.items():
        if coding in _LEFT_OUT and len(codings[method]) > 1:
            continue
        base = method.removesuffix(ELSEWHERE), coding, given
        if base not in looks:
            looks[base] = next(free)
        marker, style, shade = looks[base]
        elsewhere, ours = method.endswith(ELSEWHERE), part[0]["group"] == "ours"
        label = f"{method}, {given}" if ours else f"{method}, {coding}" if coding != "packed" else method
        if two:
            style = "--" if elsewhere else "-"
        found.append(Curve(label, part, marker, style, shade, not elsewhere, ours))
    return found


def _draw_curve(axes: Axes, curve: Curve, column: str) -> None:
    ordered = sorted(curve.rows, key=lambda row: row[column])
    x = [row[column] for row in ordered]
    y = [100 * row["accuracy"] for row in ordered]
    low, high = ([100 * abs(row["accuracy"] - row[f"accuracy_{end}"]) for row in ordered] for end in ("low", "high"))
    look: dict[str, Any] = {"linewidth": 1.1, "markersize": 4.5, "color": curve.shade}
    if curve.ours:
        look = {"linewidth": 2.4, "markersize": 6, "color": "black", "zorder": 5}
    if not curve.filled:
        look["markerfacecolor"] = "white"
    axes.errorbar(
        x, y, yerr=[low, high], label=curve.label, marker=curve.marker,
        linestyle=curve.style if len(ordered) > 1 else "none", elinewidth=0.7, capsize=1.5, **look,
    )  # fmt: skip
