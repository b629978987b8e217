"""Accuracy against the share of images refused, as a picture that is legible without colours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from stochcl.atomic import replacing
from stochcl.errors import OutputError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from stochcl.downstream.uncertainty import Kept

ENDINGS = (".png", ".svg", ".pdf")

_LOOKS = (  # line, mark, grey
    ("-", "o", "0.0"),
    ((0, (8, 2)), "x", "0.6"),
    ("--", "s", "0.35"),
    ("-.", "^", "0.5"),
    (":", "D", "0.2"),
)


def check_plot(path: str | os.PathLike[str]) -> None:
    """Raise UsageError unless a picture of this name can be drawn."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise UsageError(f"{path}: a plot is drawn as {', '.join(ENDINGS)}; give it one of these endings.")


def draw_refusal(
    curves: Mapping[str, Sequence[Kept]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    chance: float | None = None,
) -> None:
    """Draw a line with its 95 % band for each score.

    Parameters
    ----------
    curves : mapping of str to sequence of Kept
        By what the legend says.
    path : path-like
        .png, .svg or .pdf; a file of this name is replaced.
    title : str
    chance : float, optional
        Accuracy of all images, drawn as what refusing at random keeps.

    Raises
    ------
    UsageError
        If the ending is another.
    OutputError
        If it cannot be written.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window, and no state of pyplot's
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, curve), (line, mark, grey) in zip(curves.items(), _LOOKS * len(curves), strict=False):
        refused = [100 * kept.refused for kept in curve]
        low, high = [100 * kept.low for kept in curve], [100 * kept.high for kept in curve]
        axes.fill_between(refused, low, high, color=grey, alpha=0.12, linewidth=0)
        accuracy = [100 * kept.accuracy for kept in curve]
        axes.plot(refused, accuracy, linestyle=line, marker=mark, color=grey, markersize=4, label=name)
    if chance is not None:
        axes.axhline(100 * chance, color="0.7", linewidth=0.8, label="refused at random")
    axes.set(xlabel="images refused, the least certain first, in %", ylabel="accuracy on the others, in %")
    axes.set_title(title, fontsize="medium")
    axes.grid(color="0.9")
    axes.legend(title="uncertain by (band: 95 %)", fontsize="small", title_fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix[1:].lower(), dpi=150)
    try:
        with replacing(Path(path)) as file:
            file.write(picture.getvalue())
    except OSError as exc:
        raise OutputError(f"{path}: the plot cannot be written: {(exc.strerror or str(exc)).lower()}.") from exc
