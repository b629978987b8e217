"""Files behind URLs, of any protocol that fsspec supports."""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stochcl.errors import MissingExtraError, StochclError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[^/]+)*://")
_GONE = 404  # HTTP status
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}


def is_url(source: object) -> bool:
    """Return whether a source is a URL rather than a path.

    Examples
    --------
    >>> [is_url(s) for s in ("s3://bucket/codes.bin", "simplecache::s3://b/c.bin", "codes.bin", "c:/codes.bin")]
    [True, True, False, False]
    """
    return isinstance(source, str) and _URL.match(source) is not None


class Remote:
    """A file or folder behind a URL. After a fork or unpickling it opens the file system anew."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock, self._process = threading.Lock(), -1

    def opened(self) -> tuple[Any, str]:
        """Return this process's file system, and the path in it."""
        with self._lock:
            if self._process != os.getpid():
                from fsspec.core import url_to_fs

                self._system, self._place = url_to_fs(self.url)
                self._process = os.getpid()
            return self._system, self._place

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.url,)


@contextmanager
def url_errors(url: str) -> Iterator[None]:
    """Turn a file system's errors into ours, or into OSErrors."""
    protocol = re.split("://|::", url)[0].lower()
    try:
        yield
    except FileNotFoundError as exc:
        cause = exc.__cause__  # over HTTP, fsspec raises FileNotFoundError for any failure
        failed = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        if failed or getattr(cause, "status", _GONE) != _GONE:
            raise OSError(str(cause) or type(cause).__name__) from exc
        raise
    except (OSError, StochclError):
        raise
    except ImportError as exc:
        extra = _EXTRAS.get(url.split("://", maxsplit=1)[0].rsplit("::", maxsplit=1)[-1].lower())
        how = f"pip install 'stochcl[{extra}]'" if extra else f"install it ({exc})"
        raise MissingExtraError(f"{url}: {protocol}:// needs a package that is not installed; {how}.") from exc
    except Exception as exc:
        if isinstance(exc, ValueError) and "rotocol not known" in str(exc):
            raise UsageError(f"{url}: there is no protocol {protocol}://; give a path or another URL.") from exc
        raise OSError(f"{type(exc).__name__}: {exc}") from exc
