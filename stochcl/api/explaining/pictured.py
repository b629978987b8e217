"""Sections of images: what switches latents, what flipping them does, the map, the certain and the uncertain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.api.explaining.view import number, paragraph, percent, plot, section
from stochcl.api.report import counted
from stochcl.downstream import pages, svg

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.api.explaining.view import View
    from stochcl.downstream.interpretation import Intervention, Side

_EXAMPLES = 6  # latents whose flip is shown on a row
_CLASSES = 12  # that have a map of their own, the largest ones
_ACROSS, _DOWN, _PICTURE = 14, 9, 44  # of the map in pictures; units of one
_ANSWERS, _LEAST = 3, 0.01  # classes that an answer names, and the least share of one


def what_switches_them(view: View) -> str:
    """Return contact sheets of both sides of the strongest latents."""
    found = view.findings
    text = (
        f"Of each latent, the {view.unit}s that are typical of a side come first: their vectors lie farthest in the "
        "direction that tells the side from the other. After the gap, others of that side, drawn at random."
    )
    parts = [paragraph(text)]
    if not found.sides:
        parts.append(paragraph("No latent ever changes."))
    for column, sides in found.sides.items():
        parts.append(f"<h3>Latent {view.latent(column)}</h3>")
        parts.append('<div class="sides">' + "".join(_side(view, side) for side in sides) + "</div>")
    return section("switches", "What switches the strongest latents", parts)


def _side(view: View, side: Side) -> str:
    said = f"<b>{pages.escape(side.name)}</b> in {percent(side.share)}"
    parts = [f"<div><p>{said}{_oftener(side)}{_means(view, side)}</p>", view.strip(side.typical)]
    if len(side.random):
        parts.append(view.strip(side.random))
    return "".join([*parts, "</div>"])


def _oftener(side: Side) -> str:
    """Say which classes are more frequent on a side than they are everywhere."""
    usual = {percent(share) for _, _, share in side.classes}
    said = [
        f"{pages.escape(name)} {percent(here)}" + ("" if len(usual) == 1 else f" (of all {percent(share)})")
        for name, here, share in side.classes
    ]
    if not said:
        return ""
    each = "each " if len(said) > 1 else ""
    return f"; more often than usual: {', '.join(said)}" + (
        f" ({each}{usual.pop()} of all)" if len(usual) == 1 else ""
    )


def _means(view: View, side: Side) -> str:
    """Say what the label is on average, on a side and everywhere, where it is a number."""
    labels = view.material.labels
    if side.means is None or labels is None:
        return ""
    here, usual = side.means
    return f"; {pages.escape(labels.called)} is {number(here)} on average (of all {number(usual)})"


def what_flipping_does(view: View) -> str:
    """Return interventions: figures of the strongest latents, and one row of each."""
    found, labels = view.findings, view.material.labels
    by_vectors = view.material.sample.decoder is not None
    classes = found.probe is not None and bool(found.probe.classes)
    flips = {
        "bits": "flipped",
        "levels": "set to its 90th percentile where it is low, and to its 10th where it is high",
        "categories": "set to its most frequent value, or where it has that to the second",
    }[view.material.sample.kind]
    held = "" if found.probe is None else " that the probe has not seen"
    text = (
        f"One latent is {flips}, and all others stay as they are, in up to 200 {view.unit}s{held}. "
        + ("The code is decoded again" if by_vectors else "The model has no decoder to vectors: symbols are compared")
        + f", and its nearest of {min(len(view.material.sample), 10_000):,} {view.unit}s are sought anew."
    )
    parts = [paragraph(text)]
    if found.interventions:
        parts.append(paragraph(_summary(view)))
        heads = ["latent", "moves by", "nearest stay"]
        heads += ["answer changes"] if classes else []
        heads += [_switching(view)] if found.probe is not None else []
        rows = [_row(view, one, classes=classes) for one in found.interventions]
        parts.append(pages.table(heads, rows))
        moved = "angle between the vector and" if by_vectors else "distance of the symbols from"
        note = f"Moves by: median {moved} what it was. "
        note += "Nearest stay: how many of the ten nearest are still among them, on average."
        if found.probe is not None and labels is not None:
            note += f" The last column: how the probe's mean answer about {labels.called} changes when the latent "
            note += "goes from one end to the other in all of them."
        parts.append(paragraph(note, soft=True))
        parts.append(paragraph(
            f"Of each latent, below, the {view.unit} whose nearest change most, of those that do not stand above."
        ))  # fmt: skip
        parts += [_example(view, one) for one in found.interventions[:_EXAMPLES]]
    return section("flips", "What flipping a latent does", parts)


def _summary(view: View) -> str:
    found = view.findings.interventions
    moved = float(np.median([one.moved for one in found]))
    nearest = found[0].nearest
    most = max(found, key=lambda one: one.moved)
    far = _apart if view.material.sample.decoder is None else _turned
    what = "a row" if view.unit == "row" else "an image"
    text = f"Of these latents, one flip moves the code of {what} by {far(moved)} (median)"
    if nearest:
        text += f", where its nearest neighbour is {far(nearest)} away"
    text += f"; latent {view.latent(most.column)} moves it most, by {far(most.moved)}."
    if nearest and moved < nearest / 20:
        text += " So the code hardly leans on any one of them: what one says, others say too."
    return text


def _turned(distance: float) -> str:
    """Write a distance of directions as the angle between them; 1 - cosine grows with its square."""
    return f"{np.degrees(np.arccos(np.clip(1 - distance, -1, 1))):.1f}\u00b0"


def _apart(distance: float) -> str:
    return number(distance)


def _switching(view: View) -> str:
    ends = {"bits": "off to on", "levels": "low to high", "categories": "first to second"}
    return f"{ends[view.material.sample.kind]}, the answer"


def _row(view: View, one: Intervention, *, classes: bool) -> list[object]:
    far = _apart if view.material.sample.decoder is None else _turned
    row: list[object] = [view.latent(one.column), far(one.moved), f"{10 * one.kept:.1f} of 10"]
    if classes:
        row.append("" if one.changed is None else percent(one.changed, 1))
    probe = view.findings.probe
    if probe is not None and one.means is not None:
        change = one.means[1] - one.means[0]
        if not classes:
            row.append(f"{change[0]:+.3g}")
        else:
            up, down = int(change.argmax()), int(change.argmin())
            row.append(
                f"{probe.classes[up]} {100 * change[up]:+.1f}, {probe.classes[down]} {100 * change[down]:+.1f} points"
            )
    return row


def _example(view: View, one: Intervention) -> str:
    example = one.example
    lines = [view.name(example.row)]
    shown = pages.figure(view.image(example.row), lines, query=True, alt=lines[0])
    stays = len(np.intersect1d(example.before, example.after))
    to = pages.escape(example.to)
    parts = [
        f"<h3>Latent {view.latent(one.column)}</h3>",
        f'<div class="flip">{shown}<div><p>as it is{_answer(view, one, 0)}; nearest:</p>',
        view.strip(example.before),
        f"<p>flipped to <b>{to}</b>{_answer(view, one, 1)}; nearest, {stays} of them as before:</p>",
        view.strip(example.after),
        "</div></div>",
    ]
    return "".join(parts)


def _answer(view: View, one: Intervention, which: int) -> str:
    probe, answers = view.findings.probe, one.example.answers
    if probe is None or answers is None:
        return ""
    if not probe.classes:
        return f": the probe says {answers[which][0]:.3g}"
    order = np.argsort(-answers[which], kind="stable")[:_ANSWERS].tolist()
    order = [i for i in order if answers[which][i] >= _LEAST] or order[:1]
    said = ", ".join(f"{pages.escape(probe.classes[i])} {percent(float(answers[which][i]))}" for i in order)
    return f": the probe says {said}"


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


def who_is_certain(view: View) -> str:
    """Return the most and the least certain rows, and how certain all are."""
    values, unit = view.material.uncertainty, view.unit
    title = f"The most and the least certain {unit}s"
    if values is None:
        text = "No uncertainty is stored in this archive; `stochcl compress --uncertainty` stores it."
        return section("certain", title, [paragraph(text)])
    counts, edges = np.histogram(values, bins=min(40, max(1, len(np.unique(values)))))
    text = (
        "How much the encoder could have coded otherwise, as the entropy of its posterior: "
        f"{number(float(values.min()))} to {number(float(values.max()))} bits, half of them below "
        f"{number(float(np.median(values)))}. It is low where the code is clear, "
        "which need not be where a probe is right."
    )
    drawn = svg.histogram(
        edges.tolist(), counts.tolist(), label=f"How uncertain {unit}s are: {text}", x_label="bits of entropy",
        y_label=f"{unit}s",
    )  # fmt: skip
    parts = [paragraph(text), plot(drawn, f"All {counted(len(values), unit)}.")]
    parts += _right_by_certainty(view, values)
    for name, rows in (("Most certain", view.findings.certain), ("Least certain", view.findings.uncertain)):
        parts.append(f"<h3>{name}</h3>")
        figures = []
        for row in rows.tolist():
            called = view.material.called(row)
            shown = view.image_of_archive(row) if view.pictures is not None else None
            lines = [f"{number(float(values[row]))} bits", called]
            if view.pictures is None:
                figures.append(f"<figure><figcaption>{'<br>'.join(map(pages.escape, lines))}</figcaption></figure>")
            else:
                figures.append(pages.figure(shown, lines, alt=called))
        parts.append(pages.grid(figures))
    return section("certain", title, parts)


def _right_by_certainty(view: View, values: NDArray[np.float32]) -> list[str]:
    probe = view.findings.probe
    if probe is None or probe.right is None or len(probe.right) < 100:
        return []
    held = values[view.material.rows[probe.held]]
    fifths = np.array_split(np.argsort(held, kind="stable"), 5)
    certain, uncertain = (float(probe.right[part].mean()) for part in (fifths[0], fifths[-1]))
    return [paragraph(
        f"Of the {len(held):,} {view.unit}s that the probe was scored on, it answers {percent(certain)} of the most "
        f"certain fifth rightly, and {percent(uncertain)} of the least certain fifth."
    )]  # fmt: skip
