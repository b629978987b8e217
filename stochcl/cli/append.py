"""``stochcl append``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.cli.output import JSON, progress_bar, say_skipped, show


@click.command()
@click.argument("codes", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-m", "--model", default="general", show_default=True, help="The model that made the codes: a name or a file."
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Images at a time.")
@click.option("--workers", type=click.IntRange(0), help="Threads that decode images.  [default: one a core]")
@click.option(
    "--labels", type=click.Path(path_type=Path), help="A CSV file name,label, if the codes have labels stored."
)
@click.option("--strict", is_flag=True, help="Stop at an image that cannot be read, and add nothing.")
@JSON
def append(codes: Path, source: Path, *, model: str, device: str, as_json: bool, **options: Any) -> None:
    """Add the images of a source that a file of codes does not have yet.

    Images are told apart by their names, and added in place. An error leaves the file as it was; after an
    interruption it has what was finished, and the same command adds the rest. Of a matrix, the rows by which it has
    grown are added.

    \b
    Example:
      stochcl append codes.bin images/
    """
    from stochcl.api import editing
    from stochcl.api.codec import Codec

    codec = Codec(model, device=device)
    with progress_bar("rows" if codec.columns else "images") as bar:
        edit = editing.append(codes, source, codec, progress=bar, **options)
    say_skipped(edit.skipped)
    show(edit.to_json("append"), edit.lines(), as_json=as_json)
