"""Commands that make, read and change archives."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Any

import click

from stochcl.api import archives
from stochcl.api.compress import CompressOptions
from stochcl.api.models import resolve_tables
from stochcl.api.source import check_paths_exist
from stochcl.api.summary import Report
from stochcl.cli import options as opt
from stochcl.cli.main import JSON, progress_bar, say, say_skipped, show
from stochcl.compress import Archive, open_archive
from stochcl.data import ImageSource, open_list
from stochcl.errors import UsageError
from stochcl.messages import escape_name, plural

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def standard_input(what: str) -> IO[bytes]:
    """Return the bytes of standard input."""
    if sys.stdin is None or sys.stdin.isatty():
        state = "closed" if sys.stdin is None else "a terminal"
        raise UsageError(f"standard input is {state}, and {what} is read from it; send it through a pipe.")
    return sys.stdin.buffer


def source_of(
    sources: Sequence[Path], files_from: Path | None, *, null: bool, folder: Path
) -> Sequence[Path] | IO[bytes] | ImageSource:
    """Return the source to read: paths, standard input, or a list of images."""
    if files_from is not None:
        if sources:
            raise UsageError("--files-from already lists what to read; omit SOURCE.")
        where = standard_input("a list of files") if str(files_from) == "-" else files_from
        return open_list(where, null=null or None, folder=folder)
    if null or str(folder) != ".":
        raise UsageError("--null and --directory need --files-from.")
    if not sources:
        raise UsageError("there is nothing to compress: name a SOURCE, or a list of files with --files-from.")
    if "-" not in map(str, sources):
        return sources
    if len(sources) > 1:
        raise UsageError("- reads a tar of images from standard input; omit the other sources.")
    return standard_input("a tar of images")


def output_of(path: Path) -> Path | IO[bytes]:
    """Return the output of an archive: a path, or standard output for ``-``."""
    if str(path) != "-":
        return path
    if sys.stdout is None:
        raise UsageError("standard output is closed; use a pipe, or give -o a file name.")
    if sys.stdout.isatty():
        raise UsageError("standard output is a terminal, and codes are binary; use a pipe, or give -o a file name.")
    return sys.stdout.buffer


@opt.command()
@click.argument("sources", nargs=-1, metavar="SOURCE...", type=opt.SOURCE)
@opt.output("The archive to write; - for standard output.")
@opt.section(
    "Source",
    click.option(
        "--files-from",
        metavar="FILE",
        type=opt.PATH,
        help="Compress the image files listed in FILE, or - for standard input, in its order, in place of a SOURCE.",
    ),
    click.option("-0", "--null", is_flag=True, help="The list is separated by null bytes.  [default: if it has any]"),
    click.option(
        "-C",
        "--directory",
        default=".",
        type=opt.PATH,
        metavar="DIR",
        help="Folder that the list's paths and names are relative to.  [default: the current folder]",
    ),
    opt.options_of(CompressOptions, only="column id_column embedder any_name depth max_pixels fit workers strict"),
)
@opt.section("Labels", opt.options_of(CompressOptions, only="label_level label_column label_files"))
@opt.section("Rate", opt.options_of(CompressOptions, only="latents rate target"))
@opt.section(
    "Model",
    opt.MODEL,
    opt.DEVICE,
    click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "int8"]), default="auto",
                 help="Numeric precision of the network.  [default: auto, which is int8 for EfficientNet-Lite "
                      "networks, such as the default model's, on a processor, and else fp32]"),
    opt.options_of(CompressOptions, only="size batch_size"),
)  # fmt: skip
@opt.section("Archive", opt.options_of(CompressOptions, only="names uncertainty self_contained external_tables"))
@opt.section(
    "Shards",
    click.option("--shard-images", type=int, metavar="N",
                 help="Write a folder of archives of N images each, and a manifest.  "
                      "[default with --engine ray: 100,000]"),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Where to compress; ray: on many cores or machines, to a folder of shards."),
    click.option("--address", help="Address of a Ray cluster.  [default: RAY_ADDRESS, or this machine's cores]"),
)  # fmt: skip
@opt.options_of(CompressOptions, only="force resume")
@JSON
def compress(
    sources: tuple[Path, ...], output: Path, *, files_from: Path | None, null: bool, directory: Path, model: str,
    device: str, precision: str, engine: str, address: str | None, shard_images: int | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Compress images, or a matrix of embeddings, to an archive of codes.

    SOURCE is a folder of images (recursive), a .zip or .tar of them, a .npy array of shape N x H x W x 3, a .parquet
    or .arrow file with a column of images or vectors, or the URL of a folder, an image, a .zip or a .tar.
    Several are read in the order given, also as a pattern: 'shards-{000..099}.tar' or 'part-*.parquet'. With - a tar
    of images is read from standard input, in its order.
    An image that cannot be read is named, counted and skipped. A .npy matrix of floats, one row a vector, needs a
    model that was trained on such rows. It may be larger than memory, and its rows are named by their numbers.

    \b
    Example:
      stochcl compress images/ -o codes.bin
      stochcl compress vectors.npy -m head.safetensors -o codes.bin --target "recall@10 0.9"
      tar c -C images . | stochcl compress - -o codes.bin
      find images -name '*.jpg' -print0 | stochcl compress --files-from - -o codes.bin
      stochcl compress images/ -o codes/ --engine ray
    """
    from stochcl.api.codec import Codec
    from stochcl.ray import compress_folder

    source = source_of(sources, files_from, null=null, folder=directory)
    out = output_of(output)
    check_paths_exist(source)
    codec, options = Codec(model, device=device, precision=precision), opt.given(options)
    with progress_bar("rows" if codec.columns else "images") as bar:
        if engine == "local" and shard_images is None and address is None:
            report = codec.compress(source, out, progress=bar, **options)
        else:
            how: dict[str, Any] = {"engine": engine, "address": address, "shard_images": shard_images, "model": model}
            report = compress_folder(codec, source, out, progress=bar, **how, **options)
    say_skipped(report.skipped)
    for warning in report.warnings:
        say(warning)
    show(report.to_json("compress"), report.lines(), as_json=as_json, err=out is not output)


