"""Operations on archives that need neither encoder nor PyTorch."""

from __future__ import annotations

import glob
import json
import math
import os
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.compress import check_exclusive, locked, note_partial_output, unwritable, write_widest
from stochcl.api.labels import labels_of
from stochcl.api.summary import Edit, Report, external_tables_note
from stochcl.api.target import SAMPLE, Sample, Target, decoded, narrowest, target_note
from stochcl.compress import Archive, FolderArchive, edit, open_archive
from stochcl.compress.columns import ids_of
from stochcl.compress.export import Exported, export
from stochcl.compress.sharded import join
from stochcl.compress.transcode import Transcoding, fit_models, sample
from stochcl.data import read_labels
from stochcl.data.access import read_regular
from stochcl.entropy.tables import keep_tables
from stochcl.errors import (
    ImageError,
    LabelsError,
    ModelMismatch,
    OutputError,
    OutputExists,
    SourceError,
    UsageError,
    error_of,
)
from stochcl.files import PathLike, check_output, make_folder, refuse_pointer, target_of
from stochcl.messages import Progress, escape_name, plural, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stochcl.entropy.tables import Where


__all__ = ["decompress", "info", "merge", "split", "transcode"]

_MAX_SELECTION = 1 << 20  # bytes of a file of latents


def info(path: PathLike, *, tables: Where = ()) -> Report:
    """Return the figures of an archive.

    Raises
    ------
    SourceError, FormatError
    """
    with open_archive(path, tables=tables) as archive:
        return Report.of(archive, str(path))


def decompress(
    path: PathLike, output: PathLike, *, labels: PathLike | None = None, tables: Where = (), force: bool = False,
    progress: Progress = silent,
) -> Exported:  # fmt: skip
    """Decode an archive to a .npz, .npy, .csv or .parquet file, see :func:`stochcl.compress.export.export`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError, LabelsError
    """
    with open_archive(path, tables=tables) as archive:
        given = None if labels is None else [str(label) for label in labels_of(archive, path, labels)]
        return export(archive, output, labels=given, force=force, progress=progress)


def transcode(
    path: PathLike, output: PathLike, *, latents: int | None = None, rate: float | None = None,
    target: str | None = None,
    select: Sequence[int] | PathLike | None = None, refit: bool = False, self_contained: bool = False,
    external_tables: bool = False, names: bool = True, uncertainty: bool = True, labels: PathLike | None = None,
    tables: Where = (), force: bool = False, resume: bool = False, progress: Progress = silent,
) -> Edit:  # fmt: skip
    """Rewrite an archive, without images or encoder.

    Parameters
    ----------
    path, output : path-like
    latents : int, optional
        Keep the first K latents.
    rate : float, optional
        Keep the widest prefix whose codes take at most this many bits per row on disk.
    target : str, optional
        Keep the narrowest prefix with this quality on held-out rows of a sample: ``accuracy -1``, in points below
        vectors of all latents, by stored or given labels; or ``recall@10 0.9``.
    select : sequence of int or path-like, optional
        Keep these latents: the model's latent numbers, from 0, or a JSON file with a list of them, or the output of
        ``stochcl select``. Models are refitted.
    refit : bool
        Fit entropy models to the codes, and store each that saves more than its own size.
    self_contained, external_tables : bool
        Put the decoder into the file, or leave it out; by default unchanged.
    names, uncertainty : bool
        Whether to keep the rows' names and their uncertainty, if stored.
    labels : path-like, optional
        A CSV file ``name,label``, whose labels are stored.
    tables : iterable of Tables or path-like
        Searched first for decoders that are not in the archive.
    force, resume : bool
        Replace an existing output; continue an interrupted run.
    progress : callable
        Called with the amount done and the total, for each step.

    Raises
    ------
    SourceError, FormatError, LabelsError, OutputError, UsageError
    """
    path, output = Path(path), Path(output)
    _check_request(latents, rate, select, resume=resume)
    check_exclusive(target=target, latents=latents, rate=rate, select=select)
    wanted = None if target is None else Target.parse(target)
    check_exclusive(self_contained=self_contained, external_tables=external_tables)
    check_output(output, path, force=force)
    shown, output = str(output), target_of(output)
    with Archive(path, tables=tables) as archive:
        before = len(archive), archive.size
        job = Transcoding(
            archive, embed=self_contained or (edit.is_embedded(archive) and not external_tables), names=names,
            uncertainty=uncertainty, labels=None if labels is None else _label_lookup(archive, path, labels),
            columns=None if select is None else _columns(archive, path, select),
        )  # fmt: skip
        met = None
        if wanted is not None:
            latents, met = narrowest(_sample(archive, path, labels), wanted, job.rungs, escape_name(path))
        width = job.width if latents is None else latents
        if not 1 <= width <= job.width:
            raise UsageError(
                f"{escape_name(path)}: it has {plural(job.width, 'latent')}; keep 1 to {job.width:,}, not {width:,}."
            )
        refit = refit or select is not None
        if refit:
            codes = job.cut(sample(job.archive), width if rate is None else job.width)
            job = replace(job, models=fit_models(codes, len(job.archive), progress=progress))
        if rate is None:
            with note_partial_output(output):
                job.write(output, width, force=force, resume=resume, progress=progress)
        else:
            with locked(output):
                write_widest(job, output, rate)
        notes = external_tables_note(keep_tables(archive.tables, output.parent)) if external_tables else ()
        with Archive(output, tables=[archive.tables]) as written:
            report, fitted = Report.of(written, shown), len(written._index.fitted)
    if refit:
        notes = (f"fitted     {plural(fitted, 'entropy model')} stored", *notes)
    if met is not None:
        notes = (target_note(met, "all latents"), *notes)
    return Edit(replace(report, rate=rate, target=met), before, {"fitted_models": fitted}, notes)


