"""What a row of codes is to a data loader: symbols or a vector, and the number of its label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.errors import LabelsError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.codes import Codes
    from stochcl.compress import Archive, FolderArchive

OUTPUTS = ("auto", "symbols", "vectors")


class Rows:
    """Opens an archive in every process that asks, and makes arrays of its codes.

    Parameters
    ----------
    path : path-like or URL
    output : str
        ``symbols``: uint8 or, beyond 256 values, int32, shape (D,). ``vectors``: float32, shape (V,). ``auto``:
        vectors, where the model has a decoder.
    latents : int, optional
        The first so many.
    labels : sequence of str or of numbers, or bool
        One for each row, in place of the archive's; False for none.

    Attributes
    ----------
    classes : tuple of str or None
        What the numbers of the labels stand for; None where there are no labels, or they are numbers.
    """

    def __init__(
        self, path: str | os.PathLike[str], output: str, latents: int | None, labels: Sequence[Any] | bool
    ) -> None:
        if output not in OUTPUTS:
            raise UsageError(f"output is {', '.join(OUTPUTS)}, not {output!r}.")
        self.path, self.latents = path, latents
        self._archive: Archive | FolderArchive | None = None
        archive = self.archive
        self.length = len(archive)
        if latents is not None and not 1 <= latents <= archive.header.latents:
            raise UsageError(f"{path}: it has {archive.header.latents:,} latents, not {latents:,}.")
        self.vectors = output == "vectors" or (output == "auto" and archive.has_decoder)
        if self.vectors and archive.decoder is None:
            raise UsageError(f"{path}: its model has no vector decoder; take the symbols.")
        self.classes, self.numbers = _numbers(archive, labels, path)

    @property
    def archive(self) -> Archive | FolderArchive:
        """The archive, open in this process."""
        if self._archive is None:
            from stochcl.compress import open_archive

            self._archive = open_archive(self.path)
        return self._archive

    def of(self, codes: Codes) -> NDArray[Any]:
        """Return what a loader is given of some rows, shape (n, D) or (n, V)."""
        symbols = (codes if self.latents is None else codes.prefix(self.latents)).symbols()
        if self.vectors and (decoder := self.archive.decoder) is not None:
            return decoder.decode(symbols)
        return symbols if symbols.dtype == np.uint8 else symbols.astype(np.int32)  # torch collates no uint16

    def labels(self, rows: NDArray[np.integer]) -> NDArray[Any] | None:
        """Return the labels of rows of these numbers."""
        return None if self.numbers is None else self.numbers[rows]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archive": None}


def _numbers(
    archive: Archive | FolderArchive, labels: Sequence[Any] | bool, path: object
) -> tuple[tuple[str, ...] | None, NDArray[Any] | None]:
    if labels is False:
        return None, None
    given: Any = archive.labels if labels is True else labels
    if given is None:
        return None, None
    if len(given) != len(archive):
        raise LabelsError(
            f"{path}: it has {len(archive):,} rows, and there are {len(given):,} labels; give one for each."
        )
    array = np.asarray(given if isinstance(given, np.ndarray) else list(given))
    if array.dtype.kind in "iufb":
        return None, array
    classes, numbers = np.unique(array.astype(str), return_inverse=True)
    return tuple(map(str, classes)), numbers.astype(np.int64)
