"""Files that appear complete, by rename, or not at all, and that one process writes at a time."""

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
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # as pathlib leaves it of one
_LFS = b"version https://git-lfs"


def is_lfs_pointer(head: bytes) -> bool:
    """Tell by its first bytes, 20 or more, whether a file is a Git LFS pointer in place of what it is called.

    Examples
    --------
    >>> is_lfs_pointer(b"version https://git-lfs.github.com/spec/v1"), is_lfs_pointer(b"version")
    (True, False)
    """
    return len(head) >= 20 and head[: len(_LFS)] == _LFS[: len(head)]


def seems_utf16(text: bytes) -> bool:
    """Tell by its first bytes whether text is UTF-16: it has the mark, or every other byte is zero.

    Examples
    --------
    >>> [seems_utf16("name,label".encode(encoding)) for encoding in ("utf-8", "utf-16", "utf-16-be", "utf-16-le")]
    [False, True, True, True]
    """
    head = text[:64]
    unmarked = len(head) >= 8 and any(head[::2]) != any(head[1::2])
    return unmarked or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def refuse_pointer(path: PathLike, head: bytes, what: str, error: type[StochclError] = SourceError) -> None:
    """Raise the error for a file that begins so, if it is a Git LFS pointer in place of what it is called."""
    if is_lfs_pointer(head):
        raise error(f"{escape_name(path)}: this is a Git LFS pointer in place of {what}; run: git lfs pull.")


def target_of(path: PathLike) -> Path:
    """Return the file that a symbolic link names, there or not; any other path as it is."""
    is_link = os.path.islink(path) and (os.path.isfile(path) or not os.path.exists(path))  # noqa: PTH110, PTH113, PTH114
    return Path(os.path.realpath(path) if is_link else path)


def exists(path: PathLike) -> bool:
    """Tell whether a path is there; where pathlib raises (a name too long, a closed folder), it is not."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: PathLike) -> bool:
    """Tell whether a path is a file; where pathlib raises, it is not."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: PathLike) -> bool:
    """Tell whether a path is a folder; where pathlib raises, it is not."""
    return os.path.isdir(path)  # noqa: PTH112


def is_same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Tell whether two paths name one file; where one is not there, or a URL, they do not."""
    with suppress(OSError):
        return os.path.samefile(path, other)  # noqa: PTH121
    return False


@contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """Open a temporary sibling of ``path`` for writing; put it in its place when the block ends well.

    The file is flushed to disk before the rename, and the folder after it. If the block raises, or writing
    does, the temporary file is removed and ``path`` is as it was. A symbolic link stays: what it names is replaced.

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
        # mkstemp keeps the file to its owner; give it the permissions that open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ROOM = "free some disk space and "
"""What advice begins with if a full disk is what is wrong."""


def advice_for(exc: BaseException | None, advice: str) -> str:
    """Return the advice for a failed writing, without ROOM unless there was none."""
    return advice if isinstance(exc, OSError) and exc.errno in _FULL else advice.replace(ROOM, "", 1)


@contextmanager
def writing(path: PathLike, what: str = "it", advice: str = "") -> Iterator[None]:
    """Turn an OSError while a path is written into the OutputError that names the path and what it is.

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
    """Turn an OSError while a path is read into the error that names the path and what it is.

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
    except StochclError:  # of which some are OSErrors
        raise
    except OSError as exc:
        raise error_of(error, exc, f"{escape_name(path)}: {what} cannot be read: {os_reason(exc)}.") from exc


def write_all(file: Any, data: bytes) -> None:
    """Write all of the data to an unbuffered file, which may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def read_all(file: Any, size: int) -> bytes:
    """Read so many bytes, or fewer where the file ends; one call of an unbuffered file may give less."""
    parts = []
    while size > 0 and (data := file.read(size)):
        parts.append(data)
        size -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pread_all(descriptor: int, offset: int, size: int) -> bytes:
    """Read so many bytes at an offset, or fewer where the file ends; one call may give less, and at most 2 GiB."""
    parts = []
    while size > 0 and (data := os.pread(descriptor, min(size, 1 << 30), offset)):
        parts.append(data)
        offset += len(data)
        size -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def lock(file: IO[bytes] | RawIOBase) -> bool:
    """Take a file for this process alone, among those that ask; return whether nobody else has it.

    The lock goes when the file is closed, or its process ends. Where there are no such locks, nobody has it.
    """
    return _flock(file) is not False


def _flock(file: IO[bytes] | RawIOBase) -> bool | None:
    """Lock a file; return whether that was possible, or None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have none
        return None
    return True


class WriteLock:
    """The right to write to a path: one writer has it at a time, and the system takes it from a process that ends.

    What is locked is a file beside the path, ``PATH.lock`` (in a folder, ``.lock``), which names the process and is
    removed at the end. So it does not matter by which renaming the path is replaced, and readers are never locked
    out. A file that a dead process left is taken over. Where the system has no locks, the process that the
    file names decides: it has the lock while it lives, or if it is another machine's.

    Parameters
    ----------
    path : path-like
        Need not exist; its folder must.
    shown : str
        The path, as the message names it.

    Raises
    ------
    OutputError
        If another writer has it.
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
        """Lock the file, unless it was removed by its last holder just now."""
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
        """Give it back; a second time does nothing, and neither does a process that was forked."""
        file, self._file = self._file, None
        if file is None:
            return
        if os.getpid() == self._process:
            with suppress(OSError):
                if os.name != "nt" and self._is_there(file):
                    self.path.unlink()
            with suppress(ImportError, OSError):  # a child that was forked may still have the descriptor
                import fcntl

                fcntl.flock(file.fileno(), fcntl.LOCK_UN)
        file.close()
        if os.name == "nt":  # which does not remove open files
            with suppress(OSError):
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def _host() -> str:
    return socket.gethostname() or "localhost"


def _holder(file: FileIO) -> tuple[int, str]:
    """Return the process and machine that a lock file names; 0 where it names none yet."""
    for _ in range(10):  # its holder writes its number just after it has locked it
        file.seek(0)
        process, _, host = file.read(512).decode("utf-8", "replace").strip().partition(" ")
        if process.isdecimal() and host:
            return int(process), host
        time.sleep(0.01)
    return 0, ""


def _is_held(process: int, host: str) -> bool:
    """Tell, where there are no locks, whether the process that a lock file names may be writing."""
    if not process or os.name == "nt":
        return False
    if host != _host():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable, where the system can."""
    with suppress(OSError):  # Windows does not open folders; some network file systems do not sync them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_exists(path: PathLike) -> None:
    """Raise SourceNotFound for a path that is not there; what else is wrong with it, opening it explains."""
    try:
        os.lstat(path)
    except FileNotFoundError as exc:
        raise SourceNotFound(f"{escape_name(path)}: there is no such file or folder.") from exc
    except (OSError, ValueError):
        pass


def check_output(path: Path, source: Path | None, *, force: bool) -> None:
    """Refuse, before an image is read, an output that cannot be written or that somebody wants to keep."""
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
    """Make a folder for outputs, if it is not there."""
    try:
        with writing(folder, "the folder"):
            folder.mkdir(parents=True, exist_ok=True)
    except OutputError as exc:
        if isinstance(exc.__cause__, FileExistsError):
            raise UsageError(f"{escape_name(folder)}: this is a file; name a folder to write to.") from exc
        raise
