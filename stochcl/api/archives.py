"""Verbs on archives, which need neither encoder nor torch: info, verify, decompress, evaluate."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.api.compress import (
    CompressOptions,
    encode_rows,
    listing,
    locked,
    none_readable,
    open_inputs,
    refused,
    saying_what_is_kept,
    unwritable,
    write_widest,
)
from stochcl.api.evaluate import labels_of
from stochcl.api.summary import Edit, Report, said_of_tables
from stochcl.compress import Archive, open_archive
from stochcl.compress import edit as moving
from stochcl.compress.append import Appender
from stochcl.compress.edit import stored_names
from stochcl.compress.export import export
from stochcl.compress.sharded import join
from stochcl.compress.transcode import Transcoding, fit_models, sample
from stochcl.data import MatrixSource, Preprocess, missing_from, read_labels
from stochcl.data.source import read_regular
from stochcl.entropy.tables import keep_tables
from stochcl.errors import ImageError, LabelsError, ModelMismatch, OutputError, SourceError, UsageError
from stochcl.files import check_output, sync_folder
from stochcl.messages import escape_name, os_reason, plural

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from stochcl.api.codec import Codec
    from stochcl.codes import Codes
    from stochcl.compress import FolderArchive
    from stochcl.data import LabelTable, SubsetSource
    from stochcl.entropy.tables import Tables

    PathLike = str | os.PathLike[str]
    Progress = Callable[[int, int], None]
    Where = Iterable[Tables | str | os.PathLike[str]]

__all__ = ["append", "decompress", "info", "merge", "repair", "salvage", "split", "transcode", "verify"]

_MAX_SELECTION = 1 << 20  # bytes of a list of latents


def _silent(done: int, total: int) -> None:
    """Show no progress."""


def transcode(
    path: PathLike,
    output: PathLike,
    *,
    latents: int | None = None,
    rate: float | None = None,
    select: Sequence[int] | PathLike | None = None,
    refit: bool = False,
    self_contained: bool = False,
    external_tables: bool = False,
    names: bool = True,
    uncertainty: bool = True,
    labels: PathLike | None = None,
    tables: Iterable[Tables | PathLike] = (),
    force: bool = False,
    resume: bool = False,
    progress: Progress = _silent,
) -> Edit:
    """Write an archive anew, without images or encoder.

    Parameters
    ----------
    path, output : path-like
    latents : int, optional
        Keep the first so many latents.
    rate : float, optional
        Keep the widest rung of the model's ladder whose codes take so many bits per image on disk.
    select : sequence of int or path-like, optional
        Keep these latents: numbers of the model's, from 0, or a JSON file with a list of them, or
        what ``stochcl select`` wrote. Models are refitted.
    refit : bool
        Fit entropy models to the codes, and store those that are worth their own bytes.
    self_contained, external_tables : bool
        Put the decoding tables into the file, or leave them out; by default as it was.
    names, uncertainty : bool
        Whether to keep the rows' names, and their uncertainty, where they are stored.
    labels : path-like, optional
        A CSV file ``name,label``, whose labels are stored.
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archive.
    force, resume : bool
        Replace an existing output; go on with what an interrupted run left.
    progress : callable
        Told how much of how much is done, in each step from the beginning.

    Raises
    ------
    SourceError, FormatError, LabelsError, OutputError, UsageError
    """
    path, output = Path(path), Path(output)
    _check_request(latents, rate, select, both=self_contained and external_tables, resume=resume)
    check_output(output, path, force=force)
    with Archive(path, tables=tables) as archive:
        before = len(archive), archive.size
        job = Transcoding(
            archive,
            embed=self_contained or (moving.is_embedded(archive) and not external_tables),
            names=names,
            uncertainty=uncertainty,
            labels=None if labels is None else _matching(archive, path, labels),
            columns=None if select is None else _columns(archive, path, select),
        )
        width = job.width if latents is None else latents
        if not 1 <= width <= job.width:
            raise UsageError(f"{escape_name(path)}: it has {plural(job.width, 'latent')}; {width:,} cannot be kept.")
        if refit or select is not None:
            job = replace(job, models=_fitted(job, width if rate is None else job.width, progress))
        if rate is None:
            with saying_what_is_kept(output):
                job.write(output, width, force=force, resume=resume, progress=progress)
        else:
            with locked(output):
                _write_at_rate(job, output, rate)
        notes = said_of_tables(keep_tables(archive.tables, output.parent)) if external_tables else ()
        with Archive(output, tables=[archive.tables]) as written:
            report, fitted = Report.of(written, str(output)), len(written._index.fitted)
    if refit or select is not None:
        notes = (f"fitted     {plural(fitted, 'entropy model')} stored", *notes)
    return Edit(report, before, {"fitted_models": fitted}, notes)


def _check_request(
    latents: int | None, rate: float | None, select: Sequence[int] | PathLike | None, *, both: bool, resume: bool
) -> None:
    """Refuse options that contradict each other."""
    if latents is not None and rate is not None:
        raise UsageError("--latents and --rate both say how wide the codes are; give one of them.")
    if select is not None and (latents is not None or rate is not None):
        raise UsageError("--select says which latents are kept; give it without --latents and --rate.")
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"a rate is more than 0 bits per image, and finite, not {rate}.")
    if both:
        raise UsageError("--self-contained and --external-tables contradict each other; give one of them.")
    if rate is not None and resume:
        raise UsageError("--rate tries several widths and keeps nothing of an interrupted run; leave --resume out.")


def _columns(archive: Archive, path: Path, select: Sequence[int] | PathLike) -> tuple[int, ...]:
    """Return where in an archive's rows the latents of these numbers are."""
    where = escape_name(select) if isinstance(select, str | Path) else "the selection"
    numbers = _numbers(Path(select)) if isinstance(select, str) or hasattr(select, "__fspath__") else select
    header = archive.header
    if isinstance(numbers, dict):  # what `stochcl select` wrote
        if numbers.get("model_sha256") not in (None, header.model_sha256):
            raise ModelMismatch(
                f"{where}: it was chosen for codes of the model {escape_name(str(numbers.get('model')))}, and "
                f"{escape_name(path)} was made by {escape_name(header.model)}; choose for this one with `stochcl select`."
            )
        numbers = numbers.get("latents")
    if (
        not isinstance(numbers, list | tuple | range)
        or not numbers
        or any(not isinstance(n, int) or isinstance(n, bool) for n in numbers)
    ):
        raise UsageError(f"{where}: a selection is a list of the numbers of latents, such as [0, 3, 17].")
    if len(set(numbers)) != len(numbers):
        raise UsageError(f"{where}: a latent is selected twice; name each once.")
    there = range(header.latents) if header.selection is None else header.selection
    places = {latent: column for column, latent in enumerate(there)}
    for number in numbers:
        if number not in places:
            held = f"latents 0 to {header.latents - 1}" if header.selection is None else "some of the model's only"
            raise UsageError(f"{where}: {escape_name(path)} does not have latent {number}; it has {held}.")
    return tuple(sorted(places[number] for number in numbers))


