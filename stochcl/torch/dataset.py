"""An archive as a map-style data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stochcl.codes import Codes, bits_per_symbol
from stochcl.torch.rows import Rows

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

_KEPT_BYTES = 1 << 30
_AHEAD = 8192  # rows, where they are asked for one batch after the other


class CodesDataset(Dataset[Any]):
    """The rows of an archive, for a data loader: each a tensor, or a tensor and the number of its label.

    Rows are decoded by blocks when they are asked for, in whatever process: pickled, it takes the path along and
    opens it again; after a fork it shares nothing that moves. Shuffling does not crawl: an archive whose packed codes
    take no more than ``keep_bytes`` (a gigabyte: eight million codes of 1,024 bits) is decoded whole, once in a
    process, the first time that rows are asked for out of order; of a larger one, a batch is fetched at once, each
    block once, and :class:`CodesStream` is the better choice.

    Parameters
    ----------
    path : path-like or URL
    output : str
        ``symbols``: uint8 (int32 beyond 256 values), shape (D,). ``vectors``: float32, shape (V,). ``auto``: vectors,
        where the model has a decoder.
    latents : int, optional
        The first so many.
    labels : sequence, or bool
        Labels in place of the archive's own, one a row; False to have none.
    keep_bytes : int
        Of packed codes that are held in memory, in each process.

    Attributes
    ----------
    classes : tuple of str or None
        What the numbers of the labels stand for.

    Raises
    ------
    SourceError, FormatError, UsageError, LabelsError

    Examples
    --------
    >>> data = CodesDataset("codes.bin")  # doctest: +SKIP
    >>> for x, y in DataLoader(data, batch_size=512, shuffle=True, num_workers=2):  # doctest: +SKIP
    ...     step(x, y)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        output: str = "auto",
        latents: int | None = None,
        labels: Sequence[Any] | bool = True,
        keep_bytes: int = _KEPT_BYTES,
    ) -> None:
        self._rows = Rows(path, output, latents, labels)
        self._keep_bytes = keep_bytes
        self._packed: NDArray[np.uint8] | None = None
        self._ahead: tuple[int, Codes] | None = None  # some rows that come next, and the number of the first
        self._next = 0
        self.classes = self._rows.classes

    def __len__(self) -> int:
        return self._rows.length

    def __getitem__(self, row: int) -> Any:
        """Return a row, or a row and its label.

        Raises
        ------
        IndexError
            If there is no such row.
        """
        if not -len(self) <= row < len(self):
            raise IndexError(f"there is no row {row:,} in an archive of {len(self):,}")
        return self.__getitems__([row % len(self)])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        """Return several rows at once, as data loaders ask for a batch."""
        index = np.asarray(rows, np.int64)
        values = torch.from_numpy(self._rows.of(self._codes(index)))
        labels = self._rows.labels(index)
        if labels is None:
            return list(values)
        return list(zip(values, torch.from_numpy(labels), strict=True))

    def _codes(self, index: NDArray[np.int64]) -> Codes:
        archive = self._rows.archive
        if self._packed is None:
            header = archive.header
            in_order = len(index) > 0 and index[0] >= self._next and bool((np.diff(index) == 1).all())
            goes_on = in_order and index[0] == self._next
            self._next = int(index[-1]) + 1 if len(index) else 0
            if goes_on:
                return self._read_ahead(index)
            width = -(-header.latents * bits_per_symbol(header.alphabet) // 8)
            if in_order or width * len(self) > self._keep_bytes:
                return archive[index]
            self._ahead, self._packed, start = None, np.empty((len(self), width), np.uint8), 0
            for codes in archive.iter_codes():
                self._packed[start : start + len(codes)] = codes.packed
                start += len(codes)
        return Codes(self._packed[index], archive.header.latents, archive.header.alphabet)

    def _read_ahead(self, index: NDArray[np.int64]) -> Codes:
        """Return rows that follow those before; several blocks are decoded at once, which is faster."""
        start, ahead = (0, None) if self._ahead is None else self._ahead
        if ahead is None or not start <= index[0] <= index[-1] < start + len(ahead):
            start = int(index[0])
            ahead = self._rows.archive[start : start + max(_AHEAD, len(index))]
            self._ahead = start, ahead
        return Codes(ahead.packed[index - start], ahead.latents, ahead.alphabet)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None, "_ahead": None, "_next": 0}
