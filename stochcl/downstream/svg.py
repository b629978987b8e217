"""Small plots as SVG that stands in a page: its colours are the page's, so that they serve light and dark.

A plotting library draws pictures of one background, with text as outlines, of fifty times the size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stochcl.downstream.pages import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STYLE = """\
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .axis { stroke: var(--line); stroke-width: 1; fill: none; }
svg .tick { fill: var(--soft); }
svg .line { stroke: var(--accent); stroke-width: 2; fill: none; }
svg .line.other { stroke: var(--ink); stroke-dasharray: 6 4; }
.dots { stroke: var(--soft); stroke-width: var(--pen, 3.5); stroke-linecap: round; fill: none; opacity: .55; }
.dots.on { stroke: var(--accent); opacity: .9; }
svg .bars, svg .full { fill: var(--accent); }
svg .hollow { fill: var(--paper); stroke: var(--accent); stroke-width: 1.5; }
"""
"""What a page with such plots adds to its own style."""


@dataclass(frozen=True)
class Frame:
    """Where data lies in a plot of 380 by 250 units, whose text is legible on a phone.

    Parameters
    ----------
    x, y : tuple of float
        The least and the greatest value along each axis.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 380
    height: float = 250
    left: float = 56
    right: float = 14
    top: float = 12
    bottom: float = 42

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point is drawn."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            self.left + across * (self.width - self.left - self.right),
            self.height - self.bottom - up * (self.height - self.top - self.bottom),
        )

    def axes(self, x_label: str, y_label: str) -> str:
        """Return both axes, with ticks and what they measure."""
        x0, y0 = self.at(self.x[0], self.y[0])
        x1, y1 = self.at(self.x[1], self.y[1])
        out = [f'<path class="axis" d="M{x0:.0f} {y1:.0f}V{y0:.0f}H{x1:.0f}"/>']
        for value in ticks(*self.x):
            at = self.at(value, self.y[0])[0]
            out.append(f'<text class="tick" x="{at:.1f}" y="{y0 + 16:.0f}" text-anchor="middle">{value:,g}</text>')
        for value in ticks(*self.y, count=4):
            at = self.at(self.x[0], value)[1]
            out.append(f'<path class="axis" d="M{x0:.0f} {at:.1f}H{x1:.0f}"/>')
            out.append(f'<text class="tick" x="{x0 - 6:.0f}" y="{at + 4:.1f}" text-anchor="end">{value:,g}</text>')
        out.append(f'<text x="{x1:.0f}" y="{self.height - 6:.0f}" text-anchor="end">{escape(x_label)}</text>')
        middle = (y0 + y1) / 2
        turned = f'transform="rotate(-90 12 {middle:.0f})" text-anchor="middle"'
        out.append(f'<text x="12" y="{middle:.0f}" {turned}>{escape(y_label)}</text>')
        return "".join(out)

    def picture(self, label: str, parts: Iterable[str]) -> str:
        """Return the whole, which says to those who do not see it what it shows."""
        box = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        return f'<svg {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers between two, about so many.

    Examples
    --------
    >>> ticks(0, 1024), ticks(0, 0.23)
    ([0, 200, 400, 600, 800, 1000], [0, 0.05, 0.1, 0.15, 0.2])
    """
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    unit = 10.0 ** math.floor(math.log10(span / count))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= count + 0.5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [float(f"{i * step:.10g}") for i in range(first, last + 1)]
    return [int(value) if value == int(value) else value for value in values]


def dots(points: Iterable[tuple[float, float]]) -> str:
    """Return the path of points, which a round pen makes dots: eight bytes each."""
    return "".join(f"M{x:.0f} {y:.0f}h0" for x, y in points)


def lines(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, label: str, x_label: str, y_label: str
) -> str:
    """Return rising lines, at most two, each with its name; the second is dashed."""
    frame = Frame((0, max(max(x) for _, x, _ in series)), (0, max(max(y) for _, _, y in series) or 1))
    parts = [frame.axes(x_label, y_label)]
    lowest = min(series, key=lambda one: one[2][-1])
    for number, (name, x, y) in enumerate(series):
        points = [frame.at(*point) for point in zip(x, y, strict=True)]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        parts.append(f'<path class="line{" other" if number else ""}" d="{path}"/>')
        # Where lines rise there is room above the one on the left, and below the other on the right.
        if len(series) > 1 and name == lowest[0]:
            (a, b), (move, down, anchor) = points[len(points) // 2], (4, 18, "start")
        else:
            (a, b), (move, down, anchor) = points[len(points) * 3 // 4], (-6, -8, "end")
        parts.append(f'<text x="{a + move:.0f}" y="{b + down:.0f}" text-anchor="{anchor}">{escape(name)}</text>')
    return frame.picture(label, parts)


def scatter(
    points: Sequence[tuple[float, float]], named: Sequence[tuple[float, float, str]], *, label: str, x_label: str,
    y_label: str,
) -> str:  # fmt: skip
    """Return points, some of which are marked and named."""
    frame = Frame((0, max(x for x, _ in points) or 1), (0, max(y for _, y in points) or 1))
    parts = [frame.axes(x_label, y_label), f'<path class="dots" d="{dots(frame.at(*point) for point in points)}"/>']
    marks = [(*frame.at(x, y), name) for x, y, name in named]
    parts += [f'<circle class="full" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>' for a, b, _ in marks]
    taken = [(a - 4, b, a + 4) for a, b, _ in marks]
    for a, b, name in marks:
        wide = 7 * len(name)
        for start, anchor in ((a - 7 - wide, "end"), (a + 7, "start")):
            if start > frame.left and start + wide < frame.width and _free(start, b, start + wide, taken):
                at = start + wide if anchor == "end" else start
                parts.append(f'<text x="{at:.1f}" y="{b + 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
                taken.append((start, b, start + wide))
                break
    return frame.picture(label, parts)


def _free(start: float, middle: float, end: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    """Tell whether a name would stand on no other, and on no mark."""
    return all(abs(middle - b) > 11 or end < a or start > c for a, b, c in taken)


def histogram(edges: Sequence[float], counts: Sequence[int], *, label: str, x_label: str, y_label: str) -> str:
    """Return bars over ranges of a number."""
    frame = Frame((edges[0], edges[-1]), (0, max(counts) or 1))
    parts = [frame.axes(x_label, y_label)]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        (a, b), (c, d) = frame.at(low, count), frame.at(high, 0)
        width = max(c - a - 1, 0.5)
        parts.append(f'<rect class="bars" x="{a:.1f}" y="{b:.1f}" width="{width:.1f}" height="{d - b:.1f}"/>')
    return frame.picture(label, parts)


def squares(names: Sequence[str], values: Sequence[Sequence[float]], *, label: str) -> str:
    """Return a table of numbers from -1 to 1 as squares: their size says how much, hollow ones are negative."""
    cell, left, top = 16, 44, 44
    size = left + cell * len(names) + 4
    frame = Frame((0, 1), (0, 1), width=size, height=size)
    parts = []
    for i, name in enumerate(names):
        middle = left + cell * (i + 0.5)
        parts.append(
            f'<text class="tick" x="{left - 5}" y="{middle + 4:.0f}" text-anchor="end">{escape(name)}</text>'
        )
        turned = f'transform="translate({middle + 4:.0f} {top - 5}) rotate(-90)"'
        parts.append(f'<text class="tick" {turned}>{escape(name)}</text>')
        for j, value in enumerate(values[i]):
            side = (cell - 2) * math.sqrt(min(abs(value), 1))
            if i == j or side < 2:
                continue
            x, y = left + cell * (j + 0.5) - side / 2, top + cell * (i + 0.5) - side / 2
            kind, inset = ("hollow", 0.75) if value < 0 else ("full", 0)
            shape = f'x="{x + inset:.1f}" y="{y + inset:.1f}" width="{side - 2 * inset:.1f}"'
            parts.append(f'<rect class="{kind}" {shape} height="{side - 2 * inset:.1f}"/>')
    return frame.picture(label, parts)
