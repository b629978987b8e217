"""Read, write and lock files: outputs appear complete or not at all, and one process writes at a time."""

from __future__ import annotations

import codecs
import errno
import os
import re
import socket
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from stochcl.errors import OutputError, OutputExists, SourceError, SourceNotFound, StochclError, UsageError, error_of
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO, RawIOBase


PathLike = str | os.PathLike[str]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib drops the second slash
_LFS = b"version https://git-lfs"


def is_lfs_pointer(head: bytes) -> bool:
    """Return whether a file is a Git LFS pointer, by its first bytes (20 or more).

    Examples
    --------
    >>> is_lfs_pointer(b"version https://git-lfs.github.com/spec/v1"), is_lfs_pointer(b"version")
    (True, False)
    """
    return len(head) >= 20 and head[: len(_LFS)] == _LFS[: len(head)]


def seems_utf16(text: bytes) -> bool:
    """Return whether text is UTF-16, by its byte order mark, or because every other byte is zero.

    Examples
    --------
    >>> [seems_utf16("name,label".encode(encoding)) for encoding in ("utf-8", "utf-16", "utf-16-be", "utf-16-le")]
    [False, True, True, True]
    """
    head = text[:64]
    unmarked = len(head) >= 8 and any(head[::2]) != any(head[1::2])
    return unmarked or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def refuse_pointer(path: PathLike, head: bytes, what: str, error: type[StochclError] = SourceError) -> None:
    """Raise ``error`` if a file with this head is a Git LFS pointer in place of ``what``."""
    if is_lfs_pointer(head):
        raise error(f"{escape_name(path)}: this is a Git LFS pointer in place of {what}; run: git lfs pull.")


def target_of(path: PathLike) -> Path:
    """Return the target of a symbolic link to a file, existing or not; return any other path unchanged."""
    is_link = os.path.islink(path) and (os.path.isfile(path) or not os.path.exists(path))  # noqa: PTH110, PTH113, PTH114
    return Path(os.path.realpath(path) if is_link else path)


def exists(path: PathLike) -> bool:
    """Return whether a path exists; False where pathlib raises (a name too long, a closed folder)."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: PathLike) -> bool:
    """Return whether a path is a file; False where pathlib raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: PathLike) -> bool:
    """Return whether a path is a folder; False where pathlib raises."""
    return os.path.isdir(path)  # noqa: PTH112


def begins_with(path: PathLike, magic: bytes) -> bool:
    """Return whether a path is a file that begins with these bytes; False if it cannot be read."""
    with suppress(OSError, ValueError):
        if is_file(path):
            with Path(path).open("rb") as file:
                return file.read(len(magic)) == magic
    return False


