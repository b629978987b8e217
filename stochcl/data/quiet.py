"""Pillow's warnings, silenced while an image is decoded and only then, from any number of threads."""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

# The comment makes the pattern ours alone: a filter that the user set with the plain pattern is not touched.
_PILLOW = r"PIL\.(?#stochcl)"

_lock = threading.Lock()
_inside = 0
_filter: Any = None


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore warnings raised inside Pillow within this block.

    ``warnings.catch_warnings`` saves and restores the whole list of filters, which threads do to each other's
    harm. Here the first thread in adds one filter and the last thread out removes that one.
    """
    global _inside, _filter  # noqa: PLW0603 - one filter for the process is the point
    with _lock:
        _inside += 1
        if _inside == 1:
            warnings.filterwarnings("ignore", module=_PILLOW)
            _filter = warnings.filters[0]
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            filters = cast("list[Any]", warnings.filters)
            if _inside == 0 and _filter in filters:
                filters.remove(_filter)
