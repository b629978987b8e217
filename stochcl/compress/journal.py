"""The journal beside a partial archive: what was asked for, and each segment that is safely on disk."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from stochcl.atomic import write_all
from stochcl.compress.framing import crc

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path


@dataclass(frozen=True)
class Record:
    """One segment that is on disk.

    Parameters
    ----------
    end : int
        Bytes of the partial file up to and with it.
    crc : int
        CRC-32 of its chunk.
    rows : int
        Rows in it.
    position : int
        Where in the source its last row's successor stands.
    source_bytes : int
        Bytes of its rows' images in the source.
    skipped : list of (name, reason)
        Images before ``position`` that could not be read, since the record before.
    """

    end: int
    crc: int
    rows: int
    position: int
    source_bytes: int
    skipped: list[tuple[str, str]] = field(default_factory=list)


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
        """Return the facts and records of an existing journal, up to the first line that is torn, and go on there.

        Raises
        ------
        ValueError
            If not even the facts can be read.
        OSError
            If there is no journal.
        """
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
