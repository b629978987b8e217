"""Archives of codes: the container format, its writers and its readers."""

from __future__ import annotations

from stochcl.compress.archive import Archive
from stochcl.compress.header import Header
from stochcl.compress.rows import ArchiveBase
from stochcl.compress.sharded import FolderArchive, open_archive
from stochcl.compress.writer import Writer

__all__ = [
    "Archive", "ArchiveBase", "FolderArchive", "Header", "Writer", "open_archive",
]  # fmt: skip
