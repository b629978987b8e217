"""Decoding ahead of the consumer: threads, a bounded look-ahead, and results in order."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from stochcl.data.quiet import quiet_pillow
from stochcl.data.source import Failure, ImageBatch, ImageSource
from stochcl.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from stochcl.data.preprocess import Preprocess

LOOK_AHEAD = 2
"""Batches that are decoded ahead of the one the consumer holds; memory is bounded by it."""

_CHUNK = 16  # images that a thread takes at a time: few enough to share a batch, enough to hide the queue


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    source: ImageSource
    rows: range
    images: NDArray[np.uint8]
    parts: list[Future[dict[int, str]]]


def decode_batches(
    source: ImageSource, preprocess: Preprocess, batch_size: int, workers: int, start: int
) -> Iterator[ImageBatch]:
    """Yield the batches of :meth:`ImageSource.batches`; closing the generator ends its threads."""
    end = len(source)
    ranges = (range(a, min(a + batch_size, end)) for a in range(start, end, batch_size))
    return decode_ahead(((source, rows) for rows in ranges), preprocess, workers)


def decode_ahead(
    parts: Iterator[tuple[ImageSource, range]], preprocess: Preprocess, workers: int
) -> Iterator[ImageBatch]:
    """Yield a batch for each part, some rows of a source, whose images are decoded in threads ahead of it."""
    stop = threading.Event()
    if workers <= 1:
        for source, rows in parts:
            images = _allocate(rows, preprocess)
            yield _finish(source, rows, images, _fill(source, preprocess, rows, images, stop))
        return
    executor = ThreadPoolExecutor(workers, thread_name_prefix="stochcl-decode")
    try:
        pending: deque[_Pending] = deque()
        for source, rows in islice(parts, LOOK_AHEAD + 1):
            pending.append(_submit(executor, source, preprocess, rows, stop))
        while pending:
            batch = pending.popleft()
            reasons: dict[int, str] = {}
            for part in batch.parts:
                reasons |= part.result()
            yield _finish(batch.source, batch.rows, batch.images, reasons)
            del batch
            for source, rows in islice(parts, 1):
                pending.append(_submit(executor, source, preprocess, rows, stop))
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _allocate(rows: range, preprocess: Preprocess) -> NDArray[np.uint8]:
    return np.empty((len(rows), preprocess.size, preprocess.size, 3), dtype=np.uint8)


def _submit(
    executor: ThreadPoolExecutor,
    source: ImageSource,
    preprocess: Preprocess,
    rows: range,
    stop: threading.Event,
) -> _Pending:
    images = _allocate(rows, preprocess)
    parts = [
        executor.submit(_fill, source, preprocess, rows[a : a + _CHUNK], images[a : a + _CHUNK], stop)
        for a in range(0, len(rows), _CHUNK)
    ]
    return _Pending(source, rows, images, parts)


def _fill(
    source: ImageSource,
    preprocess: Preprocess,
    rows: range,
    images: NDArray[np.uint8],
    stop: threading.Event,
) -> dict[int, str]:
    """Decode ``rows`` into ``images`` and return the reasons of those that could not be."""
    reasons: dict[int, str] = {}
    with quiet_pillow():
        for k, i in enumerate(rows):
            if stop.is_set():  # nobody waits for the rest
                break
            try:
                images[k] = source._image(i, preprocess)
            except ImageError as exc:
                reasons[i] = str(exc)
    return reasons


def _finish(source: ImageSource, rows: range, images: NDArray[np.uint8], reasons: dict[int, str]) -> ImageBatch:
    positions = tuple(i for i in rows if i not in reasons)
    if reasons:
        images = images[np.array(positions, dtype=np.intp) - rows.start]
    readable = [source.entries[i] for i in positions]
    return ImageBatch(
        rows=rows,
        positions=positions,
        names=tuple(entry.name for entry in readable),
        images=images,
        failures=tuple(Failure(source.entries[i].name, reasons[i]) for i in sorted(reasons)),
        sizes=tuple(entry.size for entry in readable),
    )
