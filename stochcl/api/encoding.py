"""Encoding a source to an archive of so many latents: images decoded ahead, or rows read; encoded, coded, resumed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, replace
from itertools import chain
from typing import IO, TYPE_CHECKING

from stochcl.compress import Writer
from stochcl.compress.streaming import StreamWriter
from stochcl.compress.transcoding import pick
from stochcl.data import ArrowVectors, MatrixSource, StreamSource, printable
from stochcl.data.preprocess import FITS
from stochcl.errors import ImageError, SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.codes import Codes
    from stochcl.compress import Header
    from stochcl.compress.gathering import SegmentWriter
    from stochcl.data import Failure, ImageSource
    from stochcl.data.preprocess import Fit, Preprocess

    Source = ImageSource | MatrixSource | StreamSource

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
        Bits per image that the codes may take on disk, in place of ``latents``: the widest prefix that does.
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

    def embeds(self, codec: Codec) -> bool:
        """Whether the decoding tables go into the file."""
        return self.self_contained or not (self.external_tables or codec.has_packaged_tables)

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
        embed_tables=options.embeds(codec),
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
        f"The {rows:,} images before are kept in {printable(partial)}: "
        f"`stochcl verify {printable(partial)} --salvage {printable(path)}` makes an archive of them."
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
        f"{printable(source.path)}: {printable(failure.name)}: {failure.reason}; --strict stops at {what} that "
        "cannot be read."
    )


def none_readable(source: Source, first: tuple[str, str]) -> SourceError:
    """Return the error for a source of which no image can be read, the first for this reason."""
    name, reason = first
    what = "rows" if isinstance(source, MatrixSource | ArrowVectors) else "images"
    return SourceError(
        f"{printable(source.path)}: none of its {what} can be read; the first is {printable(name)}: {reason}."
    )
