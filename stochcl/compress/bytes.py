"""Random access to the bytes of an archive: a file, a file object, or a URL through fsspec."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from stochcl.errors import BadMagic, ChecksumMismatch, FormatError, SourceError, StochclError, Truncated, error_of
from stochcl.files import PathLike, pread_all, read_all
from stochcl.messages import os_reason
from stochcl.remote import Remote, is_url, url_errors

if TYPE_CHECKING:
    from collections.abc import Hashable

_CLOSED = "the archive is closed"


class _Guard:
    """A lock for the position of a file object that several readers share."""

    def __init__(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()

    def lock(self, file: IO[bytes]) -> threading.Lock:
        """Return the lock; after a fork a new one, because a thread of the parent may hold the old one."""
        if os.getpid() != self._process:
            try:
                file.fileno()
            except (AttributeError, OSError):  # in memory, so the child has a copy
                self._lock, self._process = threading.Lock(), os.getpid()
            else:
                msg = "an archive that was opened from a file object has one position in parent and child; open it "
                raise RuntimeError(msg + "by its path to read it after a fork")
        return self._lock


class ByteReader:
    """Random access to the bytes of an archive.

    A path is read with ``pread``, which shares no position between threads or processes. A file object is read under
    a lock, and not after a fork if it is also open in the parent; the caller closes it.
    """

    def __init__(self, source: PathLike | IO[bytes]) -> None:
        self.path: Path | None = None
        self._file: IO[bytes] | None = None
        self._descriptor = -1
        if not isinstance(source, str | os.PathLike):
            self._file = source
            self._guard = _Guard()
            self.size = source.seek(0, os.SEEK_END)
            return
        self.path = Path(source)
        # O_NONBLOCK: opening a pipe must not block; regular files ignore it.
        flags = os.O_RDONLY
        for flag in ("O_CLOEXEC", "O_BINARY", "O_NONBLOCK"):
            flags |= getattr(os, flag, 0)
        self._descriptor = os.open(self.path, flags)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            raise OSError(errno.ESPIPE, "it is not a regular file")
        self.size = status.st_size

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes from ``offset`` on."""
        if offset < 0 or size < 0 or offset + size > self.size:
            msg = f"it is cut short: bytes {offset:,} to {offset + size:,} are needed, and there are {self.size:,}"
            raise Truncated(msg)
        data = self._read(offset, size)
        if len(data) != size:
            raise Truncated(f"the file ends after {offset + len(data):,} bytes, and {offset + size:,} are needed")
        return data

    def again(self) -> ByteReader:
        """Return another reader of the same file, with its own :meth:`close`."""
        other = ByteReader.__new__(ByteReader)
        other.__dict__.update(self.__dict__)
        if self._file is None:
            if self._descriptor < 0:
                raise ValueError(_CLOSED)
            other._descriptor = -1  # so that __del__ closes nothing if dup fails
            other._descriptor = os.dup(self._descriptor)
        return other

    def _read(self, offset: int, size: int) -> bytes:
        """Read these bytes, or fewer at the end of the file."""
        if self._file is None:
            if self._descriptor < 0:
                raise ValueError(_CLOSED)
            return pread_all(self._descriptor, offset, size)
        with self._guard.lock(self._file):
            self._file.seek(offset)
            return read_all(self._file, size)

    def close(self) -> None:
        """Close the descriptor; a file object stays open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __getstate__(self) -> dict[str, Any]:
        if self.path is None:
            raise TypeError("an archive that was opened from a file object cannot be pickled; open it by its path")
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()


V = TypeVar("V")

_ALL: weakref.WeakSet[Cache | RemoteReader] = weakref.WeakSet()  # to renew their locks in a forked child


class Cache(Generic[V]):
    """A cache that drops the least recently used values beyond ``limit`` bytes in all; the newest always stays.

    A forked child gets a new lock, because a thread of the parent may have held the old one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        _ALL.add(self)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """Return a value, or None if it is not cached."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: V, size: int) -> None:
        """Cache a value of this many bytes, and drop the least recently used ones."""
        with self._lock:
            if key in self._values:  # two threads may have read the same value
                self._size -= self._values.pop(key)[1]
            self._values[key] = value, size
            self._size += size
            while self._size > self._limit and len(self._values) > 1:
                self._size -= self._values.popitem(last=False)[1][1]

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._size = sum(size for _, size in self._values.values())


def _after_fork() -> None:
    for holder in list(_ALL):
        holder._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_PAGE = 1 << 17  # about sixteen blocks: a request costs as much as the transfer of some 100 kB
_PAGES = 256  # pages in the cache


def open_reader(source: PathLike | IO[bytes]) -> ByteReader:
    """Return a reader for a path, a file object or a URL."""
    return RemoteReader(source) if isinstance(source, str) and is_url(source) else ByteReader(source)


class RemoteReader(ByteReader):
    """Random access to a file behind a URL of any protocol that fsspec supports, through its block cache.

    If the server gives no length, or answers a range request with the whole file, the whole is read once.
    After a fork or unpickling it opens the file system anew.
    """

    def __init__(self, url: str) -> None:
        self.path = self._file = None
        self._remote, self._descriptor = Remote(url), -1
        self._closed = False
        self._whole: list[bytes] = []  # the whole file, if the server ignores ranges
        _ALL.add(self)
        with url_errors(url):
            system, place = self._remote.opened()
            size = system.size(place)
            if not system.isfile(place):
                raise IsADirectoryError("this is not a file")
            if size is None:
                self._whole.append(bytes(system.cat_file(place)))
                size = len(self._whole[0])
            self.size = int(size)
            from fsspec.caching import BlockCache

            self._cache = BlockCache(_PAGE, self._fetch, self.size, _PAGES)

    def _after_fork(self) -> None:
        self._remote = Remote(self._remote.url)

    def _read(self, offset: int, size: int) -> bytes:
        if self._closed:
            raise ValueError(_CLOSED)
        if size > 2 * _PAGE:  # one request, without evicting cached pages
            return self._fetch(offset, offset + size)
        return self._cache._fetch(offset, offset + size)

    def _fetch(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        if not self._whole:
            with url_errors(self._remote.url):
                system, place = self._remote.opened()
                data = bytes(system.cat_file(place, start=start, end=end))
            if len(data) <= end - start:
                return data
            self._whole.append(data)
        return self._whole[0][start:end]

    def again(self) -> RemoteReader:
        """Return another reader of the same file, with a shared cache and its own :meth:`close`."""
        if self._closed:
            raise ValueError(_CLOSED)
        other = RemoteReader.__new__(RemoteReader)
        other.__dict__.update(self.__dict__)
        _ALL.add(other)
        return other

    def close(self) -> None:
        """Refuse further reads."""
        self._closed = True
        self.__dict__.pop("_cache", None)  # its fetcher refers back to this object

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._remote.url}


_ADVICE = {
    BadMagic: "give a file that `stochcl compress` wrote",
    Truncated: "copy it again from where it is whole, or compress again",
    ChecksumMismatch: "copy it again from where it is whole, or compress again",
}


class ArchiveErrors:
    """Prefix the archive's name to a FormatError's message, and turn an OSError into a SourceError."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, FormatError) and not str(exc).startswith(f"{self._shown}: "):
            advice = f"; {_ADVICE[type(exc)]}" if type(exc) in _ADVICE else ""
            raise type(exc)(f"{self._shown}: {exc}{advice}.") from exc
        if not isinstance(exc, OSError) or isinstance(exc, StochclError):  # some of ours are OSErrors
            return
        reason = f"it cannot be read: {os_reason(exc)}"
        if isinstance(exc, FileNotFoundError):
            reason = "there is no such file"
        elif isinstance(exc, IsADirectoryError):
            reason = "this is a folder, and one archive is needed; `stochcl merge` makes one of a folder of shards"
        raise error_of(SourceError, exc, f"{self._shown}: {reason}.") from exc
