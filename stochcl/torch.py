"""PyTorch data sets of codes: map-style, and iterable for large archives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes, bits_per_symbol, label_text, plain_label
from stochcl.errors import LabelsError, UsageError, require

require("torch", "stochcl.torch", "train")

import torch  # noqa: E402 - require() raises an error with advice if it is missing
from torch.utils.data import Dataset, IterableDataset, get_worker_info  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from stochcl.compress import Archive, FolderArchive
    from stochcl.files import PathLike


OUTPUTS = ("auto", "symbols", "vectors")
UNLABELLED = ("keep", "refuse")


class Rows:
    """Opens an archive, and makes arrays of its codes; see :class:`CodesDataset`."""

    def __init__(
        self, path: PathLike, output: str, latents: int | None, labels: Sequence[Any] | bool,
        unlabelled: str = "keep",
    ) -> None:  # fmt: skip
        if unlabelled not in UNLABELLED:
            raise UsageError(f"unlabelled must be {' or '.join(UNLABELLED)}, got {unlabelled!r}.")
        if output not in OUTPUTS:
            raise UsageError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}.")
        self.path, self.latents = path, latents
        from stochcl.compress import open_archive

        self.archive: Archive | FolderArchive = open_archive(path)
        archive = self.archive
        self.length = len(archive)
        if latents is not None and not 1 <= latents <= archive.header.latents:
            raise UsageError(f"{path}: it has {archive.header.latents:,} latents, not {latents:,}.")
        self.vectors = output == "vectors" or (output == "auto" and archive.has_decoder)
        if self.vectors and archive.decoder is None:
            raise UsageError(f"{path}: its model has no vector decoder; take the symbols.")
        self.classes, self.numbers = _numbers(archive, labels, path)
        if unlabelled == "refuse" and self.numbers is not None:
            _check_labelled(self.numbers, path)

    def of(self, codes: Codes) -> NDArray[Any]:
        """Return the arrays of some rows for a loader, shape (n, D) or (n, V)."""
        symbols = (codes if self.latents is None else codes.prefix(self.latents)).symbols()
        if self.vectors and (decoder := self.archive.decoder) is not None:
            return decoder.decode(symbols)
        return symbols if symbols.dtype == np.uint8 else symbols.astype(np.int32)  # torch does not collate uint16

    def labels(self, rows: NDArray[np.integer]) -> NDArray[Any] | None:
        """Return the labels of rows by number."""
        return None if self.numbers is None else self.numbers[rows]


def _numbers(
    archive: Archive | FolderArchive, labels: Sequence[Any] | bool, path: object
) -> tuple[tuple[str, ...] | None, NDArray[Any] | None]:
    """Return the classes, and each row's class number, -1 without a label; numeric labels are kept."""
    if labels is False:
        return None, None
    given: Any = archive.labels if labels is True else labels
    if given is None:
        return None, None
    if len(given) != len(archive):
        raise LabelsError(
            f"{path}: it has {len(archive):,} rows, and there are {len(given):,} labels; give one for each."
        )
    if isinstance(given, np.ndarray) and given.dtype.kind in "iufb":
        return None, given
    values = [plain_label(label) for label in given]
    if all(label is None or isinstance(label, int | float) for label in values):
        none = float("nan") if any(isinstance(label, float) for label in values) else -1
        return None, np.asarray([none if label is None else label for label in values])
    texts = np.array([label_text(label) for label in values])
    classes = np.unique(texts[texts != ""])
    return tuple(map(str, classes)), np.where(texts == "", -1, np.searchsorted(classes, texts)).astype(np.int64)


def _check_labelled(numbers: NDArray[Any], path: object) -> None:
    without = np.isnan(numbers) if numbers.dtype.kind == "f" else numbers < 0
    if without.any():
        raise LabelsError(
            f"{path}: {int(without.sum()):,} of {len(numbers):,} rows have no label, the first of them row "
            f"{int(without.argmax()):,}; label them, or take unlabelled='keep', which gives -1."
        )


_KEPT_BYTES = 1 << 30
_AHEAD = 8192  # rows, if batches are read in order


