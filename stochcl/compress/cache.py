"""What was read lately, up to so many bytes: for many threads, and after a fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

V = TypeVar("V")

_ALL: weakref.WeakSet[Cache] = weakref.WeakSet()


class Cache(Generic[V]):
    """The values used last whose sizes together are within a limit; the newest stays, whatever its size.

    A fork may come while another thread holds the lock, which nobody in the child would ever release. So the child
    gets a lock of its own; what the parent has read is there, for nothing.

    Parameters
    ----------
    limit : int
        Of the values' sizes, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        _ALL.add(self)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """Return a value, or None if it is not, or no longer, there."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Keep a value of this many bytes, and drop those that were used least lately."""
        with self._lock:
            if key in self._values:  # two threads may have read the same
                self._size -= self._values.pop(key)[1]
            self._values[key] = value, size
            self._size += size
            while self._size > self._limit and len(self._values) > 1:
                self._size -= self._values.popitem(last=False)[1][1]

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._size = sum(size for _, size in self._values.values())


def _after_fork() -> None:
    for cache in list(_ALL):
        cache._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
