"""The command info; it imports only what reading an archive needs, to start fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochcl.api.models import resolve_tables
from stochcl.api.summary import Report
from stochcl.cli.main import JSON, show
from stochcl.cli.options import CODES, TABLES, command
from stochcl.compress import open_archive

if TYPE_CHECKING:
    from pathlib import Path


@command()
@CODES
@TABLES
@JSON
def info(codes: Path | str, *, model: str | None, as_json: bool) -> None:
    """Show what an archive holds and where its bytes go.

    \b
    Example:
      stochcl info codes.bin
    """
    with open_archive(codes, tables=resolve_tables(model, codes)) as archive:
        report = Report.of(archive, str(codes))
    show(report.to_json("info"), report.lines(), as_json=as_json)
