"""Write an archive to a partial file with a journal, which becomes the archive by rename."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stochcl.codes import Codes
from stochcl.compress.journal import Journal, Record
from stochcl.compress.segment import SegmentHead, decode_segment, read_head, write_segment
from stochcl.compress.segment_writer import SEGMENT_ROWS, Preamble, SegmentWriter
from stochcl.errors import FormatError, OutputExists, SourceError, StochclError, UsageError
from stochcl.files import ROOM, PathLike, WriteLock, check_output, read_all, rename, target_of, write_all, writing
from stochcl.framing import crc
from stochcl.messages import escape_name, os_reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stochcl.compress.header import Header
    from stochcl.entropy.model import EntropyModel
    from stochcl.entropy.tables import Tables


_FACTS = {
    "header": "model, --precision, --latents, --size, --fit or version of stochcl",
    "names": "choice of --no-names",
    "uncertainty": "choice of --uncertainty",
    "strict": "choice of --strict",
    "device": "--device",
    "source": "source (images were added, removed or changed)",
    "label_level": "--label-level",
    "segment_rows": "size of segments",
}
"""The journal's facts about a run, in a user's words."""


class JournaledWriter(SegmentWriter):
    """A segment writer that puts each full segment on disk and into a journal.

    After any interruption, another writer continues after the last intact segment: :meth:`_replay`.
    """

    path: Path
    _journal: Journal
    _lock: WriteLock | None = None
    _kept = False
    """Whether waiting rows were put on disk."""

    def _writing(self) -> AbstractContextManager[None]:
        """Turn an OSError into an OutputError."""
        return writing(self.path)

    def _store(self, start: int, chunk: bytes, record: Record) -> None:
        """Write a segment, then its record in the journal."""
        file = self._opened()
        with self._writing():
            file.seek(start)
            write_all(file, chunk)
            os.fsync(file.fileno())
            self._journal.append(record)

    def keep(self) -> None:
        """Write the waiting rows to disk, where a resumed run takes them back.

        The journal says what is stored, because an interruption may come before this object knows it.
        """
        if self._file is None or not self._places:
            return
        with self._writing():
            records = self._journal.read().records if self._journal.path.exists() else []
        records = [record for record in records if record.waiting is None]
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
        """Take over the journal's segments up to the first damaged one; return their records."""
        file, end, sound = self._opened(), self._start, list[Record]()
        for record in records:
            if record.waiting is not None and record is not records[-1]:
                continue  # later segments replace it
            file.seek(end)
            chunk = read_all(file, record.end - end)
            try:
                if len(chunk) != record.end - end or crc(chunk) != record.crc:
                    break
                head = read_head(chunk, self._width, self.header.version)
                if record.waiting is None:
                    self._take_over(head, chunk, record)
                    end = record.end
                else:
                    self._take_back(head, chunk, record)
            except FormatError:
                break
            sound.append(record)
        file.truncate(max([end, *(record.end for record in sound)]))
        if self.segments:
            self.has = tuple(part.size > 0 for part in self.segments[-1][1].parts[1:])
        return sound

    def _take_over(self, head: SegmentHead, chunk: bytes, record: Record) -> None:
        """Count a segment that an earlier run wrote."""
        self.segments.append((record.end - len(chunk), head))
        self.source_bytes += record.source_bytes
        self.skipped += record.skipped
        self.position = record.position

    def _take_back(self, head: SegmentHead, chunk: bytes, record: Record) -> None:
        """Restore rows that were waiting when an earlier run was interrupted."""
        waiting = record.waiting or {}
        codes = decode_segment(chunk, head, self.header, self._candidates)
        uncertainty = waiting["uncertainty"]
        codes = replace(codes, uncertainty=None if uncertainty is None else np.array(uncertainty, np.float32))
        self._pending = [codes]
        self._places = [(at, size) for at, size in waiting["places"]]
        self._new_skips = [(at, name, reason) for at, name, reason in waiting["skips"]]
        self.has = codes.names is not None, codes.labels is not None, uncertainty is not None
        self.position, self._kept = record.position, True

    @abstractmethod
    def finish(self) -> None:
        """Write the waiting rows, and complete the archive."""

    @abstractmethod
    def _leave(self, kind: type[BaseException]) -> None:
        """Close after an exception."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            self._leave(kind)
        elif self._file is not None:  # neither finished nor closed
            try:
                self.finish()
            except BaseException as error:
                self._leave(type(error))
                raise

    def close(self) -> None:
        """Leave the file and its journal as they are."""
        self._close_files()
        self._release()

    def _close_files(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._journal.close()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class Writer(JournaledWriter):
    """Writes an archive row after row; use it in a ``with`` statement.

    The bytes go to ``path`` + ``.partial``, a journal to ``path`` + ``.partial.journal``. When the block ends
    normally, the partial file is completed and renamed, so ``path`` is complete or absent. When it ends by an
    exception, segments on disk stay for ``resume``; if there are none, nothing stays. An interruption or a failing
    source also keeps the rows that wait for a full segment. The same rows give the same bytes, interrupted or not.

    Parameters
    ----------
    path : path-like
        The archive.
    header : Header
    tables : Tables
        Named by ``header.tables_sha256``.
    embed_tables : bool
        Whether to put the decoder into the archive; otherwise readers need it from the package.
    fitted : sequence of IndependentModel or AutoregressiveModel
        Entropy models fitted to these codes, to store in the archive for all segments.
    names, uncertainty : bool
        Whether to store the rows' names and uncertainty, if they have them.
    force : bool
        Replace an existing archive or partial file.
    resume : bool
        Continue an existing partial file; ``position`` says where. Without one, start.
    facts : dict
        JSON values that must match to continue a partial file: source listing, options.
    segment_rows : int
        Rows per segment.

    Attributes
    ----------
    position : int
        Position in the source to start from: 0, or the end of a resumed run's last segment.
    skipped : list of (name, reason)
        All images that could not be read.

    Raises
    ------
    UsageError
        If there is already an output or partial file, or one of another run.
    OutputError
        If the disk is full, the folder missing, or writing not allowed; or if another writer holds the path.
    """

    def __init__(
        self, path: PathLike, header: Header, tables: Tables, *, embed_tables: bool,
        fitted: Sequence[EntropyModel] = (), names: bool = True, uncertainty: bool = True, force: bool = False,
        resume: bool = False, facts: dict[str, Any] | None = None, segment_rows: int = SEGMENT_ROWS,
    ) -> None:  # fmt: skip
        self._preamble = preamble = Preamble(header, tables, embed=embed_tables, fitted=fitted)
        super().__init__(
            header, preamble.candidates, names=names, uncertainty=uncertainty, segment_rows=segment_rows,
            start=len(self._preamble.data),
        )  # fmt: skip
        self.path = target_of(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._journal = Journal(self.path.with_name(self.path.name + ".partial.journal"))
        own = {
            "header": crc(preamble.data), "names": names, "uncertainty": uncertainty, "segment_rows": segment_rows
        }  # fmt: skip
        self._facts: dict[str, Any] = json.loads(json.dumps(own | (facts or {})))  # as the journal returns them
        self._begin(force=force, resume=resume)

    # The state of a run

    def _begin(self, *, force: bool, resume: bool) -> None:
        try:
            with self._writing():
                check_output(self.path, None, force=force)
                self._lock = WriteLock(self.path, escape_name(self.path))
                check_output(self.path, None, force=force)  # again: the previous holder may have put a file there
                there = self.partial.exists()
                if there and not (force or resume):
                    raise OutputExists(
                        f"{escape_name(self.partial)}: an interrupted run left this; pass --resume to continue it, "
                        "or --force to start over."
                    )
                if resume and there and not self._only_begun():
                    self._resume()
                    return
        except BaseException:
            self.close()  # keep what an earlier run left
            raise
        try:
            with self._writing():
                self._file = self.partial.open("w+b", buffering=0)
                write_all(self._file, self._preamble.data)
                self._journal.start(self._facts)
        except BaseException:
            self._abandon()
            raise

    def _only_begun(self) -> bool:
        """Return whether a run ended before its journal had any facts, so that there is no segment to continue."""
        if self.partial.stat().st_size > len(self._preamble.data):
            return False
        return not self._journal.path.exists() or b"\n" not in self._journal.path.read_bytes()

    def _resume(self) -> None:
        shown = escape_name(self.partial)
        try:
            found = self._journal.read()
        except OSError as exc:
            msg = f"{shown}: its journal cannot be read ({os_reason(exc)}); pass --force in place of --resume."
            raise UsageError(msg) from exc
        if not found.is_of(self._facts):
            raise UsageError(f"{shown}: {self._differences(found.facts)}")
        self._file = self.partial.open("r+b", buffering=0)
        if read_all(self._file, len(self._preamble.data)) != self._preamble.data:  # damaged, because the facts match
            self._file.seek(0)
            write_all(self._file, self._preamble.data)
        self._journal.start(self._facts, self._replay(found.records))

    def _differences(self, facts: dict[str, Any] | None) -> str:
        """Describe how a journal's facts differ from this run's."""
        if facts is None:
            return "its journal is damaged, or another run's; pass --force in place of --resume to start over."
        asked = self._facts
        differing = sorted(name for name in facts.keys() | asked.keys() if facts.get(name) != asked.get(name))
        said = " and another ".join(_FACTS.get(name, name) for name in differing)
        return (
            f"this was begun with another {said}; repeat the command that began it, or pass --force in place of "
            "--resume to start over."
        )

    def _writing(self) -> AbstractContextManager[None]:
        kept = f". What was done is kept in {escape_name(self.partial)}: {ROOM}pass --resume"
        return writing(self.path, advice=kept if self.segments or self._kept else "")

    # The end

    def finish(self) -> None:
        """Write the waiting rows, the index and the trailer, and rename the archive into place.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        self._flush_all()
        file, start = self._opened(), self._end
        with self._writing():
            file.seek(start)
            write_all(file, self._preamble.index(self, start).to_bytes())
            file.truncate()
            os.fsync(file.fileno())
            file.close()
            self._file = None
            rename(self.partial, self.path)
        self._journal.remove()
        self._release()

    def _abandon(self) -> None:
        """Close, and delete the partial file unless it has rows."""
        if self.segments or self._kept:
            self.close()
        else:
            self.discard()

    def discard(self) -> None:
        """Close and delete the partial file and its journal."""
        self._close_files()
        if self._lock is not None:  # otherwise they may be another writer's
            with suppress(OSError):  # report the original error
                self.partial.unlink(missing_ok=True)
                self._journal.remove()
        self._release()

    def _leave(self, kind: type[BaseException]) -> None:
        """Close after an exception; an interruption or a failing source keeps all rows."""
        try:
            if issubclass(kind, KeyboardInterrupt | SourceError):
                with suppress(StochclError, OSError):  # report the original error
                    self.keep()
        finally:
            self._abandon()
