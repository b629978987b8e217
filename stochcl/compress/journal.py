"""The journal beside a file that is being written: which of its segments are on the disk."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from stochcl.files import write_all
from stochcl.framing import crc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import FileIO
    from pathlib import Path


@dataclass(frozen=True)
class Record:
    """One segment that is on disk.

    ``end`` is where it ends in the file and ``crc`` that of its chunk; ``position`` is where its source goes on;
    ``skipped`` are the images that could not be read since the record before. ``waiting`` marks rows that waited
    for a full segment when the run was interrupted (their ``places``, ``skips``, ``uncertainty``): they are no
    segment of the archive, a resumption takes them back, and any later record makes this one void.
    """

    end: int
    crc: int
    rows: int
    position: int
    source_bytes: int
    skipped: list[tuple[str, str]] = field(default_factory=list)
    waiting: dict[str, Any] | None = None


@dataclass(frozen=True)
class JournalContent:
    """What a journal says: the facts of the run, their CRC-32, and the records up to the first torn line."""

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
        self._write({key: value for key, value in asdict(record).items() if value is not None} | {"run": self._run})

    def read(self) -> JournalContent:
        """Read an existing journal."""
        facts, run, records = None, None, []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")):
            value = _parse(line)
            if number == 0:
                if isinstance(value, dict) and isinstance(value.get("facts"), dict):
                    facts, run = value["facts"], _run_of(value["facts"])
                continue
            record = _record(value, run)
            if record is None:
                break
            run = value["run"]
            records.append(record)
        return JournalContent(facts, run, records)

    def _write(self, value: dict[str, Any]) -> None:
        if self._file is None:
            raise ValueError("the journal is not open")
        end = self._file.tell()
        try:
            text = _text(value)
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
        self._new.unlink(missing_ok=True)


def _text(value: Any) -> bytes:
    # ASCII JSON keeps undecodable bytes of names: lone surrogates are written as escapes.
    return json.dumps(value, sort_keys=True).encode("ascii")


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
    checksum, _, text = line.partition(b" ")
    return json.loads(text) if checksum == b"%08x" % crc(text) else None


def rows_kept(path: Path) -> int:
    """Return how many rows the journal at a path says are on the disk, 0 where there is none."""
    try:
        return Journal(path).read().rows
    except OSError:
        return 0


def append_journal(path: Path) -> Journal:
    """Return the journal of an append to the archive at a path."""
    return Journal(path.with_name(path.name + ".append.journal"))
