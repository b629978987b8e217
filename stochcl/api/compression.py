"""From a source to an archive: images decoded ahead, encoded, coded; interrupted and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from stochcl.api.report import Report
from stochcl.compress import Archive, Writer
from stochcl.data import ImageSource, open_source, printable
from stochcl.data.preprocess import FITS
from stochcl.errors import ImageError, OutputError, SourceError, StochclError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stochcl.api.codec import Codec
    from stochcl.data import Failure, ImageBatch
    from stochcl.data.preprocess import Fit

_FULL, _CANDIDATE = ".full", ".prefix"  # endings of the archives that a rate is found with


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
        if self.rate is not None and self.rate <= 0:
            raise UsageError(f"a rate is more than 0 bits per image, not {self.rate}.")
        if self.fit is not None and self.fit not in FITS:
            raise UsageError(f"--fit is {', '.join(FITS)}, not {self.fit!r}.")


def compress_source(
    codec: Codec, source: Path, path: Path, options: CompressOptions, progress: Callable[[int, int], None]
) -> Report:
    """Compress what is at ``source`` to ``path``, see :meth:`stochcl.api.codec.Codec.compress`."""
    options.check(codec.latents)
    images = _open(source)
    if path.exists() and source.is_file() and path.samefile(source):
        raise UsageError(f"{printable(path)}: the output would replace the source; give another name.")
    if path.exists() and not options.force and not path.is_dir():
        raise UsageError(f"{printable(path)}: this file exists already; pass --force to replace it.")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{printable(path)}: the folder to write to does not exist; make it first.")
    started = time.monotonic()
    if options.rate is None:
        encoded = _encode(codec, images, path, options, options.latents or codec.latents, progress)
    else:
        encoded = _at_rate(codec, images, path, options, options.rate, progress)
    with Archive(path, tables=[codec.tables]) as archive:
        return Report.of(archive, str(path), seconds=time.monotonic() - started, encoded=encoded)


def _open(path: Path) -> ImageSource:
    source = open_source(path)
    if isinstance(source, ImageSource):
        return source
    raise UsageError(
        f"{printable(path)}: these are embeddings ({len(source):,} x {source.dim}), and this model takes images; "
        "embeddings need a model that was trained on them, and `stochcl train` takes images only so far."
    )


def _encode(
    codec: Codec,
    source: ImageSource,
    path: Path,
    options: CompressOptions,
    latents: int,
    progress: Callable[[int, int], None],
) -> int:
    """Write an archive of so many latents, and return how many images were encoded for it."""
    preprocess = codec.preprocess if options.fit is None else replace(codec.preprocess, fit=options.fit)
    header = codec.header(latents=latents, preprocess=preprocess, source_kind=source.kind)
    facts = {"source": _listing(source), "strict": options.strict, "device": codec.device.type}
    if options.strict and source.rejected:
        raise _refused(source, source.rejected[0])
    encoded = 0
    with Writer(
        path,
        header,
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
        batches = source.batches(preprocess, batch_size=options.batch_size, workers=workers, start=writer.position)
        progress(writer.position, len(source))
        for batch in batches:
            if options.strict and batch.failures:
                raise _refused(source, batch.failures[0])
            _add(writer, source, batch, codec, latents)
            encoded += len(batch.names)
            progress(batch.rows.stop, len(source))
        if not writer.rows:
            raise _none_readable(source, writer)
    return encoded


def _add(writer: Writer, source: ImageSource, batch: ImageBatch, codec: Codec, latents: int) -> None:
    """Encode one batch and hand it to the writer, with the place in the source of every row."""
    readable, failed = [], iter(batch.failures)
    failure = next(failed, None)
    for row in batch.rows:
        if failure is not None and source.entries[row].name == failure.name:
            writer.skip(failure.name, failure.reason, position=row)
            failure = next(failed, None)
        else:
            readable.append(row)
    if not readable:
        return
    codes = codec.encode_pixels(batch.images).codes.prefix(latents)
    codes = replace(codes, names=batch.names, uncertainty=None)
    writer.add(codes, positions=readable, sizes=[source.entries[row].size for row in readable])


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


def _refused(source: ImageSource, failure: Failure) -> ImageError:
    return ImageError(
        f"{printable(source.path)}: {printable(failure.name)}: {failure.reason}; --strict stops at images that "
        "cannot be read."
    )


def _none_readable(source: ImageSource, writer: Writer) -> SourceError:
    name, reason = writer.first_skip
    return SourceError(
        f"{printable(source.path)}: none of its images can be read; the first is {printable(name)}: {reason}."
    )


def _at_rate(
    codec: Codec,
    source: ImageSource,
    path: Path,
    options: CompressOptions,
    rate: float,
    progress: Callable[[int, int], None],
) -> int:
    """Encode at full width beside the output, then write the widest prefix whose codes take ``rate`` bits.

    The archive at full width stays after an interruption, for ``resume``, and goes in every other case.
    """
    full, candidate = path.with_name(path.name + _FULL), path.with_name(path.name + _CANDIDATE)
    encoded = 0
    if not (options.resume and full.exists() and _is_of(full, codec, source)):
        encoded = _encode(codec, source, full, options, codec.latents, progress)
    try:
        with Archive(full, tables=[codec.tables]) as archive:
            _write_prefix(codec, archive, candidate, options, rate)
        candidate.replace(path)
    except StochclError:
        full.unlink(missing_ok=True)
        raise
    finally:
        candidate.unlink(missing_ok=True)
    full.unlink()
    return encoded


def _is_of(full: Path, codec: Codec, source: ImageSource) -> bool:
    """Tell whether a complete archive at full width is this model's, of this source."""
    with Archive(full, tables=[codec.tables]) as archive:
        rows = len(archive) + len(archive.skipped)
        return archive.header.model_sha256 == codec.model.sha256 and rows == len(source) + len(source.rejected)


def _widest(codec: Codec, archive: Archive, rate: float) -> int:
    """Return the widest prefix that should cost no more than ``rate`` bits per image under the tables."""
    ones = np.zeros(codec.latents)
    for codes in archive.iter_codes():
        ones += codes.symbols().sum(axis=0)
    p = codec.tables.entropy.ones[:, 0] / 4096
    mean = ones / len(archive)
    cost = np.cumsum(-(mean * np.log2(p) + (1 - mean) * np.log2(1 - p)))
    return int(np.searchsorted(cost, rate, side="right"))


def _write_prefix(codec: Codec, archive: Archive, path: Path, options: CompressOptions, rate: float) -> None:
    """Write the first latents of an archive, fewer until what is on disk keeps to the rate."""
    latents = _widest(codec, archive, rate)
    embed = not codec.has_packaged_tables
    while latents >= 1:
        header = replace(archive.header, latents=latents)
        with Writer(path, header, codec.tables, embed_tables=embed, names=options.names, force=True) as writer:
            for name, reason in archive.skipped:
                writer.skip(name, reason)
            unsaid = archive.source_bytes
            for codes in archive.iter_codes():
                writer.add(codes.prefix(latents), sizes=[unsaid] + [0] * (len(codes) - 1))
                unsaid = 0
        with Archive(path, tables=[codec.tables]) as written:
            spent = written.parts()["codes"] * 8 / len(written)
        if spent <= rate:
            return
        latents -= max(1, int((spent - rate) / spent * latents))
    raise UsageError(f"not even one latent fits into {rate:g} bits per image; ask for a higher --rate.")
