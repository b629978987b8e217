"""Compress a source to an archive."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.api import source as sources
from stochcl.api.drift import Drift
from stochcl.api.summary import Report, external_tables_note
from stochcl.api.target import Target, narrowest, sample_of, target_note
from stochcl.codes import Codes, folder_label, pick
from stochcl.compress import Archive, ArchiveBase, Header, Writer
from stochcl.compress.header import Embedder
from stochcl.compress.journal import rows_kept
from stochcl.compress.segment_writer import SegmentWriter, StreamWriter
from stochcl.compress.sharded import MANIFEST
from stochcl.compress.transcode import Transcoding, widest
from stochcl.data import Failure, ImageSource, MatrixSource, SourceOptions, StreamSource
from stochcl.data.arrow import ArrowSource
from stochcl.data.preprocess import FITS, Fit, Preprocess
from stochcl.entropy.model import expected_bits
from stochcl.entropy.tables import keep_tables
from stochcl.errors import FormatError, OutputError, OutputExists, SourceError, UsageError, for_caller
from stochcl.files import ROOM, WriteLock, advice_for, check_output, exists, sync_folder, target_of
from stochcl.messages import Progress, escape_name, os_reason, plural
from stochcl.options import option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stochcl.api.encode import CodecBase
    from stochcl.api.source import Given, Source


_FEW = 100  # images below which the mean rate says little
_HARDLY = 0.05  # of the codes' bytes: smaller tables are stored in the archive
_MUCH = 1.3  # times the bits of images like the model's training images


@dataclass(frozen=True)
class CompressOptions(SourceOptions):
    """What to compress, and how."""

    latents: int | None = option(None, "Keep the first K latents.", at_least=1, unit="K", shown="all")
    rate: float | None = option(
        None, "Keep the widest prefix of the code that takes at most R bits per image or row on disk; decoder "
        "and names come on top.", more_than=0, unit="R",
    )  # fmt: skip
    target: str | None = option(
        None, "Keep the narrowest prefix of the code with this quality on held-out rows of a sample: 'accuracy -1' "
        "(points below the vectors themselves, by a linear probe), 'accuracy 80%' or 'recall@10 0.9'.", unit="TARGET",
    )  # fmt: skip
    batch_size: int = option(256, "Images at a time; it does not change codes.", at_least=1)
    workers: int | None = option(None, "Threads that decode images.", at_least=0, shown="one per core, at most 8")
    embedder: str | None = option(
        None, "Name of the model that made the embeddings, to store and to compare.", unit="NAME[@REVISION]",
        shown="what the table's metadata or the model say",
    )  # fmt: skip
    size: int | None = option(
        None, "Side of the images that the network takes; for residual latents, 3/4 to 3/2 of the model's own.",
        at_least=1, unit="PIXELS", shown="as the model says",
    )  # fmt: skip
    fit: Fit | None = option(None, "How to fit images that are not square.", choices=FITS, shown="as the model says")
    names: bool = option(True, "Store the names.")
    uncertainty: bool = option(False, "Store how uncertain each image's code is: under a byte each.")
    self_contained: bool = option(False, "Always put the decoder into the archive.")
    external_tables: bool = option(False, "Put the decoder into a file beside the archive.")
    strict: bool = option(False, "Stop at an image that cannot be read, rather than skip it.")
    force: bool = option(False, "Replace an existing output.")
    resume: bool = option(False, "Continue an interrupted run.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_exclusive(latents=self.latents, rate=self.rate, target=self.target)
        if self.target is not None:
            Target.parse(self.target)
        check_exclusive(self_contained=self.self_contained, external_tables=self.external_tables)

    def check(self, codec: CodecBase) -> None:
        """Raise UsageError if options do not fit the model."""
        if self.latents is not None and self.latents > codec.latents:
            raise UsageError(
                f"this model has {codec.latents:,} latents; --latents must be at most that, got {self.latents:,}."
            )
        if self.fit is not None and codec.columns is not None:
            raise UsageError("--fit is for images, and this model takes vectors; omit it.")

    def embeds(self, codec: CodecBase, rows: int = 0, latents: int | None = None) -> bool:
        """Return whether to store the decoding tables in the file: if not packaged, or small next to the codes."""
        if self.self_contained or self.external_tables:
            return self.self_contained
        if not codec.has_packaged_tables:
            return True
        bits = expected_bits(codec.tables.entropy.prefix(latents or codec.latents))
        bits = bits if self.rate is None else min(bits, self.rate)
        return len(codec.tables.data) < _HARDLY * rows * bits / 8


def check_exclusive(**options: object) -> None:
    """Raise UsageError if more than one of these options is given."""
    if sum(value not in (None, False) for value in options.values()) > 1:
        given = [name for name, value in options.items() if value not in (None, False)]
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{names} contradict each other; give one of them.")


def header_of(codec: CodecBase, source: Source, options: CompressOptions, latents: int) -> Header:
    """Return the header for an archive of a source's first latents."""
    header = codec.header(latents=latents, preprocess=preprocess_of(codec, options, source), source_kind=source.kind)
    if isinstance(source, ArrowSource) and options.names:
        header = replace(header, ids=source.ids)
    embedder = sources.embedder_of(source, options.embedder)
    return header if embedder is None else replace(header, embedder=embedder.to_json())


