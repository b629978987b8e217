"""From discrete latents to a file and back: integer entropy models, the coder, the container."""

from __future__ import annotations

from stochcl.compress.archive import Archive
from stochcl.compress.autoregressive import AutoregressiveModel
from stochcl.compress.decoder import VectorDecoder
from stochcl.compress.folder import FolderArchive, open_archive
from stochcl.compress.header import Header
from stochcl.compress.independent import IndependentModel
from stochcl.compress.rows import Rows
from stochcl.compress.tables import Tables, find_tables, keep_tables, save_tables
from stochcl.compress.writer import Writer

__all__ = [
    "Archive",
    "AutoregressiveModel",
    "FolderArchive",
    "Header",
    "IndependentModel",
    "Rows",
    "Tables",
    "VectorDecoder",
    "Writer",
    "find_tables",
    "keep_tables",
    "open_archive",
    "save_tables",
]
