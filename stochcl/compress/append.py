"""Append to an archive in place; the old index stays valid until the new one is written."""

from __future__ import annotations

import json
import os
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.compress.archive import Archive
from stochcl.compress.bytes import ArchiveErrors, ByteReader
from stochcl.compress.header import read_header
from stochcl.compress.index import Index, check_earlier, complete_ends, pack_skipped, read_index
from stochcl.compress.journal import Record, append_journal
from stochcl.compress.segment import SegmentHead, StoredSegment, decode_segment
from stochcl.compress.segment_writer import SEGMENT_ROWS
from stochcl.compress.writer import JournaledWriter
from stochcl.entropy.model import FITTED, Candidate
from stochcl.errors import FormatError, OutputError, SourceError, StochclError, UsageError
from stochcl.files import PathLike, WriteLock, open_for_changes, write_all, writing
from stochcl.framing import END_MAGIC, MAX_RETIRED, TRAILER, crc
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stochcl.codes import Codes
    from stochcl.entropy.tables import AnyTables


class Appender(JournaledWriter):
    """Appends rows to an existing archive; use it in a ``with`` statement.

    Segments are written after the archive's end, each synced to disk; a new index and trailer then make them part
    of it. Anyone who opens the file earlier sees the archive as it was. If the block ends by an exception or a
    write fails, the file is cut back. Segments that a killed process leaves, or after :meth:`resume` an interrupted
    one, are continued by another append's :meth:`resume`; without that they are cut off before the first segment is
    written. Rows are coded with the archive's own models. If nothing is added, nothing is written.

    Parameters
    ----------
    path : path-like
        The archive.
    tables : iterable of Tables or path-like
        Searched first for decoding tables that are not in the archive.
    segment_rows : int
        Rows per segment.

    Attributes
    ----------
    archive : Archive
        The archive as it was before.
    position : int
        Position in the source to start from: 0, or after :meth:`resume` the end of the interrupted append.

    Raises
    ------
    SourceError, FormatError
        If there is no such file, or it is damaged.
    OutputError
        If it cannot be written, or another process is appending to it.
    """

    def __init__(self, path: PathLike, *, tables: Iterable[AnyTables] = (), segment_rows: int = SEGMENT_ROWS) -> None:
        self.path = Path(path)
        self._shown = escape_name(self.path)
        file = open_for_changes(self.path)
        try:
            with self._writing():
                self._lock = WriteLock(self.path, self._shown)
            self.archive = archive = Archive(self.path, tables=tables)
            self._old_skipped = archive.skipped
            with archive._errors:
                check_earlier(archive._reader, archive._index, archive._header_size, archive._width)
            if not os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                raise OutputError(f"{self._shown}: it was replaced by another file just now; try again.")
            self._old = old = archive._index
            candidates = archive.tables.candidates(archive.header.latents, archive.header.selection)
            with archive._errors:
                candidates += [Candidate(model, FITTED, n) for n, model in enumerate(archive._fitted)]
                self._old_end = archive._reader.read(old.start, archive.size - old.start)
            if len(old.retired) >= MAX_RETIRED:
                raise UsageError(
                    f"{self._shown}: {MAX_RETIRED:,} appends are the limit; rewrite it with `stochcl merge`."
                )
        except BaseException:
            file.close()
            self._release()
            raise
        first = old.segments[0][1].parts if old.segments else None
        names = first is None or first[1].size > 0
        super().__init__(archive.header, candidates, names=names, segment_rows=segment_rows, start=archive.size)
        self._file = file
        self.has = None if first is None else tuple(part.size > 0 for part in first[1:])
        self._failed = {name for name, _ in self._old_skipped}
        self._read_now: set[str] = set()
        self._touched = self._resumable = False
        self._journal = append_journal(self.path)
        self._facts: dict[str, Any] = {}

    def resume(self, facts: dict[str, Any]) -> None:
        """Continue an interrupted append with the same facts, if there is one."""
        own = {"size": self._start, "end": crc(self._old_end), "segment_rows": self._rows}
        self._facts, self._resumable = json.loads(json.dumps(own | facts)), True
        if not self.archive.left_over:
            return
        with self._writing():
            if self._journal.path.exists() and (found := self._journal.read()).is_of(self._facts):
                self._journal.start(self._facts, self._replay(found.records))
                self._touched = True

    def _take_over(self, head: SegmentHead, chunk: bytes, record: Record) -> None:
        super()._take_over(head, chunk, record)
        if self._failed and head.names.size:
            names = decode_segment(chunk, head, self.header, self._candidates).names
            self._read_now |= self._failed.intersection(names or ())

    def _take_back(self, head: SegmentHead, chunk: bytes, record: Record) -> None:
        super()._take_back(head, chunk, record)
        self._read_now |= self._failed.intersection(self._pending[0].names or ())

    @property
    def added(self) -> int:
        """Rows added and on disk."""
        return sum(head.rows for _, head in self.segments)

    def add(self, codes: Codes, **options: Any) -> None:
        """Append rows, see :meth:`SegmentWriter.add`; names that can now be read leave the list of skipped images."""
        super().add(codes, **options)
        self._read_now |= self._failed.intersection(codes.names or ())

    def _store(self, start: int, chunk: bytes, record: Record) -> None:
        self._begin()
        super()._store(start, chunk, record)

    def _begin(self) -> None:
        """Cut off what another append left and start a journal, once, before the first write."""
        if self._touched:
            return
        self._touched = True
        with self._writing():
            self._opened().truncate(self._start)
            self._journal.start(self._facts)

    def _write(self, start: int, data: bytes) -> None:
        """Write and sync; the bytes become part of the archive only when a trailer follows."""
        self._begin()
        file = self._opened()
        with self._writing():
            file.seek(start)
            write_all(file, data)
            os.fsync(file.fileno())

    # The end

    def finish(self) -> None:
        """Write the waiting rows, then the index and trailer that make them part of the archive."""
        try:
            self._flush_all()
            self._commit()
        except BaseException as exc:
            self._leave(type(exc))
            raise
        self.close()

    def _commit(self) -> None:
        old, start = self._old, self._end
        failed = {name for name, _ in self.skipped}
        skipped = [pair for pair in self._old_skipped if pair[0] not in self._read_now | failed] + self.skipped
        if not self.segments and sorted(skipped) == sorted(self._old_skipped):
            self._undo()  # remove what a failed write left
            return
        self._check_there()
        index = replace(
            old,
            rows=old.rows + self.added,
            source_bytes=old.source_bytes + self.source_bytes,
            segments=(*old.segments, *self.segments),
            skipped=pack_skipped(skipped),
            start=start,
            retired=(*old.retired, (old.start, len(self._old_end), crc(self._old_end))),
        ).to_bytes()
        # The trailer goes last and on its own: when it is on disk, so is everything before it.
        self._write(start, index[: -TRAILER.size])
        self._write(start + len(index) - TRAILER.size, index[-TRAILER.size :])
        file = self._opened()
        if file.seek(0, os.SEEK_END) != start + len(index):  # an earlier, longer write failed
            file.truncate(start + len(index))
            os.fsync(file.fileno())
        self._check_there()
        self._journal.remove()

    def _check_there(self) -> None:
        """Raise OutputError if the path now names another file, which does not have the added rows."""
        try:
            there = os.path.samestat(os.fstat(self._opened().fileno()), self.path.stat())
        except OSError:
            there = False
        if not there:
            raise OutputError(
                f"{self._shown}: it was replaced, moved or deleted while rows were appended to it, so nothing was "
                "added to what is there now; append again."
            )

    def _undo(self) -> None:
        """Cut the file back to the archive it was."""
        if self._file is None or not self._touched:
            return
        with suppress(OSError):  # report the original error; opening the file names the remedy
            self._file.truncate(self._start)
            os.fsync(self._file.fileno())
            self._journal.remove()

    def close(self) -> None:
        """Close the file as it is; without :meth:`finish`, added rows are not part of the archive."""
        super().close()
        self.archive.close()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            super().__exit__(kind, *exc)
        finally:
            self.close()

    def _leave(self, kind: type[BaseException]) -> None:
        """Cut back, or after an interruption keep all rows for the append that resumes."""
        if not (self._resumable and issubclass(kind, KeyboardInterrupt | SourceError)):
            self._undo()
            return
        with suppress(StochclError, OSError):  # report the original error
            self.keep()
        if not (self.segments or self._kept):
            self._undo()


