"""Undoing an append that was interrupted: the file is cut back to the archive that it was before."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from stochcl.compress.bytes import ArchiveErrors, ByteReader
from stochcl.compress.header import read_header
from stochcl.compress.index import Index, read_index
from stochcl.compress.journal import append_journal
from stochcl.compress.segment import StoredSegment
from stochcl.compress.writer import open_for_changes
from stochcl.errors import FormatError, UsageError
from stochcl.files import WriteLock, writing
from stochcl.framing import END_MAGIC
from stochcl.messages import escape_name

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
    shown = escape_name(path)
    with ArchiveErrors(shown):
        ByteReader(path).close()  # says what is wrong with a path, as for any archive
    with writing(path):
        held = WriteLock(path, shown)
    with held, open_for_changes(path) as file:
        with ArchiveErrors(shown), closing(ByteReader(path)) as reader:
            end, index = _last_end(reader, shown)
        with writing(path):
            file.truncate(end)
            os.fsync(file.fileno())
        append_journal(path).remove()
        return Repaired(path, index.rows, end, reader.size - end)


def _last_end(reader: ByteReader, shown: str) -> tuple[int, Index]:
    """Return where the last complete archive in the file ends, and its index."""
    header, size = read_header(reader)
    width = header.decisions_per_row
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


def _index(reader: ByteReader, end: int, header_size: int, width: int) -> Index:
    """Return the index of the archive that ends here; raise FormatError if none does."""
    shorter = reader.again()
    shorter.size = end
    index = read_index(shorter, header_size, width)
    for offset, head in index.segments:
        StoredSegment(shorter, offset, head).check_head()
    return index
