"""Write rows segment by segment: the start of an archive, the base of all writers, and the stream writer."""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from dataclasses import replace
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, Self, cast

from stochcl.codes import Codes, folder_label
from stochcl.compress.columns import pack_labels
from stochcl.compress.index import Index, pack_skipped
from stochcl.compress.journal import Record
from stochcl.compress.segment import RawSegment, SegmentHead, write_segment
from stochcl.entropy.model import FITTED, Candidate, EntropyModel, pack_model
from stochcl.errors import LimitExceeded, OutputError
from stochcl.files import lock, write_all
from stochcl.framing import CHUNK, PROLOGUE, crc, unpack_texts
from stochcl.messages import os_reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from io import FileIO

    from stochcl.compress.header import Header
    from stochcl.entropy.tables import Tables


class Preamble:
    """The bytes before the first segment (header, tables, fitted models), and the models for coding segments."""

    def __init__(
        self, header: Header, tables: Tables | None, *, embed: bool, fitted: Sequence[EntropyModel] = (),
        chunks: Iterable[bytes] = (),
    ) -> None:  # fmt: skip
        header.check()
        if tables is not None and header.tables_sha256 != tables.sha256:
            raise ValueError("these are not the tables that the header names")
        parts, self._tables_at = [header.to_bytes()], (0, 0)
        if embed and tables is not None:
            self._tables_at = (len(parts[0]), CHUNK.size + len(tables.data))
            parts += [CHUNK.pack(b"TABL", len(tables.data)), tables.data]
        self.candidates = [] if tables is None else tables.candidates(header.latents, header.selection)
        self.candidates += [Candidate(model, FITTED, number) for number, model in enumerate(fitted)]
        self._fitted_at: list[tuple[int, int]] = []
        end = sum(map(len, parts))
        for chunk in chain(map(_fitted_chunk, fitted), chunks):
            self._fitted_at.append((end, len(chunk)))
            parts.append(chunk)
            end += len(chunk)
        self.data = b"".join(parts)

    def index(self, writer: SegmentWriter, start: int) -> Index:
        """Return the index of a writer's segments, for offset ``start``."""
        return Index(
            rows=sum(head.rows for _, head in writer.segments), source_bytes=writer.source_bytes,
            tables=self._tables_at, segments=tuple(writer.segments), skipped=pack_skipped(writer.skipped),
            start=start, header_crc=int.from_bytes(self.data[PROLOGUE.size - 4 : PROLOGUE.size], "little"),
            fitted=tuple(self._fitted_at), version=writer.header.version,
        )  # fmt: skip


def _fitted_chunk(model: EntropyModel) -> bytes:
    packed = pack_model(model)
    return CHUNK.pack(b"FITT", 4 + len(packed)) + crc(packed).to_bytes(4, "little") + packed


SEGMENT_ROWS = 16_384
"""Rows per segment: the most that an interruption loses or that memory holds."""

SEGMENT_BYTES = 64 << 20
"""Maximum bytes of packed rows in a segment."""


