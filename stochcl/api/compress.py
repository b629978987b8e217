"""Writing an archive batch by batch, for those who have a loader of their own."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.api.summary import Report, said_of_tables
from stochcl.codes import Codes, label_text, pick
from stochcl.compress import Archive, Writer
from stochcl.compress.transcode import Transcoding, widest
from stochcl.compress.writer import StreamWriter, rows_kept
from stochcl.data import (
    ArrowVectors,
    Failure,
    ImageSource,
    MatrixSource,
    StreamSource,
    TarStream,
    open_arrow,
    open_source,
    open_sources,
)
from stochcl.data.open import expand
from stochcl.data.preprocess import FITS
from stochcl.entropy.fit import expected_bits
from stochcl.entropy.tables import keep_tables
from stochcl.errors import FormatError, ImageError, OutputError, SourceError, UsageError
from stochcl.files import WriteLock, check_output, sync_folder
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.compress import Header, Rows
    from stochcl.compress.segment_writer import SegmentWriter
    from stochcl.data.preprocess import Fit, Preprocess

    Source = ImageSource | MatrixSource | StreamSource
    PathLike = str | os.PathLike[str]
    Given = PathLike | Sequence[PathLike] | IO[bytes] | Source

__all__ = ["CompressOptions", "compress_source"]


class ImageWriter(Writer):
    """A writer that takes images as well as codes; :func:`stochcl.writer` makes one.

    Parameters
    ----------
    path : path-like
    codec : Codec
        That encodes.
    latents : int, optional
        Width of the codes; the model's by default.
    uncertainty : bool
        Whether to store the codes' uncertainty, too.
    **options
        See :class:`stochcl.compress.Writer`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        codec: Codec,
        *,
        latents: int | None = None,
        uncertainty: bool = False,
        **options: Any,
    ) -> None:
        self._codec = codec
        width = codec.latents if latents is None else latents
        header = codec.header(
            latents=width, preprocess=codec.preprocess, source_kind="stream", uncertainty=uncertainty
        )
        embed = not codec.has_packaged_tables
        super().__init__(path, header, codec.tables, embed_tables=embed, uncertainty=uncertainty, **options)

    def add(  # type: ignore[override]
        self,
        rows: Codes | Any,
        names: Sequence[str] | None = None,
        labels: Sequence[Any] | None = None,
        **options: Any,
    ) -> None:
        """Append codes, or images, or vectors where the model takes those, which are encoded first.

        Parameters
        ----------
        rows : Codes, or what :meth:`stochcl.Codec.encode` takes
            Images of shape (B, H, W, 3), uint8, or a list of paths, Pillow images and arrays; a tensor is taken as
            the array that it holds.
        names, labels : sequence, optional
            One a row; all batches have them or none has. The first folder of a name is a label, if there are no
            others. In place of those that codes have. Labels may be text or numbers; None, NaN and negative whole
            numbers are no label (give targets of a regression as floats).
        **options
            ``positions``, ``sizes``: see :meth:`stochcl.compress.Writer.add`.

        Raises
        ------
        UsageError
            If these are no images of the model's kind, or not as many names or labels.
        ImageError, OutputError
        """
        if not isinstance(rows, Codes):
            if not len(rows):
                return
            given = np.asarray(rows) if hasattr(rows, "__array__") else rows
            rows = self._codec.encode(given, latents=self.header.latents)
        if names is not None:
            rows = replace(rows, names=tuple(map(str, _as_many(names, rows, "names"))))
        if labels is not None:
            rows = replace(rows, labels=tuple(map(label_text, _as_many(labels, rows, "labels"))))
        super().add(rows, **options)


def _as_many(texts: Sequence[Any], rows: Codes, what: str) -> Sequence[Any]:
    if isinstance(texts, str) or len(texts) != len(rows):
        raise UsageError(f"there are {len(rows):,} rows in this batch, and not as many {what}; give one for each.")
    return texts


_HARDLY = 0.05  # of the codes' bytes: tables that add less come along
_MATRIX_ROWS = 4096  # read at a time
_MATRIX_BYTES = 32 << 20  # or fewer, where rows are as long as this


