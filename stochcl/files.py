"""Files that appear complete, by rename, or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from stochcl.errors import OutputError, StochclError, UsageError
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import RawIOBase


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary sibling of ``path`` for writing; put it in its place when the block ends well.

    The file is flushed to disk before the rename, and the folder after it. If the block raises, or writing
    does, the temporary file is removed and ``path`` is as it was.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(pathlib.Path(folder, "a")) as file:
    ...         _ = file.write(b"all of it")
    ...     pathlib.Path(folder, "a").read_bytes()
    b'all of it'
    """
    path = Path(path)
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


@contextmanager
def writing(path: str | os.PathLike[str], what: str = "it", advice: str = "") -> Iterator[None]:
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
        raise OutputError(f"{escape_name(path)}: {what} cannot be written: {os_reason(exc)}{advice}.") from exc


def write_all(file: RawIOBase, data: bytes) -> None:
    """Write all of the data to an unbuffered file, which may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def lock(file: IO[bytes] | RawIOBase) -> bool:
    """Take a file for this process alone, among those that ask; return whether nobody else has it.

    The lock goes when the file is closed, or its process ends. Where there are no such locks, nobody has it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have none
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


def check_output(path: Path, source: Path, *, force: bool) -> None:
    """Refuse, before an image is read, an output that cannot be written or that somebody wants to keep."""
    shown = escape_name(path)
    try:
        folder = path.absolute().parent.is_dir()
        status = path.stat() if path.exists() else None
        same = status is not None and source.is_file() and path.samefile(source)
    except OSError as exc:
        raise OutputError(f"{shown}: it cannot be written: {os_reason(exc)}; give another name.") from exc
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
        raise UsageError(f"{shown}: this file exists already; pass --force to replace it.")


def make_folder(folder: Path) -> None:
    """Make a folder for outputs, if it is not there."""
    try:
        with writing(folder, "the folder"):
            folder.mkdir(parents=True, exist_ok=True)
    except OutputError as exc:
        if isinstance(exc.__cause__, FileExistsError):
            raise UsageError(f"{escape_name(folder)}: this is a file; name a folder to write to.") from exc
        raise
