"""Building blocks of single-file HTML pages: escaping templates, thumbnails, and plots as SVG."""

from __future__ import annotations

import base64
import io
import re
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np

from stochcl.data import ImageSource, Preprocess, open_source
from stochcl.errors import EnvironmentFault, ImageError, UsageError
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch
    from numpy.typing import NDArray

    from stochcl.files import PathLike


WEBP_QUALITY = 70  # 96 pixels take about 2 kB, 64 about 1 kB


def percent(share: float, digits: int = 0) -> str:
    """Format a share.

    >>> percent(0.474), percent(0.001), percent(0.0)
    ('47 %', '0.1 %', '0 %')
    """
    value = 100 * share
    if 0 < value < 1 and not digits:
        digits = 1 if value >= 0.05 else 2
    return f"{value:.{digits}f} %"


def number(value: float) -> str:
    """Format a number with three significant digits.

    >>> number(221.54), number(3.3219), number(0.001911), number(0)
    ('222', '3.32', '0.00191', '0')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Format bytes.

    >>> size(1), size(368), size(278_556), size(9_209_662)
    ('1 byte', '368 bytes', '279 kB', '9.21 MB')
    """
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{number(count / of)} {unit}"
    return f"{count:,.0f} byte{'' if count == 1 else 's'}"


def _visible(value: Any) -> Any:
    """Escape characters that are not printable Unicode, because file names may hold any bytes."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return escape_name(value)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        finalize=_visible, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent, "number": number, "size": size, "commas": "{:,}".format, "median": np.median
    }  # fmt: skip
    return environment


def render(template: str, **values: Any) -> str:
    """Render a template beside this file, with values escaped."""
    return _environment().get_template(template).render(**values)


def thumbnail(pixels: NDArray[Any]) -> str:
    """Return an image, uint8 of shape (H, W, 3) or (H, W), as the data URI of a WebP file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")


class Thumbnails:
    """Thumbnails of a source's images; records which were ``asked`` for and which are ``missing``."""

    def __init__(self, path: PathLike, *, size: int = 96) -> None:
        source = open_source(path)
        if not isinstance(source, ImageSource):
            raise UsageError(f"{escape_name(path)}: this holds vectors, and thumbnails need images; omit it.")
        self.source, self._preprocess = source, Preprocess(size, "pad")
        self._rows = {escape_name(entry.name): row for row, entry in reversed(list(enumerate(source.entries)))}
        self._made: dict[int, str | None] = {}
        self.asked: set[str | int] = set()
        self.missing: set[str | int] = set()

    def of(self, which: str | int) -> str | None:
        """Return the image with a printable name or at a position in the source; None if missing."""
        row = self._rows.get(which) if isinstance(which, str) else which if which < len(self.source) else None
        shown = None if row is None else self._load(row)
        self.asked.add(which)
        if shown is None:
            self.missing.add(which)
        return shown

    def _load(self, row: int) -> str | None:
        if row not in self._made:
            try:
                self._made[row] = thumbnail(self.source.load(row, self._preprocess))
            except (ImageError, EnvironmentFault):
                self._made[row] = None
        return self._made[row]


INK, SOFT, LINE, ACCENT, PAPER = "#1c1c1f", "#6b6b71", "#d9d9df", "#0a5fd1", "#fffffe"
VARIABLES = {
    INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", ACCENT: "var(--accent)", PAPER: "var(--paper)",
}  # fmt: skip
KEPT = {"viewBox", "d", "x", "y", "style", "transform"}  # attributes
MAP = (6.4, 4.2)  # inches of a map; its plot fills it
DOT = 2.6  # diameter in points; a page may set --dot for smaller maps

STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "stochcl", "path.simplify": False, "text.parse_math": False,
    "font.size": 11, "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT,
    "axes.edgecolor": LINE, "axes.grid": True, "axes.grid.axis": "y", "grid.color": LINE, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "xtick.color": LINE,
    "xtick.major.size": 0, "ytick.major.size": 0, "axes.formatter.useoffset": False,
}  # fmt: skip


def _draw(draw: Callable[[Axes], None], *, width: float = 4.6, height: float = 3, frame: bool = True) -> Markup:
    """Return an SVG element of axes drawn by a function; without a frame the axes fill it."""
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # no window, and no state of pyplot's
    from matplotlib.figure import Figure

    with rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fonts that lack a character: the browser has its own
        rcdefaults()  # ignores the user's settings
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
    """Return matplotlib's SVG in the page's colours, with short numbers and without identifiers and namespaces."""
    from markupsafe import Markup

    for parent in reversed(list(root.iter())):  # children first, because groups become empty
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
    root.set("aria-hidden", "true")  # the text beside it says the same
    return Markup(ET.tostring(root, encoding="unicode"))


def line_plot(series: Sequence[tuple[str, NDArray[Any], NDArray[Any]]], *, x_label: str, y_label: str) -> Markup:
    """Draw two rising lines from the origin, labelled in place; the second is dashed."""

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
    """Draw points, some marked, and label marks where the name overlaps no other name or mark."""
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
    """Draw a histogram from edges and counts."""

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, facecolor=ACCENT, edgecolor=PAPER, linewidth=0.5)
        axes.set(xlabel=x_label, ylabel=y_label)

    return _draw(draw)


def association_plot(names: Sequence[str], values: NDArray[Any]) -> Markup:
    """Draw a table of numbers from -1 to 1 as squares: size is magnitude, negative ones are hollow."""
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
    """Return points as one path of round dots, a quarter of the bytes of markers."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    path = Path(points.repeat(2, axis=0), [Path.MOVETO, Path.LINETO] * len(points))
    return PathPatch(path, fill=False, edgecolor=color, alpha=alpha, linewidth=width, capstyle="round")
