"""Plots as SVG that stands in a page: drawn by matplotlib, in the page's own colours, light and dark."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch
    from numpy.typing import NDArray

INK, SOFT, LINE, ACCENT, PAPER = "#1c1c1f", "#6b6b71", "#d9d9df", "#0a5fd1", "#fffffe"
VARIABLES = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    PAPER: "var(--paper)",
}
KEPT = {"viewBox", "d", "x", "y", "style", "transform"}  # attributes
MAP = (6.4, 4.2)  # inches of a map; its plot fills it
DOT = 2.6  # points across; a page may set --dot where a map is shown smaller

STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "stochcl", "path.simplify": False, "text.parse_math": False,
    "font.size": 11, "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT,
    "axes.edgecolor": LINE, "axes.grid": True, "axes.grid.axis": "y", "grid.color": LINE, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "xtick.color": LINE,
    "xtick.major.size": 0, "ytick.major.size": 0, "axes.formatter.useoffset": False,
}  # fmt: skip


def _draw(draw: Callable[[Axes], None], *, width: float = 4.6, height: float = 3, frame: bool = True) -> Markup:
    """Return what a function draws on axes as an SVG element; without a frame the axes fill it."""
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # no window, and no state of pyplot's
    from matplotlib.figure import Figure

    with rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fonts that lack a letter: the browser has its own
        rcdefaults()  # whatever the user's own settings are
        rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained" if frame else None)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot() if frame else figure.add_axes((0, 0, 1, 1))
        axes.set_axis_on() if frame else axes.set_axis_off()
        draw(axes)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(ET.fromstring(out.getvalue()))


def _for_page(root: ET.Element) -> Markup:
    """Return matplotlib's SVG without identifiers and namespaces, with short numbers, in the page's colours."""
    from markupsafe import Markup

    for parent in reversed(list(root.iter())):  # children first, as groups become empty
        for child in list(parent):
            if child.tag.endswith(("metadata", "defs", "use")) or (child.tag.endswith("}g") and not len(child)):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        kept = {name: text for name, text in element.attrib.items() if name in KEPT}
        for name, text in kept.items():
            short = re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), text)
            kept[name] = re.sub(r"\s+", " ", short).strip()
        style = re.sub(r"font-family:[^;]*;?|font: ", "", kept.pop("style", ""))
        for color, variable in VARIABLES.items():
            style = style.replace(color, variable)
        style = style.replace(f"stroke-width: {DOT}", f"stroke-width: var(--dot, {DOT})")
        element.attrib.clear()
        element.attrib |= kept | ({"style": style} if style else {})
    root.set("aria-hidden", "true")  # what it shows is said beside it
    return Markup(ET.tostring(root, encoding="unicode"))


def line_plot(series: Sequence[tuple[str, NDArray[Any], NDArray[Any]]], *, x_label: str, y_label: str) -> Markup:
    """Draw two rising lines from the origin, each with its name beside it; the second is dashed."""

    def draw(axes: Axes) -> None:
        lower = min(range(len(series)), key=lambda i: series[i][2][-1])
        for i, (name, x, y) in enumerate(series):
            axes.plot(x, y, color=INK if i else ACCENT, linestyle="--" if i else "-", linewidth=1.8)
            middle, below = len(x) * 6 // 10, i == lower
            axes.annotate(
                name, (x[middle], y[middle]), (4, -12) if below else (-4, 6), textcoords="offset points",
                ha="left" if below else "right",
            )  # fmt: skip
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(0, None), ylim=(0, None))

    return _draw(draw)


def scatter_plot(
    x: NDArray[Any], y: NDArray[Any], named: Sequence[tuple[float, float, str]], *, x_label: str, y_label: str
) -> Markup:
    """Draw points, some of which are marked, and named where a name covers no other name or mark."""
    from matplotlib.transforms import Bbox

    def draw(axes: Axes) -> None:
        axes.set(
            xlabel=x_label, ylabel=y_label, xlim=(0, max(x.max(), 1e-9) * 1.05), ylim=(0, max(y.max(), 1e-9) * 1.1)
        )
        axes.add_patch(_dots(np.stack([x, y], axis=1), SOFT, 0.55, 4))
        axes.add_patch(_dots(np.array([mark[:2] for mark in named]).reshape(-1, 2), ACCENT, 1, 6))
        axes.figure.draw_without_rendering()  # type: ignore[union-attr]
        marks = axes.transData.transform(np.array([mark[:2] for mark in named]).reshape(-1, 2))
        taken = [Bbox.from_bounds(a - 4, b - 4, 8, 8) for a, b in marks]
        inside = axes.get_window_extent()
        for a, b, name in named:
            for shift, side in ((6, "left"), (-6, "right")):
                text = axes.annotate(name, (a, b), (shift, 0), textcoords="offset points", ha=side, va="center")
                box = text.get_window_extent()
                if inside.contains(box.x1, box.y1) and box.x0 > inside.x0 and not box.count_overlaps(taken):
                    taken.append(box)
                    break
                text.remove()

    return _draw(draw)


def histogram(edges: NDArray[Any], counts: NDArray[Any], *, x_label: str, y_label: str) -> Markup:
    """Draw counts over ranges of a number."""

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, facecolor=ACCENT, edgecolor=PAPER, linewidth=0.5)
        axes.set(xlabel=x_label, ylabel=y_label)

    return _draw(draw)


def association_plot(names: Sequence[str], values: NDArray[Any]) -> Markup:
    """Draw a table of numbers from -1 to 1 as squares: the size says how much, hollow ones are negative."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.transforms import Affine2D

    def draw(axes: Axes) -> None:
        side = np.sqrt(np.abs(values)) * 0.92
        for sign, look in (
            (1, {"facecolor": ACCENT, "edgecolor": "none"}),
            (-1, {"fill": False, "edgecolor": ACCENT}),
        ):
            squares = [
                Path.unit_rectangle().transformed(Affine2D().translate(-0.5, -0.5).scale(side[i, j]).translate(j, i))
                for i, j in np.argwhere((values * sign > 0) & (side > 0.1) & ~np.eye(len(names), dtype=bool)).tolist()
            ]
            if squares:
                axes.add_patch(PathPatch(Path.make_compound_path(*squares), linewidth=0.9, **look))
        ends = (-0.6, len(names) - 0.4)
        axes.set(xlim=ends, ylim=ends[::-1], aspect="equal")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=9)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.tick_params(labeltop=True, labelbottom=False)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return _draw(draw, width=4.2, height=4.2)


def dot_map(
    points: NDArray[Any], low: NDArray[Any], high: NDArray[Any], *, color: str = SOFT, alpha: float = 0.55
) -> Markup:
    """Draw points between two corners, without axes."""

    def draw(axes: Axes) -> None:
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.add_patch(_dots(points, color, alpha))

    return _draw(draw, width=MAP[0], height=MAP[1], frame=False)


def _dots(points: NDArray[Any], color: str, alpha: float, width: float = DOT) -> PathPatch:
    """Return points as one path of round dots, which takes a quarter of the bytes of markers."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    path = Path(points.repeat(2, axis=0), [Path.MOVETO, Path.LINETO] * len(points))
    return PathPatch(path, fill=False, edgecolor=color, alpha=alpha, linewidth=width, capstyle="round")
