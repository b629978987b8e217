"""Files that appear complete, by rename, or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

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
