"""From a source to an archive: what is checked before, which way it goes, and what is said of it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from stochcl.api.encoding import CompressOptions, encode_source, encode_to_stream
from stochcl.api.rate import compress_at_rate, full_width
from stochcl.api.report import Report, said_of_tables
from stochcl.compress import Archive, keep_tables
from stochcl.data import (
    ArrowVectors,
    ImageSource,
    MatrixSource,
    StreamSource,
    TarStream,
    open_arrow,
    open_source,
    open_sources,
    printable,
)
from stochcl.data.files import why
from stochcl.data.several import expand
from stochcl.errors import OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stochcl.api.codec import Codec
    from stochcl.api.encoding import Source
    from stochcl.compress import Rows

    PathLike = str | os.PathLike[str]
    Given = PathLike | Sequence[PathLike] | IO[bytes] | Source

__all__ = ["CompressOptions", "compress_source"]

_FEW = 100  # images whose mean says little, and a file's own parts much
_MUCH = 1.3  # times the bits of images like the model's training images


def compress_source(
    codec: Codec,
    source: Given,
    path: Path | IO[bytes],
    options: CompressOptions,
    progress: Callable[[int, int], None],
) -> Report:
    """Compress a source to a path or a stream, see :meth:`stochcl.api.codec.Codec.compress`."""
    options.check(codec.latents, codec.columns)
    images = suited(_opened(source), codec)
    if not isinstance(path, Path):
        return _compress_to_stream(codec, images, path, options, progress)
    if options.resume and isinstance(images, StreamSource):
        raise UsageError(
            f"{printable(images.path)}: what has gone by cannot be read again, so there is nothing to --resume; "
            f"`stochcl verify {printable(path)}.partial --salvage OUT` makes an archive of what was kept."
        )
    for read in _paths(source):
        check_output(path, read, force=options.force)
    started = time.monotonic()
    with saying_what_is_kept(path):
        if options.rate is None:
            encoded = encode_source(codec, images, path, options, options.latents or codec.latents, progress)
        else:
            encoded = compress_at_rate(codec, images, path, options, options.rate, progress)
    with Archive(path, tables=[codec.tables]) as archive:
        report = Report.of(archive, str(path), seconds=time.monotonic() - started, encoded=encoded)
        warnings = of_another_kind(codec, archive)
    notes = said_of_tables(keep_tables(codec.tables, path.parent)) if options.external_tables else ()
    return replace(report, notes=notes, warnings=warnings)


def _compress_to_stream(
    codec: Codec, images: Source, file: IO[bytes], options: CompressOptions, progress: Callable[[int, int], None]
) -> Report:
    refused = {"--rate": options.rate, "--resume": options.resume, "--external-tables": options.external_tables}
    if asked := [name for name, value in refused.items() if value]:
        raise UsageError(
            f"{' and '.join(asked)}: this needs a file to be written; give -o a name, or --latents for fewer bits."
        )
    started = time.monotonic()
    encoded, outline = encode_to_stream(codec, images, file, options, options.latents or codec.latents, progress)
    with Archive(outline, tables=[codec.tables]) as archive:
        report = Report.of(archive, "standard output", seconds=time.monotonic() - started, encoded=encoded)
        return replace(report, warnings=of_another_kind(codec, archive))


def _paths(source: Given) -> list[Path]:
    """Return the files and folders that a source was named by."""
    if isinstance(source, str | os.PathLike):
        return expand(source)
    return [path for given in source for path in expand(given)] if isinstance(source, Sequence) else []


def of_another_kind(codec: Codec, archive: Rows) -> tuple[str, ...]:
    """Return a warning where the model's network predicts codes worse than those of its training images."""
    recorded = codec.model.record.get("entropy", {}).get("autoregressive_bits")
    if not recorded or len(archive) < _FEW:
        return ()
    rungs = sorted((int(latents), float(bits)) for latents, bits in recorded.items())
    places = [0, *(rung for rung, _ in rungs)], [0.0, *(bits for _, bits in rungs)]
    expected = float(np.interp(archive.header.latents, *places))
    spent, unit = archive.parts()["codes"] * 8 / len(archive), "row" if codec.columns else "image"
    advice = "`stochcl transcode --refit` may make the file smaller, and `stochcl train` a model that knows them"
    if spent > _MUCH * expected:
        known = f"those of the model's training {unit}s {expected:,.0f}"
        said = f"these codes take {spent:,.0f} bits per {unit}, and {known}"
    elif archive.own_table_rows > len(archive) / 2:
        said = "the model predicts these codes worse than a plain table of their frequencies does"
    else:
        return ()
    return (f"warning: {said}: the {unit}s may be of a kind that it was not trained on; {advice}",)


