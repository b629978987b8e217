"""The section of contact sheets: what switches the strongest latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochcl.api.explaining.view import number, paragraph, percent, section
from stochcl.downstream import pages

if TYPE_CHECKING:
    from stochcl.api.explaining.view import View
    from stochcl.downstream.interpretation import Side


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
