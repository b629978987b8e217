"""Append the new images of a source to an archive."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api import source as sources
from stochcl.api.codec import codec_of
from stochcl.api.compress import Compression, CompressOptions, Encoded, check_exclusive
from stochcl.api.summary import Edit, Report
from stochcl.compress import Archive, Header
from stochcl.compress.append import Appender
from stochcl.compress.columns import ids_of
from stochcl.compress.edit import has_part
from stochcl.compress.header import Embedder, check_embedder
from stochcl.data import ImageSource, LabelTable, MatrixSource, SubsetSource, read_labels
from stochcl.data.arrow import ArrowSource
from stochcl.data.preprocess import FITS
from stochcl.encoders.engine import RUNTIMES
from stochcl.errors import SourceError, UsageError
from stochcl.messages import Progress, escape_name, plural
from stochcl.remote import is_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stochcl.api.encode import CodecBase
    from stochcl.api.source import Given, Source
    from stochcl.codes import Codes
    from stochcl.files import PathLike

    New = SubsetSource | MatrixSource | ArrowSource


def append(
    path: PathLike, source: Given, codec: CodecBase | None = None, *, labels: PathLike | None = None,
    batch_size: int = 256, workers: int | None = None, strict: bool = False,
    progress: Progress = lambda done, total: None, **reading: Any,
) -> Edit:  # fmt: skip
    """Encode the images of a source whose names an archive does not have yet, and add them to it in place.

    Rows of a matrix, or of a table without ids, are named by their numbers, so the new rows of a matrix that has
    grown are added. Compress another matrix to a file of its own, and join the two with :func:`merge`. A row whose id
    is null or empty is always new, under a number that is free. Without ``id_column``, ids are read from the column
    that the archive's came from, if they are whole numbers.

    Until the end, and after an error, the archive opens as it was. After an interruption, repeating the append
    continues it, with the same result as an undisturbed one. (For a table, nothing is kept.)

    Parameters
    ----------
    path : path-like
        The archive, which must have names.
    source : path-like, sequence of path-like, or table
        A folder, .zip, .tar, or .npy of uint8 images; the .npy matrix that the archive was made from, grown, or
        several; Parquet or Arrow files, or a table in memory, as for :meth:`stochcl.Codec.compress`.
    codec : CodecBase, optional
        A codec of the archive's model; by default the model is found by its hash. The archive's precision
        and image size are used.
    labels : path-like, optional
        A file with labels of the new images, if the archive stores labels.
    batch_size, workers, strict
        As for compressing.
    progress : callable
        Called with the number of images done and the total.
    **reading
        ``embedder``, and fields of :class:`~stochcl.data.SourceOptions`: column, id_column, label_column, any_name,
        label_level, label_files, max_pixels.

    Raises
    ------
    SourceError, ImageError, FormatError, LabelsError, OutputError
    ModelMismatch, UsageError
        If the archive is of another model, was preprocessed differently, or has no names.
    """
    check_local(path)
    path, options = Path(path), CompressOptions(batch_size=batch_size, workers=workers, strict=strict, **reading)
    check_exclusive(labels=labels, label_level=options.label_level, label_files=options.label_files)
    with Archive(path) as archive:
        codec = codec_of(path) if codec is None else codec
        images = sources.check_source_fits_model(sources.open_given(source, options, codec.columns or 0), codec)
        if options.id_column is None:
            _take_ids(images, archive, path)
        labelled = labels is not None or _labels_come_along(options, images)
        embedder, known = sources.embedder_of(images, options.embedder), Embedder.of(archive.header.embedder)
        check_embedder(escape_name(images.path), embedder, known, escape_name(path))
        _check_appendable(archive, path, codec, labels=labelled, asked=labels is not None or _are_asked(options))
        codec = _like(archive.header, codec.for_archive(archive.header))
        made, here = archive.header.runtime or "torch", codec.runtime
    table = None if labels is None else read_labels(labels)
    started = time.monotonic()
    with Appender(path, tables=[codec.tables]) as out:
        before = len(out.archive), out.archive.size
        names = out.archive.names or ()
        new = _new_rows(images, names, path)
        if strict and new.rejected:
            raise sources.strict_error(new, new.rejected[0])
        facts: dict[str, Any] = {"source": new.listing(), "model": codec.model.sha256, "strict": strict}
        facts |= {"device": codec.device_type, "labels": None}
        if table is not None:
            table = table.of(_names(new))
            facts["labels"] = hashlib.sha256(json.dumps(table.match(_names(new))).encode()).hexdigest()
        if not isinstance(new, ArrowSource):  # a table is read from its start
            out.resume(facts)
        encoded = _append_to(out, new, codec, options, table, progress)
    with Archive(path, tables=[codec.tables]) as archive:
        report = Report.of(archive, str(path), seconds=time.monotonic() - started, encoded=encoded.rows)
    unit = report.unit
    added = report.images - before[0]
    there = new.known_rows if isinstance(new, ArrowSource) else len(images) - len(new)
    notes = [f"added      {plural(added, unit)}; {plural(there, unit)} had been there already"]
    notes += _id_notes(new, archive.header, unit) if isinstance(new, ArrowSource) and added else []
    if added and made not in (here, "mixed"):
        notes.append(
            f"{made} computed the codes before, and {here} the new ones: they differ in a few symbols in 100,000"
        )
    warnings = Compression(codec, new, options).warnings(encoded)
    notes += [line.removeprefix("warning: ") for line in warnings]
    report = replace(report, drift=encoded.drift.to_json() if encoded.drift is not None and added else None)
    return Edit(report, before, {"added": added, "there": there}, tuple(notes), tuple(out.skipped))


def _id_notes(new: ArrowSource, header: Header, unit: str) -> list[str]:
    """Say which ids of the added rows were absent, or may not fit the archive's type."""
    notes, held = [], ids_of(header)
    if new.unnamed:
        notes.append(
            f"{plural(new.unnamed, unit)} without an id counted as new: append cannot tell whether they were there"
        )
    kind = "text" if new.ids is None else new.ids["type"]
    integers = "int" in kind and held is not None and "int" in held[1]
    if held is not None and kind != held[1] and not (integers and np.can_cast(kind, held[1])):
        notes.append(f"ids of type {kind} that do not fit the archive's {held[1]} come back only as names")
    return notes


