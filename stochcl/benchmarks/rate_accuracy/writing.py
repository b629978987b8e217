"""The results as files: JSON, CSV, plots, and a page of one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from stochcl.benchmarks.rate_accuracy.plotting import draw
from stochcl.benchmarks.rate_accuracy.telling import COLUMNS, lines, summary, title
from stochcl.benchmarks.results import write_results
from stochcl.errors import OutputError
from stochcl.files import replacing
from stochcl.messages import escape_name as printable
from stochcl.messages import os_reason as why
from stochcl.report.page import render, write_page

if TYPE_CHECKING:
    from pathlib import Path

NAME = "results"

_PLOTS = {"bits_per_image": "plot", "bits_with_side": "plot-with-side"}


def write_all(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``results.json``, ``results.csv``, plots and ``results.html``; return their paths."""
    paths = list(write_results(result, folder, NAME))
    plots = {column: draw(result, "svg", column) for column in _PLOTS}
    files = {folder / f"{_PLOTS[column]}.svg": data for column, data in plots.items()}
    files |= {folder / f"{name}.png": draw(result, "png", column) for column, name in _PLOTS.items()}
    for path, data in files.items():
        try:
            with replacing(path) as file:
                file.write(data)
        except OSError as exc:
            raise OutputError(f"{printable(path)}: it cannot be written: {why(exc)}.") from exc
    write_page(folder / f"{NAME}.html", html(result, [data.decode() for data in plots.values()]))
    return [*paths, *files, folder / f"{NAME}.html"]


def html(result: dict[str, Any], plots: list[str]) -> str:
    """Return the page: plots, sentences, the table, and what it was measured with."""
    facts = [
        ("command", result["command"]),
        ("commit", result["commit"] or "not a checkout"),
        ("seed", result["seed"]),
        ("precision", result["precision"]),
        *result["hardware"].items(),
        *result["versions"].items(),
    ]
    return render(
        "results.html", heading="Bits per image against accuracy", title=title(result),
        plots=[Markup(_inline(plot)) for plot in plots], summary=summary(result), columns=COLUMNS, rows=lines(result),
        notes=result["left_out"], facts=facts,
    )  # fmt: skip


def _inline(svg: str) -> str:
    """Return a plot's element without what stands before it in a file."""
    return svg[svg.index("<svg") :]
