"""Appending to an archive in place: segments and a new index behind the old one, which stays until then."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stochcl.compress.archive import Archive
from stochcl.compress.index import Index
from stochcl.compress.segment_writer import SEGMENT_ROWS, SegmentWriter
from stochcl.entropy.model import FITTED, Candidate
from stochcl.errors import OutputError, SourceError, UsageError
from stochcl.files import lock, write_all
from stochcl.framing import MAX_RETIRED, TRAILER, crc
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import FileIO
    from types import TracebackType

    from stochcl.codes import Codes
    from stochcl.compress.segment_writer import Record
    from stochcl.entropy.tables import Tables


class Appender(SegmentWriter):
    """Appends rows to an existing archive; use it in a ``with`` statement.

    Segments go behind the end of the archive, each forced to disk, and then a new index and trailer, which is what
    makes them part of it. When the block ends by an exception, or writing fails, the file is cut back to what it
    was. A process that is killed leaves a file that says so when it is opened, and that
    ``stochcl verify --repair`` cuts back. Rows are coded with the models that the archive has. Nothing is written
    where nothing is added.

    Parameters
    ----------
    path : path-like
        The archive.
    tables : iterable of Tables or path-like
        Where to look first for decoding tables that are not in the archive.
    segment_rows : int
        Rows of a segment.

    Attributes
    ----------
    archive : Archive
        What was there before.

    Raises
    ------
    SourceError, FormatError
        If there is no such file, or it is damaged.
    OutputError
        If it cannot be written, or another process is appending to it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tables: Iterable[Tables | str | os.PathLike[str]] = (),
        segment_rows: int = SEGMENT_ROWS,
    ) -> None:
        self.path = Path(path)
        self._shown = escape_name(self.path)
        file = self._open()
        try:
            self.archive = archive = Archive(self.path, tables=tables)
            if not os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                raise OutputError(f"{self._shown}: it was replaced by another file just now; try again.")
            self._old = old = archive._index
            candidates = archive.tables.candidates(archive.header.latents, archive.header.selection)
            with archive._named():
                candidates += [Candidate(model, FITTED, n) for n, model in enumerate(archive._fitted)]
                self._old_end = archive._reader.read(old.start, archive.size - old.start)
            if len(old.retired) >= MAX_RETIRED:
                msg = f"{self._shown}: it has been appended to {MAX_RETIRED:,} times; `stochcl merge` makes it anew."
                raise UsageError(msg)
        except BaseException:
            file.close()
            raise
        first = old.segments[0][1].parts if old.segments else None
        names = first is None or first[1].size > 0
        super().__init__(archive.header, candidates, names=names, segment_rows=segment_rows, start=archive.size)
        self._file = file
        self._has = None if first is None else tuple(part.size > 0 for part in first[1:])
        self._failed = {name for name, _ in old.skipped}
        self._read_now: set[str] = set()
        self._touched = False

    def _open(self) -> FileIO:
        """Open the file and take it for this process."""
        try:
            file = self.path.open("r+b", buffering=0)
        except FileNotFoundError as exc:
            raise SourceError(f"{self._shown}: there is no such file.") from exc
        except OSError as exc:
            raise self._unwritable(exc) from exc
        if not lock(file):
            file.close()
            msg = f"{self._shown}: another process is appending to this file; try again when it has finished."
            raise OutputError(msg)
        return file

    def _unwritable(self, exc: OSError) -> OutputError:
        return OutputError(f"{self._shown}: it cannot be written: {(exc.strerror or str(exc)).lower()}.")

    @property
    def has(self) -> tuple[bool, ...] | None:
        """Whether rows have names, labels and uncertainty; None while there are none."""
        return self._has

    @property
    def added(self) -> int:
        """Rows that have been added and are on the disk."""
        return sum(head.rows for _, head in self._segments)

    def add(self, codes: Codes, **options: Any) -> None:
        """Append rows, see :meth:`SegmentWriter.add`; what could not be read before and now is, is not skipped."""
        super().add(codes, **options)
        self._read_now |= self._failed.intersection(codes.names or ())

    def _store(self, start: int, chunk: bytes, record: Record) -> None:
        self._write(start, chunk)

    def _write(self, start: int, data: bytes) -> None:
        """Write and force to disk; what has been written is the archive's only when a trailer follows it."""
        file = self._opened()
        self._touched = True
        try:
            file.seek(start)
            write_all(file, data)
            os.fsync(file.fileno())
        except OSError as exc:
            raise self._unwritable(exc) from exc

    # The end

    def finish(self) -> None:
        """Write what is waiting, and the index and the trailer that make it part of the archive."""
        try:
            self._flush_all()
            self._commit()
        except BaseException:
            self._undo()
            raise
        self.close()

    def keep(self) -> None:
        """Finish with the segments that are on the disk, without the rows that wait for one to be full."""
        for codes in self._pending:
            self._read_now -= set(codes.names or ())
        self._pending, self._places, self._new_skips = [], [], []
        self.finish()

    def _commit(self) -> None:
        old, start = self._old, self._end
        failed = {name for name, _ in self.skipped}
        skipped = [pair for pair in old.skipped if pair[0] not in self._read_now | failed] + self.skipped
        if not self._segments and sorted(skipped) == sorted(old.skipped):
            self._undo()  # what a write that failed has left
            return
        index = Index(
            rows=old.rows + self.added,
            source_bytes=old.source_bytes + self._source_bytes,
            tables=old.tables,
            segments=(*old.segments, *self._segments),
            skipped=tuple(skipped),
            start=start,
            header_crc=old.header_crc,
            fitted=old.fitted,
            retired=(*old.retired, (old.start, len(self._old_end), crc(self._old_end))),
        ).to_bytes()
        # The trailer goes last, and alone: when it is on the disk, so is all that it speaks for.
        self._write(start, index[: -TRAILER.size])
        self._write(start + len(index) - TRAILER.size, index[-TRAILER.size :])
        file = self._opened()
        if file.seek(0, os.SEEK_END) != start + len(index):  # a longer write had failed before
            file.truncate(start + len(index))
            os.fsync(file.fileno())

    def _undo(self) -> None:
        """Cut the file back to the archive that it was."""
        if self._file is None or not self._touched:
            return
        with suppress(OSError):  # the error that led here is the one to tell; opening the file will name the remedy
            self._file.truncate(self._start)
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file as it is; without :meth:`finish`, what was added is not part of the archive."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._undo()
            elif self._file is not None:
                self.finish()
        finally:
            self.close()
