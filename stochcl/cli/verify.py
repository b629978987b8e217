"""``stochcl verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api import archives
from stochcl.api.models import given_tables
from stochcl.api.report import counted
from stochcl.cli.output import ARCHIVE, JSON, TABLES, progress_bar, say, show

_SHOWN = 5  # places that are damaged
_TABLES = {
    "intact": "",
    "elsewhere": "the decoding tables are not, or not intact, in the file; those found elsewhere are right",
    "lost": "the decoding tables are lost, so that rows which need them could not be decoded to check them",
}


@click.command()
@click.argument("codes", type=ARCHIVE)
@click.option("--salvage", type=click.Path(path_type=Path), metavar="OUT", help="Write all that is intact to OUT.")
@click.option("--repair", is_flag=True, help="Undo an append that was interrupted: cut the file back, in place.")
@click.option("--force", is_flag=True, help="Replace an existing OUT.")
@TABLES
@JSON
@click.pass_context
def verify(
    ctx: click.Context,
    codes: Path | str,
    *,
    salvage: Path | None,
    repair: bool,
    force: bool,
    model: str | None,
    as_json: bool,
) -> None:
    """Check every byte of a file of codes, and that it decodes to what was written.

    --salvage also takes the .partial file that an interrupted run left, and writes nothing to the file itself. It
    exits with 1 where something was lost, and OUT is there all the same.

    \b
    Example:
      stochcl verify codes.bin
      stochcl verify codes.bin --salvage intact.bin
    """
    if repair and salvage is not None:
        raise click.UsageError("--repair and --salvage are different things; give one of them.")
    if force and salvage is None:
        raise click.UsageError("--force says to replace what --salvage writes; give both or neither.")
    if salvage is not None:
        _salvage(ctx, codes, salvage, model=model, force=force, as_json=as_json)
        return
    if repair:
        result = archives.repair(codes)
        lines = [
            f"{result['path']}: {counted(result['images'], 'image')} remain, {result['cut_bytes']:,} bytes cut off"
        ]
    else:
        with progress_bar("images") as bar:
            result = archives.verify(codes, tables=given_tables(model), progress=bar)
        images = counted(result["images"], "image")
        lines = [f"{result['path']}: {images}, {result['bytes']:,} bytes, nothing damaged"]
    show(result, lines, as_json=as_json)


def _salvage(
    ctx: click.Context, codes: Path | str, output: Path, *, model: str | None, force: bool, as_json: bool
) -> None:
    with progress_bar("bytes") as bar:
        result = archives.salvage(codes, output, tables=given_tables(model), force=force, progress=bar)
    for line in _losses(result):
        say(line)
    saved = f"{counted(result['images'], 'image')} in {counted(result['segments'], 'segment')}"
    show(result, [f"{result['salvaged']}: {saved}, {result['bytes']:,} bytes"], as_json=as_json)
    if not result["ok"]:
        ctx.exit(1)


def _losses(result: dict[str, Any]) -> list[str]:
    """Return what a person should know of what was not saved."""
    lines = [f"damaged: bytes {start:,} to {end - 1:,}" for start, end in result["lost_bytes"][:_SHOWN]]
    if len(result["lost_bytes"]) > _SHOWN:
        lines.append(f"damaged: {len(result['lost_bytes']) - _SHOWN:,} more places; --json lists them all")
    if result["lost_images"]:
        lines.append(f"lost: {counted(result['lost_images'], 'image')}")
    elif result["lost_images"] is None:
        lines.append("lost: how many images is not known, for the index at the end is damaged or missing")
    return [*lines, *filter(None, [_TABLES[result["tables"]]])]
