"""Chunks of images side by side on a processor's cores."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOST = 4  # at a time: as many as a batch of 256 has, and each holds a network's activations

_lock = threading.Lock()
_inside, _before = 0, 1


def side_by_side(run: Callable[[range], None], starts: range, cores: int) -> None:
    """Run chunks in threads, each with its share of the cores, rather than every operation on all of them.

    Operations that are split over threads wait for each other dozens of times a chunk, and where another process has
    one of the cores, for that one: on two cores of which one was busy, compressing took four times as long as on one
    thread. Chunks wait for nothing. What is computed of each does not depend on the others.

    Parameters
    ----------
    run : callable
        Computes the chunks that begin at these rows; called in several threads at a time.
    starts : range
    cores : int
    """
    threads = max(n for n in (1, 2, _MOST) if n <= max(1, min(cores, len(starts))))
    if threads == 1:
        run(starts)
        return
    with _threads_of_operations(max(1, cores // threads)), ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, [starts[i : i + 1] for i in range(len(starts))]))


@contextmanager
def _threads_of_operations(count: int) -> Iterator[None]:
    """Let operations have so many threads; the last that leaves, of several at a time, restores what was before."""
    global _inside, _before  # noqa: PLW0603 - it is PyTorch's setting that is one for the process
    with _lock:
        if not _inside:
            _before = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_num_threads(_before)