@dataclass(frozen=True)
class CompressOptions:
    """How to compress.

    Parameters
    ----------
    latents : int, optional
        Width of the codes: the first so many latents. The model's full width by default.
    rate : float, optional
        Bits per image that the codes may take on disk, in place of ``latents``: the widest rung of the model's
        ladder that does.
        Names, tables and the index come on top.
    batch_size : int
        Images that are decoded, encoded and handed on at a time; codes do not depend on it. Rows of a matrix are
        taken by the thousands.
    workers : int, optional
        Threads that decode images; by default one a core, eight at most.
    fit : str, optional
        crop, pad or stretch images that are not square; by default as the model says.
    names : bool
        Whether to store names.
    uncertainty : bool
        Whether to store the entropy of each image's posterior, which is a byte and takes less.
    self_contained, external_tables : bool
        Put the decoding tables into the file even if they come with the package, or leave them out even if not. In
        the latter case they are written beside it.
    strict : bool
        Whether to stop at an image that cannot be read, rather than to skip it.
    force, resume : bool
        Replace an existing archive or partial file; go on with a partial file.
    """

    latents: int | None = None
    rate: float | None = None
    batch_size: int = 256
    workers: int | None = None
    fit: Fit | None = None
    names: bool = True
    uncertainty: bool = False
    self_contained: bool = False
    external_tables: bool = False
    strict: bool = False
    force: bool = False
    resume: bool = False

    def embeds(self, codec: Codec, rows: int = 0, latents: int | None = None) -> bool:
        """Whether the decoding tables go into the file: where nobody else brings them, or they hardly show."""
        if self.self_contained or self.external_tables:
            return self.self_contained
        if not codec.has_packaged_tables:
            return True
        return len(codec.tables.data) < _HARDLY * rows * expected_bits(codec.tables, latents) / 8

    def check(self, latents: int, columns: int | None = None) -> None:
        """Raise UsageError where options contradict each other, the model's width, or that it takes vectors."""
        if self.latents is not None and self.rate is not None:
            raise UsageError("--latents and --rate both say how wide the codes are; give one of them.")
        if self.latents is not None and not 1 <= self.latents <= latents:
            raise UsageError(f"this model has {latents:,} latents; --latents cannot be {self.latents:,}.")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"a rate is more than 0 bits per image, and finite, not {self.rate}.")
        if self.batch_size < 1 or (self.workers is not None and self.workers < 0):
            raise UsageError(f"--batch-size {self.batch_size} and --workers {self.workers} count images and threads.")
        if self.self_contained and self.external_tables:
            raise UsageError("--self-contained and --external-tables contradict each other; give one of them.")
        if self.fit is not None and self.fit not in FITS:
            raise UsageError(f"--fit is {', '.join(FITS)}, not {self.fit!r}.")
        if self.fit is not None and columns is not None:
            raise UsageError("--fit says what happens to images, and this model takes vectors; leave it out.")


def header_of(codec: Codec, source: Source, options: CompressOptions, latents: int) -> Header:
    """Return the header of an archive of so many latents of a source."""
    return codec.header(
        latents=latents,
        preprocess=preprocess_of(codec, options),
        source_kind=source.kind,
        uncertainty=options.uncertainty,
    )


def preprocess_of(codec: Codec, options: CompressOptions) -> Preprocess:
    """Return what is done to images, as the model or ``fit`` says."""
    return codec.preprocess if options.fit is None else replace(codec.preprocess, fit=options.fit)


def encode_source(
    codec: Codec,
    source: Source,
    path: Path,
    options: CompressOptions,
    latents: int,
    progress: Callable[[int, int], None],
) -> int:
    """Write an archive of so many latents, and return how many images were encoded for it.

    What a stream gave before it broke off, or before an interruption, is on the disk when the error leaves here.
    """
    facts = {"source": listing(source), "strict": options.strict, "device": codec.device.type}
    with Writer(
        path,
        header_of(codec, source, options, latents),
        codec.tables,
        embed_tables=options.embeds(codec, len(source), latents),
        names=options.names,
        uncertainty=options.uncertainty,
        force=options.force,
        resume=options.resume,
        facts=facts,
    ) as writer:
        try:
            return _encode_all(codec, source, writer, options, progress)
        except (SourceError, KeyboardInterrupt) as exc:
            if isinstance(source, StreamSource) and writer.rows:  # it cannot be read again
                writer.flush()
                exc.add_note(_kept_of_stream(writer.rows, writer.partial, path))
            raise


