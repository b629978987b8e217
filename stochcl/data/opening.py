"""Which kind of source a path is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stochcl.data.files import why
from stochcl.data.folder import FileSource, FolderSource
from stochcl.data.names import printable
from stochcl.data.source import ImageSource, is_image_name
from stochcl.data.zip import ZipSource
from stochcl.errors import SourceError


def open_source(path: str | os.PathLike[str]) -> ImageSource:
    """Open a folder, zip or image file as a source."""
    path = Path(path)
    try:
        status = path.stat()
    except OSError as exc:
        raise SourceError(f"{printable(str(path))}: {why(exc)}.") from exc
    if stat.S_ISDIR(status.st_mode):
        return FolderSource(path)
    if is_image_name(path.name):
        return FileSource(path)
    return ZipSource(path)
