"""Thumbnails of the images that an archive was made of, from where they are now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochcl.data import ImageSource, Preprocess, open_source
from stochcl.downstream import pages
from stochcl.errors import ImageError, UsageError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    import os


class Pictures:
    """Thumbnails, as data URIs.

    Parameters
    ----------
    path : path-like
        The source that an archive was made of.
    size : int
        Pixels of a side.

    Raises
    ------
    SourceError
        If there is no such source, or it holds no image.
    UsageError
        If it holds vectors.
    """

    def __init__(self, path: str | os.PathLike[str], *, size: int = 96) -> None:
        source = open_source(path)
        if not isinstance(source, ImageSource):
            raise UsageError(f"{printable(path)}: this holds vectors; thumbnails are made of images.")
        self.source, self._preprocess = source, Preprocess(size, "pad")
        self._rows = {printable(entry.name): row for row, entry in reversed(list(enumerate(source.entries)))}
        self._made: dict[int, str | None] = {}
        self.asked: set[str | int] = set()
        self.missing: set[str | int] = set()

    def of(self, name: str) -> str | None:
        """Return the image of this name, as ``escape_name`` writes it; None if it is not there."""
        row = self._rows.get(name)
        return self._counted(name, None if row is None else self._load(row))

    def of_row(self, row: int) -> str | None:
        """Return the image in this place of the source; None if it is not there."""
        return self._counted(row, self._load(row) if row < len(self.source) else None)

    def _counted(self, which: str | int, shown: str | None) -> str | None:
        self.asked.add(which)
        if shown is None:
            self.missing.add(which)
        return shown

    def _load(self, row: int) -> str | None:
        if row not in self._made:
            try:
                self._made[row] = pages.thumbnail(self.source.load(row, self._preprocess))
            except ImageError:
                self._made[row] = None
        return self._made[row]
