"""Words that every message uses: escaped names, reasons of the operating system, plurals."""

from __future__ import annotations

import os


def escape_name(name: str | os.PathLike[str]) -> str:
    r"""Write a name so that any terminal can show it: undecodable bytes and control characters escaped.

    Examples
    --------
    >>> print(printable("caf\udce9\n.png"))
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
    >>> counted(1, "image"), counted(12000, "image")
    ('1 image', '12,000 images')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def os_reason(exc: OSError) -> str:
    """Return an OSError's own words, without the path that the message names anyway.

    Examples
    --------
    >>> why(PermissionError(13, "Permission denied", "/a/b.png"))
    'permission denied'
    """
    return (exc.strerror or str(exc) or type(exc).__name__).lower()