@opt.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=opt.SOURCE)
@click.option("-m", "--model", help="A packaged model or a model file.  [default: general; for embeddings a new one]")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), metavar="R",
    help="Bits per row of a new model of embeddings.  [default: 128]",
)  # fmt: skip
@opt.section("Source", opt.options_of(CompressOptions, only="column id_column label_column label_level"))
@opt.DEVICE
@JSON
def estimate(sources: tuple[Path, ...], *, as_json: bool, **options: Any) -> None:
    """Estimate bytes, time and quality of compressing a source.

    A sample is encoded, at most 2,000 images or 10,000 rows, spread evenly; nothing is written. For embeddings
    without a model, one is trained on a part of the sample. With labels, accuracy is that of a linear probe on
    held-out rows; recall@10 is the share of the ten nearest rows that a search of the codes finds.

    \b
    Example:
      stochcl estimate vectors.parquet --label-column topic
      stochcl estimate photos/
    """
    from stochcl.api.estimate import estimate

    check_paths_exist(sources)
    with progress_bar("widths", rate=False) as bar:
        found = estimate(sources, progress=bar, **opt.given(options))
    show(found.to_json(), found.lines(), as_json=as_json)


@opt.command()
@opt.CODES
@opt.TABLES
@JSON
def info(codes: Path | str, *, model: str | None, as_json: bool) -> None:
    """Show what an archive holds and where its bytes go.

    \b
    Example:
      stochcl info codes.bin
    """
    report = archives.info(codes, tables=resolve_tables(model, codes))
    show(report.to_json("info"), report.lines(), as_json=as_json)


_SHOWN = 5  # damaged places
_TABLES = {
    "intact": "",
    "elsewhere": "the decoder in the file is missing or damaged; the one found elsewhere is right",
    "lost": "the decoder is lost, so rows that need it were not decoded to check them",
}


