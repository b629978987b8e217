"""Encoding a source to an archive of so many latents: images decoded ahead, encoded, coded, and resumed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from stochcl.compress import Writer
from stochcl.data import printable
from stochcl.data.preprocess import FITS
from stochcl.errors import ImageError, SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stochcl.api.codec import Codec
    from stochcl.compress import Header
    from stochcl.data import Failure, ImageBatch, ImageSource
    from stochcl.data.preprocess import Fit, Preprocess


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
        Images that are decoded, encoded and handed on at a time; codes do not depend on it.
    workers : int, optional
        Threads that decode images; by default one a core, eight at most.
    fit : str, optional
        crop, pad or stretch images that are not square; by default as the model says.
    names : bool
        Whether to store names.
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
    strict: bool = False
    force: bool = False
    resume: bool = False

    def check(self, latents: int) -> None:
        """Raise UsageError where options contradict each other or the model's width."""
        if self.latents is not None and self.rate is not None:
            raise UsageError("--latents and --rate both say how wide the codes are; give one of them.")
        if self.latents is not None and not 1 <= self.latents <= latents:
            raise UsageError(f"this model has {latents:,} latents; --latents cannot be {self.latents:,}.")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"a rate is more than 0 bits per image, and finite, not {self.rate}.")
        if self.batch_size < 1 or (self.workers is not None and self.workers < 0):
            raise UsageError(f"--batch-size {self.batch_size} and --workers {self.workers} count images and threads.")
        if self.fit is not None and self.fit not in FITS:
            raise UsageError(f"--fit is {', '.join(FITS)}, not {self.fit!r}.")


def header_of(codec: Codec, source: ImageSource, options: CompressOptions, latents: int) -> Header:
    """Return the header of an archive of so many latents of a source."""
    return codec.header(latents=latents, preprocess=_preprocess(codec, options), source_kind=source.kind)


def _preprocess(codec: Codec, options: CompressOptions) -> Preprocess:
    return codec.preprocess if options.fit is None else replace(codec.preprocess, fit=options.fit)


def encode_source(
    codec: Codec,
    source: ImageSource,
    path: Path,
    options: CompressOptions,
    latents: int,
    progress: Callable[[int, int], None],
) -> int:
    """Write an archive of so many latents, and return how many images were encoded for it."""
    facts = {"source": _listing(source), "strict": options.strict, "device": codec.device.type}
    if options.strict and source.rejected:
        raise refused(source, source.rejected[0])
    encoded = 0
    with Writer(
        path,
        header_of(codec, source, options, latents),
        codec.tables,
        embed_tables=not codec.has_packaged_tables,
        names=options.names,
        force=options.force,
        resume=options.resume,
        facts=facts,
    ) as writer:
        if not writer.position:
            for failure in source.rejected:
                writer.skip(failure.name, failure.reason)
        workers = min(8, os.cpu_count() or 1) if options.workers is None else options.workers
        progress(writer.position, len(source))
        for batch in source.batches(
            _preprocess(codec, options), batch_size=options.batch_size, workers=workers, start=writer.position
        ):
            if options.strict and batch.failures:
                raise refused(source, batch.failures[0])
            _add(writer, source, batch, codec, latents)
            encoded += len(batch.names)
            progress(batch.rows.stop, len(source))
        if not writer.rows:
            raise _none_readable(source, writer)
    return encoded


def _add(writer: Writer, source: ImageSource, batch: ImageBatch, codec: Codec, latents: int) -> None:
    """Encode one batch and hand it to the writer, with the place in the source of every row."""
    failed = sorted(set(batch.rows).difference(batch.positions))
    for row, failure in zip(failed, batch.failures, strict=True):
        writer.skip(failure.name, failure.reason, position=row)
    if not batch.positions:
        return
    codes = codec.encode_pixels(batch.images).codes.prefix(latents)
    codes = replace(codes, names=batch.names, uncertainty=None)
    writer.add(codes, positions=batch.positions, sizes=[source.entries[row].size for row in batch.positions])


def _listing(source: ImageSource) -> str:
    """Return a digest of what the source holds: names, sizes and times, and what was rejected."""
    digest = hashlib.sha256(source.kind.encode())
    lines = chain(
        ([entry.name, entry.size, entry.mtime_ns] for entry in source.entries),
        ([failure.name, failure.reason] for failure in source.rejected),
    )
    for line in lines:
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def refused(source: ImageSource, failure: Failure) -> ImageError:
    """Return the error with which --strict stops at an image."""
    return ImageError(
        f"{printable(source.path)}: {printable(failure.name)}: {failure.reason}; --strict stops at images that "
        "cannot be read."
    )


def _none_readable(source: ImageSource, writer: Writer) -> SourceError:
    name, reason = writer.first_skip
    return SourceError(
        f"{printable(source.path)}: none of its images can be read; the first is {printable(name)}: {reason}."
    )