def _numbers(path: Path) -> Any:
    shown = escape_name(path)
    try:
        return json.loads(read_regular(path, _MAX_SELECTION))
    except ImageError as exc:
        raise SourceError(f"{shown}: the selection cannot be read: {exc}.") from exc
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{shown}: this is not a JSON list of the numbers of latents ({exc}).") from exc


def _matching(archive: Archive, path: Path, labels: PathLike) -> Callable[[Sequence[str]], tuple[str, ...]]:
    """Return what gives rows their labels, once it is certain that each has one."""
    if len(archive) and archive.names is None:
        raise LabelsError(
            f"{escape_name(path)}: its rows have no names to find labels by (--no-names?); compress with names."
        )
    table = read_labels(labels)
    for segment in range(len(archive._index.segments)):
        table.match(stored_names(archive, segment))
    return table.match


def _fitted(job: Transcoding, width: int, progress: Progress) -> list[Any]:
    """Return models that are fitted to a sample of the first so many of the latents that are kept."""
    codes = job.cut(sample(job.archive), width)
    return fit_models(codes, len(job.archive), progress=progress)


def _write_at_rate(job: Transcoding, output: Path, rate: float) -> None:
    """Write the widest rung of the ladder that keeps to a rate."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name[:64]}.", dir=output.parent) as folder:
            write_widest(job, Path(folder), rate, output).replace(output)
        sync_folder(output.parent)
    except (OutputError, OSError) as exc:
        raise unwritable(output, exc) from exc


def info(path: str | os.PathLike[str], *, tables: Where = ()) -> Report:
    """Return the figures of an archive.

    Raises
    ------
    SourceError, FormatError
    """
    with open_archive(path, tables=tables) as archive:
        return Report.of(archive, str(path))


def verify(
    path: str | os.PathLike[str],
    *,
    tables: Where = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Check every byte of an archive and return how many images and bytes were found right.

    Raises
    ------
    SourceError
        If it cannot be read.
    FormatError
        If anything is damaged.
    """
    with open_archive(path, tables=tables) as archive:
        archive.verify(progress)
        return {
            "schema": "stochcl.verify/0",
            "path": escape_name(path),
            "images": len(archive),
            "bytes": archive.size,
            "left_over_bytes": archive.left_over if isinstance(archive, Archive) else 0,
            "ok": True,
        }