class CodesDataset(Dataset[Any]):
    """The rows of an archive for a data loader: each a tensor, or a tensor and the number of its label.

    Rows are decoded by blocks on demand. The data set can be pickled, which opens the path again, and used after a
    fork. When rows are first read out of order, an archive whose packed codes take at most ``keep_bytes`` (1 GB:
    eight million codes of 1,024 bits) is decoded whole, once per process, so that shuffling is fast. A larger one
    is decoded a batch at a time; :class:`CodesStream` suits that better.

    Parameters
    ----------
    path : path-like or URL
    output : str
        ``symbols``: uint8 (int32 above 256 values), shape (D,). ``vectors``: float32, shape (V,). ``auto``: vectors
        if the model has a decoder.
    latents : int, optional
        Number of latents to keep, the first ones.
    labels : sequence, or bool
        Labels in place of the archive's own, one per row; False for none.
    unlabelled : str
        ``keep`` rows without a label, with the number -1, which ``ignore_index=-1`` of a loss skips; or ``refuse``
        an archive that has any.
    keep_bytes : int
        Most bytes of packed codes to hold in memory, per process.

    Attributes
    ----------
    classes : tuple of str or None
        The label for each number.

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
        self, path: PathLike, *, output: str = "auto", latents: int | None = None,
        labels: Sequence[Any] | bool = True, unlabelled: str = "keep", keep_bytes: int = _KEPT_BYTES,
    ) -> None:  # fmt: skip
        self._rows = Rows(path, output, latents, labels, unlabelled)
        self._keep_bytes = keep_bytes
        self._packed: NDArray[np.uint8] | None = None
        self._ahead: tuple[int, Codes] | None = None  # the next rows, and the number of the first
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
        """Return several rows at once; data loaders call this for a batch."""
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
        """Return rows that continue the previous ones; decoding several blocks at once is faster."""
        start, ahead = (0, None) if self._ahead is None else self._ahead
        if ahead is None or not start <= index[0] <= index[-1] < start + len(ahead):
            start = int(index[0])
            ahead = self._rows.archive[start : start + max(_AHEAD, len(index))]
            self._ahead = start, ahead
        return Codes(ahead.packed[index - start], ahead.latents, ahead.alphabet)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None, "_ahead": None, "_next": 0}


_DECODED = 8192  # rows decoded at a time


class CodesStream(IterableDataset[Any]):
    """The rows of an archive, each once per epoch, in an order set by seed and epoch, with bounded memory.

    The archive's rows are cut into chunks of consecutive rows. Every epoch the chunks are shuffled and divided
    among the ranks and their workers, each of which mixes the rows of ``window`` of its chunks. So every block is
    decoded by one worker, or two at its edges. The workers of all ranks together return every row once. With
    ``batch_size`` it yields whole batches: give the loader ``batch_size=None``.

    It has no ``len``, because the number of batches depends on the loader's workers: call ``batches``. Ranks may
    differ by a chunk's rows. With ``even`` all return equally many rows and batches, so that none waits for another.
    Then up to one chunk per rank, and one more, are left out, different ones each epoch.

    Parameters
    ----------
    path : path-like or URL
    output, latents, labels, unlabelled
        As in :class:`~stochcl.torch.CodesDataset`.
    batch_size : int, optional
        Rows per batch; by default single rows, which the loader collates.
    shuffle : bool
        Whether to shuffle; otherwise rows are in the archive's order, as far as workers keep it.
    seed : int
    rank, world : int, optional
        Rank of this process and number of processes; by default from ``torch.distributed``, else 0 of 1.
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
        self, path: PathLike, *, output: str = "auto", latents: int | None = None,
        labels: Sequence[Any] | bool = True, unlabelled: str = "keep", batch_size: int | None = None,
        shuffle: bool = True, seed: int = 0, rank: int | None = None, world: int | None = None, chunk: int = 256,
        window: int = 64, even: bool = False,
    ) -> None:  # fmt: skip
        if chunk < 1 or window < 1 or (batch_size is not None and batch_size < 1):
            raise UsageError(
                f"chunk, window and batch_size must be at least 1, got {chunk}, {window} and {batch_size}."
            )
        self._rows = Rows(path, output, latents, labels, unlabelled)
        self._batch_size, self._shuffle, self._seed, self._even = batch_size, shuffle, seed, even
        self._chunk, self._window = chunk, window
        self.rank, self.world = _place(rank, world)
        # Shared memory, so that persistent workers see the epoch change.
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self.classes = self._rows.classes

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, the same in all processes."""
        self._epoch.fill_(epoch)

    @property
    def rows(self) -> int:
        """Rows of this rank in the epoch, for any number of workers."""
        return sum(map(len, self._chunks(0, 1)))

    def batches(self, workers: int = 0) -> int:
        """Return this rank's number of batches in the epoch with ``workers``; each worker's last may be smaller."""
        parts = max(1, workers)
        size = self._batch_size or 1
        return sum(-(-sum(map(len, self._chunks(worker, parts))) // size) for worker in range(parts))

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
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
        """Return the chunks of a worker in this epoch."""
        length, size = self._rows.length, self._chunk
        if self._even:  # no short chunk at the end; the start moves instead
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
