"""Names of images: how they are ordered, shown, checked and labelled, and which of them are held out."""

from __future__ import annotations

import os
import re

MAX_NAME_BYTES = 65_535
"""Longest name of an image, in bytes; what a zip can hold, and far more than a file system does."""

_DRIVE = re.compile(r"[A-Za-z]:")


def sort_key(name: str) -> bytes:
    """Return the bytes that names are ordered by: UTF-8, with undecodable bytes as they were.

    Examples
    --------
    >>> sorted(["b.png", "é.png", "B.png"], key=sort_key)
    ['B.png', 'b.png', 'é.png']
    """
    return os.fsencode(name)


def member_name(stored: str) -> str:
    """Bring an archive member's name into POSIX form, without ``.`` and empty parts.

    Examples
    --------
    >>> member_name("./cats//tom.jpg")
    'cats/tom.jpg'
    """
    if "\0" in stored:
        raise ValueError("the name holds a NUL character")
    if stored.startswith(("/", "\\")) or _DRIVE.match(stored):
        raise ValueError("the name is absolute")
    if ".." in re.split(r"[/\\]", stored):
        raise ValueError("the name climbs out of the archive with '..'")
    name = "/".join(part for part in stored.split("/") if part not in ("", "."))
    if not name:
        raise ValueError("the name is empty")
    if len(sort_key(name)) > MAX_NAME_BYTES:
        raise ValueError(f"the name is longer than {MAX_NAME_BYTES:,} bytes")
    return name


def is_hidden(name: str) -> bool:
    """Tell whether a name, or a folder of it, is hidden or macOS's own (``.x``, ``._x``, ``__MACOSX``).

    Examples
    --------
    >>> [is_hidden(n) for n in ("a/.b.png", "__MACOSX/a/b.png", "a/b.png")]
    [True, True, False]
    """
    return name.startswith((".", "__MACOSX/")) or "/." in name
