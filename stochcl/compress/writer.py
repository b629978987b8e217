"""Writing an archive: to a partial file with a journal, which becomes the archive by rename."""

from __future__ import annotations

import io
import json
import os
import stat
from abc import abstractmethod
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

import numpy as np

from stochcl.codes import Codes
from stochcl.compress.segment import decode_segment, read_head, write_segment
from stochcl.compress.segment_writer import SEGMENT_ROWS, Beginning, Record, SegmentWriter
from stochcl.errors import FormatError, OutputError, SourceError, StochclError, UsageError
from stochcl.files import WriteLock, lock, sync_folder, write_all
from stochcl.framing import crc
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import FileIO
    from types import TracebackType

    from stochcl.compress.header import Header
    from stochcl.compress.segment import SegmentHead
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
        If it cannot be written, or is a file that another process writes an archive to. A reader that has
        gone is BrokenPipeError.
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
        _take(file)
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


def _take(file: IO[bytes]) -> None:
    """Refuse a file that another process writes to; the lock goes when all that have it open have closed it."""
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError):  # it is in memory, say
        return
    if stat.S_ISREG(status.st_mode) and not lock(file):
        msg = "another process is writing an archive to this file; wait until that has finished, or give another."
        raise OutputError(msg)


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


@dataclass(frozen=True)
class Story:
    """What a journal tells.

    Parameters
    ----------
    facts : dict or None
        None where that line is torn.
    run : int or None
        CRC-32 of the facts, which every record repeats; None where nothing is left.
    records : list of Record
        Up to the first line that is torn.
    """

    facts: dict[str, Any] | None
    run: int | None
    records: list[Record]

    def is_of(self, facts: dict[str, Any]) -> bool:
        """Tell whether this is the journal of a run of these facts."""
        return self.run == _run_of(facts)

    @property
    def rows(self) -> int:
        """Rows that a resumption need not do again."""
        return sum(r.rows for i, r in enumerate(self.records) if r.waiting is None or i == len(self.records) - 1)


class Journal:
    """A file of JSON lines: the facts of the run, then a record for every segment, each with its checksum.

    A record is written, and forced to disk, only after its segment has been. So whatever was interrupted, a
    segment that the journal has is whole. A line that is torn ends it, but for the first: the others repeat its
    checksum.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._run = 0

    def start(self, facts: dict[str, Any], records: Sequence[Record] = ()) -> None:
        """Begin a journal, or begin one anew with the records that it keeps."""
        self._run = _run_of(facts)
        path = self._new if records else self.path  # what is there stays until all that is kept is on the disk
        self._file = path.open("wb", buffering=0)
        self._write({"facts": facts})
        for record in records:
            self.append(record)
        if records:
            path.replace(self.path)

    @property
    def _new(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def append(self, record: Record) -> None:
        """Add a segment."""
        self._write(self._value(record))

    def _value(self, record: Record) -> dict[str, Any]:
        return {key: value for key, value in asdict(record).items() if value is not None} | {"run": self._run}

    def read(self) -> Story:
        """Return what an existing journal tells."""
        facts, run, records = None, None, []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")):
            value = _parse(line + b"\n")
            if number == 0:
                if isinstance(value, dict) and isinstance(value.get("facts"), dict):
                    facts, run = value["facts"], _run_of(value["facts"])
                continue
            record = _record(value, run)
            if record is None:
                break
            run = value["run"]
            records.append(record)
        return Story(facts, run, records)

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is None:
            msg = "the journal is not open"
            raise ValueError(msg)
        end = self._file.tell()
        try:
            write_all(self._file, _line(value))
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
        self._new.unlink(missing_ok=True)


def _text(value: Any) -> bytes:
    # ASCII JSON keeps undecodable bytes of names: lone surrogates are written as escapes.
    return json.dumps(value, sort_keys=True).encode("ascii")


def _line(value: Any) -> bytes:
    text = _text(value)
    return b"%08x %s\n" % (crc(text), text)


def _run_of(facts: dict[str, Any]) -> int:
    return crc(_text(facts))


def _record(value: Any, run: int | None) -> Record | None:
    """Return the record of a line, or None if it is torn, or another run's."""
    if not isinstance(value, dict) or "end" not in value or run not in (None, value.get("run")):
        return None
    fields = {key: value[key] for key in value if key != "run"}
    return Record(**fields | {"skipped": [(name, reason) for name, reason in value["skipped"]]})


