"""An archive's codes in memory, a few bytes per row, for many single searches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.entropy.vectors import ResidualDecoder
from stochcl.errors import UsageError
from stochcl.messages import Progress, silent

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from stochcl.compress import ArchiveBase

__all__ = ["ArchiveIndex"]

_GROUP_BITS = 16  # name bits per table, so that its float32 sums fit in a core's cache
_ROWS = 1 << 14  # scored at a time
_BLOCKS = 1 << 10  # blocks whose maxima bound the best scores


class ArchiveIndex:
    """Finds the rows of an archive whose decoded vectors have the smallest angle to a query's floats, exactly.

    A residual code's vector is a sum of words, so a query's products with all words make a few small tables, and a
    row's score is a lookup in each. Vectors are decoded only once, to store their lengths. Memory per row: 2 bytes
    for each 16 bits of code, plus 4 bytes.

    Parameters
    ----------
    archive : Archive or FolderArchive
        It may be closed afterwards.
    progress : callable
        Called with the number of rows read and the total.

    Raises
    ------
    UsageError
        If the archive's model has no residual decoder.

    Examples
    --------
    >>> index = ArchiveIndex(stochcl.open("codes.bin"))            # doctest: +SKIP
    >>> distances, rows = index.kneighbors(query, n_neighbors=10)  # doctest: +SKIP
    """

    def __init__(self, archive: ArchiveBase, progress: Progress = silent) -> None:
        decoder = archive.decoder
        if not isinstance(decoder, ResidualDecoder):
            raise UsageError(
                "ArchiveIndex needs residual codes, and these are not; use stochcl.downstream.CodeIndex on "
                "archive.to_vectors()."
            )
        if archive.header.latents < decoder.latents:
            decoder = decoder.select(range(archive.header.latents))
        self._decoder = decoder
        self._words = [words.astype(np.float32) * s for words, s in zip(decoder.words, decoder.scale, strict=True)]
        self._groups = _groups(decoder.stages)
        self._names = np.empty((len(self._groups), len(archive)), np.uint16)
        self._inverse = np.empty(len(archive), np.float32)
        start = 0
        for codes in archive.iter_codes(_ROWS):
            symbols, part = codes.symbols(), slice(start, start + len(codes))
            for names, group in zip(self._names, self._groups, strict=True):
                columns = np.concatenate([decoder.columns[stage] for stage in group])
                names[part] = symbols[:, columns] @ (1 << np.arange(len(columns) - 1, -1, -1))
            length = np.sqrt(np.square(decoder.decode(symbols), dtype=np.float64).sum(axis=1))
            self._inverse[part] = np.where(length > 0, 1 / np.where(length > 0, length, 1), 0)
            start += len(codes)
            progress(start, len(archive))

    def __len__(self) -> int:
        return len(self._inverse)

    def kneighbors(self, X: ArrayLike, n_neighbors: int = 10) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return ascending distances (1 - cosine) and row numbers, both of shape (M, k).

        Parameters
        ----------
        X : array-like of float, shape (M, V)
        n_neighbors : int

        Raises
        ------
        UsageError
            If queries have another width or are not finite, or n_neighbors exceeds the number of rows.
        """
        queries = np.atleast_2d(np.asarray(X, np.float32))
        if queries.ndim != 2 or queries.shape[1] != self._decoder.dim or not np.isfinite(queries).all():
            raise UsageError(f"queries are finite vectors of {self._decoder.dim} numbers, not {queries.shape}.")
        if not 1 <= n_neighbors <= len(self):
            raise UsageError(f"n_neighbors must be between 1 and {len(self):,}, got {n_neighbors}.")
        distances = np.empty((len(queries), n_neighbors), np.float32)
        rows = np.empty(distances.shape, np.int64)
        for i, query in enumerate(queries):
            scores = self._scores(query / (np.linalg.norm(query) or 1))
            near = _best(scores, n_neighbors)
            distance = np.maximum(1 - scores[near], 0).round(6)
            order = np.lexsort((near, distance))[:n_neighbors]
            distances[i], rows[i] = distance[order], near[order]
        return distances, rows

    def _scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of each row with a query of length 1."""
        decoder, constant = self._decoder, 0.0
        if decoder.output is not None and decoder.output_scale is not None and decoder.centre is not None:
            constant = float(query @ decoder.centre)
            query = decoder.output.astype(np.float32) @ (decoder.output_scale * query)
        products = [words @ query for words in self._words]
        products[0] += np.float32(constant)
        tables = []
        for group in self._groups:
            table = products[group[0]]
            for stage in group[1:]:
                table = (table[:, None] + products[stage]).reshape(-1)
            tables.append(table.astype(np.float32))
        scores = np.empty(len(self), np.float32)
        for start in range(0, len(self), _ROWS):
            part = slice(start, start + _ROWS)
            sums = tables[0][self._names[0, part]]
            for table, names in zip(tables[1:], self._names[1:, part], strict=True):
                sums += table[names]
            np.multiply(sums, self._inverse[part], out=scores[part])
        return scores


def _groups(stages: tuple[int, ...]) -> list[list[int]]:
    """Group consecutive stages so that each group's names take at most 16 bits."""
    groups, room = [[0]], _GROUP_BITS - stages[0]
    for stage, bits in enumerate(stages[1:], 1):
        if bits > room:
            groups.append([])
            room = _GROUP_BITS
        groups[-1].append(stage)
        room -= bits
    return groups


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the rows of at least the ``count`` best scores without a full sort."""
    width = len(scores) // _BLOCKS
    if width < 2 or count > _BLOCKS:
        return np.arange(len(scores))
    best = scores[: width * _BLOCKS].reshape(_BLOCKS, width).max(axis=1)
    return np.flatnonzero(scores >= np.partition(best, _BLOCKS - count)[_BLOCKS - count] - 1e-6)
