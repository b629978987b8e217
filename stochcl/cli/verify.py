"""``stochcl verify``."""

from __future__ import annotations

from pathlib import Path

import click

from stochcl.api import archives
from stochcl.api.report import counted
from stochcl.cli.output import JSON, progress_bar, show


@click.command()
@click.argument("codes", type=click.Path(path_type=Path))
@JSON
def verify(codes: Path, *, as_json: bool) -> None:
    """Check every byte of a file of codes, and that it decodes to what was written.

    \b
    Example:
      stochcl verify codes.bin
    """
    with progress_bar("images") as bar:
        result = archives.verify(codes, progress=bar)
    images = counted(result["images"], "image")
    lines = [f"{result['path']}: {images}, {result['bytes']:,} bytes, nothing damaged"]
    show(result, lines, as_json=as_json)
