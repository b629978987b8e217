"""``stochcl compress``."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Any

import click

from stochcl.api.compress import CompressOptions
from stochcl.api.source import check_paths_exist
from stochcl.cli.main import JSON, progress_bar, say, say_skipped, show
from stochcl.cli.options import DEVICE, PATH, SOURCE, command, given, options_of, output, section
from stochcl.data import ImageSource, open_list
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def standard_input(what: str) -> IO[bytes]:
    """Return the bytes of standard input."""
    if sys.stdin is None:
        raise UsageError(f"standard input is closed, and {what} is read from it; send it through a pipe.")
    if sys.stdin.isatty():
        raise UsageError(f"standard input is a terminal, and {what} is read from it; send it through a pipe.")
    return sys.stdin.buffer


def source_of(
    sources: Sequence[Path], files_from: Path | None, *, null: bool, folder: Path
) -> Path | Sequence[Path] | IO[bytes] | ImageSource:
    """Return what a request names to read: paths, standard input, or the images of a list."""
    if files_from is not None:
        if sources:
            raise UsageError("--files-from lists what is read; leave SOURCE out.")
        where = standard_input("a list of files") if str(files_from) == "-" else files_from
        return open_list(where, null=null or None, folder=folder)
    if null or str(folder) != ".":
        raise UsageError("--null and --directory say how a list is read; give it with --files-from.")
    if not sources:
        raise UsageError("there is nothing to compress: name a SOURCE, or a list of files with --files-from.")
    if "-" not in map(str, sources):
        return sources[0] if len(sources) == 1 else sources
    if len(sources) > 1:
        raise UsageError("- is standard input, a tar of images, and no other source goes with it.")
    return standard_input("a tar of images")


def output_of(path: Path) -> Path | IO[bytes]:
    """Return where an archive goes: the path, or for ``-`` standard output."""
    if str(path) != "-":
        return path
    if sys.stdout is None:
        raise UsageError("standard output is closed; send it through a pipe, or give -o a name.")
    if sys.stdout.isatty():
        raise UsageError(
            "standard output is a terminal, and codes are no text; send them through a pipe, or give -o a name."
        )
    return sys.stdout.buffer


@command()
@click.argument("sources", nargs=-1, metavar="SOURCE...", type=SOURCE)
@output("The archive to write; - for standard output.")
@section(
    "Source",
    click.option(
        "--files-from",
        metavar="FILE",
        type=PATH,
        help="Compress the image files listed in FILE, or - for standard input, in its order, in place of a SOURCE.",
    ),
    click.option("-0", "--null", is_flag=True, help="The list is separated by null bytes.  [default: if it has any]"),
    click.option(
        "-C",
        "--directory",
        default=".",
        type=PATH,
        metavar="DIR",
        help="What the list's paths, and so the names, are relative to.  [default: the current folder]",
    ),
    options_of(CompressOptions, only="column id_column any_name depth max_pixels fit workers strict"),
)
@section("Labels", options_of(CompressOptions, only="label_level label_column label_files"))
@section("Rate", options_of(CompressOptions, only="latents rate"))
@section(
    "Model",
    click.option("-m", "--model", default="general", show_default=True, help="An embedded model or a model file."),
    DEVICE,
    click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True,
                 help="Numeric precision of the network; bf16 is faster if the processor supports it."),
    options_of(CompressOptions, only="batch_size"),
)  # fmt: skip
@section("Archive", options_of(CompressOptions, only="names uncertainty self_contained external_tables"))
@section(
    "Shards",
    click.option("--shard-images", type=int, metavar="N",
                 help="Write a folder of archives of N images each, and a manifest.  "
                      "[default with --engine ray: 100,000]"),
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="Where to compress; ray: on many cores or machines, to a folder of shards."),
    click.option("--address", help="Address of a Ray cluster.  [default: RAY_ADDRESS, or this machine's cores]"),
)  # fmt: skip
@options_of(CompressOptions, only="force resume")
@JSON
def compress(
    sources: tuple[Path, ...], output: Path, *, files_from: Path | None, null: bool, directory: Path, model: str,
    device: str, precision: str, engine: str, address: str | None, shard_images: int | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Compress images, or a matrix of embeddings, to an archive of codes.

    SOURCE is a folder of images (recursive), a .zip or .tar of them, a .npy array of shape N x H x W x 3, a .parquet
    or .arrow file with a column of images or vectors, or the URL of a folder, an image or a .tar.
    Several are read in the order given, also as a pattern: 'shards-{000..099}.tar'. With - a tar of images is read
    from standard input, and its images are kept in the order in which they come.
    An image that cannot be read is named, counted and skipped. A .npy matrix of floats, one row a vector, takes a
    model that was trained on such rows; it may be larger than memory, and its rows are named by their numbers.

    \b
    Example:
      stochcl compress images/ -o codes.bin
      stochcl compress vectors.npy -m head.safetensors -o codes.bin
      tar c -C images . | stochcl compress - -o codes.bin
      find images -name '*.jpg' -print0 | stochcl compress --files-from - -o codes.bin
      stochcl compress images/ -o codes/ --engine ray
    """
    from stochcl.api.codec import Codec
    from stochcl.ray import compress_folder

    source = source_of(sources, files_from, null=null, folder=directory)
    out = output_of(output)
    check_paths_exist(source)
    codec, options = Codec(model, device=device, precision=precision), given(options)
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
