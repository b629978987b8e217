"""What all sections of the page are written from, and the words that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stochcl.downstream import pages
from stochcl.messages import escape_name as printable
from stochcl.messages import plural as counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from stochcl.api.explaining.findings import Findings
    from stochcl.api.explaining.material import Material
    from stochcl.api.pictures import Pictures


@dataclass(frozen=True, eq=False)
class View:
    """Figures and pictures; a row is one of the sample's unless it is said to be the archive's."""

    material: Material
    findings: Findings
    pictures: Pictures | None

    @property
    def unit(self) -> str:
        """Return what a row stands for."""
        return self.material.facts.unit

    def latent(self, column: int) -> str:
        """Return a latent's number in its model."""
        return f"{self.material.numbers[column]:,}"

    def name(self, row: int) -> str:
        """Return what to call a row, with its label."""
        name, label = self.material.called(int(self.material.rows[row])), self.label(row)
        return f"{name} ({label})" if label else name

    def label(self, row: int) -> str:
        """Return a row's label, or an empty text."""
        labels = self.material.labels
        if labels is None or not labels.known[row]:
            return ""
        return f"{labels.y[row]:g}" if labels.task == "regression" else printable(str(labels.y[row]))

    def image(self, row: int) -> str | None:
        """Return a row's thumbnail, None where there is none."""
        return self.image_of_archive(int(self.material.rows[row]))

    def image_of_archive(self, row: int) -> str | None:
        """Return the thumbnail of a row of the archive; by its place where rows have no names."""
        if self.pictures is None:
            return None
        names = self.material.names
        return self.pictures.of_row(row) if names is None else self.pictures.of(printable(names[row]))

    def strip(self, rows: NDArray[np.integer]) -> str:
        """Return rows side by side: their pictures, or their names where there are no pictures."""
        if self.pictures is None:
            return f'<p class="soft">{", ".join(pages.escape(self.name(row)) for row in rows.tolist())}</p>'
        shown = "".join(pages.picture(self.image(row), self.name(row)) for row in rows.tolist())
        return f'<div class="strip">{shown}</div>'


def section(key: str, title: str, parts: Iterable[str]) -> str:
    """Return a part of the page that can be linked to."""
    return "\n".join([f'<section id="{key}"><h2>{pages.escape(title)}</h2>', *parts, "</section>"])


def paragraph(text: str, *, soft: bool = False) -> str:
    """Return a paragraph of a text, which is escaped."""
    return ('<p class="soft">' if soft else "<p>") + f"{pages.escape(text)}</p>"


def plot(svg: str, caption: str) -> str:
    """Return a plot with what it shows below it."""
    return f'<figure class="plot">{svg}<figcaption>{pages.escape(caption)}</figcaption></figure>'


def percent(share: float, digits: int = 0) -> str:
    """Write a share as people do.

    Examples
    --------
    >>> percent(0.474), percent(0.001), percent(0.0)
    ('47 %', '0.1 %', '0 %')
    """
    value = 100 * share
    if 0 < value < 1 and not digits:
        digits = 1 if value >= 0.05 else 2
    return f"{value:.{digits}f} %"


def number(value: float) -> str:
    """Write a number with three digits that count.

    Examples
    --------
    >>> number(221.54), number(3.3219), number(0.001911), number(0)
    ('222', '3.32', '0.00191', '0')
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def size(count: float) -> str:
    """Write bytes in the unit that people would take.

    Examples
    --------
    >>> size(368), size(278_556), size(9_209_662)
    ('368 bytes', '279 kB', '9.21 MB')
    """
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{number(count / of)} {unit}"
    return counted(int(count), "byte")