@dataclass(frozen=True)
class Repaired:
    """Result of :func:`repair`: rows and bytes kept, and bytes cut off."""

    path: Path
    rows: int
    bytes: int
    cut: int


def repair(path: PathLike) -> Repaired:
    """Cut an archive back to its last complete state, in place; what follows is lost."""
    path = Path(path)
    shown = escape_name(path)
    with ArchiveErrors(shown):
        ByteReader(path).close()  # raises if the path cannot be opened
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
    """Return the end of the last complete archive in the file, and its index."""
    header, size = read_header(reader)
    width = header.decisions_per_row
    stop = reader.size
    if stop >= size + len(END_MAGIC) and reader.read(stop - len(END_MAGIC), len(END_MAGIC)) == END_MAGIC:
        # An interrupted append leaves no trailer. Going back here would lose rows that salvage can save.
        read_index(reader, size, width)
        raise UsageError(f"{shown}: there is nothing to repair: it ends as a complete archive does.")
    for end in reversed(complete_ends(reader, size)):
        with suppress(FormatError):
            return end, _index(reader, end, size, width)
    raise FormatError("it has no earlier state; `stochcl verify --salvage` saves what is intact into a new file")


def _index(reader: ByteReader, end: int, header_size: int, width: int) -> Index:
    """Return the index of the archive that ends here; raise FormatError if there is none."""
    shorter = reader.again()
    shorter.size = end
    index = read_index(shorter, header_size, width)
    for offset, head in index.segments:
        StoredSegment(shorter, offset, head).check_head()
    return index
