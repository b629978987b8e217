"""Undoing an append that was interrupted: the file is cut back to the archive that it was before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stochcl.codes import bits_per_symbol
from stochcl.compress.archive import _Named
from stochcl.compress.bytes import ByteReader
from stochcl.compress.header import Header
from stochcl.compress.index import Index, read_index
from stochcl.compress.writer import append_journal
from stochcl.errors import FormatError, OutputError, SourceError, Truncated, UsageError
from stochcl.files import WriteLock
from stochcl.framing import END_MAGIC, PROLOGUE
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from io import FileIO

_WINDOW = 1 << 20  # bytes searched at a time


@dataclass(frozen=True)
class Repaired:
    """What :func:`repair` did: rows and bytes that remain, and bytes that were cut off."""

    path: Path
    rows: int
    bytes: int
    cut: int


def repair(path: str | os.PathLike[str]) -> Repaired:
    """Cut an archive back to its last complete state, in place; what follows was not finished and is lost."""
    path = Path(path)
    shown = printable(path)
    with _Named(shown):
        ByteReader(path).close()  # says what is wrong with a path, as for any archive
    try:
        held = WriteLock(path, shown)
    except OSError as exc:
        raise _unwritable(shown, exc) from exc
    with held, _open(path) as file:
        with _Named(shown):
            reader = ByteReader(path)
            try:
                end, index = _last_end(reader, shown)
            finally:
                reader.close()
        try:
            file.truncate(end)
            os.fsync(file.fileno())
        except OSError as exc:
            raise _unwritable(shown, exc) from exc
        append_journal(path).remove()
        return Repaired(path, index.rows, end, reader.size - end)


def _open(path: Path) -> FileIO:
    """Open the file to be changed."""
    shown = printable(path)
    try:
        return path.open("r+b", buffering=0)
    except FileNotFoundError as exc:
        raise SourceError(f"{shown}: there is no such file.") from exc
    except OSError as exc:
        raise _unwritable(shown, exc) from exc


def _unwritable(shown: str, exc: OSError) -> OutputError:
    return OutputError(f"{shown}: it cannot be written: {(exc.strerror or str(exc)).lower()}.")


def _last_end(reader: ByteReader, shown: str) -> tuple[int, Index]:
    """Return where the last complete archive in the file ends, and its index."""
    prologue = reader.read(0, min(PROLOGUE.size, reader.size))
    size = PROLOGUE.size + Header.size_of(prologue)
    header = Header.from_bytes(prologue, reader.read(PROLOGUE.size, size - PROLOGUE.size))
    width = header.latents * bits_per_symbol(header.alphabet)
    stop = reader.size
    if stop >= size + len(END_MAGIC) and reader.read(stop - len(END_MAGIC), len(END_MAGIC)) == END_MAGIC:
        # What an append leaves when it is interrupted has no end. Going back would throw away what can be saved.
        read_index(reader, size, width)
        msg = f"{shown}: there is nothing to repair: it ends as a complete archive does (verify checks the rest)."
        raise UsageError(msg)
    while (end := _before(reader, stop)) is not None:
        try:
            index = _index(reader, end, size, width)
        except FormatError:
            stop = end - 1
            continue
        return end, index
    raise FormatError(
        "it has no earlier state to go back to; `stochcl verify --salvage` saves what is intact into a new file"
    )


def _before(reader: ByteReader, stop: int) -> int | None:
    """Return the last place before or at ``stop`` where a closing magic ends."""
    high = stop
    while high > 0:
        low = max(0, high - _WINDOW)
        found = reader.read(low, high - low).rfind(END_MAGIC)
        if found >= 0:
            return low + found + len(END_MAGIC)
        high = low + len(END_MAGIC) - 1 if low else 0
    return None


class _Cut(ByteReader):
    """The first bytes of a file, as if there were no others."""

    def __init__(self, reader: ByteReader, size: int) -> None:
        self._whole, self.size = reader, size

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self.size:
            raise Truncated("it ends too early")
        return self._whole.read(offset, size)

    def close(self) -> None:
        """Leave the file to the other."""


def _index(reader: ByteReader, end: int, header_size: int, width: int) -> Index:
    """Return the index of the archive that ends here; raise FormatError if none does."""
    cut = _Cut(reader, end)
    index = read_index(cut, header_size, width)
    for offset, head in index.segments:
        if cut.read(offset, len(head.start)) != head.start:
            raise FormatError(f"the segment at byte {offset:,} is not what the index says")
    return index
