"""Writing an archive: to a partial file with a journal, which becomes the archive by rename."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

from stochcl.compress.segment import read_head
from stochcl.compress.segment_writer import SEGMENT_ROWS, Beginning, Record, SegmentWriter
from stochcl.errors import FormatError, OutputError, UsageError
from stochcl.files import sync_folder, write_all
from stochcl.framing import crc
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import FileIO
    from types import TracebackType

    from stochcl.compress.header import Header
    from stochcl.entropy.model import EntropyModel
    from stochcl.entropy.tables import Tables


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


class Journal:
    """A file of JSON lines: the facts of the run, then a record for every segment, each with its checksum.

    A record is written, and forced to disk, only after its segment has been. So whatever was interrupted, a
    segment that the journal has is whole; a last line that is torn is as if it had never been written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def start(self, facts: dict[str, Any]) -> None:
        """Begin a new journal."""
        self._file = self.path.open("wb", buffering=0)
        self._write({"facts": facts})

    def append(self, record: Record) -> None:
        """Add a segment."""
        self._write(asdict(record))

    def read(self) -> tuple[dict[str, Any], list[Record]]:
        """Return the facts and records of an existing journal, up to the first line that is torn, and go on there."""
        data = self.path.read_bytes()
        values: list[Any] = []
        end = 0
        for line in data.splitlines(keepends=True):
            value = _parse(line)
            if value is None:
                break
            values.append(value)
            end += len(line)
        if not values or "facts" not in values[0]:
            msg = "the journal is damaged"
            raise ValueError(msg)
        records = [
            Record(**(value | {"skipped": [(name, reason) for name, reason in value["skipped"]]}))
            for value in values[1:]
        ]
        self._file = self.path.open("r+b", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)
        return values[0]["facts"], records

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is None:
            msg = "the journal is not open"
            raise ValueError(msg)
        # ASCII JSON keeps undecodable bytes of names: lone surrogates are written as escapes.
        text = json.dumps(value, sort_keys=True).encode("ascii")
        end = self._file.tell()
        try:
            write_all(self._file, b"%08x %s\n" % (crc(text), text))
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):  # a line that is torn would end the journal for those after it
                self._file.truncate(end)
                self._file.seek(end)
            raise

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> Any:
    """Return the value of one line, or None if it is torn."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc(text):
        return None
    return json.loads(text)


_FACTS = {
    "header": "model, --precision, --latents, --fit or --uncertainty",
    "names": "choice of --no-names",
    "strict": "choice of --strict",
    "device": "--device",
    "source": "source (images were added, removed or changed)",
    "segment_rows": "size of segments",
}
"""What the journal keeps of a run, as a person knows it."""


class Writer(SegmentWriter):
    """Writes an archive row after row; use it in a ``with`` statement.

    The bytes go to ``path`` + ``.partial``, a journal to ``path`` + ``.partial.journal``. When the block ends
    well, the partial file is completed and renamed; so ``path`` is complete or not there. When it ends by an
    exception, segments that are on disk stay for ``resume``; without any, nothing stays. The same rows give
    the same bytes, whether the writing was interrupted or not.

    Parameters
    ----------
    path : path-like
        The archive.
    header : Header
    tables : Tables
        Those that ``header.tables_sha256`` names.
    embed_tables : bool
        Whether the tables go into the archive, which must otherwise find them in the package.
    fitted : sequence of IndependentModel or AutoregressiveModel
        Models of the archive's own latents that are to be stored in it, for all its segments to choose from.
    names, uncertainty : bool
        Whether to store the rows' names, and their uncertainty, where they have them; the latter as the header's
        version has it.
    force : bool
        Replace an existing archive or partial file.
    resume : bool
        Go on with an existing partial file; ``position`` says where. Without one, begin.
    facts : dict
        JSON values that must be the same for a partial file to be continued: source listing, options.
    segment_rows : int
        Rows of a segment.

    Attributes
    ----------
    position : int
        Where in the source to begin: 0, or after a resumption where the last segment ended.
    skipped : list of (name, reason)
        All images that could not be read.

    Raises
    ------
    UsageError
        If there is an output or a partial file already, or one that belongs to another run.
    OutputError
        If the disk is full, the folder missing, or writing not allowed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Header,
        tables: Tables,
        *,
        embed_tables: bool,
        fitted: Sequence[EntropyModel] = (),
        names: bool = True,
        uncertainty: bool = True,
        force: bool = False,
        resume: bool = False,
        facts: dict[str, Any] | None = None,
        segment_rows: int = SEGMENT_ROWS,
    ) -> None:
        self._beginning = begin = Beginning(header, tables, embed=embed_tables, fitted=fitted)
        self._start_bytes = begin.data
        super().__init__(
            header, begin.candidates, names=names, uncertainty=uncertainty, segment_rows=segment_rows,
            start=len(self._start_bytes),
        )  # fmt: skip
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._journal = Journal(self.path.with_name(self.path.name + ".partial.journal"))
        facts = {"header": crc(self._start_bytes), "names": names, "segment_rows": segment_rows} | (facts or {})
        self._facts: dict[str, Any] = json.loads(json.dumps(facts))  # as the journal will give them back
        self._begin(force=force, resume=resume)

    # The state of a run

    def _begin(self, *, force: bool, resume: bool) -> None:
        try:
            there = self._look(force=force, resume=resume)
            if resume and there and not self._only_begun():
                self._resume()
                return
        except OSError as exc:
            self.close()  # what an earlier run left is not ours to delete
            raise self._unwritable(exc) from exc
        try:
            self._file = self.partial.open("w+b", buffering=0)
            write_all(self._file, self._start_bytes)
            self._journal.start(self._facts)
        except OSError as exc:
            self._abandon()
            raise self._unwritable(exc) from exc

    def _look(self, *, force: bool, resume: bool) -> bool:
        """Refuse to replace what is there unasked; tell whether there is a partial file."""
        shown = escape_name(self.path)
        if self.path.exists() and not self.path.is_file():  # --force must not put a file in the place of /dev/null
            what = "a folder" if self.path.is_dir() else "a device or pipe"
            raise UsageError(f"{shown}: this is {what}; name the file to write.")
        if self.path.exists() and not force:
            raise UsageError(f"{shown}: this file exists already; pass --force to replace it.")
        there = self.partial.exists()
        if there and not (force or resume):
            msg = (
                f"{escape_name(self.partial)}: an interrupted run left this; pass --resume to go on with it, or "
                "--force to start anew."
            )
            raise UsageError(msg)
        return there

    def _only_begun(self) -> bool:
        """Tell whether a run ended before it had written down what it was about: it has no segment to go on with."""
        if self.partial.stat().st_size > len(self._start_bytes):
            return False
        return not self._journal.path.exists() or b"\n" not in self._journal.path.read_bytes()

    def _resume(self) -> None:
        shown = escape_name(self.partial)
        try:
            facts, records = self._journal.read()
        except (OSError, ValueError, KeyError, TypeError) as exc:
            self._journal.close()
            raise UsageError(
                f"{shown}: its journal cannot be read ({exc}); pass --force in place of --resume."
            ) from exc
        asked = self._facts
        if differing := sorted(k for k in facts.keys() | asked.keys() if facts.get(k) != asked.get(k)):
            self._journal.close()
            said = " and another ".join(_FACTS.get(name, name) for name in differing)
            msg = (
                f"{shown}: this was begun with another {said}; repeat the command that began it, or pass --force in "
                "place of --resume to start anew."
            )
            raise UsageError(msg)
        self._file = self.partial.open("r+b", buffering=0)
        try:
            self._replay(records)
        except FormatError as exc:
            self.close()
            raise UsageError(f"{shown}: it is damaged ({exc}); pass --force in place of --resume.") from exc

    def _replay(self, records: list[Record]) -> None:
        """Take over the segments that the journal has, and cut off what follows them."""
        file = self._opened()
        if self._read(file, len(self._start_bytes)) != self._start_bytes:
            raise FormatError("its beginning is not what this run would write")
        end = len(self._start_bytes)
        for record in records:
            chunk = self._read(file, record.end - end)
            if crc(chunk) != record.crc:
                raise FormatError(f"the segment at byte {end:,} is not what the journal says")
            self._segments.append((end, read_head(chunk, self._width, self.header.version)))
            self._source_bytes += record.source_bytes
            self.skipped += record.skipped
            self.position, end = record.position, record.end
        if self._segments:
            self._has = tuple(part.size > 0 for part in self._segments[-1][1].parts[1:])
        file.truncate(end)

    @staticmethod
    def _read(file: FileIO, size: int) -> bytes:
        """Read so many bytes, or fewer where the file ends; one call may give less."""
        parts = []
        while size > 0 and (data := file.read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _unwritable(self, exc: OSError) -> OutputError:
        reason = (exc.strerror or str(exc)).lower()
        kept = f" What was done is kept in {escape_name(self.partial)}: make room and pass --resume."
        return OutputError(
            f"{escape_name(self.path)}: it cannot be written: {reason}.{kept if self._segments else ''}"
        )

    def _store(self, start: int, chunk: bytes, record: Record) -> None:
        """Write a segment, and then say so in the journal."""
        file = self._opened()
        try:
            file.seek(start)
            write_all(file, chunk)
            os.fsync(file.fileno())
            self._journal.append(record)
        except OSError as exc:
            raise self._unwritable(exc) from exc

    # The end

    def finish(self) -> None:
        """Write what is waiting, the index and the trailer, and give the archive its name.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        self._flush_all()
        file, start = self._opened(), self._end
        try:
            file.seek(start)
            write_all(file, self._beginning.index(self, start).to_bytes())
            file.truncate()
            os.fsync(file.fileno())
            file.close()
            self._file = None
            self.partial.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as exc:
            raise self._unwritable(exc) from exc
        self._journal.remove()

    def close(self) -> None:
        """Leave the partial file and its journal as they are."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._journal.close()

    def _abandon(self) -> None:
        """Leave nothing behind, unless a segment is on disk."""
        self.close()
        if not self._segments:
            self.discard()

    def discard(self) -> None:
        """Close and delete the partial file and its journal: what is in them is of no use."""
        self.close()
        with suppress(OSError):  # an error that led here is the one to tell
            self.partial.unlink(missing_ok=True)
            self._journal.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        if self._file is None:  # finished or closed already
            return
        try:
            self.finish()
        except BaseException:
            self._abandon()
            raise