def _sample(archive: Archive, path: Path, labels: PathLike | None) -> Sample:
    """Return evenly spread rows of an archive, and the vectors that their prefixes decode to."""
    if archive.header.selection is not None:
        raise UsageError(f"{escape_name(path)}: it holds selected latents, and --target needs a prefix; omit it.")
    rows = np.unique(np.linspace(0, len(archive) - 1, min(SAMPLE["row"], len(archive)), dtype=np.int64))
    codes = archive[rows]
    by_file = None if labels is None else labels_of(archive, path, labels)
    found = codes.labels if by_file is None else [by_file[row] for row in rows.tolist()]
    return Sample(
        decoded(codes, archive.decoder), found, lambda latents: decoded(codes.prefix(latents), archive.decoder)
    )


def _check_request(
    latents: int | None, rate: float | None, select: Sequence[int] | PathLike | None, *, resume: bool
) -> None:
    """Refuse options that contradict each other."""
    check_exclusive(latents=latents, rate=rate)
    if select is not None and (latents is not None or rate is not None):
        raise UsageError("--select already says which latents to keep; omit --latents and --rate.")
    if rate is not None and not 0 < rate < math.inf:
        raise UsageError(f"--rate must be more than 0, got {rate}.")
    if rate is not None and resume:
        raise UsageError("--rate tries several widths and keeps nothing of an interrupted run; omit --resume.")


def _columns(archive: Archive, path: Path, select: Sequence[int] | PathLike) -> tuple[int, ...]:
    """Return the positions of these latent numbers in an archive's rows."""
    where = escape_name(select) if isinstance(select, str | Path) else "the selection"
    numbers = _numbers(Path(select)) if isinstance(select, str) or hasattr(select, "__fspath__") else select
    header = archive.header
    if isinstance(numbers, dict):  # the output of `stochcl select`
        if numbers.get("model_sha256") not in (None, header.model_sha256):
            raise ModelMismatch(
                f"{where}: it selects latents of the model {escape_name(str(numbers.get('model')))}, and "
                f"{escape_name(path)} was made by {escape_name(header.model)}; `stochcl select` makes one for that."
            )
        numbers = numbers.get("latents")
    if (
        not isinstance(numbers, list | tuple | range)
        or not numbers
        or any(not isinstance(n, int) or isinstance(n, bool) for n in numbers)
    ):
        raise UsageError(f"{where}: a selection must be a list of latents by number, such as [0, 3, 17].")
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
        data = read_regular(path, _MAX_SELECTION)
        refuse_pointer(path, data, "a selection")
        return json.loads(data)
    except ImageError as exc:
        raise error_of(SourceError, exc, f"{shown}: the selection cannot be read: {exc}.") from exc
    except (ValueError, RecursionError) as exc:
        raise SourceError(
            f"{shown}: this is not a JSON list of latents by number, such as [0, 3, 17] ({exc})."
        ) from exc


def _label_lookup(archive: Archive, path: Path, labels: PathLike) -> Callable[[Sequence[str]], tuple[str, ...]]:
    """Return a function from names to labels, after checking that every row has one."""
    if len(archive) and archive.names is None:
        raise LabelsError(
            f"{escape_name(path)}: its rows have no names to find labels by (--no-names?); compress with names."
        )
    table, segments = read_labels(labels), range(len(archive._index.segments))
    if table.is_array:
        table = table.of([name for segment in segments for name in edit.stored_names(archive, segment)])
    for segment in segments:
        table.match(edit.stored_names(archive, segment))
    return table.match


