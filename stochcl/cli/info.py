"""``stochcl info``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stochcl.api import archives
from stochcl.api.models import given_tables
from stochcl.cli.output import ARCHIVE, JSON, TABLES, show

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("codes", type=ARCHIVE)
@TABLES
@JSON
def info(codes: Path | str, *, model: str | None, as_json: bool) -> None:
    """Say what a file of codes holds and where its bytes go.

    \b
    Example:
      stochcl info codes.bin
    """
    report = archives.info(codes, tables=given_tables(model))
    show(report.to_json("info"), report.lines(), as_json=as_json)
