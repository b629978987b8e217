"""``stochcl merge``."""

from __future__ import annotations

from pathlib import Path

import click

from stochcl.api import editing
from stochcl.cli.output import JSON, progress_bar, show


@click.command()
@click.argument("codes", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file of codes to write.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run left.")
@JSON
def merge(codes: tuple[Path, ...], output: Path, *, force: bool, resume: bool, as_json: bool) -> None:
    """Join files of codes of one model and width, in the order given.

    Nothing is coded again. Images that are in several files are there several times.

    \b
    Example:
      stochcl merge a.bin b.bin -o codes.bin
    """
    with progress_bar("images") as bar:
        edit = editing.merge(codes, output, force=force, resume=resume, progress=bar)
    show(edit.to_json("merge"), edit.lines(), as_json=as_json)
