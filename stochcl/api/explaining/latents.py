"""Sections of numbers: what latents cost, what they say about labels, how they go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.api.explaining.view import number, paragraph, percent, plot, section
from stochcl.downstream import pages, svg
from stochcl.messages import plural as counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from stochcl.api.explaining.view import View


_NAMED = 8  # latents that a plot names
_SQUARES = 20
_PAIRS = 10
_CURVE = 200  # points of a curve


def what_latents_cost(view: View) -> str:
    """Return rates: of each latent alone, and given those before it."""
    found, material = view.findings, view.material
    alone, given = float(found.alone.sum()), float(material.lengths.sum())
    saved = 1 - given / alone if alone else 0.0
    text = (
        f"Each by itself, the latents would take {number(alone)} bits per {view.unit}. "
        f"Coded one after the other, each with its probability given those before it, they take {number(given)}"
    )
    text += f": {percent(saved)} of what they say has been said before." if saved > 0.01 else "."
    step = max(1, len(found.alone) // _CURVE)
    ends = np.unique(np.r_[0, np.arange(step, len(found.alone), step), len(found.alone)])
    totals = [np.r_[0, np.cumsum(bits)][ends].tolist() for bits in (material.lengths, found.alone)]
    drawn = svg.lines(
        [("given those before", ends.tolist(), totals[0]), ("each alone", ends.tolist(), totals[1])],
        label=f"Bits of the first latents: {number(given)} of all given those before, {number(alone)} each alone.",
        x_label="first latents kept", y_label=f"bits per {view.unit}",
    )  # fmt: skip
    caption = "Bits that the first so many latents take; the dashed line is without what the model knows of them."
    order = found.strongest.tolist()
    rest = np.argsort(-_score(view), kind="stable").tolist()
    parts = [
        paragraph(text),
        plot(drawn, caption),
        f"<h3>The strongest {len(order)}</h3>" if order else "",
        _table(view, order),
        f"<details><summary>All {len(rest):,} latents, by what they {_verb(view)}</summary>",
        _table(view, rest),
        "</details>",
    ]
    return section("latents", "What each latent costs", parts)


def _verb(view: View) -> str:
    return {"information": "say about the label", "weight": "weigh in the vectors", "entropy": "take alone"}[
        view.findings.strength
    ]


def _score(view: View) -> Any:
    found = view.findings
    if found.information is not None:
        return found.information.bits
    return found.weights if found.strength == "weight" else found.alone


def _table(view: View, columns: Sequence[int]) -> str:
    found, material = view.findings, view.material
    first = {"bits": "on", "levels": "mean (deviation)", "categories": "most frequent value"}[material.sample.kind]
    heads = ["latent", first, "bits alone", "bits given those before"]
    if found.information is not None and material.labels is not None:
        heads.append(f"bits about {material.labels.called}")
    if found.weights.any():
        heads.append("share of vectors")
    heads += ["goes most with", "by"]
    place = {int(column): i for i, column in enumerate(found.compared)}
    rows = []
    for column in columns:
        row: list[object] = [view.latent(column), _value(view, column), f"{found.alone[column]:.3f}"]
        row.append(f"{material.lengths[column]:.3f}")
        if found.information is not None:
            row.append(f"{found.information.bits[column]:.4f}")
        if found.weights.any():
            row.append(percent(float(found.weights[column]), 1))
        row += _partner(view, place.get(column))
        rows.append(row)
    return pages.table(heads, rows, kind="sortable")


def _value(view: View, column: int) -> str:
    counts = view.findings.counts[column]
    total = counts.sum()
    if view.material.sample.kind == "bits":
        return percent(float(counts[1:].sum() / total), 1)
    if view.material.sample.kind == "categories":
        return f"{int(counts.argmax())} ({percent(float(counts.max() / total))})"
    values = np.arange(len(counts))
    mean = float(counts @ values / total)
    return f"{mean:.1f} ({np.sqrt(float(counts @ np.square(values - mean) / total)):.1f})"


def _partner(view: View, at: int | None) -> tuple[str, str]:
    """Return the latent that one goes most with, and how closely."""
    if at is None or len(view.findings.associated) < 2:
        return "", ""
    values = view.findings.associated[at].copy()
    values[at] = 0
    best = int(np.abs(values).argmax())
    if not values[best]:
        return "", ""
    return view.latent(int(view.findings.compared[best])), f"{values[best]:+.2f}"


def what_latents_say(view: View) -> str | None:
    """Return mutual information with the label, if there is one."""
    found, labels = view.findings, view.material.labels
    if found.information is None or labels is None:
        return None
    info, target = found.information, labels.called
    above = int((info.bits > info.chance).sum())
    kinds = "its deciles" if labels.task == "regression" else f"{len(np.unique(labels.y[labels.known])):,} classes"
    text = (
        f"To know {target} of {counted(int(labels.known.sum()), view.unit)} ({kinds}) takes "
        f"{number(info.label_bits)} bits. The strongest latent says {number(float(info.bits.max()))} of them. "
        f"{above:,} of {len(info.bits):,} latents say more than {number(info.chance)} bits, which is more than "
        "chance would give any of them (at 95 %)."
    )
    named = [(float(found.alone[c]), float(info.bits[c]), view.latent(c)) for c in found.strongest[:_NAMED].tolist()]
    drawn = svg.scatter(
        list(zip(found.alone.tolist(), info.bits.tolist(), strict=True)), named,
        label=f"What each latent says about {target}, against its own bits; the table has the numbers.",
        x_label="bits of the latent alone", y_label=f"bits about {target}",
    )  # fmt: skip
    caption = "A dot is a latent. Latents that say the same say it twice here: these bits do not add up."
    return section("labels", f"What latents say about {target}", [paragraph(text), plot(drawn, caption)])


def how_latents_go_together(view: View) -> str | None:
    """Return associations: of the strongest latents, and the closest pairs of all."""
    found = view.findings
    if len(found.compared) < 2:
        return None
    categories = view.material.sample.kind == "categories"
    upper = np.triu_indices(len(found.compared), 1)
    values = found.associated[upper]
    order = np.argsort(-np.abs(values), kind="stable")[:_PAIRS]
    what = "Cramer's V" if categories else "the correlation"
    close = int((np.abs(values) >= 0.7).sum())
    whole = len(found.compared) == len(found.counts)
    among = "" if whole else f" of the {len(found.compared):,} strongest latents"
    text = (
        f"Half of all pairs{among} have less than {number(float(np.median(np.abs(values))))} "
        f"({what}, {'0' if categories else '-1'} to 1); {counted(close, 'pair')} {'has' if close == 1 else 'have'} "
        "0.7 or more, and say much the same."
    )
    pairs = [
        (
            view.latent(int(found.compared[upper[0][i]])),
            view.latent(int(found.compared[upper[1][i]])),
            f"{values[i]:+.2f}",
        )
        for i in order.tolist()
    ]
    places = np.searchsorted(found.compared, found.strongest)
    ranked = np.argsort(-_score(view)[found.compared], kind="stable")
    places = np.r_[places, ranked[~np.isin(ranked, places)]][:_SQUARES]
    drawn = svg.squares(
        [view.latent(int(found.compared[i])) for i in places.tolist()],
        found.associated[np.ix_(places, places)].tolist(),
        label="How the strongest latents go together; the closest pairs are in the table.",
    )
    caption = "The strongest latents: the larger a square, the closer the two."
    caption += "" if categories else " Filled: both rise together. Hollow: one falls as the other rises."
    table = pages.table(("latent", "and latent", "by"), pairs)
    beside = f'<div class="sides">{plot(drawn, caption)}<div><h3>The closest pairs</h3>{table}</div></div>'
    return section("together", "Which latents go together", [paragraph(text), beside])
