"""Words that every message uses: escaped names, reasons of the operating system, plurals."""

from __future__ import annotations

import os
from collections.abc import Callable

Progress = Callable[[int, int], None]
"""What is told how much of all has been done."""


def silent(done: int, total: int) -> None:
    """Tell nobody."""


def escape_name(name: str | os.PathLike[str]) -> str:
    r"""Write a name so that any terminal can show it: undecodable bytes and control characters escaped.

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
    """Write how many of something there are.

    Examples
    --------
    >>> plural(1, "image"), plural(12000, "image")
    ('1 image', '12,000 images')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def os_reason(exc: OSError) -> str:
    """Return an OSError's own words, without the path that the message names anyway.

    Examples
    --------
    >>> os_reason(PermissionError(13, "Permission denied", "/a/b.png"))
    'permission denied'
    """
    return (exc.strerror or str(exc) or type(exc).__name__).lower()


def duration(seconds: float) -> str:
    """Write a time as people do.

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
