"""Reading files: regular ones only, within a limit, and at any offset from any thread."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING, Any

from stochcl.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

# O_NONBLOCK: should a name turn into a pipe between listing and opening, opening must not wait for a writer.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def why(exc: OSError) -> str:
    """Return an OSError's own words, without the path that the message names anyway.

    Examples
    --------
    >>> why(PermissionError(13, "Permission denied", "/a/b.png"))
    'permission denied'
    """
    return (exc.strerror or str(exc) or type(exc).__name__).lower()


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file whole.

    Raises
    ------
    ImageError
        If it cannot be opened or read, is not a regular file, or has more than ``limit`` bytes.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("it is not a regular file")
            if status.st_size > limit:
                raise ImageError(f"it has {status.st_size:,} bytes, and more than {limit:,} are not read")
            return _read_all(file, status.st_size, limit)
    except OSError as exc:
        raise ImageError(f"it cannot be read: {why(exc)}") from exc


def _read_all(file: Any, expected: int, limit: int) -> bytes:
    data: bytes = file.read(expected + 1)
    if len(data) == expected:
        return data
    parts = [data]
    total = len(data)
    while data and total <= limit:  # the file changed, or the read was cut short: go on to its end
        data = file.read(1 << 20)
        parts.append(data)
        total += len(data)
    if total > limit:
        raise ImageError(f"it has more than {limit:,} bytes, which are not read")
    return b"".join(parts)


class RandomFile:
    """A file that any thread may read at any offset, opened when first needed; pickles as its path.

    With ``keep`` set to False it is opened for every read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keep = True
        self._lock = threading.Lock()
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "keep": self.keep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]
        self.keep = state["keep"]

    def read_at(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes at ``offset``, fewer where the file ends before.

        Raises
        ------
        OSError
            If the file cannot be opened or read.
        """
        if not self.keep:
            with self.path.open("rb") as once:
                once.seek(offset)
                return once.read(count)
        file = self._file or self._open()
        if not hasattr(os, "pread"):
            with self._lock:
                file.seek(offset)
                return bytes(file.read(count))
        data = os.pread(file.fileno(), count, offset)
        if len(data) == count or not data:
            return data
        parts = [data]
        got = len(data)
        while data and got < count:  # a read may return less: signals, network file systems, 2 GiB
            data = os.pread(file.fileno(), count - got, offset + got)
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def _open(self) -> Any:
        with self._lock:
            if self._file is None:
                self._file = self.path.open("rb", buffering=0)
            return self._file

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()
