"""Compressing to a rate: everything at full width first, then the widest prefix that keeps to it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stochcl.api.encoding import encode_source, header_of, refused
from stochcl.atomic import sync_folder
from stochcl.compress import Archive
from stochcl.compress.transcoding import Transcoding, widest
from stochcl.data import Failure, MatrixSource, StreamSource, printable
from stochcl.data.files import why
from stochcl.errors import FormatError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stochcl.api.codec import Codec
    from stochcl.api.encoding import CompressOptions, Source
    from stochcl.data import ImageSource


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
    """Write the widest prefix whose codes take ``rate`` bits per image; return how many images were encoded.

    The archive at full width goes only when the prefix is complete: for another rate, or with more room on the
    disk, ``resume`` goes on with it.
    """
    full, encoded = full_width(path), 0
    if full.exists() and (options.resume or not options.force):
        _check_kept(full, codec, source, options)
    else:
        encoded = encode_source(codec, source, full, options, codec.latents, progress)
    kept = f"all latents are kept in {printable(full)}"
    with Archive(full, tables=[codec.tables]) as archive:
        try:
            with tempfile.TemporaryDirectory(prefix=f".{path.name[:64]}.", dir=path.parent) as folder:
                job = Transcoding(archive, embed=options.embeds(codec), names=options.names)
                chosen = write_widest(job, Path(folder), rate)
                if chosen is None:
                    msg = f"{printable(path)}: not even one latent fits into {rate:g} bits per image"
                    raise UsageError(f"{msg}; {kept}: ask for a higher --rate and pass --resume.")
                chosen.replace(path)
            sync_folder(path.parent)
        except (OutputError, OSError) as exc:
            raise unwritable(path, exc, f"; {kept}: make room and pass --resume") from exc
    full.unlink()
    return encoded


def unwritable(path: Path, exc: OutputError | OSError, more: str = "") -> OutputError:
    """Return the error for an output whose writer failed elsewhere, or says that it can be resumed, and cannot."""
    cause = exc.__cause__ if isinstance(exc, OutputError) else exc
    reason = why(cause) if isinstance(cause, OSError) else str(exc)
    return OutputError(f"{printable(path)}: it cannot be written: {reason}{more}.")


def _check_kept(full: Path, codec: Codec, source: Source, options: CompressOptions) -> None:
    """Refuse a complete archive at full width that is not what this request would write."""
    shown = printable(full)
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


def write_widest(job: Transcoding, folder: Path, rate: float) -> Path | None:
    """Write prefixes into a folder until one fits and the next wider one does not; return it, None if none fits."""

    def write(latents: int) -> float:
        path = folder / f"{latents}.bin"
        spent = job.write(path, latents)
        if spent > rate:
            path.unlink()
        return spent

    latents = widest(job.costs(), write, rate)
    return None if latents is None else folder / f"{latents}.bin"
