"""The journal beside a partial file, which records the segments on disk."""

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
    """One segment on disk.

    ``end`` is its end in the file, ``crc`` the CRC-32 of its chunk, ``position`` where the source continues, and
    ``skipped`` the images that could not be read since the previous record. ``waiting`` marks rows that waited for a
    full segment when the run was interrupted (their ``places``, ``skips``, ``uncertainty``). They are no segment of
    the archive: a resumed run takes them back, and any later record replaces this one.
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
    """A parsed journal: the facts of the run, their CRC-32, and the records before the first torn line."""

    facts: dict[str, Any] | None
    run: int | None
    records: list[Record]

    def is_of(self, facts: dict[str, Any]) -> bool:
        """Return whether this is the journal of a run with these facts."""
        return self.run == _run_of(facts)

    @property
    def rows(self) -> int:
        """Rows that a resumed run need not repeat."""
        return sum(r.rows for i, r in enumerate(self.records) if r.waiting is None or i == len(self.records) - 1)


class Journal:
    """A file of JSON lines, each with a checksum: the facts of the run, then one record per segment.

    A record is written and synced only after its segment, so every segment in the journal is whole. A torn line ends
    the journal, except for the first, whose checksum the others repeat.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._run = 0

    def start(self, facts: dict[str, Any], records: Sequence[Record] = ()) -> None:
        """Start a journal, or rewrite one with the records that it keeps."""
        self._run = _run_of(facts)
        path = self._new if records else self.path  # keep the old journal until the new one is complete
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
        """Add a record."""
        self._write({key: value for key, value in asdict(record).items() if value is not None} | {"run": self._run})

    def read(self) -> JournalContent:
        """Parse the journal file."""
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
            with suppress(OSError):  # a torn line would hide the lines after it
                self._file.truncate(end)
                self._file.seek(end)
            raise

    def close(self) -> None:
        """Close the file and keep it."""
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
    """Return the record on a line, or None if it is torn or another run's."""
    if not isinstance(value, dict) or "end" not in value or run not in (None, value.get("run")):
        return None
    fields = {key: value[key] for key in value if key != "run"}
    return Record(**fields | {"skipped": [(name, reason) for name, reason in value["skipped"]]})


def _parse(line: bytes) -> Any:
    """Return the value on a line, or None if it is torn."""
    checksum, _, text = line.partition(b" ")
    return json.loads(text) if checksum == b"%08x" % crc(text) else None


def rows_kept(path: Path) -> int:
    """Return the number of rows on disk according to the journal at a path, 0 without one."""
    try:
        return Journal(path).read().rows
    except OSError:
        return 0


def append_journal(path: Path) -> Journal:
    """Return the journal for an append to the archive at a path."""
    return Journal(path.with_name(path.name + ".append.journal"))
