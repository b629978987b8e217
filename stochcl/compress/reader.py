"""Reading bytes at offsets: from a path or a file object, from any thread, after a fork, after pickling."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import IO, Any

from stochcl.errors import Truncated


class _Guard:
    """The lock under which all readers of one file object move its position."""

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()

    def lock(self, file: IO[bytes]) -> threading.Lock:
        """Return the lock; after a fork a new one, for the old may be held by a thread that is not there."""
        if os.getpid() != self._process:
            try:
                file.fileno()
            except (AttributeError, OSError):  # it lies in memory, of which the child has a copy
                self._lock, self._process = threading.Lock(), os.getpid()
            else:
                msg = "an archive that was opened from a file object has one position in parent and child; open it "
                raise RuntimeError(msg + "by its path to read it after a fork")
        return self._lock


class ByteReader:
    """Random access to the bytes of an archive.

    A file with a path is read with ``pread``, which shares no position between threads or processes; a file
    object is read under a lock, and not after a fork if it is open in the parent too.

    Parameters
    ----------
    source : path-like or binary file object
        A file object must seek; it stays the caller's to close.
    """

    def __init__(self, source: str | os.PathLike[str] | IO[bytes]) -> None:
        self.path: Path | None = None
        self._file: IO[bytes] | None = None
        self._descriptor = -1
        if not isinstance(source, str | os.PathLike):
            self._file = source
            self._guard = _Guard()
            self.size = source.seek(0, os.SEEK_END)
            return
        self.path = Path(source)
        # O_NONBLOCK: opening a pipe must not wait for its other end; regular files do not know it.
        flags = os.O_RDONLY
        for flag in ("O_CLOEXEC", "O_BINARY", "O_NONBLOCK"):
            flags |= getattr(os, flag, 0)
        self._descriptor = os.open(self.path, flags)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.ESPIPE
            raise OSError(code, os.strerror(code))
        self.size = status.st_size

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes from ``offset`` on.

        Raises
        ------
        Truncated
            If the file does not have them.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            msg = f"it is cut short: bytes {offset:,} to {offset + size:,} are needed, and there are {self.size:,}"
            raise Truncated(msg)
        if self._file is not None:
            with self._guard.lock(self._file):
                data = self._seek_and_read(self._file, offset, size)
        elif self._descriptor < 0:
            msg = "the archive is closed"
            raise ValueError(msg)
        else:
            data = self._pread(offset, size)
        if len(data) != size:
            raise Truncated(f"the file ends after {offset + len(data):,} bytes, and {offset + size:,} are needed")
        return data

    def again(self) -> ByteReader:
        """Return another reader of the same file, which is closed apart from this one."""
        other = ByteReader.__new__(ByteReader)
        other.__dict__.update(self.__dict__)
        if self._file is None:
            if self._descriptor < 0:
                msg = "the archive is closed"
                raise ValueError(msg)
            other._descriptor = -1  # should dup fail, there is nothing to close
            other._descriptor = os.dup(self._descriptor)
        return other

    @staticmethod
    def _seek_and_read(file: IO[bytes], offset: int, size: int) -> bytes:
        file.seek(offset)
        data = file.read(size)
        while 0 < len(data) < size:  # an unbuffered file may give less at a time
            more = file.read(size - len(data))
            if not more:
                break
            data += more
        return data

    def _pread(self, offset: int, size: int) -> bytes:
        parts = []
        while size:
            data = os.pread(self._descriptor, min(size, 1 << 30), offset)
            if not data:
                break
            parts.append(data)
            offset += len(data)
            size -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        """Close what was opened here."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __getstate__(self) -> dict[str, Any]:
        if self.path is None:
            msg = "an archive that was opened from a file object cannot be pickled; open it by its path"
            raise TypeError(msg)
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()