def salvage(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tables: Where = (),
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write what is intact of a damaged archive to another, see :func:`stochcl.compress.salvage.salvage`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError
    """
    from stochcl.compress.salvage import salvage as write

    done = write(path, output, tables=tables, force=force, progress=progress)
    return {
        "schema": "stochcl.verify/0",
        "path": escape_name(path),
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


def repair(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Undo an interrupted append, see :func:`stochcl.compress.repair.repair`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError
    """
    from stochcl.compress.repair import repair as cut_back

    done = cut_back(path)
    return {
        "schema": "stochcl.verify/0",
        "path": escape_name(done.path),
        "images": done.rows,
        "bytes": done.bytes,
        "cut_bytes": done.cut,
        "ok": True,
    }


def decompress(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    tables: Where = (),
    force: bool = False,
) -> dict[str, Any]:
    """Decode an archive to a .npz, .npy, .csv or .parquet file, see :func:`stochcl.compress.export.export`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError, LabelsError
    """
    with open_archive(path, tables=tables) as archive:
        given = None if labels is None else [str(label) for label in labels_of(archive, path, labels)]
        done = export(archive, output, labels=given, force=force)
    return {
        "schema": "stochcl.decompress/0",
        "path": escape_name(done.path),
        "images": done.rows,
        "bytes": done.bytes,
        "holds": list(done.holds),
    }


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

    Until all is done, and after an error, the archive is as it was. An interruption keeps what is done of the new
    behind it: the same append again goes on with that, and gives what an undisturbed one gives.

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
        facts = {"source": listing(new), "model": codec.model.sha256, "strict": strict, "device": codec.device.type}
        out.resume(facts | {"labels": None if table is None else _digest(table.match(_names(new)))})
        encoded = _append_to(out, new, codec, options, table, progress)
    with Archive(path, tables=[codec.tables]) as archive:
        report = Report.of(archive, str(path), seconds=time.monotonic() - started, encoded=encoded)
    unit = report.unit
    added = report.images - before[0]
    notes = (f"added      {plural(added, unit)}; {plural(there, unit)} had been there already",)
    return Edit(report, before, {"added": added, "there": there}, notes, tuple(out.skipped))


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
    for failure in () if out.position else new.rejected:
        out.skip(failure.name, failure.reason)
    try:
        encoded = encode_rows(codec, new, out, preprocess, options, progress, beside=beside)
    except (KeyboardInterrupt, SourceError) as exc:
        if out.rows:
            exc.add_note(
                f"The archive is as it was; the {out.rows:,} that are done are kept behind it: repeat the command to "
                "go on."
            )
        raise
    if not out.rows and any(name not in known for name in _names(new)):
        raise none_readable(new, out.first_skip)
    return encoded


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _names(source: SubsetSource | MatrixSource) -> Sequence[str]:
    return source.names if isinstance(source, MatrixSource) else [entry.name for entry in source.entries]


def _check_grown(matrix: MatrixSource, names: Sequence[str], path: Path) -> None:
    """Refuse a matrix with fewer rows than an archive has: it is not the one that the archive was made of."""
    numbers = [int(name) for name in names if name.isdecimal()]
    if numbers and max(numbers) >= matrix.total:
        raise UsageError(
            f"{escape_name(matrix.path)}: it has {matrix.total:,} rows, and {escape_name(path)} has row "
            f"{max(numbers):,}; append adds the rows by which a matrix has grown. Compress another matrix to a file "
            "of its own, and join the two with `stochcl merge`."
        )


def _check_appendable(archive: Archive, path: Path, codec: Codec, *, labels: bool) -> None:
    """Refuse to append codes that the header of an archive would not be true of."""
    header, shown = archive.header, escape_name(path)
    if header.model_sha256 != codec.model.sha256:
        raise ModelMismatch(
            f"{shown}: it was made by the model {escape_name(header.model)} ({header.model_sha256[:12]}), not by "
            f"{escape_name(codec.model.name)} ({codec.model.sha256[:12]}); give its own with -m."
        )
    own = codec.header(latents=codec.latents, preprocess=codec.preprocess, source_kind="")
    if header.precision not in codec.precisions:
        known = " or ".join(codec.precisions)
        raise UsageError(f"{shown}: its precision is {escape_name(header.precision)}, and this version has {known}.")
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
        archives, names, bring_tables = join(opened)
        moving.check_alike(archives, names)
        before = sum(len(archive) for archive in opened), sum(archive.size for archive in opened)
        with saying_what_is_kept(output):
            embed = bring_tables
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
            raise UsageError(
                f"{escape_name(there[0])}: this file exists already; pass --force to replace such parts."
            )
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
    total, shown = len(archive), escape_name(path)
    if not total:
        raise UsageError(f"{shown}: it holds no images; there is nothing to split.")
    if rows is not None:
        if rows < 1:
            raise UsageError(f"--rows counts images, and {rows} of them make no part.")
        return [*range(0, total, rows), total]
    if parts is None or not 1 <= parts <= total:
        raise UsageError(f"{shown}: it holds {plural(total, 'image')}, which do not make {parts} parts.")
    return [total * i // parts for i in range(parts + 1)]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as exc:
        raise UsageError(f"{escape_name(folder)}: this is a file; name the folder that the parts go to.") from exc
    except OSError as exc:
        raise OutputError(f"{escape_name(folder)}: the folder cannot be made: {os_reason(exc)}.") from exc


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
