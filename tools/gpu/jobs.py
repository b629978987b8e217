"""Run a list of training jobs one after another, in the order of their priority, each within its own time.

    python tools/gpu/jobs.py JOBS.toml -o RESULTS --data DATA [--minutes 28] [--only NAME]... [--dry-run]

JOBS.toml holds tables [[job]] with

    name      of its log, RESULTS/NAME.log, and of what others need
    command   words of a command; {python}, {tools}, {data}, {out}, {minutes} and {cores} stand for what is known here
              only, {resume} for --resume where the job's checkpoint is there
    minutes   that it may take; then it is interrupted, as by Ctrl-C, and has a minute to write its checkpoint
    priority  lower comes first; 0 by default, and then the order in the file
    needs     names of jobs that must be done, and files below RESULTS or DATA that must be there
    result    a file below RESULTS: where it is, the job is done and is skipped
    checkpoint  a file below RESULTS that {resume} looks for

A job that ends with exit code 75, or was interrupted, is not done, and goes on when the list is run again. What
happened is in RESULTS/jobs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

_GRACE = 60.0  # seconds between an interruption and a kill
_LEAST = 20.0  # seconds that are worth starting a job
_KEYS = {"name", "command", "minutes", "priority", "needs", "result", "checkpoint"}


@dataclass(frozen=True)
class Job:
    """An entry of the list; see the module."""

    name: str
    command: str
    minutes: float
    result: str
    priority: int = 0
    needs: tuple[str, ...] = ()
    checkpoint: str = ""


class Runner:
    """Runs jobs until all are done or time is up."""

    def __init__(self, jobs: list[Job], out: Path, data: Path, minutes: float | None) -> None:
        self.jobs, self.out, self.data = jobs, out, data
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.states: dict[str, dict[str, object]] = {job.name: {"state": "waiting"} for job in jobs}

    def run(self) -> bool:
        """Run what can be run; return whether all is done."""
        for job in self.jobs:
            self.note(job, **self._one(job))
        done = all(state["state"] == "done" for state in self.states.values())
        self._write(finished=True)
        return done

    def _one(self, job: Job) -> dict[str, object]:
        if (self.out / job.result).exists():
            return {"state": "done", "why": "its result is there"}
        if missing := [need for need in job.needs if not self._has(need)]:
            return {"state": "left out", "why": f"it needs {', '.join(missing)}"}
        seconds = 60 * job.minutes
        if self.deadline is not None:
            seconds = min(seconds, self.deadline - time.monotonic() - _GRACE / 2)
        if seconds < _LEAST and 60 * job.minutes > seconds:
            return {"state": "left out", "why": "no time is left"}
        self.note(job, state="running", began=time.strftime("%H:%M:%S"), seconds_at_most=round(seconds))
        started = time.monotonic()
        code = self._start(job, seconds)
        done = code == 0 and (self.out / job.result).exists()
        why = {} if done else {"why": f"exit code {code}" + ("" if code else f", and no {job.result}")}
        state = "done" if done else "not finished" if code in (75, 130, -signal.SIGINT) else "failed"
        return {"state": state, "seconds": round(time.monotonic() - started, 1), **why}

    def _has(self, need: str) -> bool:
        if need in self.states:
            return self.states[need]["state"] == "done"
        return (self.out / need).exists() or (self.data / need).exists()

    def words(self, job: Job, seconds: float) -> list[str]:
        """Return the command's words with all fields filled in."""
        resume = bool(job.checkpoint) and (self.out / job.checkpoint).exists()
        known = {
            "python": sys.executable, "tools": str(Path(__file__).parent), "data": str(self.data),
            "out": str(self.out), "minutes": f"{_own(seconds) / 60:.2f}", "cores": str(os.cpu_count() or 1),
        }  # fmt: skip
        words = []
        for word in shlex.split(job.command):
            if word == "{resume}":
                words += ["--resume"] if resume else []
            else:
                words.append(word.format(**known))
        return words

    def _start(self, job: Job, seconds: float) -> int:
        """Run a job in its own session; return its exit code, 130 if it was interrupted."""
        with (self.out / f"{job.name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.words(job, seconds), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                return process.wait(seconds + 2)
            except subprocess.TimeoutExpired:
                return 130 if _stop(process) else process.returncode
            except BaseException:
                _stop(process)
                raise

    def note(self, job: Job, **facts: object) -> None:
        self.states[job.name] = facts
        print(f"{time.strftime('%H:%M:%S')} {job.name}: {', '.join(f'{v}' for v in facts.values())}", flush=True)
        self._write(finished=False)

    def _write(self, *, finished: bool) -> None:
        partial = self.out / "jobs.json.partial"
        partial.write_text(json.dumps({"finished": finished, "jobs": self.states}, indent=1) + "\n")
        partial.replace(self.out / "jobs.json")


def _own(seconds: float) -> float:
    """Return the time after which a job that keeps time is to stop, early enough to avoid a second interruption.

    A second interruption, while a checkpoint is written, would leave an earlier one.
    """
    return max(seconds - _GRACE / 2, 0.8 * seconds)


def _stop(process: subprocess.Popen[bytes]) -> bool:
    """Interrupt a job, or kill it if that fails; return whether it still ran."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return False
        try:
            process.wait(_GRACE if number == signal.SIGINT else 5)
        except subprocess.TimeoutExpired:
            continue
        return True
    return True


def read_jobs(path: Path) -> list[Job]:
    try:
        found = tomllib.loads(path.read_text("utf-8")).get("job", [])
    except (OSError, tomllib.TOMLDecodeError) as exc:
        sys.exit(f"{path}: the list of jobs cannot be read ({exc}).")
    for entry in found:
        wrong = sorted(set(entry) - _KEYS) + sorted({"name", "command", "minutes", "result"} - set(entry))
        if wrong:
            sys.exit(f"{path}: job {entry.get('name', '?')!r}: {', '.join(wrong)} unknown or missing.")
    jobs = [Job(**entry | {"needs": tuple(entry.get("needs", ()))}) for entry in found]
    if len({job.name for job in jobs}) < len(jobs):
        sys.exit(f"{path}: two jobs have the same name.")
    return sorted(jobs, key=lambda job: job.priority)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("STOCHCL_DATA", ".")))
    parser.add_argument("--minutes", type=float, help="for all of them together")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    options = parser.parse_args()
    # Started in the background, this process may ignore interrupts, and its jobs would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options.output.mkdir(parents=True, exist_ok=True)
    jobs = [job for job in read_jobs(options.jobs) if not options.only or job.name in options.only]
    runner = Runner(jobs, options.output.resolve(), options.data.resolve(), options.minutes)
    if options.dry_run:
        for job in jobs:
            print(f"# {job.name}, {job.minutes:g} min\n{shlex.join(runner.words(job, 60 * job.minutes))}")
        return
    sys.exit(0 if runner.run() else 1)


if __name__ == "__main__":
    main()