def preprocess_of(codec: CodecBase, options: CompressOptions, source: Source) -> Preprocess:
    """Return the preprocessing of a source's images, from the model, the options and the source."""
    asked: dict[str, Any] = {"fit": options.fit, "depth": options.depth, "max_pixels": options.max_pixels}
    preprocess = replace(codec.preprocess, **{name: value for name, value in asked.items() if value is not None})
    return source.settle(preprocess) if codec.columns is None and not isinstance(source, MatrixSource) else preprocess


def select_latents(codes: Codes, header: Header) -> Codes:
    """Keep the latents that an archive has."""
    return codes.prefix(header.latents) if header.selection is None else pick(codes, header.selection)


def compress_source(
    codec: CodecBase, given: Given, path: Path | IO[bytes], options: CompressOptions, progress: Progress
) -> Report:
    """Compress a source to a path or a stream, see :meth:`stochcl.api.codec.Codec.compress`."""
    options.check(codec)
    codec = codec.with_size(options.size)
    source = sources.check_source_fits_model(sources.open_given(given, options, codec.columns or 0), codec)
    met = None
    if options.target is not None:
        few = sample_of(codec, source, preprocess_of(codec, options, source), level=options.label_level)
        wanted = Target.parse(options.target)
        latents, met = narrowest(few, wanted, codec.config.ladder, escape_name(source.path))
        options = replace(options, target=None, latents=latents)
    if not isinstance(path, Path):
        return _compress_to_stream(codec, source, path, options, progress)
    if options.resume and sources.is_read_once(source):
        raise UsageError(
            f"{escape_name(source.path)}: this cannot be read again, so there is nothing to --resume; "
            f"`stochcl verify {escape_name(path)}.partial --salvage OUT` makes an archive of what was kept."
        )
    if exists(path / MANIFEST):
        raise UsageError(
            f"{escape_name(path)}: this is a folder of shards; pass the --shard-images that it was made with to "
            "continue it or, with --force, to replace it; or name a file to write."
        )
    for read in sources.given_paths(given):
        check_output(path, read, force=options.force)
    started, shown, path = time.monotonic(), str(path), target_of(path)
    with note_partial_output(path, sources.unit_of(source)):
        if options.rate is None:
            encoded = encode_source(codec, source, path, options, options.latents or codec.latents, progress)
        else:
            with locked(path):
                encoded = compress_at_rate(codec, source, path, options, options.rate, progress)
    notes = external_tables_note(keep_tables(codec.tables, path.parent)) if options.external_tables else ()
    notes = notes if met is None else (target_note(met), *notes)
    with Archive(path, tables=[codec.tables]) as archive:
        report = report_of(archive, shown, codec, source, encoded, started, options.label_level)
        return replace(report, notes=notes, rate=options.rate, target=met)


def report_of(
    archive: ArchiveBase, shown: str, codec: CodecBase, source: Source, encoded: Encoded, started: float,
    level: int | None = None,
) -> Report:  # fmt: skip
    """Return the figures of a newly written archive, with warnings about its images, labels and codes."""
    report = Report.of(archive, shown, seconds=time.monotonic() - started, encoded=encoded.rows)
    warnings = sources.source_warnings(source, encoded.damaged)
    warnings += label_level_warning(level, encoded)
    warnings += embedder_warning(codec, archive)
    warnings += distribution_shift_warning(codec, archive, encoded.drift)
    drift = None if encoded.drift is None else encoded.drift.to_json()
    return replace(report, warnings=tuple(warnings), damaged=tuple(encoded.damaged), drift=drift)


