"""The section of interventions: what flipping a latent does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.api.explaining.view import number, paragraph, percent, section
from stochcl.downstream import pages

if TYPE_CHECKING:
    from stochcl.api.explaining.view import View
    from stochcl.downstream.interpretation import Intervention

_EXAMPLES = 6  # latents whose flip is shown on a row
_ANSWERS, _LEAST = 3, 0.01  # classes that an answer names, and the least share of one


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
