"""Writing an archive anew from another, which needs neither images nor encoder nor torch."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.api.compression import check_output, saying_what_is_kept
from stochcl.api.rate import unwritable, write_widest
from stochcl.api.report import Edit, Report, counted, said_of_tables
from stochcl.atomic import sync_folder
from stochcl.compress import Archive, keep_tables, moving
from stochcl.compress.raw import stored_names
from stochcl.compress.refit import fit_models, sample
from stochcl.compress.transcoding import Transcoding
from stochcl.data import printable, read_labels
from stochcl.data.files import read_regular
from stochcl.errors import ImageError, LabelsError, ModelMismatch, OutputError, SourceError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from stochcl.compress import Tables

    PathLike = str | os.PathLike[str]
    Progress = Callable[[int, int], None]

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
        Keep the widest prefix whose codes take so many bits per image on disk.
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
            raise UsageError(f"{printable(path)}: it has {counted(job.width, 'latent')}; {width:,} cannot be kept.")
        if refit or select is not None:
            job = replace(job, models=_fitted(job, width if rate is None else job.width, progress))
        if rate is None:
            with saying_what_is_kept(output):
                job.write(output, width, force=force, resume=resume, progress=progress)
        else:
            _write_at_rate(job, output, rate)
        notes = said_of_tables(keep_tables(archive.tables, output.parent)) if external_tables else ()
        with Archive(output, tables=[archive.tables]) as written:
            report, fitted = Report.of(written, str(output)), len(written._index.fitted)
    if refit or select is not None:
        notes = (f"fitted     {counted(fitted, 'entropy model')} stored", *notes)
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
    where = printable(select) if isinstance(select, str | Path) else "the selection"
    numbers = _numbers(Path(select)) if isinstance(select, str) or hasattr(select, "__fspath__") else select
    header = archive.header
    if isinstance(numbers, dict):  # what `stochcl select` wrote
        if numbers.get("model_sha256") not in (None, header.model_sha256):
            raise ModelMismatch(
                f"{where}: it was chosen for codes of the model {printable(str(numbers.get('model')))}, and "
                f"{printable(path)} was made by {printable(header.model)}; choose for this one with `stochcl select`."
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
            raise UsageError(f"{where}: {printable(path)} does not have latent {number}; it has {held}.")
    return tuple(sorted(places[number] for number in numbers))


def _numbers(path: Path) -> Any:
    shown = printable(path)
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
            f"{printable(path)}: its rows have no names to find labels by (--no-names?); compress with names."
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
    """Write the widest prefix that keeps to a rate."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name[:64]}.", dir=output.parent) as folder:
            chosen = write_widest(job, Path(folder), rate)
            if chosen is None:
                raise UsageError(f"{printable(output)}: not even one latent fits into {rate:g} bits per image.")
            chosen.replace(output)
        sync_folder(output.parent)
    except (OutputError, OSError) as exc:
        raise unwritable(output, exc) from exc