def is_same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Return whether two paths are the same file; False for missing files and URLs."""
    with suppress(OSError):
        return os.path.samefile(path, other)  # noqa: PTH121
    return False


@contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """Open a temporary sibling of ``path`` for writing, and rename it to ``path`` when the block ends normally.

    The file is synced to disk before the rename, and the folder after it. If the block or a write raises, the
    temporary file is removed and ``path`` stays unchanged. A symbolic link stays, and its target is replaced.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(pathlib.Path(folder, "a")) as file:
    ...         _ = file.write(b"all of it")
    ...     pathlib.Path(folder, "a").read_bytes()
    b'all of it'
    """
    path = target_of(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the permissions that open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def write_file(path: PathLike, data: bytes, what: str = "it") -> None:
    """Write a file as :func:`replacing` does, with errors that name ``what``."""
    with writing(path, what), replacing(path) as file:
        file.write(data)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ROOM = "free some disk space and "
"""Start of advice that applies only to a full disk."""


def advice_for(exc: BaseException | None, advice: str) -> str:
    """Return the advice for a failed write, with ROOM only if the disk was full."""
    return advice if isinstance(exc, OSError) and exc.errno in _FULL else advice.replace(ROOM, "", 1)


@contextmanager
def writing(path: PathLike, what: str = "it", advice: str = "") -> Iterator[None]:
    """Turn an OSError while writing a path into an OutputError that names the path and ``what``.

    Examples
    --------
    >>> with writing("a.csv", "the log"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
        ...
    stochcl.errors.OutputError: a.csv: the log cannot be written: no space left on device.
    """
    try:
        yield
    except StochclError:
        raise
    except OSError as exc:
        raise OutputError(
            f"{escape_name(path)}: {what} cannot be written: {os_reason(exc)}{advice_for(exc, advice)}."
        ) from exc


@contextmanager
def reading(path: PathLike, what: str = "it", error: type[StochclError] = SourceError) -> Iterator[None]:
    """Turn an OSError while reading a path into an error that names the path and ``what``.

    Examples
    --------
    >>> with reading("a.zip", "this zip"):
    ...     raise OSError(5, "Input/output error")
    Traceback (most recent call last):
        ...
    stochcl.errors.SourceError: a.zip: this zip cannot be read: input/output error.
    """
    try:
        yield
    except StochclError:  # some are OSErrors
        raise
    except OSError as exc:
        raise error_of(error, exc, f"{escape_name(path)}: {what} cannot be read: {os_reason(exc)}.") from exc


def write_all(file: Any, data: bytes) -> None:
    """Write all of the data to an unbuffered file, whose ``write`` may be partial."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def read_all(file: Any, size: int) -> bytes:
    """Read ``size`` bytes, fewer at the end; one read of an unbuffered file may return less."""
    parts = []
    while size > 0 and (data := file.read(size)):
        parts.append(data)
        size -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pread_all(descriptor: int, offset: int, size: int) -> bytes:
    """Read ``size`` bytes at an offset, fewer at the end; one ``pread`` may return less, and at most 2 GiB."""
    parts = []
    while size > 0 and (data := os.pread(descriptor, min(size, 1 << 30), offset)):
        parts.append(data)
        offset += len(data)
        size -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def lock(file: IO[bytes] | RawIOBase) -> bool:
    """Lock a file for this process; return False if another process holds it.

    The lock ends when the file is closed or the process ends. Without support for locks, return True.
    """
    return _flock(file) is not False


def _flock(file: IO[bytes] | RawIOBase) -> bool | None:
    """Lock a file; return whether that succeeded, or None if locks are not supported."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return None
    return True


class WriteLock:
    """An exclusive right to write to a path, released by the system when the process ends.

    The locked file is beside the path, ``PATH.lock`` (for a folder, ``.lock`` in it); it names the process and is
    removed at the end. So replacing the path by rename does not affect the lock, and readers are never blocked. A
    lock file left by a dead process is taken over. On systems without locks, the process named in the file holds the
    lock while it lives, or if it is on another machine.

    Parameters
    ----------
    path : path-like
        May be missing; its folder must exist.
    shown : str
        The path as shown in messages.

    Raises
    ------
    OutputError
        If another writer holds it.
    OSError
        If the lock file cannot be made.
    """

    def __init__(self, path: PathLike, shown: str) -> None:
        real = Path(os.path.realpath(path))
        self.path = real / ".lock" if real.is_dir() else real.with_name(real.name + ".lock")
        self._shown, self._process = shown, os.getpid()
        self._file: FileIO | None = None
        while self._file is None:
            file = self.path.open("a+b", buffering=0)
            try:
                self._take(file)
            except BaseException:
                file.close()
                raise

    def _take(self, file: FileIO) -> None:
        """Lock the file, unless its last holder has just removed it."""
        taken = _flock(file)
        if taken is False or (taken is None and _is_held(*_holder(file))):
            raise OutputError(self._refusal(*_holder(file)))
        if not self._is_there(file):
            file.close()
            return
        file.truncate(0)
        file.write(f"{self._process} {_host()}\n".encode())
        self._file = file

    def _is_there(self, file: FileIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _refusal(self, process: int, host: str) -> str:
        if not process:
            return f"{self._shown}: another process is writing to it; wait until that has finished."
        if host != _host():
            return (
                f"{self._shown}: process {process} on {host} is writing to it; wait until that has finished (if it "
                f"is dead and the file system does not know, remove {self.path.name})."
            )
        if process == self._process:
            return f"{self._shown}: this process ({process}) is writing to it already; finish or close that first."
        return f"{self._shown}: process {process} is writing to it; wait until that has finished, or stop it."

    def release(self) -> None:
        """Release the lock; no effect if repeated or in a forked process."""
        file, self._file = self._file, None
        if file is None:
            return
        if os.getpid() == self._process:
            with suppress(OSError):
                if os.name != "nt" and self._is_there(file):
                    self.path.unlink()
            with suppress(ImportError, OSError):  # a forked child may still have the descriptor
                import fcntl

                fcntl.flock(file.fileno(), fcntl.LOCK_UN)
        file.close()
        if os.name == "nt":  # Windows does not remove open files
            with suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def _host() -> str:
    return socket.gethostname() or "localhost"


def _holder(file: FileIO) -> tuple[int, str]:
    """Return the process and machine named in a lock file, 0 if none yet."""
    for _ in range(10):  # the holder writes them just after it has locked the file
        file.seek(0)
        process, _, host = file.read(512).decode("utf-8", "replace").strip().partition(" ")
        if process.isdecimal() and host:
            return int(process), host
        time.sleep(0.01)
    return 0, ""


def _is_held(process: int, host: str) -> bool:
    """Return whether the process named in a lock file may be writing, on a system without locks."""
    if not process or os.name == "nt":
        return False
    if host != _host():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable, if the system can."""
    with suppress(OSError):  # Windows does not open folders; some network file systems do not sync them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_exists(path: PathLike) -> None:
    """Raise SourceNotFound for a missing path; opening it reports any other fault."""
    try:
        os.lstat(path)
    except FileNotFoundError as exc:
        raise SourceNotFound(f"{escape_name(path)}: there is no such file or folder.") from exc
    except (OSError, ValueError):
        pass


def check_output(path: Path, source: Path | None, *, force: bool) -> None:
    """Refuse an output that cannot be written, or that exists without ``force``, before any image is read."""
    shown = escape_name(path)
    try:
        folder = target_of(path).absolute().parent.is_dir()
        status = path.stat() if path.exists() else None
        same = status is not None and source is not None and source.is_file() and path.samefile(source)
    except OSError as exc:
        raise OutputError(f"{shown}: it cannot be written: {os_reason(exc)}; give another name.") from exc
    if not folder and _URL.match(str(path)):
        raise UsageError(f"{shown}: this is a URL, and outputs are local files; write to a file and copy it there.")
    if not folder:
        raise OutputError(f"{shown}: the folder to write to does not exist; make it first.")
    if status is None:
        return
    if same:
        raise UsageError(f"{shown}: the output would replace the source; give another name.")
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise UsageError(f"{shown}: this is {what}; name the file to write.")
    if not force:
        raise OutputExists(f"{shown}: this file exists already; pass --force to replace it.")


def make_folder(folder: Path) -> None:
    """Make an output folder if it is missing."""
    try:
        with writing(folder, "the folder"):
            folder.mkdir(parents=True, exist_ok=True)
    except OutputError as exc:
        if isinstance(exc.__cause__, FileExistsError):
            raise UsageError(f"{escape_name(folder)}: this is a file; name a folder to write to.") from exc
        raise
