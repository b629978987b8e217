"""Several sources of images as one."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stochcl.data.source import ImageSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.data.preprocess import Preprocess


class JoinedSource(ImageSource):
    """The images of one source after those of another; names are those that each has in its own.

    Other than sources themselves it is in no order of names, so that nothing compresses it.

    Parameters
    ----------
    sources : sequence of ImageSource
        At least one.

    Examples
    --------
    >>> from stochcl.data.builtin import DigitsSource
    >>> len(JoinedSource([DigitsSource(), DigitsSource()]))
    3594
    """

    kind: ClassVar[str] = "joined"

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = tuple(sources)
        self.path = self.sources[0].path
        self.entries = [entry for source in self.sources for entry in source.entries]
        self.rejected = [failure for source in self.sources for failure in source.rejected]
        self._ends = np.array(list(accumulate(len(source) for source in self.sources)))

    def _place(self, i: int) -> tuple[ImageSource, int]:
        """Return which source an image is of, and where it is there."""
        at = int(np.searchsorted(self._ends, i, side="right"))
        return self.sources[at], i - (int(self._ends[at - 1]) if at else 0)

    def _image(self, i: int, preprocess: Preprocess) -> NDArray[np.uint8]:
        source, row = self._place(i)
        return source._image(row, preprocess)

    def _read(self, i: int) -> bytes:
        source, row = self._place(i)
        return source._read(row)
