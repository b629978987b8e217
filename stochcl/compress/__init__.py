"""From discrete latents to a file and back: integer entropy models, the coder, the container."""

from __future__ import annotations

from stochcl.compress.archive import Archive
from stochcl.compress.header import Header
from stochcl.compress.rows import ArchiveBase
from stochcl.compress.sharded import FolderArchive, open_archive
from stochcl.compress.writer import Writer
from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables, find_tables, keep_tables, save_tables
from stochcl.entropy.vectors import VectorDecoder

__all__ = [
    "Archive",
    "ArchiveBase",
    "AutoregressiveModel",
    "FolderArchive",
    "Header",
    "IndependentModel",
    "Tables",
    "VectorDecoder",
    "Writer",
    "find_tables",
    "keep_tables",
    "open_archive",
    "save_tables",
]
