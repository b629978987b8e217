"""``stochcl split``."""

from __future__ import annotations

from pathlib import Path

import click

from stochcl.api import editing
from stochcl.api.report import counted
from stochcl.cli.output import JSON, progress_bar, show
from stochcl.data import printable


@click.command()
@click.argument("codes", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder that the parts go to."
)
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Images of each part; the last has the rest.")
@click.option(
    "--parts", type=click.IntRange(1), metavar="P", help="How many parts there shall be, as equal as can be."
)
@click.option("--force", is_flag=True, help="Replace parts that are there already.")
@JSON
def split(codes: Path, output: Path, *, rows: int | None, parts: int | None, force: bool, as_json: bool) -> None:
    """Cut a file of codes into several, in order.

    The parts are called as the file is, with a number: codes-0001.bin, codes-0002.bin ... `stochcl merge` joins them.

    \b
    Example:
      stochcl split codes.bin -o parts/ --rows 10000
    """
    with progress_bar("images") as bar:
        reports = editing.split(codes, output, rows=rows, parts=parts, force=force, progress=bar)
    lines = [f"{printable(r.path)}: {counted(r.images, 'image')}, {r.bytes:,} bytes" for r in reports]
    files = [{"path": printable(r.path), "images": r.images, "bytes": r.bytes} for r in reports]
    result = {
        "schema": "stochcl.split/0",
        "path": printable(codes),
        "images": sum(r.images for r in reports),
        "bytes": sum(r.bytes for r in reports),
        "files": files,
    }
    show(result, lines, as_json=as_json)