def label_level_warning(level: int | None, encoded: Encoded) -> list[str]:
    """Return a warning if no image has as many folders as the label level needs."""
    if level is None or encoded.labelled or not encoded.rows:
        return []
    return [f"warning: no image lies in {abs(level)} folders; give another --label-level"]


def _compress_to_stream(
    codec: CodecBase, source: Source, file: IO[bytes], options: CompressOptions, progress: Progress
) -> Report:
    needs_file = {"--rate": options.rate, "--resume": options.resume, "--external-tables": options.external_tables}
    if asked := [name for name, value in needs_file.items() if value]:
        raise UsageError(f"{' and '.join(asked)}: standard output does not allow this; give -o a file name.")
    started = time.monotonic()
    with StreamWriter(
        file,
        header_of(codec, source, options, options.latents or codec.latents),
        codec.tables,
        embed_tables=options.embeds(codec),
        names=options.names,
        uncertainty=options.uncertainty,
    ) as writer:
        encoded = _encode_all(codec, source, writer, options, progress)
    with Archive(writer.outline(), tables=[codec.tables]) as archive:
        return report_of(archive, "standard output", codec, source, encoded, started, options.label_level)


def encode_source(
    codec: CodecBase, source: Source, path: Path, options: CompressOptions, latents: int, progress: Progress
) -> Encoded:
    """Write an archive of the first latents, and return what was encoded.

    If a stream breaks or is interrupted, its images so far are on disk when the error is raised.
    """
    facts = {"source": sources.listing(source), "strict": options.strict, "device": codec.device_type}
    facts |= {} if options.label_level is None else {"label_level": options.label_level}
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
            is_damaged = isinstance(source, StreamSource) and isinstance(exc, SourceError)
            if writer.rows and (is_damaged or sources.is_read_once(source)):
                writer.flush()
                partial, unit = escape_name(writer.partial), sources.unit_of(source)
                exc.add_note(
                    f"What came before, {plural(writer.rows, unit)}, is kept in {partial}: "
                    f"`stochcl verify {partial} --salvage {escape_name(path)}` makes an archive of them."
                )
            raise


def _encode_all(
    codec: CodecBase, source: Source, writer: SegmentWriter, options: CompressOptions, progress: Progress
) -> Encoded:
    if options.strict and source.rejected:
        raise sources.strict_error(source, source.rejected[0])
    if not writer.position:
        for failure in source.rejected:
            writer.skip(failure.name, failure.reason)
    encoded = encode_rows(codec, source, writer, preprocess_of(codec, options, source), options, progress)
    if not writer.rows:
        raise sources.no_readable_error(source, writer.first_skip)
    return encoded


@dataclass(frozen=True)
class Encoded:
    """What was encoded: the number of rows, damaged but readable images, whether any row has a label, and drift."""

    rows: int = 0
    damaged: Sequence[Failure] = ()
    labelled: bool = False
    drift: Drift | None = None


def encode_rows(
    codec: CodecBase, source: Source, writer: SegmentWriter, preprocess: Preprocess, options: CompressOptions,
    progress: Progress = lambda done, total: None, *, beside: Callable[[Codes], Codes] = lambda codes: codes,
) -> Encoded:  # fmt: skip
    """Encode the images of a source into a writer, from its position on.

    ``beside`` receives codes with names, and with uncertainty if asked for, and returns them with what is stored
    beside them.
    """
    encoded, damaged, labelled = 0, list[Failure](), False
    drift = None if writer.header.selection else Drift.of(codec, writer.header.latents)
    progress(writer.position, len(source))
    for part in sources.read_batches(source, preprocess, options.batch_size, options.workers, writer.position):
        if options.strict and (part.failures or part.damaged):
            raise sources.strict_error(source, (*part.failures, *part.damaged)[0])
        damaged += part.damaged
        failed = sorted(set(part.rows).difference(part.positions))
        for row, failure in zip(failed, part.failures, strict=True):
            writer.skip(failure.name, failure.reason, position=row)
        if part.positions:
            width = writer.header.latents if writer.header.selection is None else None
            codes = codec.encode_prepared(part.inputs, uncertainty=options.uncertainty, latents=width).codes
            if drift is not None:
                drift = drift.plus(codes)
            labels = part.labels
            if options.label_level is not None:
                labels = tuple(folder_label(name, options.label_level) for name in part.names)
            labelled = labelled or any(labels or ())
            codes = replace(select_latents(codes, writer.header), names=part.names, labels=labels)
            writer.add(beside(codes), positions=part.positions, sizes=part.sizes)
        encoded += len(part.names)
        progress(part.rows.stop, len(source))
    return Encoded(encoded, damaged, labelled, drift)


