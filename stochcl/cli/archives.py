"""Commands on archives: verify, append, merge, split, transcode, decompress."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stochcl.api import archives
from stochcl.api.compress import CompressOptions
from stochcl.api.tables import resolve_tables
from stochcl.cli.main import JSON, progress_bar, say, say_skipped, show
from stochcl.cli.options import (
    CODES,
    DEVICE,
    FORCE,
    INPUT,
    LABELS,
    PATH,
    RESUME,
    TABLES,
    command,
    given,
    options_of,
    output,
    section,
)
from stochcl.compress import Archive, open_archive
from stochcl.messages import escape_name, plural

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN = 5  # places that are damaged
_TABLES = {
    "intact": "",
    "elsewhere": "the decoder in the file is missing or damaged; the one found elsewhere is right",
    "lost": "the decoder is lost, so rows that need it were not decoded to check them",
}


@command()
@CODES
@click.option("--salvage", type=PATH, metavar="OUT", help="Write everything that is intact to OUT.")
@click.option("--repair", is_flag=True, help="Cut off what an interrupted append left behind, in place.")
@click.option("--force", is_flag=True, help="Replace an existing OUT.")
@TABLES
@JSON
@click.pass_context
def verify(
    ctx: click.Context, codes: Path | str, *, salvage: Path | None, repair: bool, force: bool, model: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Check every byte of an archive, and that it decodes to what was written.

    --salvage also takes the .partial file that an interrupted run left, and does not change the archive. It exits
    with 1 if something was lost; OUT is written all the same.

    \b
    Example:
      stochcl verify codes.bin
      stochcl verify codes.bin --salvage intact.bin
    """
    if repair and salvage is not None:
        raise click.UsageError("--repair and --salvage are different things; give one of them.")
    if force and salvage is None:
        raise click.UsageError("--force replaces what --salvage writes; give both or neither.")
    if salvage is not None:
        ctx.exit(_salvage(codes, salvage, model=model, force=force, as_json=as_json))
    found: dict[str, Any] = {"schema": "stochcl.verify/0", "path": escape_name(codes), "ok": True}
    left = 0
    if repair:
        from stochcl.compress.repair import repair as cut_back

        done = cut_back(codes)
        found |= {"images": done.rows, "bytes": done.bytes, "cut_bytes": done.cut}
        said = f"{plural(done.rows, 'image')} remain, {done.cut:,} bytes cut off"
    else:
        with progress_bar("images") as bar, open_archive(codes, tables=resolve_tables(model, codes)) as archive:
            archive.verify(bar)
            left = archive.left_over if isinstance(archive, Archive) else 0
            found |= {"images": len(archive), "bytes": archive.size, "left_over_bytes": left}
        said = f"{plural(found['images'], 'image')}, {found['bytes']:,} bytes, nothing damaged"
    lines = [f"{found['path']}: {said}"]
    if left:
        lines.append(
            f"{left:,} bytes follow it: an append that is running, or was interrupted and continues when it is "
            "repeated; --repair cuts them off"
        )
    show(found, lines, as_json=as_json)


def _salvage(codes: Path | str, out: Path, *, model: str | None, force: bool, as_json: bool) -> int:
    """Write what is intact, and return the exit code."""
    from stochcl.compress.salvage import salvage

    with progress_bar("bytes") as bar:
        done = salvage(codes, out, tables=resolve_tables(model, codes), force=force, progress=bar)
    for line in _losses(done):
        say(line)
    result = {
        "schema": "stochcl.verify/0",
        "path": escape_name(codes),
        "salvaged": escape_name(done.path),
        "segments": done.segments,
        "images": done.rows,
        "recoded_images": done.recoded,
        "unchecked_images": done.unchecked,
        "unnamed_images": done.unnamed,
        "unlabelled_images": done.unlabelled,
        "uncertainty_lost": done.uncertainty_lost,
        "bytes": done.bytes,
        "lost_images": done.rows_lost,
        "lost_bytes": [list(place) for place in done.lost],
        "tables": done.tables,
        "ok": done.complete,
    }
    saved = f"{plural(done.rows, 'image')} in {plural(done.segments, 'segment')}"
    show(result, [f"{result['salvaged']}: {saved}, {done.bytes:,} bytes"], as_json=as_json)
    return 0 if done.complete else 1


def _losses(done: Any) -> list[str]:
    """Return what a person should know of what was not saved."""
    lines = [f"damaged: bytes {start:,} to {end - 1:,}" for start, end in done.lost[:_SHOWN]]
    if len(done.lost) > _SHOWN:
        lines.append(f"damaged: {len(done.lost) - _SHOWN:,} more places; --json lists them all")
    if done.rows_lost:
        lines.append(f"lost: {plural(done.rows_lost, 'image')}")
    elif done.rows_lost is None:
        lines.append("lost: an unknown number of images, for the index at the end is damaged or missing")
    for what, count in (("names", done.unnamed), ("labels", done.unlabelled)):
        if count:
            lines.append(f"lost: the {what} of {plural(count, 'image')}, whose codes are intact")
    if done.uncertainty_lost:
        lines.append("lost: the uncertainty of some images, so that it was left out for all")
    return [*lines, *filter(None, [_TABLES[done.tables]])]