def merge(
    paths: Sequence[PathLike], output: PathLike, *, tables: Where = (), force: bool = False, resume: bool = False,
    progress: Progress = silent,
) -> Edit:  # fmt: skip
    """Join archives of one model and width, in the given order, without recoding any row; duplicates are kept.

    Parameters
    ----------
    paths : sequence of path-like
        Archives, or folders of shards, whose shards are taken in order.
    output : path-like
    tables : iterable of Tables or path-like
        Searched first for decoders that are not in the archives.
    force, resume : bool
        Replace an existing output; continue an interrupted run.
    progress : callable
        Called with the number of images done and the total.

    Raises
    ------
    SourceError, FormatError, OutputError
    ModelMismatch, UsageError
        If the archives do not fit together; the message names the first that does not.
    """
    if not paths:
        raise UsageError("there is nothing to merge: name the archives to join.")
    output, tables = Path(output), tuple(tables)
    for path in paths:
        check_output(output, Path(path), force=force)
    with ExitStack() as stack:
        opened: list[Archive | FolderArchive] = []
        for path in paths:
            opened.append(open_archive(path, tables=tables))
            stack.enter_context(opened[-1])
        archives, names, bring_tables = join(opened)
        edit.check_alike(archives, names)
        before = sum(len(archive) for archive in opened), sum(archive.size for archive in opened)
        known_ids = any(ids_of(archive.header) for archive in archives if len(archive))
        with note_partial_output(target_of(output)):
            edit.merge(archives, output, embed=bring_tables, force=force, resume=resume, progress=progress)
    times = Counter(escape_name(os.path.realpath(path)) for path in paths)
    notes = tuple(f"warning: {path} is given {n} times, and so are its rows" for path, n in times.items() if n > 1)
    with Archive(output, tables=tables) as archive:
        if archive.header.ids is None and known_ids:
            notes += ("warning: the ids are not of one column and type everywhere, so they come back as text",)
        return Edit(Report.of(archive, str(output)), before, {"files": len(paths)}, notes)


def split(
    path: PathLike, folder: PathLike, *, rows: int | None = None, parts: int | None = None, tables: Where = (),
    force: bool = False, progress: Progress = silent,
) -> list[Report]:  # fmt: skip
    """Split an archive into several, in order; only segments that a cut goes through are recoded.

    The first part gets the list of skipped images; the bytes of the source are divided in proportion to rows.

    Parameters
    ----------
    path : path-like
    folder : path-like
        Folder for the parts, made if missing. Parts are named after the archive, with a number.
    rows, parts : int, optional
        Rows of each part, or the number of (nearly equal) parts; give one of the two.
    tables : iterable of Tables or path-like
    force : bool
        Replace existing parts.
    progress : callable
        Called with the number of images done and the total.

    Raises
    ------
    SourceError, FormatError, OutputError, UsageError
    """
    path, folder, tables = Path(path), Path(folder), tuple(tables)
    if (rows is None) == (parts is None):
        raise UsageError("give either --rows, the rows of each part, or --parts, the number of parts.")
    with Archive(path, tables=tables) as archive:
        bounds = _bounds(archive, path, rows, parts)
        digits = max(4, len(str(len(bounds) - 1)))
        outputs = [folder / f"{path.stem}-{i:0{digits}}{path.suffix}" for i in range(1, len(bounds))]
        make_folder(folder)
        if not force and (there := sorted(folder.glob(f"{glob.escape(path.stem)}-[0-9]*"))):
            raise OutputExists(
                f"{escape_name(there[0])}: this file exists already; pass --force to replace such files."
            )
        for output, first, last in zip(outputs, bounds[:-1], bounds[1:], strict=True):
            try:
                edit.split(archive, output, first, last, force=force, progress=progress)
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
        raise UsageError(f"{shown}: it holds no rows; there is nothing to split.")
    if rows is not None:
        if rows < 1:
            raise UsageError(f"--rows must be at least 1, got {rows}.")
        return [*range(0, total, rows), total]
    if parts is None or not 1 <= parts <= total:
        raise UsageError(f"{shown}: it holds {plural(total, 'row')}; ask for 1 to {total:,} parts, not {parts}.")
    return [total * i // parts for i in range(parts + 1)]