@contextmanager
def saying_what_is_kept(path: Path) -> Iterator[None]:
    """Let an interruption say what there is to go on with."""
    try:
        yield
    except KeyboardInterrupt as exc:
        if (kept := _kept(path)) and not getattr(exc, "__notes__", ()):
            exc.add_note(f"What was done is kept in {printable(kept)}: pass --resume to go on with it.")
        raise


def _kept(path: Path) -> Path | None:
    """Return what an interrupted run has left to go on with."""
    full = full_width(path)
    partial = [p.with_name(p.name + ".partial") for p in (full, path)]
    return next((p for p in (full, *partial) if p.exists()), None)


def open_inputs(path: PathLike, codec: Codec) -> ImageSource | MatrixSource:
    """Open a source of what a model takes, images or rows of so many numbers; errors as those of :func:`suited`."""
    source = open_source(path)
    suited(source, codec)
    return source


def suited(source: Source, codec: Codec) -> Source:
    """Return a source, if it holds what a model takes: images, or rows of so many numbers.

    Raises
    ------
    UsageError
        If it holds the other; the message says what model it takes.
    """
    model, columns = printable(codec.model.name), codec.columns
    shown = printable(source.path)
    matrix = "vectors.npy" if isinstance(source, ArrowVectors) else shown  # training takes no columns
    training = f"`stochcl train {matrix} -o head.safetensors --latents 256 --rate 64`"
    if not isinstance(source, MatrixSource | ArrowVectors):
        if columns is None:
            return source
        raise UsageError(
            f"{shown}: these are images, and the model {model} takes rows of {columns:,} numbers; give a model of "
            "images with -m, or none for the default one."
        )
    found = f"{shown}: these are embeddings ({len(source):,} x {source.dim:,})"
    if columns is None:
        raise UsageError(
            f"{found}, and the model {model} takes images; embeddings need a model of their own, as {training} makes "
            "it, to be given with -m."
        )
    if columns != source.dim:
        raise UsageError(
            f"{found}, and the model {model} takes rows of {columns:,} numbers; give the one that was trained on "
            f"such rows with -m, or train one with {training}."
        )
    return source


def _opened(given: Given) -> Source:
    if isinstance(given, ImageSource | MatrixSource | StreamSource):
        return given
    if not isinstance(given, str | os.PathLike | Sequence):
        return TarStream(given)
    columns = open_arrow(_paths(given))
    if columns is not None:  # which may be of no length, where a file does not say that
        return columns
    return open_sources([given] if isinstance(given, str | os.PathLike) else given)


def check_output(path: Path, source: Path, *, force: bool) -> None:
    """Refuse, before an image is read, an output that cannot be written or that somebody wants to keep."""
    shown = printable(path)
    try:
        folder = path.absolute().parent.is_dir()
        status = path.stat() if path.exists() else None
        same = status is not None and source.is_file() and path.samefile(source)
    except OSError as exc:
        raise OutputError(f"{shown}: it cannot be written: {why(exc)}; give another name.") from exc
    if not folder:
        raise OutputError(f"{shown}: the folder to write to does not exist; make it first.")
    if status is None:
        return
    if same:
        raise UsageError(f"{shown}: the output would replace the source; give another name.")
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise UsageError(f"{shown}: this is {what}; name the file to write.")
    if not force:
        raise UsageError(f"{shown}: this file exists already; pass --force to replace it.")
