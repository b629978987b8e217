"""Read files and archives of a source, whole or at any offset, and classify read errors."""

from __future__ import annotations

import errno
import os
import stat
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from stochcl.errors import EnvironmentFault, ImageError, error_of
from stochcl.files import PathLike, pread_all, read_all
from stochcl.messages import os_reason
from stochcl.remote import Remote, url_errors

if TYPE_CHECKING:
    from pathlib import Path


# O_NONBLOCK: if a name became a pipe between listing and opening, opening must not wait for a writer.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

PROBE = 1 << 16
"""Bytes at the start of a file that identify any image format."""

_OF_ONE_FILE = frozenset([errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL])
_MOST_OPEN = 256  # archives that a process keeps open


def is_environment_fault(exc: OSError) -> bool:
    """Return whether an error concerns the disk, network or file table, or a vanished file, and not just one file.

    Examples
    --------
    >>> is_environment_fault(OSError(24, "Too many open files")), is_environment_fault(PermissionError(13, "no"))
    (True, False)
    """
    return exc.errno is not None and exc.errno not in _OF_ONE_FILE


def read_error(exc: OSError, what: str = "it") -> ImageError | EnvironmentFault:
    """Return the error for a listed image whose file or archive cannot be read; the message is only the reason."""
    kind = EnvironmentFault if is_environment_fault(exc) else ImageError
    return kind(f"{what} cannot be read: {os_reason(exc)}")


def read_regular(path: PathLike, limit: int) -> bytes:
    """Read a regular file whole."""
    try:
        return _read_regular(path, limit)
    except OSError as exc:
        raise error_of(ImageError, exc, f"it cannot be read: {os_reason(exc)}") from exc


def read_listed(path: PathLike, limit: int) -> bytes:
    """Read a regular file from a listing, as :func:`read_regular` does."""
    try:
        return _read_regular(path, limit)
    except OSError as exc:
        raise read_error(exc) from exc


def _read_regular(path: PathLike, limit: int) -> bytes:
    descriptor = os.open(path, _OPEN_FLAGS)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("it is not a regular file")
        if status.st_size > limit:
            raise ImageError(f"it has {status.st_size:,} bytes, and the limit is {limit:,}")
        data = read_all(file, status.st_size + 1)
        if len(data) > status.st_size:  # the file has grown: read on to its end
            data += read_all(file, limit + 1 - len(data))
        if len(data) > limit:
            raise ImageError(f"it has more than {limit:,} bytes, the limit")
        return data


class RandomFile:
    """A file that any thread may read at any offset, opened on first use; pickles as its path.

    It stays open unless too many others are; then it is opened for every read.
    """

    _open_files: ClassVar[int] = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def status(self) -> tuple[int, int]:
        """Return the size, and the modification time in nanoseconds."""
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    def opened(self) -> Any:
        """Open the file; the caller reads and closes it."""
        return self.path.open("rb")

    def read_at(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes at ``offset``, fewer at the end of the file."""
        file = self._file or self._open()
        if file is None:
            with self.path.open("rb") as once:
                once.seek(offset)
                return once.read(count)
        if not hasattr(os, "pread"):
            with self._lock:
                file.seek(offset)
                return bytes(file.read(count))
        return pread_all(file.fileno(), offset, count)

    def _open(self) -> Any:
        """Return the file, opened to stay open, or None if too many are open."""
        with self._lock:
            if self._file is None and RandomFile._open_files < most_open():
                self._file = self.path.open("rb", buffering=0)
                RandomFile._open_files += 1  # without a lock, which the collector could not take in __del__
            return self._file

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self._file.close()
            RandomFile._open_files -= 1


class RemoteFile:
    """A file behind a URL that any thread may read at any offset; the server must support ranges."""

    def __init__(self, url: str) -> None:
        self.path, self._remote = url, Remote(url)

    def status(self) -> tuple[int, int]:
        """Return the size, and the modification time in nanoseconds, 0 if unknown."""
        system, place = self._remote.opened()
        info = system.info(place)
        return int(info.get("size") or 0), time_of(info)

    def opened(self) -> Any:
        """Open the file; the caller reads and closes it."""
        system, place = self._remote.opened()
        return system.open(place, "rb")

    def read_at(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes at ``offset``, fewer at the end of the file."""
        with url_errors(self.path):
            system, place = self._remote.opened()
            return bytes(system.cat_file(place, start=offset, end=offset + count)) if count else b""


_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified")


def time_of(info: dict[str, Any]) -> int:
    """Return a file's modification time in nanoseconds, 0 if unknown."""
    value = next((info[key] for key in _TIMES if key in info), 0)
    value = value.timestamp() if isinstance(value, datetime) else value
    return int(value * 1e9) if isinstance(value, int | float) else 0


def most_open() -> int:
    """Return how many archives may stay open: a quarter of this process's limit on open files."""
    try:
        import resource
    except ImportError:  # Windows
        return _MOST_OPEN
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_OPEN if allowed == resource.RLIM_INFINITY else min(_MOST_OPEN, allowed // 4)
