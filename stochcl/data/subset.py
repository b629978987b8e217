"""Some of a source's images: those that an archive does not have yet."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, overload

from stochcl.data.matrix import MatrixSource
from stochcl.data.source import ImageSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from stochcl.data.preprocess import Preprocess


class SubsetSource(ImageSource):
    """Some images of another source, in its order; what that one rejects, this one does.

    Parameters
    ----------
    source : ImageSource
    rows : sequence of int
        Their positions in it.
    """

    kind = "subset"

    def __init__(self, source: ImageSource, rows: Sequence[int]) -> None:
        self._source, self._rows = source, rows
        self.path = source.path
        self.entries = [source.entries[row] for row in rows]
        self.rejected = source.rejected

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        return self._source._image(self._rows[i], preprocess)

    def _read(self, i: int) -> bytes:
        return self._source._read(self._rows[i])


@overload
def missing_from(source: ImageSource, names: Iterable[str]) -> SubsetSource: ...
@overload
def missing_from(source: MatrixSource, names: Iterable[str]) -> MatrixSource: ...
def missing_from(source: ImageSource | MatrixSource, names: Iterable[str]) -> SubsetSource | MatrixSource:
    """Return what has another name than these; of a name that images have more often, those beyond its count."""
    if isinstance(source, MatrixSource):
        return source.without(names)
    there = Counter(names)
    rows = []
    for row, entry in enumerate(source.entries):
        if there[entry.name] > 0:
            there[entry.name] -= 1
        else:
            rows.append(row)
    return SubsetSource(source, rows)
