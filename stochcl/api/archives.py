"""Verbs on archives that need neither encoder nor torch: open, info, verify, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stochcl.api.report import Report
from stochcl.compress import Archive
from stochcl.data import printable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable


def info(path: str | os.PathLike[str], *, tables: Iterable[str | os.PathLike[str]] = ()) -> Report:
    """Return the figures of an archive.

    Raises
    ------
    SourceError, FormatError
    """
    with Archive(path, tables=tables) as archive:
        return Report.of(archive, str(path))


def verify(
    path: str | os.PathLike[str], *, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Check every byte of an archive and return how many images and bytes were found right.

    Raises
    ------
    SourceError
        If it cannot be read.
    FormatError
        If anything is damaged.
    """
    with Archive(path) as archive:
        archive.verify(progress)
        return {
            "schema": "stochcl.verify/0",
            "path": printable(path),
            "images": len(archive),
            "bytes": archive.size,
            "ok": True,
        }