class SegmentWriter(ABC):
    """Codes rows segment by segment with the cheapest model, and passes each segment to :meth:`_store`.

    A segment counts as written when that returns; if it raises, the rows keep waiting and may be retried.
    """

    def __init__(
        self, header: Header, candidates: list[Candidate], *, names: bool, uncertainty: bool = True,
        segment_rows: int, start: int,
    ) -> None:  # fmt: skip
        self.header = header
        self._candidates, self._names, self._uncertainty, self._start = candidates, names, uncertainty, start
        self._width = header.decisions_per_row
        row_bytes = max(1, -(-self._width // 8))
        self._rows = max(1, min(segment_rows, SEGMENT_BYTES // row_bytes))
        self.position = 0
        self.skipped: list[tuple[str, str]] = []
        self.segments: list[tuple[int, SegmentHead]] = []
        self.source_bytes = 0
        self._pending: list[Codes] = []
        self.has: tuple[bool, ...] | None = None  # names, labels, uncertainty: whether rows have them
        self._places: list[tuple[int, int]] = []
        self._new_skips: list[tuple[int, str, str]] = []
        # Unbuffered, so that closing after a failed write does not write and fail again.
        self._file: FileIO | None = None

    @abstractmethod
    def _store(self, start: int, chunk: bytes, record: Record) -> None:
        """Write a segment to disk at this offset; raise OutputError on failure."""

    def _opened(self) -> FileIO:
        if self._file is None:
            raise ValueError("this writer is closed")
        return self._file

    @property
    def _end(self) -> int:
        """Offset of the next chunk; it overwrites what a failed write left there."""
        if not self.segments:
            return self._start
        start, head = self.segments[-1]
        return start + head.size

    @property
    def rows(self) -> int:
        """Rows written or waiting."""
        return sum(head.rows for _, head in self.segments) + sum(len(codes) for codes in self._pending)

    def add(
        self, codes: Codes, *, positions: Sequence[int] | None = None, sizes: Sequence[int] | None = None
    ) -> None:
        """Append rows."""
        if (codes.latents, codes.alphabet) != (self.header.latents, self.header.alphabet):
            raise ValueError(f"this archive has {self.header.latents} latents of {self.header.alphabet} values")
        if positions is None:
            first = self._places[-1][0] + 1 if self._places else self.position
            positions = range(first, first + len(codes))
        if not len(codes):
            return
        if not self._names:
            labels = codes.labels  # their own, or else the first folders of the names
            if labels is None and codes.names is not None:
                labels = tuple(map(folder_label, codes.names))
            codes = replace(codes, names=None, labels=labels)
        if not self._uncertainty:
            codes = replace(codes, uncertainty=None)
        self._check_has((codes.names is not None, codes.labels is not None, codes.uncertainty is not None))
        places = list(zip(map(int, positions), map(int, [0] * len(codes) if sizes is None else sizes), strict=True))
        if len(places) != len(codes):
            raise ValueError(f"{len(codes)} rows but {len(places)} positions")
        for start in range(0, len(codes), self._rows):
            self._pending.append(codes[start : start + self._rows])
            self._places += places[start : start + self._rows]
            while len(self._places) >= self._rows:
                self._flush(self._rows)

    def add_segment(self, segment: RawSegment, *, source_bytes: int = 0) -> None:
        """Append the rows of another archive's segment without recoding them.

        They must have the same latents, and a model that this archive has under the same number. Waiting rows are
        written first.
        """
        if not self._names:
            _, names, labels, _ = segment.parts
            if names and not labels:
                texts = unpack_texts(names, segment.head.rows, "the names of a segment")
                labels = pack_labels([folder_label(name) for name in texts], segment.head.version)
            segment = segment.having(names=b"", labels=labels)
        if not self._uncertainty:
            segment = segment.having(entropy=b"")
        self._check_has(segment.has)
        self.flush()
        self._take(segment.head, segment.chunk, self.position + segment.head.rows, source_bytes)

    def _check_has(self, has: tuple[bool, ...]) -> None:
        if self.has not in (None, has):
            raise ValueError("rows with and without names, labels or uncertainty do not go into one archive")
        self.has = has

    def skip(self, name: str, reason: str, *, position: int = 0) -> None:
        """Record an image that could not be read, at its position in the source."""
        self._new_skips.append((position, name, reason))

    @property
    def first_skip(self) -> tuple[str, str]:
        """Name and reason of the first image that could not be read."""
        name, reason = (self.skipped or [skip[1:] for skip in self._new_skips])[0]
        return name, reason

    def _flush(self, rows: int) -> None:
        """Write the first ``rows`` waiting rows as a segment."""
        waiting = self._pending[0] if len(self._pending) == 1 else Codes.concatenate(self._pending)
        codes, rest = waiting[:rows], waiting[rows:]
        places = self._places[:rows]
        try:
            head, chunk = write_segment(codes, self._candidates, self.header.version)
        except LimitExceeded:
            if rows == 1:
                raise
            self._flush(rows // 2)  # names too long for a segment of this many rows
            return
        self._take(head, chunk, places[-1][0] + 1, sum(size for _, size in places))
        self._pending = [rest] if len(rest) else []
        self._places = self._places[rows:]

    def _take(self, head: SegmentHead, chunk: bytes, position: int, source_bytes: int) -> None:
        skipped = [(name, reason) for at, name, reason in self._new_skips if at < position]
        start = self._end
        record = Record(start + len(chunk), crc(chunk), head.rows, position, source_bytes, skipped)
        self._store(start, chunk, record)
        self.segments.append((start, head))
        self.source_bytes += source_bytes
        self.position = position
        self.skipped += skipped
        self._new_skips = [skip for skip in self._new_skips if skip[0] >= position]

    def flush(self) -> None:
        """Write all waiting rows as a segment, even a small one."""
        while self._places:
            self._flush(len(self._places))

    def _flush_all(self) -> None:
        """Write all waiting rows, and count all images that could not be read."""
        self.flush()
        self.skipped += [(name, reason) for _, name, reason in self._new_skips]
        self._new_skips = []


class StreamWriter(SegmentWriter):
    """Writes an archive to a file object, front to back; use it in a ``with`` statement.

    The bytes are the same as from :class:`~stochcl.compress.Writer`. After an exception the stream lacks its end, and
    readers report that it is cut short.

    Parameters
    ----------
    file : binary file object
        Open for writing; the caller closes it.
    header, tables, embed_tables, names, uncertainty, segment_rows
        As in :class:`~stochcl.compress.Writer`; without tables only coded segments can be written.
    chunks : iterable of bytes
        Chunks of fitted models; added rows are not coded with them.

    Raises
    ------
    OutputError
        If it cannot be written, or another process writes an archive to the file. If the reader of a pipe is gone,
        BrokenPipeError is raised.
    """

    def __init__(
        self, file: IO[bytes], header: Header, tables: Tables | None, *, embed_tables: bool,
        chunks: Iterable[bytes] = (), names: bool = True, uncertainty: bool = True, segment_rows: int = SEGMENT_ROWS,
    ) -> None:  # fmt: skip
        self._out = file
        _take(file)
        self._preamble = Preamble(header, tables, embed=embed_tables, chunks=chunks)
        self._closed, self._ending = False, b""
        super().__init__(
            header, self._preamble.candidates, names=names, uncertainty=uncertainty, segment_rows=segment_rows,
            start=len(self._preamble.data),
        )  # fmt: skip
        self._write(self._preamble.data)

    def _store(self, start: int, chunk: bytes, record: Record) -> None:
        self._write(chunk)

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._out, data)
            self._out.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OutputError(f"the stream cannot be written to: {os_reason(exc)}.") from exc

    def finish(self) -> None:
        """Write the waiting rows, the index and the trailer.

        Raises
        ------
        OutputError
        """
        self._flush_all()
        self._ending = self._preamble.index(self, self._end).to_bytes()
        self._write(self._ending)
        self._closed = True

    def outline(self) -> IO[bytes]:
        """Return a file without the segments: enough to open it as an archive and report on it."""
        parts = {0: self._preamble.data, self._end: self._ending}
        parts |= {start: head.start for start, head in self.segments[:1]}  # the index may omit its head
        return cast("IO[bytes]", _Outline(parts))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None and not self._closed:
            self.finish()


def _take(file: IO[bytes]) -> None:
    """Refuse a file that another process writes to; the lock ends when all its descriptors are closed."""
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError):  # for example, in memory
        return
    if stat.S_ISREG(status.st_mode) and not lock(file):
        raise OutputError("another process is writing to this file; wait until it has finished, or give another.")


class _Outline(io.RawIOBase):
    """A sparse file made of ``parts``, keyed by their offsets."""

    def __init__(self, parts: dict[int, bytes]) -> None:
        self._parts = parts
        self._size, self._at = max(start + len(data) for start, data in parts.items()), 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> Any:
        for start, data in self._parts.items():
            if start <= self._at < start + len(data):
                found = data[self._at - start :][: None if size < 0 else size]
                self._at += len(found)
                return found
        return b""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")
