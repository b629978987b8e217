"""Reads what came of a case, under limits of time and memory, and says whether that may happen."""

from __future__ import annotations

import io
import os
import resource
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import stochcl.compress.segment
from stochcl.codes import symbol_dtype
from stochcl.compress import Archive
from stochcl.compress.salvage import salvage
from stochcl.entropy.tables import Tables
from stochcl.errors import FormatError
from stochcl.framing import check_crc
from tests.fuzz.bases import Base, content, large, make
from tests.fuzz.damage import damage
from tests.fuzz.forge import forge

if TYPE_CHECKING:
    from types import FrameType

SECONDS = 10.0
MEMORY = 50 << 20
_LARGE = 0.0005  # of the cases, each of which takes a tenth of a second
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SALVAGED = 0.004  # of the damaged archives are salvaged too, which needs files


class Hang(BaseException):
    """A case took too long."""


@dataclass
class Finding:
    """A case that breaks the contract."""

    case: int
    base: str
    done: str
    what: str
    where: str
    data: bytes = field(repr=False, default=b"")


class Judge:
    """Makes and reads the cases of one seed.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.bases = make()
        self.large = large()
        self.archives = [base for base in self.bases if not base.is_tables]
        self.known = {base.data: base for base in self.bases + self.large}
        self.outcomes: Counter[str] = Counter()
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)
        self._whole: dict[bytes, Tables] = {}
        self._patch()
        signal.signal(signal.SIGALRM, self._alarm)
        warnings.simplefilter("error")
        for base in self.archives + self.large[:1]:  # what is imported, made and allocated once is not a case's
            content(Archive(io.BytesIO(base.data), tables=base.outside))

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        raise Hang

    def _patch(self) -> None:
        """Parse tables that nobody changed only once, and let forgeries through whatever their rows sum to."""
        parse = Tables.from_bytes.__func__  # type: ignore[attr-defined]
        whole = self._whole
        sound = {base.tables.data for base in self.bases + self.large}

        def from_bytes(cls: type[Tables], data: bytes) -> Tables:
            if data in sound:
                if data not in whole:
                    whole[data] = parse(cls, data)
                return whole[data]
            return parse(cls, data)

        Tables.from_bytes = classmethod(from_bytes)  # type: ignore[method-assign, assignment]
        self.forging = False

        def check(expected: int, what: str, *parts: Any) -> None:
            if not (self.forging and what.startswith("what a block decodes to")):
                check_crc(expected, what, *parts)

        stochcl.compress.segment.check_crc = check  # type: ignore[attr-defined]

    def case(self, number: int) -> Finding | None:
        """Make and judge one case; the same number gives the same."""
        rng = Random(self.seed << 40 | number)
        base = rng.choice(self.large if rng.random() < _LARGE else self.bases)
        self.forging = rng.random() < 0.5
        if self.forging:
            done, data = forge(rng, base)
        else:
            done, data = damage(rng, base, self.bases)
        kind = "forged" if self.forging else "damaged"
        try:
            outcome = self._limited(rng, base, data)
        except BaseException as exc:
            if isinstance(exc, KeyboardInterrupt | SystemExit):
                raise
            self.outcomes[f"{kind}: finding"] += 1
            frames = traceback.extract_tb(exc.__traceback__)
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-6:]))
            return Finding(number, base.name, done, f"{type(exc).__name__}: {exc}"[:300], where, data)
        self.outcomes[f"{kind}: {outcome}"] += 1
        return None

    def _limited(self, rng: Random, base: Base, data: bytes) -> str:
        """Read a case within its time and memory."""
        files = 4 * (len(data) + sum(len(tables.data) for tables in base.outside))
        limits = resource.getrlimit(resource.RLIMIT_AS)
        now = int(os.pread(self._statm, 64, 0).split()[0]) * _PAGE
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY + files, limits[1]))
            if base.is_tables:
                return self._tables(base, data)
            try:
                archive = Archive(io.BytesIO(data), tables=base.outside)
            except FormatError as exc:
                return f"{type(exc).__name__} on opening"
            block = 4 * _largest_block(archive)
            resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY + files + block, limits[1]))
            outcome = self._read(rng, base, data, archive)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, limits)
        if rng.random() < _SALVAGED:
            self._salvage(base, data)
        return outcome

    def _tables(self, base: Base, data: bytes) -> str:
        try:
            tables = Tables.from_bytes(data)
        except FormatError as exc:
            return f"{type(exc).__name__} of tables"
        if self.forging:
            tables.candidates(tables.latents)
        elif data not in self.known:
            msg = "damage to tables was not noticed"
            raise AssertionError(msg)
        return "tables are read"

    def _read(self, rng: Random, base: Base, data: bytes, archive: Archive) -> str:
        """Read rows, and then verify."""
        data = data[: len(data) - archive.left_over]  # what follows is an append that was interrupted
        expected = self.known.get(data, base).content
        failed = None
        try:
            if len(archive) <= 4096:
                if self.forging:
                    codes = archive[:]
                    _ = tuple(codes.names or ()), tuple(codes.labels or ())
                elif content(archive) != expected:
                    msg = "other rows were read"
                    raise AssertionError(msg)
            if len(archive) and rng.random() < 0.05:
                row = rng.randrange(len(archive))
                codes = archive[row]
                if not self.forging and codes.packed.tobytes() != _row(expected, row, len(codes.packed[0])):
                    msg = "another row was read"
                    raise AssertionError(msg)
        except FormatError as exc:
            failed = f"{type(exc).__name__} on reading"
        try:
            archive.verify()
        except FormatError as exc:
            return failed or f"{type(exc).__name__} on verifying"
        if failed and not self.forging:
            msg = f"verify found nothing, but there was a {failed}"
            raise AssertionError(msg)
        if not self.forging and data not in self.known:
            msg = "damage was not noticed"
            raise AssertionError(msg)
        return failed or "read"

    def _salvage(self, base: Base, data: bytes) -> None:
        """Salvage what was damaged: rows of a base that has names must be its own."""
        with tempfile.TemporaryDirectory() as folder:
            path, out = Path(folder, "a"), Path(folder, "b")
            path.write_bytes(data)
            try:
                saved = salvage(path, out, tables=base.outside)
            except FormatError:
                return
            with Archive(out, tables=[base.tables]) as archive:
                try:
                    archive.verify()
                except FormatError:
                    if not saved.unchecked:
                        raise
                    return  # without tables, a foreign segment that was spliced in cannot be told from its own
                found = content(archive)
        sources = [other.content for other in self.archives if other.data[:200] == data[:200]]
        if not self.forging and sources and found[1] is not None:
            rows = {row for source in sources for row in _named(source)}
            if not rows.issuperset(_named(found)):
                msg = "salvage gave rows that were not there"
                raise AssertionError(msg)


def _row(expected: tuple, row: int, width: int) -> bytes:
    return expected[0][row * width : (row + 1) * width]


def _named(content: tuple) -> set[tuple[str, bytes]]:
    packed, names = content[:2]
    width = len(packed) // max(1, len(names or ()))
    return {(name, packed[i * width : (i + 1) * width]) for i, name in enumerate(names or ())}


def _largest_block(archive: Archive) -> int:
    """Bytes of the symbols of the largest block, and of the models that the archive holds for itself."""
    width = archive.header.latents * symbol_dtype(archive.header.alphabet)().itemsize
    return max((min(head.rows, head.rows_per_block) * width for _, head in archive._index.segments), default=0)