@command()
@CODES
@output("The archive to write.")
@section(
    "What to keep",
    options_of(CompressOptions, only=("latents", "rate")),
    click.option(
        "--select", type=INPUT,
        help="Keep the latents of this JSON file: `stochcl select`'s, or a list of numbers from 0.",
    ),
    click.option("--no-names", "names", is_flag=True, flag_value=False, default=True, help="Leave out names alone."),
    click.option(
        "--no-uncertainty", "uncertainty", is_flag=True, flag_value=False, default=True, help="Leave out uncertainty."
    ),
    click.option("--labels", type=INPUT, help="Store the labels of this CSV file name,label."),
)  # fmt: skip
@section(
    "Entropy models",
    click.option("--refit", is_flag=True, help="Fit entropy models to these codes, and store those that save bytes."),
    click.option("--self-contained", is_flag=True, help="Put the decoder into the archive."),
    click.option("--external-tables", is_flag=True, help="Put the decoder into a file beside the archive."),
)
@TABLES
@FORCE
@RESUME
@JSON
def transcode(codes: Path, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Rewrite an archive: narrower, smaller, or with other names, labels or decoder.

    It needs neither the images nor the encoder.

    \b
    Example:
      stochcl transcode codes.bin -o small.bin --rate 64 --refit
    """
    with progress_bar("steps") as bar:
        edit = archives.transcode(codes, output, tables=resolve_tables(model, codes), progress=bar, **options)
    show(edit.to_json("transcode"), edit.lines(), as_json=as_json)


@command()
@CODES
@output("The folder that the parts go to.")
@click.option("--rows", type=int, metavar="N", help="Images per part; the last has the rest.")
@click.option("--parts", type=int, metavar="P", help="Number of parts, as equal as can be.")
@click.option("--force", is_flag=True, help="Replace parts that are there already.")
@JSON
def split(codes: Path, output: Path, *, rows: int | None, parts: int | None, force: bool, as_json: bool) -> None:
    """Cut an archive into several, in order.

    The parts are named codes-0001.bin, codes-0002.bin ... `stochcl merge` joins them.

    \b
    Example:
      stochcl split codes.bin -o parts/ --rows 10000
    """
    with progress_bar("images") as bar:
        reports = archives.split(codes, output, rows=rows, parts=parts, force=force, progress=bar)
    files: list[dict[str, Any]] = [
        {"path": escape_name(r.path), "images": r.images, "bytes": r.bytes} for r in reports
    ]
    total = {"images": sum(r.images for r in reports), "bytes": sum(r.bytes for r in reports)}
    lines = [f"{file['path']}: {plural(file['images'], 'image')}, {file['bytes']:,} bytes" for file in files]
    result = {"schema": "stochcl.split/0", "path": escape_name(codes)} | total | {"files": files}
    show(result, lines, as_json=as_json)


@command()
@CODES
@click.argument("source", type=INPUT)
@click.option("-m", "--model", help="The model of the codes.  [default: the one that the archive names]")
@DEVICE
@options_of(
    CompressOptions,
    only=("any_name", "label_level", "label_files", "label_column", "max_pixels", "batch_size", "workers"),
)
@click.option("--labels", type=INPUT, help="CSV file name,label or .npy array, if the archive has labels stored.")
@click.option("--strict", is_flag=True, help="Stop at an image that cannot be read, and add nothing.")
@JSON
def append(codes: Path, source: Path | str, *, model: str | None, device: str, as_json: bool, **options: Any) -> None:
    """Add the images of a source that an archive does not have yet.

    Images are told apart by their names, and added in place. Until all is done, and after an interruption, the
    archive opens as it was; the same command continues. Of a matrix, the rows by which it has grown are added.

    \b
    Example:
      stochcl append codes.bin images/
    """
    from stochcl.api.append import append
    from stochcl.api.codec import codec_of

    with Archive(codes):  # a folder of shards is refused before its model is looked for
        codec = codec_of(codes, model, device=device)
    with progress_bar("rows" if codec.columns else "images") as bar:
        edit = append(codes, source, codec, progress=bar, **given(options))
    say_skipped(edit.skipped)
    show(edit.to_json("append"), edit.lines(), as_json=as_json)


@command()
@click.argument("codes", type=INPUT, nargs=-1, required=True)
@output("The archive to write.")
@FORCE
@RESUME
@JSON
def merge(codes: tuple[Path, ...], output: Path, *, force: bool, resume: bool, as_json: bool) -> None:
    """Join archives of one model and width, in the order given.

    Nothing is coded again. Images that are in several archives are there several times.

    \b
    Example:
      stochcl merge a.bin b.bin -o codes.bin
    """
    with progress_bar("images") as bar:
        edit = archives.merge(codes, output, force=force, resume=resume, progress=bar)
    show(edit.to_json("merge"), edit.lines(), as_json=as_json)


@command()
@CODES
@output("A .npz, .npy, .csv, .parquet or .arrow file.")
@LABELS
@FORCE
@TABLES
@JSON
def decompress(codes: Path | str, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Export codes as arrays: symbols, vectors, names and labels. (Images cannot be recovered.).

    The output's ending says how: .npz (all, for numpy.load), .npy (vectors), .csv, .parquet or .arrow.

    \b
    Example:
      stochcl decompress codes.bin -o codes.npz
    """
    with progress_bar("rows") as bar:
        done = archives.decompress(codes, output, tables=resolve_tables(model, codes), progress=bar, **options)
    result = {
        "schema": "stochcl.decompress/0", "path": escape_name(done.path), "images": done.rows, "bytes": done.bytes,
        "holds": list(done.holds),
    }  # fmt: skip
    line = f"{result['path']}: {', '.join(done.holds)} of {plural(done.rows, 'image')}, {done.bytes:,} bytes"
    show(result, [line], as_json=as_json)