# A rate


def full_width(path: Path) -> Path:
    """Return the path of the archive with all latents, kept until the prefix is written."""
    return path.with_name(path.name + ".full")


def locked(path: Path) -> WriteLock:
    """Lock a path for writing in all steps of a request."""
    try:
        return WriteLock(path, escape_name(path))
    except OSError as exc:
        raise unwritable(path, exc) from exc


def compress_at_rate(
    codec: CodecBase, source: Source, path: Path, options: CompressOptions, rate: float, progress: Progress
) -> Encoded:
    """Write the widest rung whose codes take at most ``rate`` bits per image; return what was encoded.

    The archive at full width is deleted only when the prefix is complete or no rung meets the rate. After a full
    disk, ``resume`` continues from it.
    """
    full, encoded = full_width(path), Encoded()
    if exists(full) and (options.resume or not options.force):
        _check_kept(full, codec, source, options)
    else:
        encoded = encode_source(codec, source, full, options, codec.latents, progress)
    with Archive(full, tables=[codec.tables]) as archive:
        job = Transcoding(archive, embed=options.embeds(codec, len(archive)), names=options.names)
        try:
            advice = f"; all latents are kept in {escape_name(full)}: {ROOM}pass --resume"
            write_widest(job, path, rate, advice)
        except UsageError:
            full.unlink()
            raise
    full.unlink()
    return encoded


def write_widest(job: Transcoding, path: Path, rate: float, advice: str = "") -> None:
    """Write rungs of the ladder until one meets the rate and the next does not, and move it to ``path``.

    ``advice`` ends the error message if nothing can be written.

    Raises
    ------
    UsageError
        If not even the lowest rung meets the rate.
    """
    spent: dict[int, float] = {}
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name[:64]}.", dir=path.parent) as folder:

            def write(latents: int) -> float:
                file = Path(folder, f"{latents}.bin")
                spent[latents] = job.write(file, latents)
                if spent[latents] > rate:
                    file.unlink()
                return spent[latents]

            latents = widest(job.costs(), write, rate, job.rungs)
            if latents is None:
                lowest = job.rungs[0]
                raise UsageError(
                    f"{escape_name(path)}: no width fits into {rate:g} bits per image; the least, "
                    f"{plural(lowest, 'latent')}, takes {spent[lowest]:,.1f}: ask for a higher --rate."
                )
            Path(folder, f"{latents}.bin").replace(path)
        sync_folder(path.parent)
    except (OutputError, OSError) as exc:
        raise unwritable(path, exc, advice) from exc


def unwritable(path: Path, exc: OutputError | OSError, advice: str = "") -> OutputError:
    """Return the error for an output whose writer worked on another path, or gave wrong advice to resume."""
    cause = exc.__cause__ if isinstance(exc, OutputError) else exc
    reason = os_reason(cause) if isinstance(cause, OSError) else str(exc)
    return OutputError(f"{escape_name(path)}: it cannot be written: {reason}{advice_for(cause, advice)}.")


def _check_kept(full: Path, codec: CodecBase, source: Source, options: CompressOptions) -> None:
    """Refuse an existing archive at full width that this request would not write."""
    shown = escape_name(full)
    if not options.resume:
        raise OutputExists(
            f"{shown}: an interrupted run left this; pass --resume to continue it, or --force to start over."
        )
    try:
        with Archive(full, tables=[codec.tables]) as archive:
            skipped = archive.skipped
            fits = archive.header == header_of(codec, source, options, codec.latents) and _holds(archive, source)
            fits = fits and (archive.names is not None or not options.names)
    except FormatError as exc:
        raise UsageError(f"{shown}: it is damaged ({exc}); pass --force in place of --resume to start over.") from exc
    # The journal with the source's listing was removed with the partial file; but no image may be newer than this.
    if isinstance(source, ArrowSource):
        times = [mtime_ns for _, mtime_ns in source.files]
    elif isinstance(source, MatrixSource):
        times = [source.mtime_ns]
    else:
        assert isinstance(source, ImageSource)  # a stream is not resumed
        times = [entry.mtime_ns for entry in source.entries]
    if not fits or max(times, default=0) > full.stat().st_mtime_ns:
        raise UsageError(
            f"{shown}: this was begun with another source, model or option; repeat the command that began it, or "
            "pass --force in place of --resume to start over."
        )
    if options.strict and skipped:
        raise sources.strict_error(source, Failure(*skipped[0]))


