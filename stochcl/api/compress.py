"""Compress a source to an archive."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from stochcl.api import source as sources
from stochcl.api.summary import Drift, Report, external_tables_note
from stochcl.api.target import Target, narrowest, sample_of, target_note
from stochcl.codes import Codes, folder_label, pick
from stochcl.compress import Archive, ArchiveBase, Header, Writer
from stochcl.compress.header import Embedder
from stochcl.compress.journal import rows_kept
from stochcl.compress.segment_writer import SegmentWriter, StreamWriter
from stochcl.compress.sharded import MANIFEST
from stochcl.compress.transcode import Transcoding, widest
from stochcl.data import Failure, ImageSource, SourceOptions, StreamSource, VectorSource
from stochcl.data.arrow import ArrowSource
from stochcl.data.preprocess import FITS, Fit, Preprocess
from stochcl.entropy.model import expected_bits
from stochcl.entropy.tables import keep_tables
from stochcl.errors import FormatError, OutputError, OutputExists, SourceError, UsageError, for_caller
from stochcl.files import ROOM, WriteLock, advice_for, check_output, exists, sync_folder, target_of
from stochcl.messages import Progress, escape_name, os_reason, plural, silent
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


def compress_source(
    codec: CodecBase, given: Given, path: Path | IO[bytes], options: CompressOptions, progress: Progress
) -> Report:
    """Compress a source to a path or a stream, see :meth:`stochcl.api.codec.Codec.compress`."""
    options.check(codec)
    codec = codec.with_size(options.size)
    source = sources.check_source_fits_model(sources.open_given(given, options, codec.columns or 0), codec)
    met = None
    if options.target is not None:
        preprocess = Compression(codec, source, options).preprocess
        few = sample_of(codec, source, preprocess, level=options.label_level)
        wanted = Target.parse(options.target)
        latents, met = narrowest(few, wanted, codec.config.ladder, escape_name(source.path))
        options = replace(options, target=None, latents=latents)
    work = Compression(codec, source, options, progress)
    if not isinstance(path, Path):
        return work.to_stream(path)
    if options.resume and source.read_once:
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
    shown, path = str(path), target_of(path)
    with note_partial_output(path, source.unit):
        if options.rate is None:
            encoded = work.to_file(path, work.width)
        else:
            with locked(path):
                encoded = work.at_rate(path, options.rate)
    notes = external_tables_note(keep_tables(codec.tables, path.parent)) if options.external_tables else ()
    notes = notes if met is None else (target_note(met), *notes)
    with Archive(path, tables=[codec.tables]) as archive:
        return replace(work.report(archive, shown, encoded), notes=notes, rate=options.rate, target=met)


@dataclass(frozen=True)
class Encoded:
    """What was encoded: the number of rows, damaged but readable images, whether any row has a label, and drift."""

    rows: int = 0
    damaged: Sequence[Failure] = ()
    labelled: bool = False
    drift: Drift | None = None


@dataclass(frozen=True)
class Compression:
    """The work of compressing one source with one codec."""

    codec: CodecBase
    source: Source
    options: CompressOptions
    progress: Progress = silent
    started: float = field(default_factory=time.monotonic)

    @property
    def width(self) -> int:
        """The number of latents that were asked for."""
        return self.options.latents or self.codec.latents

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of the images, from the model, the options and the source."""
        names = "fit", "depth", "max_pixels"
        asked: dict[str, Any] = {name: getattr(self.options, name) for name in names}
        given = {name: value for name, value in asked.items() if value is not None}
        preprocess = replace(self.codec.preprocess, **given)
        return preprocess if isinstance(self.source, VectorSource) else self.source.settle(preprocess)

    def header(self, latents: int) -> Header:
        """Return the header for an archive of the first latents."""
        source = self.source
        header = self.codec.header(latents=latents, preprocess=self.preprocess, source_kind=source.kind)
        if isinstance(source, ArrowSource) and self.options.names:
            header = replace(header, ids=source.ids)
        embedder = sources.embedder_of(source, self.options.embedder)
        return header if embedder is None else replace(header, embedder=embedder.to_json())

    def to_stream(self, file: IO[bytes]) -> Report:
        """Write an archive to a file object."""
        options, tables = self.options, self.codec.tables
        needs_file = {"rate": options.rate, "resume": options.resume, "external-tables": options.external_tables}
        if asked := [f"--{name}" for name, value in needs_file.items() if value]:
            raise UsageError(f"{' and '.join(asked)}: standard output does not allow this; give -o a file name.")
        with StreamWriter(
            file, self.header(self.width), tables, embed_tables=options.embeds(self.codec), names=options.names,
            uncertainty=options.uncertainty,
        ) as writer:  # fmt: skip
            encoded = self._encode_all(writer)
        with Archive(writer.outline(), tables=[tables]) as archive:
            return self.report(archive, "standard output", encoded)

    def to_file(self, path: Path, latents: int) -> Encoded:
        """Write an archive of the first latents, and return what was encoded.

        If a stream breaks or is interrupted, its images so far are on disk when the error is raised.
        """
        codec, source, options = self.codec, self.source, self.options
        facts = {"source": source.listing(), "strict": options.strict, "device": codec.device_type}
        facts |= {} if options.label_level is None else {"label_level": options.label_level}
        with Writer(
            path, self.header(latents), codec.tables, embed_tables=options.embeds(codec, len(source), latents),
            names=options.names, uncertainty=options.uncertainty, force=options.force, resume=options.resume,
            facts=facts,
        ) as writer:  # fmt: skip
            try:
                return self._encode_all(writer)
            except (SourceError, KeyboardInterrupt) as exc:
                is_damaged = isinstance(source, StreamSource) and isinstance(exc, SourceError)
                if writer.rows and (is_damaged or source.read_once):
                    writer.flush()
                    partial = escape_name(writer.partial)
                    exc.add_note(
                        f"What came before, {plural(writer.rows, source.unit)}, is kept in {partial}: "
                        f"`stochcl verify {partial} --salvage {escape_name(path)}` makes an archive of them."
                    )
                raise

    def at_rate(self, path: Path, rate: float) -> Encoded:
        """Write the widest rung whose codes take at most ``rate`` bits per image; return what was encoded.

        The archive at full width is deleted only when the prefix is complete or no rung meets the rate. After a full
        disk, ``resume`` continues from it.
        """
        full, encoded, options = full_width(path), Encoded(), self.options
        if exists(full) and (options.resume or not options.force):
            self._check_kept(full)
        else:
            encoded = self.to_file(full, self.codec.latents)
        with Archive(full, tables=[self.codec.tables]) as archive:
            job = Transcoding(archive, embed=options.embeds(self.codec, len(archive)), names=options.names)
            try:
                advice = f"; all latents are kept in {escape_name(full)}: {ROOM}pass --resume"
                write_widest(job, path, rate, advice)
            except UsageError:
                full.unlink()
                raise
        full.unlink()
        return encoded

    def _check_kept(self, full: Path) -> None:
        """Refuse an existing archive at full width that this request would not write."""
        shown, options = escape_name(full), self.options
        if not options.resume:
            raise OutputExists(
                f"{shown}: an interrupted run left this; pass --resume to continue it, or --force to start over."
            )
        try:
            with Archive(full, tables=[self.codec.tables]) as archive:
                skipped = archive.skipped
                fits = archive.header == self.header(self.codec.latents) and _holds(archive, self.source)
                fits = fits and (archive.names is not None or not options.names)
        except FormatError as exc:
            raise UsageError(
                f"{shown}: it is damaged ({exc}); pass --force in place of --resume to start over."
            ) from exc
        # The journal with the source's listing was removed with the partial file, but no image may be newer.
        if not fits or self.source.mtime_ns > full.stat().st_mtime_ns:
            raise UsageError(
                f"{shown}: this was begun with another source, model or option; repeat the command that began it, or "
                "pass --force in place of --resume to start over."
            )
        self._check_strict([Failure(*one) for one in skipped])

    def _check_strict(self, failures: Sequence[Failure]) -> None:
        if self.options.strict and failures:
            raise sources.strict_error(self.source, failures[0])

    def _encode_all(self, writer: SegmentWriter) -> Encoded:
        self._check_strict(self.source.rejected)
        if not writer.position:
            for failure in self.source.rejected:
                writer.skip(failure.name, failure.reason)
        encoded = self.encode(writer)
        if not writer.rows:
            raise sources.no_readable_error(self.source, writer.first_skip)
        return encoded

    def encode(
        self, writer: SegmentWriter, preprocess: Preprocess | None = None,
        beside: Callable[[Codes], Codes] = lambda codes: codes,
    ) -> Encoded:  # fmt: skip
        """Encode the images into a writer, from its position on.

        ``beside`` receives codes with names, and with uncertainty if asked for, and returns them with what is stored
        beside them.
        """
        options, source, damaged, labelled, encoded = self.options, self.source, list[Failure](), False, 0
        drift = None if writer.header.selection else Drift.of(self.codec, writer.header.latents)
        width = writer.header.latents if writer.header.selection is None else None
        self.progress(writer.position, len(source))
        how = preprocess or self.preprocess, options.batch_size, options.workers
        for part in sources.read_batches(source, *how, writer.position):
            self._check_strict((*part.failures, *part.damaged))
            damaged += part.damaged
            failed = sorted(set(part.rows).difference(part.positions))
            for row, failure in zip(failed, part.failures, strict=True):
                writer.skip(failure.name, failure.reason, position=row)
            if part.positions:
                codes = self.codec.encode_prepared(part.inputs, uncertainty=options.uncertainty, latents=width).codes
                drift = drift and drift.plus(codes)
                labels = part.labels
                if options.label_level is not None:
                    labels = tuple(folder_label(name, options.label_level) for name in part.names)
                labelled = labelled or any(labels or ())
                codes = replace(select_latents(codes, writer.header), names=part.names, labels=labels)
                writer.add(beside(codes), positions=part.positions, sizes=part.sizes)
            encoded += len(part.names)
            self.progress(part.rows.stop, len(source))
        return Encoded(encoded, damaged, labelled, drift)

    def report(self, archive: ArchiveBase, shown: str, encoded: Encoded) -> Report:
        """Return the figures of the written archive, with warnings about its images, labels and codes."""
        report = Report.of(archive, shown, seconds=time.monotonic() - self.started, encoded=encoded.rows)
        drift = None if encoded.drift is None else encoded.drift.to_json()
        warnings = tuple(self.warnings(encoded, archive))
        return replace(report, warnings=warnings, damaged=tuple(encoded.damaged), drift=drift)

    def warnings(self, encoded: Encoded, archive: ArchiveBase | None = None) -> list[str]:
        """Return warnings about encoded images, labels and codes, and about their archive if it is new."""
        codec, level = self.codec, self.options.label_level
        warnings = sources.source_warnings(self.source, encoded.damaged)
        if level is not None and encoded.rows and not encoded.labelled:
            warnings.append(f"warning: no image lies in {abs(level)} folders; give another --label-level")
        if archive is not None:
            warnings += embedder_warning(codec, archive)
        unit, fitted = ("row", "`stochcl train`") if codec.columns else ("image", "`stochcl adapt`")
        if encoded.drift is not None and (found := encoded.drift.finding(unit)) is not None:
            asked = f"the {unit}s may be of a kind that it was not trained on; {fitted} makes a model that knows them"
            warnings.append(f"warning: {found}; {asked}")
        elif archive is not None:
            warnings += distribution_shift_warning(codec, archive)
        return warnings


def select_latents(codes: Codes, header: Header) -> Codes:
    """Keep the latents that an archive has."""
    return codes.prefix(header.latents) if header.selection is None else pick(codes, header.selection)


def _holds(archive: Archive, source: Source) -> bool:
    """Return whether an archive's rows and skipped images match a source, as far as can be told."""
    count = source.count() if isinstance(source, ArrowSource) else len(source)
    if len(archive) + len(archive.skipped) != count + len(source.rejected):
        return False
    if not isinstance(source, ImageSource):  # the count covers the numbers that name a matrix's rows
        return True
    there = source.names + [failure.name for failure in source.rejected]
    return archive.names is None or sorted(there) == sorted([*archive.names, *(name for name, _ in archive.skipped)])


def distribution_shift_warning(codec: CodecBase, archive: ArchiveBase) -> tuple[str, ...]:
    """Return a warning if the model predicts these codes worse than those of its training images."""
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
    elif (
        network and codec.size == codec.model.config.size  # the network was fitted to codes of that size
        and archive.header.latents == codec.latents and archive.own_table_rows > len(archive) / 2
    ):  # fmt: skip
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
