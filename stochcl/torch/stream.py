"""An archive as a stream of batches, shuffled by blocks and shared out among workers and ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from stochcl.errors import UsageError
from stochcl.torch.rows import Rows

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

_DECODED = 8192  # rows decoded at a time


class CodesStream(IterableDataset[Any]):
    """The rows of an archive, each once an epoch, in an order that seed and epoch say; memory does not grow with it.

    The archive's rows are cut into chunks of consecutive ones. Every epoch the chunks are shuffled, dealt out to the
    ranks and there to the workers, and each mixes the rows of ``window`` of its chunks: so every block is decoded by
    one worker, or at its edge by two. All together, the workers of all ranks give every row once. With
    ``batch_size`` it yields whole batches: give the loader ``batch_size=None``.

    It has no ``len``, for how many batches there are depends on the loader's workers: ask ``batches``. Ranks may
    differ by a chunk's rows. With ``even`` they give equally many rows, and batches, so that none waits for another:
    less than a chunk for each rank and another one are left out, others every epoch.

    Parameters
    ----------
    path : path-like or URL
    output, latents, labels
        As of :class:`~stochcl.torch.CodesDataset`.
    batch_size : int, optional
        Rows of a batch; single rows by default, which the loader collates.
    shuffle : bool
        Whether to shuffle; in the archive's order otherwise, as far as workers keep it.
    seed : int
    rank, world : int, optional
        Of how many processes this is which one; from ``torch.distributed`` where that is initialised, else 0 of 1.
    chunk : int
        Rows of a chunk.
    window : int
        Chunks whose rows are shuffled among each other.
    even : bool
        Whether all ranks give equally many rows.

    Examples
    --------
    >>> stream = CodesStream("codes.bin", batch_size=512, seed=0)  # doctest: +SKIP
    >>> loader = DataLoader(stream, batch_size=None, num_workers=4)  # doctest: +SKIP
    >>> for epoch in range(10):  # doctest: +SKIP
    ...     stream.set_epoch(epoch)
    ...     for x, y in loader:
    ...         step(x, y)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        output: str = "auto",
        latents: int | None = None,
        labels: Sequence[Any] | bool = True,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
        chunk: int = 256,
        window: int = 64,
        even: bool = False,
    ) -> None:
        if chunk < 1 or window < 1 or (batch_size is not None and batch_size < 1):
            raise UsageError(f"chunk={chunk}, window={window}, batch_size={batch_size}: these count rows and chunks.")
        self._rows = Rows(path, output, latents, labels)
        self._batch_size, self._shuffle, self._seed, self._even = batch_size, shuffle, seed, even
        self._chunk, self._window = chunk, window
        self.rank, self.world = _place(rank, world)
        # Shared memory: workers that live on from epoch to epoch see it change, too.
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self.classes = self._rows.classes

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, in all processes the same."""
        self._epoch.fill_(epoch)

    @property
    def rows(self) -> int:
        """Rows that this rank gives in the epoch; how many workers share them does not matter."""
        return sum(map(len, self._chunks(0, 1)))

    def batches(self, workers: int = 0) -> int:
        """Return how many batches this rank gives in the epoch with so many workers; each one's last may be small."""
        parts = max(1, workers)
        size = self._batch_size or 1
        return sum(-(-sum(map(len, self._chunks(worker, parts))) // size) for worker in range(parts))

    def __iter__(self) -> Iterator[Any]:
        worker, workers = self._workers()
        rng = np.random.default_rng([self._seed, int(self._epoch), self.rank, worker])
        chunks, held = self._chunks(worker, workers), np.empty(0, np.int64)
        size = self._batch_size or 1
        for first in range(0, len(chunks), self._window):
            rows = np.concatenate([np.asarray(part) for part in chunks[first : first + self._window]])
            held = np.concatenate([held, rng.permutation(rows) if self._shuffle else rows])
            last = first + self._window >= len(chunks)
            whole = len(held) if last else len(held) - len(held) % size
            yield from self._given(held[:whole], size)
            held = held[whole:]

    def _given(self, rows: np.ndarray, size: int) -> Iterator[Any]:
        step = max(size, _DECODED - _DECODED % size)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            values = torch.from_numpy(self._rows.of(self._rows.archive[part]))
            found = self._rows.labels(part)
            labels = None if found is None else torch.from_numpy(found)
            for a in range(0, len(part), size):
                which = slice(a, a + size) if self._batch_size else a
                yield values[which] if labels is None else (values[which], labels[which])

    def _chunks(self, worker: int, workers: int) -> list[range]:
        """Return the chunks that are a worker's in this epoch."""
        length, size = self._rows.length, self._chunk
        if self._even:  # no short one at the end, but a start that moves
            rng = np.random.default_rng([self._seed, int(self._epoch)])
            start = int(rng.integers(0, length % size + 1)) if self._shuffle else 0
            chunks = [range(a, a + size) for a in range(start, length - size + 1, size)]
        else:
            chunks = [range(a, min(a + size, length)) for a in range(0, length, size)]
        if self._shuffle:
            order = np.random.default_rng([self._seed, int(self._epoch), 1]).permutation(len(chunks))
            chunks = [chunks[i] for i in order]
        if self._even:
            chunks = chunks[: len(chunks) - len(chunks) % self.world]
        return chunks[self.rank :: self.world][worker::workers]

    def _workers(self) -> tuple[int, int]:
        info = get_worker_info()
        return (0, 1) if info is None else (info.id, info.num_workers)


def _place(rank: int | None, world: int | None) -> tuple[int, int]:
    if (rank is None) != (world is None):
        raise UsageError("rank and world go together: give both, or none.")
    if rank is None or world is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
    if not 0 <= rank < world:
        raise UsageError(f"there is no rank {rank} of {world}.")
    return rank, world
