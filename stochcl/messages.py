"""Common parts of messages: escaped names, system errors, plurals."""

from __future__ import annotations

import os
from collections.abc import Callable

Progress = Callable[[int, int], None]
"""A callback with the amount done and the total."""


def silent(done: int, total: int) -> None:
    """Ignore progress."""


def escape_name(name: str | os.PathLike[str]) -> str:
    r"""Escape a name for any terminal: undecodable bytes and control characters.

    Examples
    --------
    >>> print(escape_name("caf\udce9\n.png"))
    caf\udce9\n.png
    """
    text = os.fspath(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plural(count: int, what: str) -> str:
    """Return a count with its noun.

    Examples
    --------
    >>> plural(1, "image"), plural(12000, "image")
    ('1 image', '12,000 images')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def os_reason(exc: OSError) -> str:
    """Return an OSError's own text, without the path that the message names already.

    Examples
    --------
    >>> os_reason(PermissionError(13, "Permission denied", "/a/b.png"))
    'permission denied'
    """
    return (exc.strerror or str(exc) or type(exc).__name__).lower()


def duration(seconds: float) -> str:
    """Return a duration for people.

    Examples
    --------
    >>> [duration(s) for s in (7.4, 75, 5400)]
    ['7 s', '1 min 15 s', '1 h 30 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
