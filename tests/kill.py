"""Writers that are killed: ``python -m tests.kill --times N --seed S``.

Every round starts a process that compresses, appends, merges or transcodes, kills it (SIGKILL) at a random moment,
often several times, and looks at what is there: the output is absent, or the old one byte for byte, or complete;
what the journal says is finished can be salvaged from the partial file; the same command, resumed, gives byte for
byte what an undisturbed run gives. An archive that was appended to opens as the old one or complete, and the same
append goes on.

:mod:`tests.crash` makes writing slow and torn and kills once; this one takes it as fast as it is, kills again while
something is resumed, and also salvages and repairs what is left.

Most rounds fork a process that calls the functions, which takes milliseconds. One in ten runs the program itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.compress import Archive, Writer
from stochcl.compress.append import Appender, repair
from stochcl.compress.journal import _parse
from stochcl.compress.salvage import salvage
from stochcl.errors import FormatError
from tests.compress.making import make_chain, make_header, make_names, make_network, make_tables, write
from tests.making import SMALL_SEGMENTS, program, write_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from stochcl.codes import Codes

ROWS, SEGMENT, BATCH = 1500, 60, 50
OLD = b"what was there before"
_MOST_KILLS = 4
_PROGRAM = 0.1  # of the rounds
_SMALL = SMALL_SEGMENTS.format(rows=4) + (
    "; from stochcl.compress.append import Appender; Appender.__init__.__kwdefaults__['segment_rows'] = 4"
)


@dataclass
class Job:
    """Something that writes a file.

    Parameters
    ----------
    name : str
    start : callable
        ``start(path, again=..., force=...)`` starts a process that writes the file, and returns its number.
    expected : bytes
        What an undisturbed run writes.
    names : list of str
        Those of its rows, in order.
    seconds, writing : float
        How long an undisturbed run takes, and how long before its end there is something on the disk.
    before : bytes, optional
        What is appended to.
    """

    name: str
    start: Callable[..., int]
    expected: bytes = b""
    names: list[str] = field(default_factory=list)
    seconds: float = 0
    writing: float = 0
    before: bytes | None = None

    def measure(self, path: Path) -> None:
        """Run undisturbed."""
        if self.before is not None:
            path.write_bytes(self.before)
        began, first, size = time.monotonic(), None, self.size(path)
        child = self.start(path, again=False, force=False)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            first = first or (time.monotonic() if self.size(path) != size else None)
            time.sleep(0.0005)
        self.seconds = time.monotonic() - began
        self.writing = time.monotonic() - (first or began)
        self.expected = path.read_bytes()
        with Archive(path) as archive:
            archive.verify()
            self.names = list(archive.names or ())

    def size(self, path: Path) -> int:
        """Bytes of what is being written; -1 without any."""
        written = path if self.before is not None else path.with_name(path.name + ".partial")
        try:
            return written.stat().st_size
        except FileNotFoundError:
            return -1


def forked(do: Callable[..., None]) -> Callable[..., int]:
    """Make a start of a function: in a process of its own, which ends without a word."""

    def start(path: Path, **options: bool) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            do(path, **options)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    return start


def started(*arguments: Any, output: bool = True) -> Callable[..., int]:
    """Make a start of the program; ``{}`` stands for the file."""

    def start(path: Path, *, again: bool, force: bool) -> int:
        given = [path if argument == "{}" else argument for argument in arguments]
        if output:
            given += ["--resume"] * again + ["--force"] * force
        child = subprocess.Popen(program(*given, before=_SMALL), stdout=subprocess.DEVNULL)
        child.returncode = 0  # it is waited for by its number
        return child.pid

    return start


# What writes


def make_jobs(folder: Path, rng: random.Random) -> dict[str, Job]:
    """Return what is done by functions: compress, append, merge, transcode."""
    tables = make_tables(12, network=make_network(12))
    header = make_header(tables)
    codes = make_chain(ROWS, 12, names=make_names(ROWS))
    half = ROWS // 2
    whole = write(folder / "whole", codes, tables, segment_rows=SEGMENT)
    one = write(folder / "one", codes[:half], tables, segment_rows=SEGMENT)
    two = write(folder / "two", codes[half:], tables, segment_rows=SEGMENT)

    def add(writer: Writer | Appender, rows: Codes) -> None:
        for start in range(0, len(rows), BATCH):
            writer.add(rows[start : start + BATCH])

    def compress(path: Path, *, again: bool, force: bool) -> None:
        with Writer(
            path, header, tables, embed_tables=True, segment_rows=SEGMENT, resume=again, force=force
        ) as writer:
            add(writer, codes[writer.position :])

    def append(path: Path, *, again: bool, force: bool) -> None:
        with Appender(path, segment_rows=SEGMENT) as appender:
            appender.resume({})
            add(appender, codes[half + appender.position :])

    def merge(path: Path, *, again: bool, force: bool) -> None:
        from stochcl.api.archives import merge

        merge([one, two, one], path, resume=again, force=force)

    def transcode(path: Path, *, again: bool, force: bool) -> None:
        from stochcl.api.archives import transcode

        Writer.__init__.__kwdefaults__["segment_rows"] = SEGMENT
        transcode(whole, path, latents=7, resume=again, force=force)

    jobs = {do.__name__: Job(do.__name__, forked(do)) for do in (compress, append, merge, transcode)}
    jobs["append"].before = one.read_bytes()
    return jobs


def make_program_jobs(folder: Path) -> dict[str, Job]:
    """Return what the program does, with a tiny model."""
    images, more, model = write_images(folder / "images", 6), folder / "more", folder / "tiny.safetensors"
    write_images(more, 14)
    given = f"Path({str(model)!r}), Path({str(images)!r})"
    code = f"from tests.making import make_model; from pathlib import Path; make_model({given})"
    subprocess.run([sys.executable, "-c", code], check=True)
    first = folder / "first.bin"
    compress = ["-m", model, "--device", "cpu", "--workers", "1", "--batch-size", "4"]
    subprocess.run(program("compress", images, "-o", first, *compress, before=_SMALL), check=True, stdout=-3)
    jobs = {
        "compress": Job("compress, program", started("compress", more, "-o", "{}", *compress)),
        "append": Job("append, program", started("append", "{}", more, *compress, output=False)),
        "merge": Job("merge, program", started("merge", first, first, "-o", "{}")),
        "transcode": Job("transcode, program", started("transcode", first, "-o", "{}", "--latents", "16")),
    }
    jobs["append"].before = first.read_bytes()
    return jobs


# Killing


class Broken(Exception):
    """What must not be after a kill."""


def kill(job: Job, path: Path, rng: random.Random, **options: bool) -> bool:
    """Start, kill at a random moment, and tell whether it came before the end."""
    size = job.size(path)
    child = job.start(path, **options)
    end = time.monotonic() + job.seconds * 3 + 1
    if rng.random() < 0.25:
        time.sleep(rng.random() * job.seconds)
    else:  # when something is being written
        while job.size(path) == size and time.monotonic() < end:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return False
            time.sleep(0.0002)
        time.sleep(rng.random() ** 2 * job.writing)  # the end of a program is its longest part
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        raise Broken(f"the process failed with {os.waitstatus_to_exitcode(status)}")
    return os.WIFSIGNALED(status)


def finish(job: Job, path: Path, **options: bool) -> None:
    """Start and wait for the end."""
    _, status = os.waitpid(job.start(path, **options), 0)
    if code := os.waitstatus_to_exitcode(status):
        raise Broken(f"the process failed with {code}")


def round_of(job: Job, folder: Path, rng: random.Random) -> list[str]:
    """Kill a job some times, look each time at what is there, and finish it; return what was found."""
    path = folder / "out.bin"
    found = []
    old = job.before if job.before is not None else OLD if rng.random() < 0.5 else None
    if old is not None:
        path.write_bytes(old)
    look = look_at_append if job.before is not None else look_at_output
    for _ in range(rng.randint(1, _MOST_KILLS)):
        partial = path.with_name("out.bin.partial").exists()
        killed = kill(job, path, rng, again=partial, force=old is not None)
        state = look(job, path, old, folder)
        found.append(f"{state}, {'killed' if killed else 'ended'}")
        if state == "complete":
            break
    else:
        partial = path.with_name("out.bin.partial").exists()
        finish(job, path, again=partial, force=old is not None)
    if path.read_bytes() != job.expected:
        raise Broken("what was resumed is not what an undisturbed run writes")
    left = sorted(p.name for p in folder.iterdir() if p.name != "out.bin")
    if set(left) - {
        "out.bin.partial.journal",
        "out.bin.append.journal",
        "out.bin.lock",
    }:  # whose partial file was renamed just before
        raise Broken(f"{left} were left behind")
    return found


def look_at_output(job: Job, path: Path, old: bytes | None, folder: Path) -> str:
    """Check the output and the partial file of what was killed."""
    partial = path.with_name(path.name + ".partial")
    journal = path.with_name(partial.name + ".journal")
    there = path.read_bytes() if path.exists() else None
    if there == job.expected:
        if partial.exists():
            raise Broken("the output is complete, and there is a partial file")
        return "complete"
    if there != old:
        raise Broken(f"the output is neither absent nor old nor complete: {len(there or b'')} bytes")
    if not partial.exists():
        return "nothing"
    values = [_parse(line) for line in journal.read_bytes().splitlines()] if journal.exists() else []
    rows = sum(value.get("rows", 0) for value in values if value)
    saved = rows_saved(job, partial, folder)
    if saved < rows:
        raise Broken(f"{saved} rows were salvaged, and {rows} are in the journal")
    return "partial" if rows else "begun"


def look_at_append(job: Job, path: Path, old: bytes | None, folder: Path) -> str:
    """Check an archive whose append was killed: it opens as it was, and so it is when it is repaired."""
    there = path.read_bytes()
    if there == job.expected:
        return "complete"
    if there == old:
        return "nothing"
    with Archive(path) as archive:
        archive.verify()
        if not archive.left_over or there[: archive.size] != old:
            raise Broken("the archive is neither the old one nor complete")
    with tempfile.TemporaryDirectory() as apart:
        copy = shutil.copy(path, apart)
        repair(copy)
        if Path(copy).read_bytes() != old:
            raise Broken("what was repaired is not the old archive")
    before = len(names_of(old or b"", folder))
    if rows_saved(job, path, folder) < before:
        raise Broken("not all of the old rows could be salvaged")
    return "interrupted"


def names_of(data: bytes, folder: Path) -> list[str]:
    path = folder / "look.bin"
    path.write_bytes(data)
    with Archive(path) as archive:
        found = list(archive.names or ())
    path.unlink()
    return found


def rows_saved(job: Job, path: Path, folder: Path) -> int:
    """Salvage a file and check that what comes of it is the beginning of the whole; return how many rows it has."""
    out = folder / "saved.bin"
    try:
        salvage(path, out)
    except FormatError:
        return 0
    with Archive(out) as archive:
        archive.verify()
        found = list(archive.names or ())
    out.unlink()
    if found != job.names[: len(found)]:
        raise Broken("what was salvaged is not the beginning of the whole")
    return len(found)


# The command


def run(times: int, seed: int, *, programs: bool = True) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Do all rounds; return what was found how often, and what broke."""
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    broken: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        (folder / "made").mkdir()
        jobs = make_jobs(folder / "made", rng)
        by_program = make_program_jobs(folder / "made") if programs else {}
        for number, job in enumerate([*jobs.values(), *by_program.values()]):
            (folder / f"measure{number}").mkdir()
            job.measure(folder / f"measure{number}" / "out.bin")
        kinds = list(jobs)
        for number in range(times):
            of_program = programs and (number // len(kinds)) % round(1 / _PROGRAM) == 0
            job = (by_program if of_program else jobs)[kinds[number % len(kinds)]]
            here = folder / f"round{number}"
            here.mkdir()
            try:
                states = round_of(job, here, rng)
            except Exception as exc:
                broken.append({"round": number, "job": job.name, "what": f"{type(exc).__name__}: {exc}"})
                continue
            found.update(f"{job.name}: {state}" for state in states)
            shutil.rmtree(here)
    return found, broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description="Kill writers at random moments.")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-programs", action="store_true", help="leave out the rounds that run the program")
    parser.add_argument("--report", type=Path, help="write a JSON report there")
    options = parser.parse_args()
    start = time.monotonic()
    found, broken = run(options.times, options.seed, programs=not options.no_programs)
    seconds = time.monotonic() - start
    for what, count in sorted(found.items()):
        print(f"{count:5} {what}")
    for entry in broken:
        print(f"round {entry['round']} ({entry['job']}): {entry['what']}")
    kills = sum(count for what, count in found.items() if what.endswith("killed"))
    print(f"{options.times} rounds, {kills} kills, {len(broken)} broken, {seconds:.0f} s")
    if options.report:
        report = {
            "schema": "stochcl.kill/0",
            "command": f"python -m tests.kill --times {options.times} --seed {options.seed}",
            "rounds": options.times,
            "kills": kills,
            "found": dict(sorted(found.items())),
            "broken": broken,
            "seconds": round(seconds, 1),
            "system": platform.system(),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("stochcl", "numpy", "constriction")},
            },
        }
        options.report.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