def _parse(line: bytes) -> Any:
    """Return the value of one line, or None if it is torn."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc(text):
        return None
    return json.loads(text)


def rows_kept(path: Path) -> int:
    """Return how many rows the journal at a path says are on the disk, 0 where there is none."""
    try:
        return Journal(path).read().rows
    except OSError:
        return 0


def append_journal(path: Path) -> Journal:
    """Return the journal of an append to the archive at a path."""
    return Journal(path.with_name(path.name + ".append.journal"))


_FACTS = {
    "header": "model, --precision, --latents, --fit or --uncertainty",
    "names": "choice of --no-names",
    "strict": "choice of --strict",
    "device": "--device",
    "source": "source (images were added, removed or changed)",
    "segment_rows": "size of segments",
}
"""What the journal keeps of a run, as a person knows it."""


class JournaledWriter(SegmentWriter):
    """A segment writer whose segments are on the disk, and in a journal, as soon as they are full.

    So whatever ends it, a second one goes on after the last segment that is sound: :meth:`_replay`.
    """

    _journal: Journal
    _lock: WriteLock | None = None
    _kept = False
    """Whether rows that waited for a full segment are on the disk."""

    @abstractmethod
    def _unwritable(self, exc: OSError) -> OutputError:
        """Return the error for a disk that fails."""

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

    def keep(self) -> None:
        """Put the rows that wait for a full segment onto the disk, where a resumption takes them back.

        What is stored already is asked of the journal: an interruption may come before this object knows it.
        """
        if self._file is None or not self._places:
            return
        try:
            records = [record for record in self._journal.read().records if record.waiting is None]
        except FileNotFoundError:  # nothing is stored
            records = []
        except OSError as exc:
            raise self._unwritable(exc) from exc
        end, position = (records[-1].end, records[-1].position) if records else (self._start, 0)
        codes, places = Codes.concatenate(self._pending)[: len(self._places)], self._places
        stored = sum(at < position for at, _ in places)
        codes, places = codes[stored:], places[stored:]
        if not places or len(codes) != len(places):
            return
        last = places[-1][0] + 1
        waiting = {
            "places": places,
            "skips": [(int(at), *skip) for at, *skip in self._new_skips if position <= at < last],
            "uncertainty": None if codes.uncertainty is None else codes.uncertainty.tolist(),
        }
        head, chunk = write_segment(codes, self._candidates, self.header.version)
        self._store(end, chunk, Record(end + len(chunk), crc(chunk), head.rows, last, 0, waiting=waiting))
        self._kept = True

    def _replay(self, records: Sequence[Record]) -> list[Record]:
        """Take over the segments that the journal has, up to the first that is not sound; return their records."""
        file, end, sound = self._opened(), self._start, list[Record]()
        for record in records:
            file.seek(end)
            chunk = self._read(file, record.end - end)
            try:
                if len(chunk) != record.end - end or crc(chunk) != record.crc:
                    break
                head = read_head(chunk, self._width, self.header.version)
                if record.waiting is None:
                    self._take_over(head, chunk, record)
                    end = record.end
                elif record is records[-1]:
                    self._take_back(head, chunk, record)
            except FormatError:
                break
            sound.append(record)
        file.truncate(max([end, *(record.end for record in sound)]))
        if self._segments:
            self._has = tuple(part.size > 0 for part in self._segments[-1][1].parts[1:])
        return sound

    def _take_over(self, head: SegmentHead, chunk: bytes, record: Record) -> None:
        """Count a segment that an earlier run has written."""
        self._segments.append((record.end - len(chunk), head))
        self._source_bytes += record.source_bytes
        self.skipped += record.skipped
        self.position = record.position

    def _take_back(self, head: SegmentHead, chunk: bytes, record: Record) -> None:
        """Let rows wait again that were waiting when an earlier run was interrupted."""
        waiting = record.waiting or {}
        codes = decode_segment(chunk, head, self.header, self._candidates)
        uncertainty = waiting["uncertainty"]
        codes = replace(codes, uncertainty=None if uncertainty is None else np.array(uncertainty, np.float32))
        self._pending = [codes]
        self._places = [(at, size) for at, size in waiting["places"]]
        self._new_skips = [(at, name, reason) for at, name, reason in waiting["skips"]]
        self._has = codes.names is not None, codes.labels is not None, uncertainty is not None
        self.position, self._kept = record.position, True

    @staticmethod
    def _read(file: FileIO, size: int) -> bytes:
        """Read so many bytes, or fewer where the file ends; one call may give less."""
        parts = []
        while size > 0 and (data := file.read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _close_files(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._journal.close()

    def _release(self) -> None:
        """Let others write to the path."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class Writer(JournaledWriter):
    """Writes an archive row after row; use it in a ``with`` statement.

    The bytes go to ``path`` + ``.partial``, a journal to ``path`` + ``.partial.journal``. When the block ends
    well, the partial file is completed and renamed; so ``path`` is complete or not there. When it ends by an
    exception, segments that are on disk stay for ``resume``; without any, nothing stays. An interruption, and a
    source that fails, also keep the rows that wait for a full segment. The same rows give the same bytes, whether the
    writing was interrupted or not.

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
        If the disk is full, the folder missing, or writing not allowed; or another writer is at work on the path.
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
            self._check_output(force=force)
            self._lock = WriteLock(self.path, escape_name(self.path))
            self._check_output(force=force)  # again: who had it until now may have put a file there
            there = self._look(force=force, resume=resume)
            if resume and there and not self._only_begun():
                self._resume()
                return
        except BaseException as exc:
            self.close()  # what an earlier run left is not ours to delete
            if isinstance(exc, OSError):
                raise self._unwritable(exc) from exc
            raise
        try:
            self._file = self.partial.open("w+b", buffering=0)
            write_all(self._file, self._start_bytes)
            self._journal.start(self._facts)
        except BaseException as exc:
            self._abandon()
            if isinstance(exc, OSError):
                raise self._unwritable(exc) from exc
            raise

    def _check_output(self, *, force: bool) -> None:
        """Refuse to replace what is there unasked."""
        shown = escape_name(self.path)
        if self.path.exists() and not self.path.is_file():  # --force must not put a file in the place of /dev/null
            what = "a folder" if self.path.is_dir() else "a device or pipe"
            raise UsageError(f"{shown}: this is {what}; name the file to write.")
        if self.path.exists() and not force:
            raise UsageError(f"{shown}: this file exists already; pass --force to replace it.")

    def _look(self, *, force: bool, resume: bool) -> bool:
        """Tell whether there is a partial file; refuse to replace it unasked."""
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
            story = self._journal.read()
        except OSError as exc:
            msg = f"{shown}: its journal cannot be read ({os_reason(exc)}); pass --force in place of --resume."
            raise UsageError(msg) from exc
        if not story.is_of(self._facts):
            raise UsageError(f"{shown}: {self._differing(story.facts)}")
        self._file = self.partial.open("r+b", buffering=0)
        if self._read(self._file, len(self._start_bytes)) != self._start_bytes:  # the facts say that it was the same
            self._file.seek(0)
            write_all(self._file, self._start_bytes)
        self._journal.start(self._facts, self._replay(story.records))

    def _differing(self, facts: dict[str, Any] | None) -> str:
        """Say how a journal's facts are others than this run's."""
        if facts is None:
            return "its journal is damaged, or another run's; pass --force in place of --resume to start anew."
        asked = self._facts
        differing = sorted(name for name in facts.keys() | asked.keys() if facts.get(name) != asked.get(name))
        said = " and another ".join(_FACTS.get(name, name) for name in differing)
        return (
            f"this was begun with another {said}; repeat the command that began it, or pass --force in place of "
            "--resume to start anew."
        )

    def _unwritable(self, exc: OSError) -> OutputError:
        reason = (exc.strerror or str(exc)).lower()
        kept = f" What was done is kept in {escape_name(self.partial)}: make room and pass --resume."
        return OutputError(
            f"{escape_name(self.path)}: it cannot be written: {reason}.{kept if self._segments or self._kept else ''}"
        )

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
        self._release()

    def close(self) -> None:
        """Leave the partial file and its journal as they are."""
        self._close_files()
        self._release()

    def _abandon(self) -> None:
        """Leave nothing behind, unless there are rows on the disk."""
        if self._segments or self._kept:
            self.close()
        else:
            self.discard()

    def discard(self) -> None:
        """Close and delete the partial file and its journal: what is in them is of no use."""
        self._close_files()
        if self._lock is not None:  # else they are another writer's by now
            with suppress(OSError):  # an error that led here is the one to tell
                self.partial.unlink(missing_ok=True)
                self._journal.remove()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._leave(kind)
            return
        if self._file is None:  # finished or closed already
            return
        try:
            self.finish()
        except BaseException as error:
            self._leave(type(error))
            raise

    def _leave(self, kind: type[BaseException]) -> None:
        """Close after an exception; an interruption, and a source that fails, keep all rows."""
        try:
            if issubclass(kind, KeyboardInterrupt | SourceError):
                with suppress(StochclError, OSError):  # what led here is what to tell
                    self.keep()
        finally:
            self._abandon()
