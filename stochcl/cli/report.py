"""``stochcl report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api.models import given_tables
from stochcl.cli.output import ARCHIVE, JSON, TABLES, progress_bar, show

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("codes", type=ARCHIVE)
@click.option("--images", type=_FILE, metavar="SOURCE", help="What the codes were made of, for pictures.")
@click.option("--labels", type=_FILE, help="A CSV file name,label... in place of folder names.")
@click.option("--column", help="Which column of it.  [default: the first after the name]")
@click.option(
    "--task", type=click.Choice(["classification", "regression"]), default="classification", show_default=True
)
@click.option("-o", "--output", type=_FILE, default="report.html", show_default=True, help="The page to write.")
@click.option(
    "--latents", "shown", type=click.IntRange(1), default=12, show_default=True, metavar="K",
    help="How many of the strongest latents are looked at closely.",
)  # fmt: skip
@click.option(
    "--sample", type=click.IntRange(1), default=20_000, show_default=True, metavar="N",
    help="Look at latents in at most so many images, spread evenly.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of whatever is drawn.")
@TABLES
@click.option("--force", is_flag=True, help="Replace an existing page.")
@JSON
def report(codes: Path | str, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Explain a file of codes on one HTML page: bytes, latents, what they say, and what flipping them does.

    The page loads nothing: it can be mailed, and opened without a network.

    \b
    Example:
      stochcl report codes.bin --images images/ -o report.html
      stochcl report codes.bin --images images.zip --labels labels.csv --column species
    """
    from stochcl.api.explaining import write_report

    with progress_bar("rows", rate=False) as bar:
        told = write_report(codes, output, tables=given_tables(model), progress=bar, **options)
    lines = [
        f"{told['output']}: {told['output_bytes']:,} bytes, {told['pictures']:,} pictures, {told['seconds']:.1f} s"
    ]
    if told["sampled"] < told["images"]:
        lines.append(f"  latents are looked at in {told['sampled']:,} of {told['images']:,} images")
    if told["probe"] is not None:
        probe = told["probe"]
        lines.append(
            f"  {probe['estimator']} on {told['label']}: {probe['score']:.3f} (guessing: {probe['baseline']:.3f})"
        )
    lines.append("  strongest latents: " + ", ".join(str(one["latent"]) for one in told["strongest"]))
    show(told, [*lines, *(f"  note: {note}" for note in told["notes"])], as_json=as_json)
