"""``stochcl verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stochcl.api import archives
from stochcl.api import archives as editing
from stochcl.api.codec import given_tables
from stochcl.cli.main import ARCHIVE, JSON, TABLES, progress_bar, say, say_skipped, show
from stochcl.messages import escape_name, plural

_SHOWN = 5  # places that are damaged
_TABLES = {
    "intact": "",
    "elsewhere": "the decoding tables are not, or not intact, in the file; those found elsewhere are right",
    "lost": "the decoding tables are lost, so that rows which need them could not be decoded to check them",
}


@click.command()
@click.argument("codes", type=ARCHIVE)
@click.option("--salvage", type=click.Path(path_type=Path), metavar="OUT", help="Write all that is intact to OUT.")
@click.option("--repair", is_flag=True, help="Cut off what an interrupted append left behind, in place.")
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
            f"{result['path']}: {plural(result['images'], 'image')} remain, {result['cut_bytes']:,} bytes cut off"
        ]
    else:
        with progress_bar("images") as bar:
            result = archives.verify(codes, tables=given_tables(model), progress=bar)
        images = plural(result["images"], "image")
        lines = [f"{result['path']}: {images}, {result['bytes']:,} bytes, nothing damaged"]
        if left := result["left_over_bytes"]:
            lines.append(
                f"{left:,} bytes follow it: an append that is running, or was interrupted and goes on when it is "
                "repeated; --repair cuts them off"
            )
    show(result, lines, as_json=as_json)


def _salvage(
    ctx: click.Context, codes: Path | str, output: Path, *, model: str | None, force: bool, as_json: bool
) -> None:
    with progress_bar("bytes") as bar:
        result = archives.salvage(codes, output, tables=given_tables(model), force=force, progress=bar)
    for line in _losses(result):
        say(line)
    saved = f"{plural(result['images'], 'image')} in {plural(result['segments'], 'segment')}"
    show(result, [f"{result['salvaged']}: {saved}, {result['bytes']:,} bytes"], as_json=as_json)
    if not result["ok"]:
        ctx.exit(1)


def _losses(result: dict[str, Any]) -> list[str]:
    """Return what a person should know of what was not saved."""
    lines = [f"damaged: bytes {start:,} to {end - 1:,}" for start, end in result["lost_bytes"][:_SHOWN]]
    if len(result["lost_bytes"]) > _SHOWN:
        lines.append(f"damaged: {len(result['lost_bytes']) - _SHOWN:,} more places; --json lists them all")
    if result["lost_images"]:
        lines.append(f"lost: {plural(result['lost_images'], 'image')}")
    elif result["lost_images"] is None:
        lines.append("lost: how many images is not known, for the index at the end is damaged or missing")
    for what, some in (("names", "unnamed_images"), ("labels", "unlabelled_images")):
        if result[some]:
            lines.append(f"lost: the {what} of {plural(result[some], 'image')}, whose codes are intact")
    if result["uncertainty_lost"]:
        lines.append("lost: the uncertainty of some images, so that it was left out for all")
    return [*lines, *filter(None, [_TABLES[result["tables"]]])]


_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("codes", type=_FILE)
@click.option("-o", "--output", required=True, type=_FILE, help="The file of codes to write.")
@click.option("--latents", type=click.IntRange(1), metavar="K", help="Keep the first K latents.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="R",
    help="Keep the widest rung of the model's ladder that takes at most R bits per image on disk; tables and names "
    "come on top.",
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
    lines = [f"{escape_name(r.path)}: {plural(r.images, 'image')}, {r.bytes:,} bytes" for r in reports]
    files = [{"path": escape_name(r.path), "images": r.images, "bytes": r.bytes} for r in reports]
    result = {
        "schema": "stochcl.split/0",
        "path": escape_name(codes),
        "images": sum(r.images for r in reports),
        "bytes": sum(r.bytes for r in reports),
        "files": files,
    }
    show(result, lines, as_json=as_json)


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

    Images are told apart by their names, and added in place. Until all is done the file opens as it was; after an
    interruption, too, and the same command goes on. Of a matrix, the rows by which it has grown are added.

    \b
    Example:
      stochcl append codes.bin images/
    """
    from stochcl.api import archives as editing
    from stochcl.api.codec import Codec

    codec = Codec(model, device=device)
    with progress_bar("rows" if codec.columns else "images") as bar:
        edit = editing.append(codes, source, codec, progress=bar, **options)
    say_skipped(edit.skipped)
    show(edit.to_json("append"), edit.lines(), as_json=as_json)


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
    line = f"{result['path']}: {holds} of {plural(result['images'], 'image')}, {result['bytes']:,} bytes"
    show(result, [line], as_json=as_json)


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
