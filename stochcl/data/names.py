"""Names of images: how they are ordered, shown, checked and labelled, and which of them are held out."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from stochcl.data.source import Entry

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


def printable(name: str | os.PathLike[str]) -> str:
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


def folder_label(name: str) -> str:
    """Return the label that a name carries: its first folder, or an empty string where it has none.

    Examples
    --------
    >>> folder_label("cats/old/tom.jpg"), folder_label("tom.jpg")
    ('cats', '')
    """
    folder, slash, _ = name.partition("/")
    return folder if slash else ""


def member_name(stored: str) -> str:
    """Bring an archive member's name into POSIX form, without ``.`` and empty parts.

    Raises
    ------
    ValueError
        If the name is absolute, climbs out with ``..``, holds a NUL, is empty or is too long; the message
        is the reason.

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


def held_out(
    names: Iterable[str | Entry], per_class: int = 20, label: Callable[[str], str] = folder_label
) -> NDArray[np.bool_]:
    """Mark the images of one source that are never trained on: the last ``per_class`` of each class.

    This is the one function that makes the held-out split; everything that trains or scores asks it.

    Parameters
    ----------
    names : iterable of str or Entry
        The images of one source, in the source's order.
    per_class : int
        How many are held out of each class; a class with no more than that is held out whole.
    label : callable
        The class that an image of this name is of.

    Returns
    -------
    ndarray of bool, shape (N,)
        True where the image is held out.

    Examples
    --------
    >>> held_out(["a/0", "a/1", "a/2", "b/0", "b/1"], per_class=1).tolist()
    [False, False, True, False, True]
    """
    labels = [label(n if isinstance(n, str) else n.name) for n in names]
    mask = np.zeros(len(labels), dtype=np.bool_)
    seen: dict[str, int] = {}
    for i in range(len(labels) - 1, -1, -1):
        count = seen.get(labels[i], 0)
        mask[i] = count < per_class
        seen[labels[i]] = count + 1
    return mask