def check_local(path: PathLike) -> None:
    """Raise UsageError for an archive behind a URL."""
    if is_url(path):
        raise UsageError(f"{escape_name(path)}: append changes local files only, not a URL; copy it here first.")


def _like(header: Header, codec: CodecBase) -> CodecBase:
    """Return the codec with the runtime that made an archive, if installed."""
    runtime = header.runtime or "torch"  # the only one before archives recorded it
    if runtime not in RUNTIMES or (runtime == "torch" and find_spec("torch") is None):
        return codec
    return codec.with_runtime(runtime)


def _take_ids(images: Source, archive: Archive, path: Path) -> None:
    """Name rows by the column that the archive's ids came from; refuse rows without ids if the archive has some."""
    column, shown = (archive.header.ids or {}).get("column"), escape_name(path)
    if isinstance(images, ArrowSource) and isinstance(column, str):
        images.name_by(column, f"which has the ids of {shown}")
    ids = (archive.header.source_kind == ArrowSource.kind and archive.names) or ()
    if not images.has_names and (column or not all(name.isdecimal() for name in ids)):
        raise UsageError(
            f"{escape_name(images.path)}: its rows have no ids, and those of {shown} have; name a table's column of "
            "ids with --id-column, or compress it to a file of its own, and join the two with `stochcl merge`."
        )


def _are_asked(options: CompressOptions) -> bool:
    return options.label_level is not None or options.label_files is not None or options.label_column is not None


def _labels_come_along(options: CompressOptions, source: Source) -> bool:
    return _are_asked(options) or (isinstance(source, ArrowSource) and source.has_labels)