def encode_to_stream(
    codec: Codec,
    source: Source,
    file: IO[bytes],
    options: CompressOptions,
    latents: int,
    progress: Callable[[int, int], None],
) -> tuple[int, IO[bytes]]:
    """Write an archive to a stream; return how many images were encoded, and an outline of what was written."""
    with StreamWriter(
        file,
        header_of(codec, source, options, latents),
        codec.tables,
        embed_tables=options.embeds(codec),
        names=options.names,
        uncertainty=options.uncertainty,
    ) as writer:
        encoded = _encode_all(codec, source, writer, options, progress)
    return encoded, writer.outline()


def _encode_all(
    codec: Codec,
    source: Source,
    writer: SegmentWriter,
    options: CompressOptions,
    progress: Callable[[int, int], None],
) -> int:
    if options.strict and source.rejected:
        raise refused(source, source.rejected[0])
    if not writer.position:
        for failure in source.rejected:
            writer.skip(failure.name, failure.reason)
    preprocess = preprocess_of(codec, options)
    encoded = encode_rows(codec, source, writer, preprocess, options, progress, beside=lambda codes: codes)
    if not writer.rows:
        raise none_readable(source, writer.first_skip)
    return encoded


def _kept_of_stream(rows: int, partial: Path, path: Path) -> str:
    return (
        f"The {rows:,} images before are kept in {escape_name(partial)}: "
        f"`stochcl verify {escape_name(partial)} --salvage {escape_name(path)}` makes an archive of them."
    )


def encode_rows(
    codec: Codec,
    source: Source,
    writer: SegmentWriter,
    preprocess: Preprocess,
    options: CompressOptions,
    progress: Callable[[int, int], None],
    *,
    beside: Callable[[Codes], Codes],
) -> int:
    """Encode the images of a source, from the writer's position on, for it; return how many were encoded.

    ``beside`` gets the rows with their names, and with their uncertainty where the options ask for it, and says what
    is stored beside them.
    """
    encoded = 0
    progress(writer.position, len(source))
    for part in _read(source, preprocess, options, writer.position):
        if options.strict and part.failures:
            raise refused(source, part.failures[0])
        failed = sorted(set(part.rows).difference(part.positions))
        for row, failure in zip(failed, part.failures, strict=True):
            writer.skip(failure.name, failure.reason, position=row)
        if part.positions:
            found = codec.encode_prepared(part.inputs, uncertainty=options.uncertainty)
            codes = latents_of(found.codes, writer.header)
            codes = replace(codes, names=part.names, labels=part.labels)
            writer.add(beside(codes), positions=part.positions, sizes=part.sizes)
        encoded += len(part.names)
        progress(part.rows.stop, len(source))
    return encoded


@dataclass(frozen=True, eq=False)
class _Part:
    """Consecutive inputs of a source, as its batches have them, whichever kind they are of."""

    rows: range
    positions: tuple[int, ...]
    names: tuple[str, ...]
    failures: tuple[Failure, ...]
    sizes: Sequence[int]
    inputs: NDArray[np.uint8] | NDArray[np.float32]
    labels: tuple[str, ...] | None = None