def _holds(archive: Archive, source: Source) -> bool:
    """Return whether an archive's rows and skipped images match a source, as far as can be told."""
    count = source.count() if isinstance(source, ArrowSource) else len(source)
    if len(archive) + len(archive.skipped) != count + len(source.rejected):
        return False
    if not isinstance(source, ImageSource):  # the count covers the numbers that name a matrix's rows
        return True
    there = [entry.name for entry in source.entries] + [failure.name for failure in source.rejected]
    return archive.names is None or sorted(there) == sorted([*archive.names, *(name for name, _ in archive.skipped)])


# Warnings and hints


def drift_warning(codec: CodecBase, drift: Drift | None) -> tuple[str, ...]:
    """Return a warning if the first latents of newly encoded rows cost more than those of training."""
    unit, fitted = ("row", "`stochcl train`") if codec.columns else ("image", "`stochcl adapt`")
    if drift is None or (found := drift.finding(unit)) is None:
        return ()
    asked = f"the {unit}s may be of a kind that it was not trained on; {fitted} makes a model that knows them"
    return (f"warning: {found}; {asked}",)


def distribution_shift_warning(codec: CodecBase, archive: ArchiveBase, drift: Drift | None = None) -> tuple[str, ...]:
    """Return a warning if the model predicts these codes worse than those of its training images."""
    if warned := drift_warning(codec, drift):
        return warned
    network = codec.tables.autoregressive is not None  # the record may mention one that was not stored
    recorded = codec.model.record.get("entropy", {}).get("autoregressive_bits" if network else "independent_bits")
    if not recorded or len(archive) < _FEW:
        return ()
    # The first latents carry the most bits, so there is no expectation below the lowest rung.
    rungs = sorted((int(latents), float(bits)) for latents, bits in recorded.items())
    if archive.header.latents < rungs[0][0]:
        return ()
    latents, bits = zip(*rungs, strict=True)
    expected = float(np.interp(archive.header.latents, latents, bits))
    spent, unit = archive.parts()["codes"] * 8 / len(archive), "row" if codec.columns else "image"
    if spent > _MUCH * expected:
        found = f"these codes take {spent:,.0f} bits per {unit}, the model's training {unit}s {expected:,.0f}"
    elif network and archive.header.latents == codec.latents and archive.own_table_rows > len(archive) / 2:
        found = "the model predicts these codes worse than a plain table of their frequencies does"
    else:
        return ()
    fitted = "`stochcl train`" if codec.columns else "`stochcl adapt`"
    advice = f"`stochcl transcode --refit` may make the file smaller, and {fitted} makes a model that knows them"
    return (f"warning: {found}: the {unit}s may be of a kind that it was not trained on; {advice}",)


def embedder_warning(codec: CodecBase, archive: ArchiveBase) -> tuple[str, ...]:
    """Return a warning if the model was trained on vectors of another embedder."""
    made, trained = Embedder.of(archive.header.embedder), codec.embedder
    if made is None or trained is None or not (difference := made.difference(trained)):
        return ()
    advice = "train one for these with `stochcl train`"
    return (f"warning: the model was trained on the vectors of another embedder ({difference}); {advice}",)


@contextmanager
def note_partial_output(path: Path, unit: str = "row") -> Iterator[None]:
    """Add a resume hint to a KeyboardInterrupt or a SourceError."""
    try:
        yield
    except (KeyboardInterrupt, SourceError) as exc:
        if not getattr(exc, "__notes__", ()) and (hint := _resume_hint(path, unit)):
            exc.add_note(for_caller(hint))
        raise


def _resume_hint(path: Path, unit: str) -> str:
    """Return a hint at what an interrupted run left to resume, empty if nothing."""
    full = full_width(path)
    if exists(full):
        return f"What was done is kept in {escape_name(full)}: pass --resume to continue."
    for partial in (output.with_name(output.name + ".partial") for output in (full, path)):
        if exists(partial):
            rows = rows_kept(partial.with_name(partial.name + ".journal"))
            return (
                f"What is done, {plural(rows, unit)}, is kept in {escape_name(partial)}: pass --resume to continue."
            )
    return ""
