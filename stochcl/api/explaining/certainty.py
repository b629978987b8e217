"""The section of the most and the least certain rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.api.explaining.view import number, paragraph, percent, plot, section
from stochcl.downstream import pages, svg
from stochcl.messages import plural as counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.api.explaining.view import View


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
