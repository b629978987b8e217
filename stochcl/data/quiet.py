"""Pillow's warnings, silenced while an image is decoded and only then, from any number of threads."""

from __future__ import annotations

import re
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

# As warnings.filterwarnings would make it; the comment makes the pattern, and so the filter, ours alone.
_FILTER = ("ignore", None, Warning, re.compile(r"PIL\.(?#stochcl)"), 0)

_lock = threading.Lock()
_threads = 0
_this_thread = threading.local()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore warnings raised inside Pillow within this block; blocks may be nested.

    ``warnings.catch_warnings`` saves and restores the whole list of filters, which threads do to each other's
    harm. Here the first thread in adds one filter and the last thread out removes that one. An inner block
    costs next to nothing, so that a loop over small images (100 microseconds each) can stand in an outer one.
    """
    if getattr(_this_thread, "quiet", False):
        yield
        return
    _this_thread.quiet = True
    _enter()
    try:
        yield
    finally:
        _this_thread.quiet = False
        _leave()


def _enter() -> None:
    global _threads  # noqa: PLW0603 - the list of filters is the process's, and so is the count
    with _lock:
        _threads += 1
        if _threads == 1:
            cast("list[Any]", warnings.filters).insert(0, _FILTER)


def _leave() -> None:
    global _threads  # noqa: PLW0603
    with _lock:
        _threads -= 1
        filters = cast("list[Any]", warnings.filters)
        if _threads == 0 and _FILTER in filters:
            filters.remove(_FILTER)
