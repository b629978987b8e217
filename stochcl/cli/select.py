"""``stochcl select``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api import selecting
from stochcl.api.models import given_tables
from stochcl.cli.output import ARCHIVE, JSON, TABLES, show

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("codes", type=ARCHIVE)
@click.option("--latents", required=True, type=click.IntRange(1), metavar="K", help="How many latents to choose.")
@click.option("--labels", type=_FILE, help="A CSV file name,label... in place of folder names.")
@click.option("--column", help="Which column of it.  [default: the first after the name]")
@click.option(
    "--task", type=click.Choice(["classification", "regression"]), default="classification", show_default=True
)
@click.option("-o", "--output", required=True, type=_FILE, help="The JSON file to write.")
@TABLES
@click.option("--force", is_flag=True, help="Replace an existing output.")
@JSON
def select(codes: Path | str, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Choose the latents that a task needs, each for what it adds to those chosen before.

    \b
    Example:
      stochcl select codes.bin --labels labels.csv --latents 64 -o latents.json
      stochcl transcode codes.bin --select latents.json -o small.bin
    """
    found = selecting.select(codes, output, tables=given_tables(model), **options)
    line = f"{output}: {len(found['latents']):,} latents, chosen by the labels of {found['images']:,} images"
    show(found, [line, f"  the best first: {', '.join(map(str, found['order'][:10]))}"], as_json=as_json)