def _read(source: Source, preprocess: Preprocess, options: CompressOptions, start: int) -> Iterator[_Part]:
    """Read a source from a position on."""
    if isinstance(source, MatrixSource | ArrowVectors):
        size = max(1, min(_MATRIX_ROWS, _MATRIX_BYTES // (4 * source.dim)))
        for rows in source.batches(size, start) if isinstance(source, MatrixSource) else source.vectors(size):
            sizes = [rows.source_bytes // max(1, len(rows.names))] * len(rows.names)
            yield _Part(rows.rows, rows.positions, rows.names, rows.failures, sizes, rows.vectors, rows.labels)
        return
    workers = min(8, os.cpu_count() or 1) if options.workers is None else options.workers
    size = options.batch_size
    if isinstance(source, StreamSource):
        batches = source.batches(preprocess, batch_size=size, workers=workers)
    else:
        batches = source.batches(preprocess, batch_size=size, workers=workers, start=start)
    for batch in batches:
        yield _Part(batch.rows, batch.positions, batch.names, batch.failures, batch.sizes, batch.images, batch.labels)


def latents_of(codes: Codes, header: Header) -> Codes:
    """Keep the latents that an archive has."""
    return codes.prefix(header.latents) if header.selection is None else pick(codes, header.selection)


def listing(source: Source) -> str:
    """Return a digest of what the source holds: names, sizes and times, and what was rejected."""
    digest = hashlib.sha256(source.kind.encode())
    if isinstance(source, StreamSource):  # which is never resumed
        return ""
    if isinstance(source, MatrixSource):
        facts = [len(source), source.dim, source.size, source.mtime_ns]
        digest.update(json.dumps(facts).encode())
        return digest.hexdigest()
    lines = chain(
        ([entry.name, entry.size, entry.mtime_ns] for entry in source.entries),
        ([failure.name, failure.reason] for failure in source.rejected),
    )
    for line in lines:
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def refused(source: Source, failure: Failure) -> ImageError:
    """Return the error with which --strict stops at an image."""
    what = "rows" if isinstance(source, MatrixSource | ArrowVectors) else "images"
    return ImageError(
        f"{escape_name(source.path)}: {escape_name(failure.name)}: {failure.reason}; --strict stops at {what} that "
        "cannot be read."
    )


def none_readable(source: Source, first: tuple[str, str]) -> SourceError:
    """Return the error for a source of which no image can be read, the first for this reason."""
    name, reason = first
    what = "rows" if isinstance(source, MatrixSource | ArrowVectors) else "images"
    return SourceError(
        f"{escape_name(source.path)}: none of its {what} can be read; the first is {escape_name(name)}: {reason}."
    )


def full_width(path: Path) -> Path:
    """Return where all latents are until the prefix that keeps to the rate has been written."""
    return path.with_name(path.name + ".full")


def compress_at_rate(
    codec: Codec,
    source: Source,
    path: Path,
    options: CompressOptions,
    rate: float,
    progress: Callable[[int, int], None],
) -> int:
    """Write the widest rung whose codes take ``rate`` bits per image; return how many images were encoded.

    The archive at full width goes only when the prefix is complete: for another rate, or with more room on the
    disk, ``resume`` goes on with it.
    """
    with locked(path):
        return _compress_at_rate(codec, source, path, options, rate, progress)


def locked(path: Path) -> WriteLock:
    """Take the right to write to a path for all the steps of a request.

    Raises
    ------
    OutputError
        If another writer has it.
    """
    try:
        return WriteLock(path, escape_name(path))
    except OSError as exc:
        raise unwritable(path, exc) from exc


def _compress_at_rate(
    codec: Codec,
    source: Source,
    path: Path,
    options: CompressOptions,
    rate: float,
    progress: Callable[[int, int], None],
) -> int:
    full, encoded = full_width(path), 0
    if full.exists() and (options.resume or not options.force):
        _check_kept(full, codec, source, options)
    else:
        encoded = encode_source(codec, source, full, options, codec.latents, progress)
    kept = f"all latents are kept in {escape_name(full)}"
    with Archive(full, tables=[codec.tables]) as archive:
        try:
            with tempfile.TemporaryDirectory(prefix=f".{path.name[:64]}.", dir=path.parent) as folder:
                embed = options.embeds(codec, len(archive))
                job = Transcoding(archive, embed=embed, names=options.names)
                write_widest(job, Path(folder), rate, path).replace(path)
            sync_folder(path.parent)
        except (OutputError, OSError) as exc:
            raise unwritable(path, exc, f"; {kept}: make room and pass --resume") from exc
        except UsageError:
            full.unlink()
            raise
    full.unlink()
    return encoded


def unwritable(path: Path, exc: OutputError | OSError, more: str = "") -> OutputError:
    """Return the error for an output whose writer failed elsewhere, or says that it can be resumed, and cannot."""
    cause = exc.__cause__ if isinstance(exc, OutputError) else exc
    reason = os_reason(cause) if isinstance(cause, OSError) else str(exc)
    return OutputError(f"{escape_name(path)}: it cannot be written: {reason}{more}.")


def _check_kept(full: Path, codec: Codec, source: Source, options: CompressOptions) -> None:
    """Refuse a complete archive at full width that is not what this request would write."""
    shown = escape_name(full)
    if not options.resume:
        msg = f"{shown}: an interrupted run left this; pass --resume to go on with it, or --force to start anew."
        raise UsageError(msg)
    if isinstance(source, StreamSource):  # which is not resumed
        return
    try:
        with Archive(full, tables=[codec.tables]) as archive:
            skipped = archive.skipped
            fits = archive.header == header_of(codec, source, options, codec.latents) and _holds(archive, source)
            fits = fits and (archive.names is not None or not options.names)
    except FormatError as exc:
        raise UsageError(f"{shown}: it is damaged ({exc}); pass --force in place of --resume to start anew.") from exc
    # The journal, which has the source's listing, is gone with the partial file; but no image is newer than this.
    times = [source.mtime_ns] if isinstance(source, MatrixSource) else [entry.mtime_ns for entry in source.entries]
    if not fits or max(times, default=0) > full.stat().st_mtime_ns:
        msg = (
            f"{shown}: this was begun with another source, model or option; repeat the command that began it, or "
            "pass --force in place of --resume to start anew."
        )
        raise UsageError(msg)
    if options.strict and skipped:
        raise refused(source, Failure(*skipped[0]))


def _holds(archive: Archive, source: ImageSource | MatrixSource) -> bool:
    """Tell whether an archive's rows and skipped images are those of a source, as far as it says."""
    if len(archive) + len(archive.skipped) != len(source) + len(source.rejected):
        return False
    if isinstance(source, MatrixSource):  # its names are numbers, which the count says as well
        return True
    there = [entry.name for entry in source.entries] + [failure.name for failure in source.rejected]
    return archive.names is None or sorted(there) == sorted([*archive.names, *(name for name, _ in archive.skipped)])


def write_widest(job: Transcoding, folder: Path, rate: float, shown: Path) -> Path:
    """Write rungs of the ladder into a folder until one fits and the next does not; return it.

    Raises
    ------
    UsageError
        If not even the lowest rung keeps to the rate.
    """
    spent: dict[int, float] = {}

    def write(latents: int) -> float:
        path = folder / f"{latents}.bin"
        spent[latents] = job.write(path, latents)
        if spent[latents] > rate:
            path.unlink()
        return spent[latents]

    latents = widest(job.costs(), write, rate, job.rungs)
    if latents is None:
        lowest = job.rungs[0]
        raise UsageError(
            f"{escape_name(shown)}: no width fits into {rate:g} bits per image; the least, "
            f"{lowest:,} latent{'s' if lowest > 1 else ''}, takes {spent[lowest]:,.1f}: ask for a higher --rate."
        )
    return folder / f"{latents}.bin"


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
            f"{escape_name(images.path)}: what has gone by cannot be read again, so there is nothing to --resume; "
            f"`stochcl verify {escape_name(path)}.partial --salvage OUT` makes an archive of what was kept."
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
    # The first latents carry the most, so that nothing is expected of fewer than the lowest rung has.
    rungs = sorted((int(latents), float(bits)) for latents, bits in recorded.items())
    if archive.header.latents < rungs[0][0]:
        return ()
    latents, bits = zip(*rungs, strict=True)
    expected = float(np.interp(archive.header.latents, latents, bits))
    spent, unit = archive.parts()["codes"] * 8 / len(archive), "row" if codec.columns else "image"
    advice = "`stochcl transcode --refit` may make the file smaller, and `stochcl train` a model that knows them"
    if spent > _MUCH * expected:
        known = f"those of the model's training {unit}s {expected:,.0f}"
        said = f"these codes take {spent:,.0f} bits per {unit}, and {known}"
    elif archive.header.latents == codec.latents and archive.own_table_rows > len(archive) / 2:
        said = "the model predicts these codes worse than a plain table of their frequencies does"
    else:
        return ()
    return (f"warning: {said}: the {unit}s may be of a kind that it was not trained on; {advice}",)


@contextmanager
def saying_what_is_kept(path: Path) -> Iterator[None]:
    """Let an interruption, or a source that fails, say what there is to go on with."""
    try:
        yield
    except (KeyboardInterrupt, SourceError) as exc:
        if not getattr(exc, "__notes__", ()) and (said := _kept(path)):
            exc.add_note(said)
        raise


def _kept(path: Path) -> str:
    """Say what an interrupted run has left to go on with; nothing where there is nothing."""
    full = full_width(path)
    if full.exists():
        return f"What was done is kept in {escape_name(full)}: pass --resume to go on with it."
    for partial in (output.with_name(output.name + ".partial") for output in (full, path)):
        if partial.exists():
            rows = rows_kept(partial.with_name(partial.name + ".journal"))
            kept = f"{rows:,} that are done are" if rows != 1 else "1 that is done is"
            return f"The {kept} kept in {escape_name(partial)}: pass --resume to go on."
    return ""


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
    model, columns = escape_name(codec.model.name), codec.columns
    shown = escape_name(source.path)
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
