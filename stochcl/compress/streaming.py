"""Writing an archive to a stream, which is never read, sought in, or cut."""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any, Self, cast

from stochcl.compress.beginning import Beginning
from stochcl.compress.gathering import SEGMENT_ROWS, SegmentWriter
from stochcl.errors import OutputError

if TYPE_CHECKING:
    from stochcl.compress.header import Header
    from stochcl.compress.journal import Record
    from stochcl.compress.tables import Tables


class StreamWriter(SegmentWriter):
    """Writes an archive to a file object, front to back; use it in a ``with`` statement.

    The bytes are those that :class:`~stochcl.compress.Writer` writes to a file. Left by an exception, the stream
    lacks its end, and who reads it says that it is cut short.

    Parameters
    ----------
    file : binary file object
        To be written to; it stays the caller's to close.
    header, tables, embed_tables, names, uncertainty, segment_rows
        As of :class:`~stochcl.compress.Writer`.

    Raises
    ------
    OutputError
        If it cannot be written. A reader that has gone is BrokenPipeError.
    """

    def __init__(
        self,
        file: IO[bytes],
        header: Header,
        tables: Tables,
        *,
        embed_tables: bool,
        names: bool = True,
        uncertainty: bool = True,
        segment_rows: int = SEGMENT_ROWS,
    ) -> None:
        self._out = file
        self._beginning = Beginning(header, tables, embed=embed_tables)
        self._closed, self._ending = False, b""
        super().__init__(
            header, self._beginning.candidates, names=names, uncertainty=uncertainty, segment_rows=segment_rows,
            start=len(self._beginning.data),
        )  # fmt: skip
        self._write(self._beginning.data)

    def _store(self, start: int, chunk: bytes, record: Record) -> None:
        self._write(chunk)

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[self._out.write(view) or 0 :]
            self._out.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OutputError(f"the stream cannot be written to: {(exc.strerror or str(exc)).lower()}.") from exc

    def finish(self) -> None:
        """Write what is waiting, the index and the trailer.

        Raises
        ------
        OutputError
        """
        self._flush_all()
        self._ending = self._beginning.index(self, self._end).to_bytes()
        self._write(self._ending)
        self._closed = True

    def outline(self) -> IO[bytes]:
        """Return what was written, without the segments: enough of a file for an archive to be opened and told of."""
        return cast("IO[bytes]", _Outline(self._beginning.data, self._end, self._ending))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None and not self._closed:
            self.finish()


class _Outline(io.RawIOBase):
    """A file of which the beginning and the end are there."""

    def __init__(self, head: bytes, end_at: int, end: bytes) -> None:
        self._parts = {0: head, end_at: end}
        self._size, self._at = end_at + len(end), 0

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
