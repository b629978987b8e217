"""Verbs that change archives: append, merge, split, transcode. Only the first needs an encoder, and so torch."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stochcl.api.compression import check_output, open_inputs, saying_what_is_kept
from stochcl.api.encoding import CompressOptions, encode_rows, none_readable, refused
from stochcl.api.rate import unwritable
from stochcl.api.report import Edit, Report, counted
from stochcl.api.transcoding import transcode
from stochcl.compress import Archive, moving, open_archive
from stochcl.compress.appending import Appender
from stochcl.compress.folder import Joined
from stochcl.data import MatrixSource, Preprocess, missing_from, printable, read_labels
from stochcl.data.files import why
from stochcl.errors import ModelMismatch, OutputError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from stochcl.api.codec import Codec
    from stochcl.codes import Codes
    from stochcl.compress import FolderArchive, Tables
    from stochcl.data import LabelTable, SubsetSource

    PathLike = str | os.PathLike[str]
    Progress = Callable[[int, int], None]

__all__ = ["append", "merge", "split", "transcode"]


def _silent(done: int, total: int) -> None:
    """Show no progress."""


# Append


def append(
    path: PathLike,
    source: PathLike,
    codec: Codec,
    *,
    labels: PathLike | None = None,
    batch_size: int = 256,
    workers: int | None = None,
    strict: bool = False,
    progress: Progress = _silent,
) -> Edit:
    """Encode the images of a source that an archive does not have yet, by their names, and add them to it in place.

    Of a matrix, rows are named by their numbers: what is added are those by which it has grown. Another matrix is
    compressed to a file of its own, and joined by :func:`merge`.

    An error leaves the archive as it was. An interruption keeps what is complete of the new: to add the rest,
    append again.

    Parameters
    ----------
    path : path-like
        The archive, which must have names.
    source : path-like
        A folder, .zip, .tar, or .npy of uint8 images; or the .npy matrix that the archive was made of, grown.
    codec : Codec
        Of the archive's model; it computes in the archive's precision.
    labels : path-like, optional
        A CSV file with labels of the new images, where the archive has labels stored.
    batch_size, workers, strict
        As for compressing.
    progress : callable
        Told how many images of how many are done.

    Raises
    ------
    SourceError, ImageError, FormatError, LabelsError, OutputError
    ModelMismatch, UsageError
        If the archive is another model's, or its images were prepared otherwise, or it has no names.
    """
    path, options = Path(path), CompressOptions(batch_size=batch_size, workers=workers, strict=strict)
    options.check(codec.latents)
    with Archive(path) as archive:
        _check_appendable(archive, path, codec, labels=labels is not None)
        codec = codec.with_precision(archive.header.precision)
    images = open_inputs(Path(source), codec)
    table = None if labels is None else read_labels(labels)
    started = time.monotonic()
    with Appender(path, tables=[codec.tables]) as out:
        before = len(out.archive), out.archive.size
        names = out.archive.names or ()
        if isinstance(images, MatrixSource):
            _check_grown(images, names, path)
        new = missing_from(images, names)
        there = len(images) - len(new)
        if strict and new.rejected:
            raise refused(new, new.rejected[0])
        if table is not None:
            table.match(_names(new))
        encoded = _append_to(out, new, codec, options, table, progress)
    with Archive(path, tables=[codec.tables]) as archive:
        report = Report.of(archive, str(path), seconds=time.monotonic() - started, encoded=encoded)
    unit = report.unit
    notes = (f"added      {counted(encoded, unit)}; {counted(there, unit)} had been there already",)
    return Edit(report, before, {"added": encoded, "there": there}, notes, tuple(out.skipped))


def _append_to(
    out: Appender,
    new: SubsetSource | MatrixSource,
    codec: Codec,
    options: CompressOptions,
    table: LabelTable | None,
    progress: Progress,
) -> int:
    options = replace(options, uncertainty=out.has is not None and out.has[2])

    def beside(codes: Codes) -> Codes:
        return replace(codes, labels=None if table is None else table.match(codes.names or ()))

    stated = out.header.preprocess
    preprocess = codec.preprocess if codec.columns else Preprocess(stated["size"], stated["fit"])
    known = {name for name, _ in out.archive.skipped}
    for failure in new.rejected:
        out.skip(failure.name, failure.reason)
    try:
        encoded = encode_rows(codec, new, out, preprocess, options, progress, beside=beside)
    except KeyboardInterrupt as exc:
        out.keep()
        if out.added:
            exc.add_note(f"{counted(out.added, 'image')} were added; repeat the command to add the rest.")
        raise
    if not encoded and any(name not in known for name in _names(new)):
        raise none_readable(new, out.first_skip)
    return encoded


def _names(source: SubsetSource | MatrixSource) -> Sequence[str]:
    return source.names if isinstance(source, MatrixSource) else [entry.name for entry in source.entries]


def _check_grown(matrix: MatrixSource, names: Sequence[str], path: Path) -> None:
    """Refuse a matrix with fewer rows than an archive has: it is not the one that the archive was made of."""
    numbers = [int(name) for name in names if name.isdecimal()]
    if numbers and max(numbers) >= matrix.total:
        raise UsageError(
            f"{printable(matrix.path)}: it has {matrix.total:,} rows, and {printable(path)} has row "
            f"{max(numbers):,}; append adds the rows by which a matrix has grown. Compress another matrix to a file "
            "of its own, and join the two with `stochcl merge`."
        )


def _check_appendable(archive: Archive, path: Path, codec: Codec, *, labels: bool) -> None:
    """Refuse to append codes that the header of an archive would not be true of."""
    header, shown = archive.header, printable(path)
    if header.model_sha256 != codec.model.sha256:
        raise ModelMismatch(
            f"{shown}: it was made by the model {printable(header.model)} ({header.model_sha256[:12]}), not by "
            f"{printable(codec.model.name)} ({codec.model.sha256[:12]}); give its own with -m."
        )
    own = codec.header(latents=codec.latents, preprocess=codec.preprocess, source_kind="")
    if header.precision not in codec.precisions:
        known = " or ".join(codec.precisions)
        raise UsageError(f"{shown}: its precision is {printable(header.precision)}, and this version has {known}.")
    size, fit = own.preprocess.get("size"), header.preprocess.get("fit")
    if codec.columns is None and (header.preprocess.get("size") != size or fit not in ("crop", "pad", "stretch")):
        raise UsageError(f"{shown}: its images were not prepared as this model does, as squares of {size} pixels.")
    if not len(archive):
        return
    if archive.names is None:
        raise UsageError(
            f"{shown}: its rows have no names (--no-names?), so that it cannot be told which images are there "
            "already; compress the new ones to a file of their own, and join the two with `stochcl merge`."
        )
    stored = moving.has_part(archive, "labels")
    if stored and not labels:
        raise UsageError(f"{shown}: it has labels stored; give those of the new images with --labels.")
    if labels and not stored:
        raise UsageError(
            f"{shown}: it has no labels stored; `stochcl transcode --labels` stores those of its images."
        )


# Merge and split


def merge(
    paths: Sequence[PathLike],
    output: PathLike,
    *,
    tables: Iterable[Tables | PathLike] = (),
    force: bool = False,
    resume: bool = False,
    progress: Progress = _silent,
) -> Edit:
    """Join archives of one model and width, in the order given, without coding a row again; duplicates are kept.

    Parameters
    ----------
    paths : sequence of path-like
        Files of codes, or folders of shards, of which all shards are taken in order.
    output : path-like
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archives.
    force, resume : bool
        Replace an existing output; go on with what an interrupted run left.
    progress : callable
        Told how many images of how many are done.

    Raises
    ------
    SourceError, FormatError, OutputError
    ModelMismatch, UsageError
        If the archives do not go together; the message names the first that does not.
    """
    if not paths:
        raise UsageError("there is nothing to merge: name the files of codes to join.")
    output, tables = Path(output), tuple(tables)
    for path in paths:
        check_output(output, Path(path), force=force)
    with ExitStack() as stack:
        opened: list[Archive | FolderArchive] = []
        for path in paths:
            opened.append(open_archive(path, tables=tables))
            stack.enter_context(opened[-1])
        archives = Joined(opened)
        moving.check_alike(archives, archives.names)
        before = sum(len(archive) for archive in opened), sum(archive.size for archive in opened)
        with saying_what_is_kept(output):
            embed = archives.bring_tables
            moving.merge(archives, output, embed=embed, force=force, resume=resume, progress=progress)
    with Archive(output, tables=tables) as archive:
        return Edit(Report.of(archive, str(output)), before, {"files": len(paths)})


def split(
    path: PathLike,
    folder: PathLike,
    *,
    rows: int | None = None,
    parts: int | None = None,
    tables: Iterable[Tables | PathLike] = (),
    force: bool = False,
    progress: Progress = _silent,
) -> list[Report]:
    """Cut an archive into several, in order; only segments that a cut goes through are coded again.

    The first part has the list of skipped images; the bytes of the source are shared out by images.

    Parameters
    ----------
    path : path-like
    folder : path-like
        Where the parts go, made if it is not there; they are called as the archive is, with a number.
    rows, parts : int, optional
        Images of each part, or how many parts, as equal as can be; give one of the two.
    tables : iterable of Tables or path-like
    force : bool
        Replace parts that are there already.
    progress : callable
        Told how many images of how many are done.

    Raises
    ------
    SourceError, FormatError, OutputError, UsageError
    """
    path, folder, tables = Path(path), Path(folder), tuple(tables)
    if (rows is None) == (parts is None):
        raise UsageError("give either --rows, the images of each part, or --parts, how many there shall be.")
    with Archive(path, tables=tables) as archive:
        bounds = _bounds(archive, path, rows, parts)
        digits = max(4, len(str(len(bounds) - 1)))
        outputs = [folder / f"{path.stem}-{i:0{digits}}{path.suffix}" for i in range(1, len(bounds))]
        _make_folder(folder)
        if not force and (there := sorted(folder.glob(f"{_escaped(path.stem)}-[0-9]*"))):
            raise UsageError(f"{printable(there[0])}: this file exists already; pass --force to replace such parts.")
        for output, first, last in zip(outputs, bounds[:-1], bounds[1:], strict=True):
            try:
                moving.split(archive, output, first, last, force=force, progress=progress)
            except OutputError as exc:
                raise unwritable(output, exc, "; the parts before it are complete" if first else "") from exc
    reports = []
    for output in outputs:
        with Archive(output, tables=tables) as archive:
            reports.append(Report.of(archive, str(output)))
    return reports


def _bounds(archive: Archive, path: Path, rows: int | None, parts: int | None) -> list[int]:
    total, shown = len(archive), printable(path)
    if not total:
        raise UsageError(f"{shown}: it holds no images; there is nothing to split.")
    if rows is not None:
        if rows < 1:
            raise UsageError(f"--rows counts images, and {rows} of them make no part.")
        return [*range(0, total, rows), total]
    if parts is None or not 1 <= parts <= total:
        raise UsageError(f"{shown}: it holds {counted(total, 'image')}, which do not make {parts} parts.")
    return [total * i // parts for i in range(parts + 1)]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as exc:
        raise UsageError(f"{printable(folder)}: this is a file; name the folder that the parts go to.") from exc
    except OSError as exc:
        raise OutputError(f"{printable(folder)}: the folder cannot be made: {why(exc)}.") from exc


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