def _new_rows(images: Source, names: Sequence[str], path: Path) -> New:
    """Return the part of a source that an archive does not have yet."""
    if not images.has_names and len(images):
        _check_grown(images, names, path)
    if isinstance(images, ImageSource | MatrixSource):
        return images.without(names)
    if not isinstance(images, ArrowSource):
        raise UsageError(
            f"{escape_name(images.path)}: a stream is read once; compress it to a file of its own, and join the two "
            "with `stochcl merge`."
        )
    images.leave_out(names)
    return images


def _append_to(
    out: Appender, new: New, codec: CodecBase, options: CompressOptions,
    table: LabelTable | None, progress: Progress,
) -> Encoded:  # fmt: skip
    options = replace(options, uncertainty=out.has is not None and out.has[2])
    labelled = _labels_come_along(options, new) and (out.has is None or out.has[1])

    def beside(codes: Codes) -> Codes:
        if table is not None:
            return replace(codes, labels=table.match(codes.names or ()))
        return codes if labelled else replace(codes, labels=None)

    preprocess = codec.preprocess
    if codec.columns is None:  # 16-bit images use the archive's depth
        preprocess = codec.preprocess_of(out.header)
        preprocess = replace(preprocess, max_pixels=options.max_pixels or preprocess.max_pixels)
    known = {name for name, _ in out.archive.skipped}
    for failure in () if out.position else new.rejected:
        out.skip(failure.name, failure.reason)
    try:
        encoded = Compression(codec, new, options, progress).encode(out, preprocess, beside)
    except (KeyboardInterrupt, SourceError) as exc:
        if out.rows and not isinstance(new, ArrowSource):
            exc.add_note(
                f"The archive is as it was; what is done, {plural(out.rows, new.unit)}, is kept behind it: "
                "repeat the command to continue."
            )
        raise
    skipped = [name for name, _ in out.skipped] if isinstance(new, ArrowSource) else _names(new)
    if not out.rows and any(name not in known for name in skipped):
        raise sources.no_readable_error(new, out.first_skip)
    return encoded


def _names(source: New) -> Sequence[str]:
    if isinstance(source, ArrowSource):
        raise UsageError(
            f"{escape_name(source.path)}: the labels of a table's rows are in one of its columns; name it with "
            "--label-column in place of --labels."
        )
    return source.names


def _check_grown(source: Source, names: Sequence[str], path: Path) -> None:
    """Refuse a matrix with fewer rows than an archive: it is not the one that the archive was made from."""
    numbers = [int(name) for name in names if name.isdecimal()]
    if numbers and max(numbers) >= len(source):
        raise UsageError(
            f"{escape_name(source.path)}: it has {len(source):,} rows, and {escape_name(path)} already has row "
            f"{max(numbers):,}; append adds new rows of the same matrix. Compress another matrix to its own file, "
            "and join the two with `stochcl merge`."
        )


def _check_appendable(archive: Archive, path: Path, codec: CodecBase, *, labels: bool, asked: bool) -> None:
    """Refuse to append codes that do not match an archive's header."""
    header, shown = archive.header, escape_name(path)
    codec.check_made(header, path)
    if header.precision not in codec.precisions:
        known = " or ".join(codec.precisions)
        raise UsageError(
            f"{shown}: its precision is {escape_name(header.precision)}, and this version knows {known}."
        )
    if codec.columns is None and (header.size not in codec.sizes or header.preprocess.get("fit") not in FITS):
        raise UsageError(
            f"{shown}: its images were not made squares of a size that this model takes; compress them again."
        )
    if not len(archive):
        return
    if archive.names is None:
        raise UsageError(
            f"{shown}: its rows have no names (--no-names?), so append cannot tell which images are new; compress "
            "the new ones to their own file, and join the two with `stochcl merge`."
        )
    stored = has_part(archive, "labels")
    if stored and not labels:
        raise UsageError(
            f"{shown}: it stores labels; give those of the new images with --labels, --label-level, "
            "--label-files or, of a table, --label-column."
        )
    if asked and not stored:
        raise UsageError(
            f"{shown}: it stores no labels; omit those of the new images, or store labels for all with "
            "`stochcl transcode --labels`."
        )
