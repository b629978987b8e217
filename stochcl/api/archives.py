"""Verbs on archives, which need neither encoder nor torch: info, verify, decompress, evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stochcl.api.evaluating import evaluate
from stochcl.api.report import Report
from stochcl.api.targets import labels_of
from stochcl.compress import Archive, open_archive
from stochcl.compress.export import export
from stochcl.compress.remote import is_url
from stochcl.data import printable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from stochcl.compress import Tables

    Where = Iterable[Tables | str | os.PathLike[str]]

__all__ = ["Archive", "decompress", "evaluate", "info", "is_url", "open_archive", "repair", "salvage", "verify"]


def info(path: str | os.PathLike[str], *, tables: Where = ()) -> Report:
    """Return the figures of an archive.

    Raises
    ------
    SourceError, FormatError
    """
    with open_archive(path, tables=tables) as archive:
        return Report.of(archive, str(path))


def verify(
    path: str | os.PathLike[str],
    *,
    tables: Where = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Check every byte of an archive and return how many images and bytes were found right.

    Raises
    ------
    SourceError
        If it cannot be read.
    FormatError
        If anything is damaged.
    """
    with open_archive(path, tables=tables) as archive:
        archive.verify(progress)
        return {
            "schema": "stochcl.verify/0",
            "path": printable(path),
            "images": len(archive),
            "bytes": archive.size,
            "ok": True,
        }


def salvage(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tables: Where = (),
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write what is intact of a damaged archive to another, see :func:`stochcl.compress.salvage.salvage`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError
    """
    from stochcl.compress.salvage import salvage as write

    done = write(path, output, tables=tables, force=force, progress=progress)
    return {
        "schema": "stochcl.verify/0",
        "path": printable(path),
        "salvaged": printable(done.path),
        "segments": done.segments,
        "images": done.rows,
        "recoded_images": done.recoded,
        "unchecked_images": done.unchecked,
        "bytes": done.bytes,
        "lost_images": done.rows_lost,
        "lost_bytes": [list(place) for place in done.lost],
        "tables": done.tables,
        "ok": done.complete,
    }


def repair(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Undo an interrupted append, see :func:`stochcl.compress.repair.repair`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError
    """
    from stochcl.compress.repair import repair as cut_back

    done = cut_back(path)
    return {
        "schema": "stochcl.verify/0",
        "path": printable(done.path),
        "images": done.rows,
        "bytes": done.bytes,
        "cut_bytes": done.cut,
        "ok": True,
    }


def decompress(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    tables: Where = (),
    force: bool = False,
) -> dict[str, Any]:
    """Decode an archive to a .npz, .npy, .csv or .parquet file, see :func:`stochcl.compress.export.export`.

    Raises
    ------
    SourceError, FormatError, UsageError, OutputError, LabelsError
    """
    with open_archive(path, tables=tables) as archive:
        given = None if labels is None else [str(label) for label in labels_of(archive, path, labels)]
        done = export(archive, output, labels=given, force=force)
    return {
        "schema": "stochcl.decompress/0",
        "path": printable(done.path),
        "images": done.rows,
        "bytes": done.bytes,
        "holds": list(done.holds),
    }
