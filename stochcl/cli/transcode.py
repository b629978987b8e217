"""``stochcl transcode``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api import editing
from stochcl.api.models import given_tables
from stochcl.cli.output import JSON, TABLES, progress_bar, show

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("codes", type=_FILE)
@click.option("-o", "--output", required=True, type=_FILE, help="The file of codes to write.")
@click.option("--latents", type=click.IntRange(1), metavar="K", help="Keep the first K latents.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="Keep as many latents as take at most R bits per image on disk; tables and names come on top.",
)
@click.option(
    "--select",
    type=_FILE,
    help="Keep the latents of this JSON file: `stochcl select`'s, or a list of numbers from 0.",
)
@click.option("--refit", is_flag=True, help="Fit entropy models to these codes, and store what is worth its bytes.")
@click.option("--self-contained", is_flag=True, help="Put the decoding tables into the file.")
@click.option("--external-tables", is_flag=True, help="Leave the decoding tables out of the file.")
@click.option("--no-names", "names", is_flag=True, flag_value=False, default=True, help="Do not keep names.")
@click.option(
    "--no-uncertainty", "uncertainty", is_flag=True, flag_value=False, default=True, help="Do not keep uncertainties."
)
@click.option("--labels", type=_FILE, help="Store the labels of this CSV file name,label.")
@TABLES
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run left.")
@JSON
def transcode(codes: Path, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Write a file of codes anew: narrower, smaller, or with other names, labels or tables.

    It needs neither the images nor the encoder.

    \b
    Example:
      stochcl transcode codes.bin -o small.bin --rate 64 --refit
    """
    with progress_bar("steps") as bar:
        edit = editing.transcode(codes, output, tables=given_tables(model), progress=bar, **options)
    show(edit.to_json("transcode"), edit.lines(), as_json=as_json)
