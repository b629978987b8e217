"""``stochcl decompress``."""

from __future__ import annotations

from pathlib import Path

import click

from stochcl.api import archives
from stochcl.api.models import given_tables
from stochcl.api.report import counted
from stochcl.cli.output import ARCHIVE, JSON, TABLES, show


@click.command()
@click.argument("codes", type=ARCHIVE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A .npz, .npy, .csv, .parquet or .arrow file.",
)
@click.option("--labels", type=click.Path(path_type=Path), help="A CSV file name,label... in place of folder names.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@TABLES
@JSON
def decompress(
    codes: Path | str, output: Path, *, labels: Path | None, force: bool, model: str | None, as_json: bool
) -> None:
    """Decode codes to arrays: symbols, vectors, names and labels.

    The output's ending says how: .npz (all, for numpy.load), .npy (vectors), .csv, .parquet or .arrow.

    \b
    Example:
      stochcl decompress codes.bin -o codes.npz
    """
    result = archives.decompress(codes, output, labels=labels, tables=given_tables(model), force=force)
    holds = ", ".join(result["holds"])
    line = f"{result['path']}: {holds} of {counted(result['images'], 'image')}, {result['bytes']:,} bytes"
    show(result, [line], as_json=as_json)
