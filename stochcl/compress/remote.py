"""Reading the bytes of an archive behind a URL, through fsspec: pages that are asked for, and not the whole file."""

from __future__ import annotations

import os
import re
import threading
from typing import IO, TYPE_CHECKING, Any

from stochcl.compress.cache import Cache
from stochcl.compress.reader import ByteReader
from stochcl.errors import MissingExtraError, Truncated, UsageError

if TYPE_CHECKING:
    from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[^/]+)*://")
_PAGE = 1 << 17  # about sixteen blocks: a request costs as much as the transfer of some 100 kB
_MOST_PAGES = 64  # in one request
_CACHED_BYTES = 32 << 20
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}


def is_url(source: object) -> bool:
    """Tell whether a source is a URL rather than a path.

    Examples
    --------
    >>> [is_url(s) for s in ("s3://bucket/codes.bin", "simplecache::s3://b/c.bin", "codes.bin", "c:/codes.bin")]
    [True, True, False, False]
    """
    return isinstance(source, str) and _URL.match(source) is not None


def open_reader(source: str | os.PathLike[str] | IO[bytes]) -> ByteReader:
    """Return what reads the bytes of a path, a file object or a URL."""
    return RemoteReader(source) if isinstance(source, str) and is_url(source) else ByteReader(source)


class RemoteReader(ByteReader):
    """Random access to a file behind a URL, by ranges, with what was read lately kept.

    After a fork, and when it is unpickled, it opens the file system anew.

    Parameters
    ----------
    url : str
        Of any protocol that fsspec knows.

    Raises
    ------
    MissingExtraError
        If the protocol's package is not installed.
    UsageError
        If there is no such protocol.
    OSError
        If the file is not there or cannot be read.
    """

    path: Path | None = None

    def __init__(self, url: str) -> None:
        self._url = url
        self._descriptor, self._file = -1, None
        self._lock, self._process, self._system = threading.Lock(), -1, None
        self._pages: Cache[bytes] = Cache(_CACHED_BYTES)
        self.closed = False
        with _Explained(url):
            found = self._opened()
            self.size = int(found.size(self._place))
            if not found.isfile(self._place):
                raise IsADirectoryError("this is no file")

    def _opened(self) -> Any:
        """Return the file system of this process."""
        with self._lock:
            if self._system is None or self._process != os.getpid():
                from fsspec.core import url_to_fs

                self._system, self._place = url_to_fs(self._url)
                self._process = os.getpid()
            return self._system

    def read(self, offset: int, size: int) -> bytes:  # noqa: D102
        if offset < 0 or size < 0 or offset + size > self.size:
            msg = f"it is cut short: bytes {offset:,} to {offset + size:,} are needed, and there are {self.size:,}"
            raise Truncated(msg)
        if self.closed:
            msg = "the archive is closed"
            raise ValueError(msg)
        first, last = offset // _PAGE, -(-(offset + size) // _PAGE)
        pages = {page: self._pages.get(page) for page in range(first, last)}
        missing = [page for page, data in pages.items() if data is None]
        while missing:
            run = 1
            while run < min(len(missing), _MOST_PAGES) and missing[run] == missing[0] + run:
                run += 1
            data = self._fetch(missing[0] * _PAGE, min((missing[0] + run) * _PAGE, self.size))
            for i, page in enumerate(missing[:run]):
                pages[page] = part = data[i * _PAGE : (i + 1) * _PAGE]
                self._pages.put(page, part, len(part))
            del missing[:run]
        start = offset - first * _PAGE
        return b"".join(data for data in pages.values() if data is not None)[start : start + size]

    def _fetch(self, start: int, end: int) -> bytes:
        with _Explained(self._url):
            system = self._opened()
            data = bytes(system.cat_file(self._place, start=start, end=end))
        if len(data) != end - start:
            raise Truncated(f"the file ends after {start + len(data):,} bytes, and {end:,} are needed")
        return data

    def again(self) -> RemoteReader:
        """Return another reader of the same file, which shares what was read and is closed apart from this one."""
        if self.closed:
            msg = "the archive is closed"
            raise ValueError(msg)
        other = RemoteReader.__new__(RemoteReader)
        other.__dict__.update(self.__dict__)
        other._lock = threading.Lock()
        return other

    def close(self) -> None:
        """Read no more."""
        self.closed = True

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


class _Explained:
    """Makes errors of a file system's package ours, or those of a disk."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        protocol = re.split("://|::", self._url)[0].lower()
        if isinstance(exc, ImportError):
            extra = _EXTRAS.get(self._url.split("://")[0].split("::")[-1].lower())
            how = f"pip install 'stochcl[{extra}]'" if extra else f"install it ({exc})"
            raise MissingExtraError(
                f"{self._url}: {protocol}:// needs a package that is not installed; {how}."
            ) from exc
        if isinstance(exc, ValueError) and "rotocol not known" in str(exc):
            raise UsageError(f"{self._url}: there is no protocol {protocol}://; give a path or another URL.") from exc
        if isinstance(exc, Exception) and not isinstance(exc, OSError | Truncated):
            raise OSError(f"{type(exc).__name__}: {exc}") from exc
