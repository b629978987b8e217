"""Names of images: how they are ordered, shown, checked and labelled, and which of them are held out."""

from __future__ import annotations

import re

IMAGE_EXTENSIONS = frozenset(
    [
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
        ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".qoi", ".jxl", ".heic", ".heif", ".mpo",
    ]
)  # fmt: skip
"""Endings (lower case) of the files that are taken for images in a folder or archive; others are ignored."""

LABEL_ENDINGS = (".cls", ".json", ".txt")
"""Endings (lower case) of the files that may say the label of the image beside them, as in webdataset's shards."""

MAX_NAME_BYTES = 65_535
"""Longest name of an image, in bytes; what a zip can hold, and far more than a file system does."""

_DRIVE = re.compile(r"[A-Za-z]:")
_SHARE = re.compile(r"^\\\\[^\\]+\\[^\\]+")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://[^/]*/")


def sort_key(name: str) -> bytes:
    """Return the bytes that names are ordered by: UTF-8, with undecodable bytes as they were.

    Examples
    --------
    >>> sorted(["b.png", "é.png", "B.png"], key=sort_key)
    ['B.png', 'b.png', 'é.png']
    """
    return name.encode("utf-8", "surrogateescape")  # os.fsencode would fail on letters that the locale lacks


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


def path_name(given: str, *, backslashes: bool = True) -> str:
    r"""Make a name of a path that a table or a list gives: without scheme and host, drive, leading ``/`` or ``../``.

    With ``backslashes`` a path that has them and no ``/``, or begins with a drive or a share, is one of Windows.

    Examples
    --------
    >>> path_name("s3://bucket/cats/1.jpg"), path_name("../photos/cats/1.jpg"), path_name(r"C:\photos\cats\1.jpg")
    ('cats/1.jpg', 'photos/cats/1.jpg', 'photos/cats/1.jpg')
    """
    text = _URL.sub("", given)
    if backslashes and (_DRIVE.match(text) or text.startswith("\\\\") or ("\\" in text and "/" not in text)):
        text = _SHARE.sub("", _DRIVE.sub("", text, count=1)).replace("\\", "/")
    parts: list[str] = []
    for part in text.split("/"):
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
    return member_name("/".join(parts).lstrip("/"))


def is_hidden(name: str) -> bool:
    """Tell whether a name, or a folder of it, is hidden or macOS's own (``.x``, ``._x``, ``__MACOSX``).

    Examples
    --------
    >>> [is_hidden(n) for n in ("a/.b.png", "__MACOSX/a/b.png", "a/b.png")]
    [True, True, False]
    """
    return name.startswith((".", "__MACOSX/")) or "/." in name


def is_image_name(name: str) -> bool:
    """Tell by its ending whether a name is taken for an image.

    Examples
    --------
    >>> [is_image_name(n) for n in ("a/b.JPG", "a/b.txt", "jpg")]
    [True, False, False]
    """
    stem, dot, ending = name.rpartition(".")
    return bool(dot) and bool(stem) and f".{ending.lower()}" in IMAGE_EXTENSIONS
