"""The section of the map: rows on a plane, in pictures, and class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.api.explaining.view import paragraph, percent, plot, section
from stochcl.downstream import pages, svg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.api.explaining.view import View


_CLASSES = 12  # that have a map of their own, the largest ones
_ACROSS, _DOWN, _PICTURE = 14, 9, 44  # of the map in pictures; units of one


def the_map(view: View) -> str:
    """Return rows on a plane: all of them, in pictures, and class by class."""
    found = view.findings
    points = found.projection.points
    first, second = found.projection.shares
    what = "decoded vectors" if view.material.sample.decoder is not None else "symbols"
    text = (
        f"The first two principal components of the {what}: they have {percent(first)} and {percent(second)} of the "
        f"variance, so that what is far apart here is far apart, and what is near may not be near. "
        f"{len(found.mapped):,} {view.unit}s are drawn."
    )
    low, high = np.quantile(points, [0.002, 0.998], axis=0)
    frame = svg.Frame((low[0], high[0]), (low[1], high[1]), 640, 420, 8, 8, 8, 8)
    inside = ((points >= low) & (points <= high)).all(axis=1)
    drawn = found.mapped[inside[found.mapped]]
    places = {row: frame.at(*points[row]) for row in drawn.tolist()}
    parts = [paragraph(text), _whole_map(view, frame, np.flatnonzero(inside), places)]
    labels = view.material.labels
    if labels is not None and labels.task == "classification":
        parts.append(_maps_by_class(view, frame, drawn, places))
    return section("map", "A map of the codes", parts)


def _whole_map(
    view: View, frame: svg.Frame, rows: NDArray[np.integer], places: dict[int, tuple[float, float]]
) -> str:
    every = f'<path id="every" class="dots" d="{svg.dots(places.values())}"/>'
    pictures = []
    if view.pictures is not None:
        at = np.array([frame.at(*point) for point in view.findings.projection.points[rows]]).reshape(-1, 2)
        cells = np.floor(at / [frame.width / _ACROSS, frame.height / _DOWN])
        middle = (cells + 0.5) * [frame.width / _ACROSS, frame.height / _DOWN]
        order = np.argsort(np.square(at - middle).sum(axis=1), kind="stable")
        _, chosen = np.unique(cells[order], axis=0, return_index=True)
        for i in order[chosen].tolist():
            shown = view.image(int(rows[i]))
            if shown is not None:
                x, y = at[i] - _PICTURE / 2
                where = f'x="{x:.0f}" y="{y:.0f}" width="{_PICTURE}" height="{_PICTURE}"'
                name = pages.escape(view.name(int(rows[i])))
                pictures.append(f'<image href="{shown}" {where}><title>{name}</title></image>')
    label = f"A map of {len(places):,} {view.unit}s" + (
        f", {len(pictures)} of them as pictures." if pictures else "."
    )
    caption = f"A dot is one {view.unit}." + (" Pictures stand where they lie, one a patch." if pictures else "")
    return plot(frame.picture(label, [every, *pictures]), caption)


def _maps_by_class(
    view: View, frame: svg.Frame, rows: NDArray[np.integer], places: dict[int, tuple[float, float]]
) -> str:
    labels = view.material.labels
    if labels is None:
        return ""
    names, counts = np.unique(labels.y[labels.known], return_counts=True)
    shown = names[np.sort(np.argsort(-counts, kind="stable")[:_CLASSES])]
    figures = []
    for name in shown.tolist():
        own = [places[row] for row in rows.tolist() if str(labels.y[row]) == name]
        path = f'<use href="#every"/><path class="dots on" d="{svg.dots(own)}"/>'
        said = pages.escape(name)
        figures.append(
            f"<figure>{frame.picture(f'Where {name} lies', [path])}<figcaption>{said}</figcaption></figure>"
        )
    more = f"The {len(shown)} largest of {len(names):,} classes; " if len(names) > len(shown) else ""
    text = f"{more}of each class, where it lies among all others."
    return paragraph(text[:1].upper() + text[1:]) + f'<div class="maps">{"".join(figures)}</div>'
