"""``stochcl predict``."""

from __future__ import annotations

from pathlib import Path

import click

from stochcl.api import predicting
from stochcl.api.models import given_tables
from stochcl.cli.output import ARCHIVE, JSON, show

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("codes", type=ARCHIVE)
@click.option("-m", "--model", "probe", required=True, type=_FILE, help="What `stochcl evaluate --save` wrote.")
@click.option("-o", "--output", required=True, type=_FILE, help="The CSV file to write.")
@click.option("--tables", help="A model or .tables file that has the decoding tables, if nothing else does.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@JSON
def predict(codes: Path | str, probe: Path, output: Path, *, tables: str | None, force: bool, as_json: bool) -> None:
    """Write what a saved probe answers for each image: classes with probabilities, or numbers.

    `stochcl evaluate train.bin --save probe.skops` saves one.

    \b
    Example:
      stochcl predict codes.bin -m probe.skops -o predictions.csv
    """
    found = predicting.predict(codes, probe, output, tables=given_tables(tables), force=force)
    line = f"{found['output']}: {', '.join(t['target'] for t in found['targets'])} of {found['images']:,} images"
    show(found, [line], as_json=as_json)