@opt.command()
@opt.CODES
@click.option("--salvage", type=opt.PATH, metavar="OUT", help="Write everything that is intact to OUT.")
@click.option("--repair", is_flag=True, help="Cut off what an interrupted append left behind, in place.")
@click.option("--force", is_flag=True, help="Replace an existing OUT.")
@opt.TABLES
@JSON
@click.pass_context
def verify(
    ctx: click.Context, codes: Path | str, *, salvage: Path | None, repair: bool, force: bool, model: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Check every byte of an archive, and that it decodes to what was written.

    --salvage also takes the .partial file that an interrupted run left, and does not change the archive. It exits
    with 1 if something was lost, and writes OUT nevertheless.

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
        from stochcl.compress.append import repair as cut_back

        done = cut_back(codes)
        found |= {"images": done.rows, "bytes": done.bytes, "cut_bytes": done.cut}
        said = f"{plural(done.rows, 'row')} remain, {done.cut:,} bytes cut off"
    else:
        with progress_bar("images") as bar, open_archive(codes, tables=resolve_tables(model, codes)) as archive:
            archive.verify(bar)
            unit = Report.of(archive, str(codes)).unit
            left = archive.left_over if isinstance(archive, Archive) else 0
            found |= {"images": len(archive), "bytes": archive.size, "left_over_bytes": left}
        said = f"{plural(found['images'], unit)}, {found['bytes']:,} bytes, nothing damaged"
    lines = [f"{found['path']}: {said}"]
    if left:
        lines.append(
            f"{left:,} bytes follow it: an append that is running, or was interrupted and continues when it is "
            "repeated; --repair cuts them off"
        )
    show(found, lines, as_json=as_json)


def _salvage(codes: Path | str, out: Path, *, model: str | None, force: bool, as_json: bool) -> int:
    """Write everything intact, and return the exit code."""
    from stochcl.compress.salvage import salvage

    with progress_bar("bytes") as bar:
        done = salvage(codes, out, tables=resolve_tables(model, codes), force=force, progress=bar)
    for line in _losses(done):
        say(line)
    result = {
        "schema": "stochcl.verify/0", "path": escape_name(codes), "salvaged": escape_name(done.path),
        "segments": done.segments, "images": done.rows, "recoded_images": done.recoded,
        "unchecked_images": done.unchecked, "unnamed_images": done.unnamed, "unlabelled_images": done.unlabelled,
        "uncertainty_lost": done.uncertainty_lost, "bytes": done.bytes, "lost_images": done.rows_lost,
        "lost_bytes": [list(place) for place in done.lost], "tables": done.tables, "ok": done.complete,
    }  # fmt: skip
    saved = f"{plural(done.rows, 'row')} in {plural(done.segments, 'segment')}"
    show(result, [f"{result['salvaged']}: {saved}, {done.bytes:,} bytes"], as_json=as_json)
    return 0 if done.complete else 1


def _losses(done: Any) -> list[str]:
    lines = [f"damaged: bytes {start:,} to {end - 1:,}" for start, end in done.lost[:_SHOWN]]
    if len(done.lost) > _SHOWN:
        lines.append(f"damaged: {len(done.lost) - _SHOWN:,} more places; --json lists them all")
    if done.rows_lost:
        lines.append(f"lost: {plural(done.rows_lost, 'row')}")
    elif done.rows_lost is None:
        lines.append("lost: an unknown number of rows, because the index at the end is damaged or missing")
    for what, count in (("names", done.unnamed), ("labels", done.unlabelled)):
        if count:
            lines.append(f"lost: the {what} of {plural(count, 'row')}, whose codes are intact")
    if done.uncertainty_lost:
        lines.append("lost: the uncertainty of some rows, so it was left out for all")
    return [*lines, *filter(None, [_TABLES[done.tables]])]


@opt.command()
@opt.CODES
@opt.output("The archive to write.")
@opt.section(
    "What to keep",
    opt.options_of(CompressOptions, only="latents rate target"),
    click.option(
        "--select", type=opt.INPUT,
        help="Keep the latents of this JSON file: `stochcl select`'s, or a list of numbers from 0.",
    ),
    click.option("--no-names", "names", is_flag=True, flag_value=False, default=True, help="Leave out names."),
    click.option(
        "--no-uncertainty", "uncertainty", is_flag=True, flag_value=False, default=True, help="Leave out uncertainty."
    ),
    click.option("--labels", type=opt.INPUT, help="Store the labels of this CSV file name,label."),
)  # fmt: skip
@opt.section(
    "Entropy models",
    click.option("--refit", is_flag=True, help="Fit entropy models to these codes, and store those that save bytes."),
    click.option("--self-contained", is_flag=True, help="Put the decoder into the archive."),
    click.option("--external-tables", is_flag=True, help="Put the decoder into a file beside the archive."),
)
@opt.TABLES
@opt.FORCE
@opt.RESUME
@JSON
def transcode(codes: Path, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Rewrite an archive: narrower, smaller, or with other names, labels or decoder.

    It needs neither the images nor the encoder.

    \b
    Example:
      stochcl transcode codes.bin -o small.bin --rate 64 --refit
      stochcl transcode codes.bin -o small.bin --target "accuracy -1"
    """
    with progress_bar("steps") as bar:
        edit = archives.transcode(codes, output, tables=resolve_tables(model, codes), progress=bar, **options)
    show(edit.to_json("transcode"), edit.lines(), as_json=as_json)


@opt.command()
@opt.CODES
@opt.output("The folder that the parts go to.")
@click.option("--rows", type=int, metavar="N", help="Rows per part; the last has the rest.")
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
        made = archives.split(codes, output, rows=rows, parts=parts, force=force, progress=bar)
    files: list[dict[str, Any]] = [{"path": escape_name(r.path), "images": r.images, "bytes": r.bytes} for r in made]
    total = {"images": sum(r.images for r in made), "bytes": sum(r.bytes for r in made)}
    lines = [f"{escape_name(r.path)}: {plural(r.images, r.unit)}, {r.bytes:,} bytes" for r in made]
    result = {"schema": "stochcl.split/0", "path": escape_name(codes)} | total | {"files": files}
    show(result, lines, as_json=as_json)


@opt.command()
@opt.CODES
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=opt.SOURCE)
@opt.CODES_MODEL
@opt.DEVICE
@opt.options_of(CompressOptions, only="column id_column embedder any_name max_pixels batch_size workers")
@opt.section(
    "Labels, if the archive stores labels",
    click.option("--labels", type=opt.INPUT, help="CSV file name,label, .npy array, or .parquet or .arrow file."),
    opt.options_of(CompressOptions, only="label_level label_files label_column"),
)
@click.option("--strict", is_flag=True, help="Stop at an image that cannot be read, and add nothing.")
@JSON
def append(
    codes: Path, sources: tuple[Path, ...], *, model: str | None, device: str, as_json: bool, **options: Any
) -> None:
    """Add the images or embeddings of a source that an archive does not have yet.

    Images that the archive does not have by name, and rows of a .parquet or .arrow file that it does not have by id,
    are added in place. If the archive has ids, --id-column is by default the column that they came
    from. Until the end, and after an interruption, the archive opens as it was, and the same command continues. Of a
    matrix that has grown, the new rows are added.

    \b
    Example:
      stochcl append codes.bin images/
      stochcl append vectors.bin new.parquet --id-column uid
    """
    from stochcl.api.append import append, check_local
    from stochcl.api.codec import codec_of

    check_local(codes)
    check_paths_exist(sources)
    with Archive(codes):  # a folder of shards is refused before its model is loaded
        codec = codec_of(codes, model, device=device)
    with progress_bar("rows" if codec.columns else "images") as bar:
        edit = append(codes, sources, codec, progress=bar, **opt.given(options))
    say_skipped(edit.skipped)
    show(edit.to_json("append"), edit.lines(), as_json=as_json)


@opt.command()
@click.argument("codes", type=opt.INPUT, nargs=-1, required=True)
@opt.output("The archive to write.")
@opt.FORCE
@opt.RESUME
@JSON
def merge(codes: tuple[Path, ...], output: Path, *, force: bool, resume: bool, as_json: bool) -> None:
    """Join archives of one model and width, in the order given.

    Nothing is coded again. Rows that are in several archives are kept several times.

    \b
    Example:
      stochcl merge a.bin b.bin -o codes.bin
    """
    with progress_bar("images") as bar:
        edit = archives.merge(codes, output, force=force, resume=resume, progress=bar)
    show(edit.to_json("merge"), edit.lines(), as_json=as_json)


@opt.command()
@opt.CODES
@opt.output("A .npz, .npy, .csv, .parquet or .arrow file.")
@opt.LABELS
@opt.FORCE
@opt.TABLES
@JSON
def decompress(codes: Path | str, output: Path, *, model: str | None, as_json: bool, **options: Any) -> None:
    """Export codes as arrays: symbols, vectors, names and labels.

    Images cannot be recovered. The output's ending says what is written: .npz (all, for numpy.load), .npy (vectors),
    .csv, .parquet or .arrow.

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
    line = f"{result['path']}: {', '.join(done.holds)} of {plural(done.rows, 'row')}, {done.bytes:,} bytes"
    show(result, [line], as_json=as_json)


@opt.command()
@opt.CODES
@click.option("--faiss", type=opt.PATH, metavar="FILE", help="Write an index of FAISS.")
@click.option("--npy", type=opt.PATH, metavar="FILE", help="Write decoded vectors as a matrix, a row each.")
@opt.section(
    "Index",
    click.option("--factory", default="Flat", show_default=True, help="Kind of index: HNSW32, 'IVF1024,PQ32'..."),
    click.option("--metric", type=click.Choice(["cosine", "l2"]), default="cosine", show_default=True,
                 help="Compare by angle (vectors are brought to length 1), or by distance."),
    click.option("--binary", is_flag=True, help="Write the codes' bits, for Hamming distances, in place of vectors."),
)  # fmt: skip
@opt.TABLES
@opt.FORCE
@JSON
def export(
    codes: Path | str, *, faiss: Path | None, npy: Path | None, factory: str, metric: str, binary: bool,
    model: str | None, force: bool, as_json: bool,
) -> None:  # fmt: skip
    """Export decoded vectors, or bits, to an index of FAISS or a matrix.

    An index's ids are the rows' numbers. FAISS comes with: pip install 'stochcl[faiss]'.

    \b
    Example:
      stochcl export codes.bin --faiss index.faiss --factory HNSW32
      stochcl export codes.bin --npy decoded.npy
    """
    from stochcl.api import indexes

    if (faiss is None) == (npy is None):
        raise click.UsageError("Give either --faiss FILE or --npy FILE.")
    tables = resolve_tables(model, codes)
    with progress_bar("rows") as bar:
        if npy is not None:
            if npy.suffix.lower() != ".npy":
                raise click.UsageError("--npy writes a .npy file; use that ending.")
            done = archives.decompress(codes, npy, tables=tables, force=force, progress=bar)
            found: dict[str, Any] = {
                "schema": "stochcl.export/0",
                "path": done.path,
                "images": done.rows,
                "bytes": done.bytes,
            }
            what = done.holds[0]
        else:
            found = indexes.export_faiss(
                codes, faiss or "", factory=factory, metric=metric, binary=binary, tables=tables, force=force,
                progress=bar,
            )  # fmt: skip
            what = found["index"]
    line = f"{found['path']}: {what} of {plural(found['images'], 'row')}, {found['bytes']:,} bytes"
    show(found, [line, *(f"  note: {note}" for note in found.get("notes", []))], as_json=as_json)


@opt.command()
@click.argument("index", type=opt.INPUT)
@opt.output("The archive to write.")
@opt.FORCE
@JSON
def import_faiss(index: Path, output: Path, *, force: bool, as_json: bool) -> None:
    """Compress the codes of a FAISS index (PQ or RQ) to an archive, which decodes to the same vectors.

    It prints what the entropy coder gains, which for a well trained quantiser is little. FAISS trusts the files that
    it reads; import your own.

    \b
    Example:
      stochcl import-faiss pq.faiss -o codes.bin
    """
    from stochcl.api import indexes

    with progress_bar("rows") as bar:
        done = indexes.import_faiss(index, output, force=force, progress=bar)
    show(done.to_json(), done.lines(), as_json=as_json)
