"""Kill writers at random moments and see what is left: ``python -m tests.crash --times 200 --seed 0``.

Each time a command (compress, append, merge, transcode) runs in a process of its own on a folder of its own, and gets
SIGKILL at a moment that is drawn uniformly from the time between its first write and its end; each write is slow and
comes in two halves, so that it is often torn. Then must hold:

- the output is what it was before, or complete; an append's file opens as one of them;
- ``--resume`` (for append: appending again) gives the same codes as an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from stochcl.compress import Archive
from tests.making import make_model, write_images

COMMANDS = ("compress", "append", "merge", "transcode")


def slow_down(mark: Path) -> None:
    """Make segments small and writing slow, each write in two halves; make a file when it begins."""
    from stochcl.compress import Writer, journal, writer
    from stochcl.compress import append as appending
    from stochcl.compress.append import Appender

    for kind in (Writer, Appender):
        kind.__init__.__kwdefaults__["segment_rows"] = 7
    real, fsync = writer.write_all, os.fsync

    def write_all(file, data):
        mark.touch()
        time.sleep(0.002)
        real(file, data[: len(data) // 2])
        time.sleep(0.004)
        real(file, data[len(data) // 2 :])

    def slow_fsync(descriptor):
        time.sleep(0.002)
        fsync(descriptor)
        time.sleep(0.002)

    for module in (appending, journal, writer):
        module.write_all = write_all
    os.fsync = slow_fsync


class Case:
    """One command on a folder of its own, undisturbed once: how long it takes, and what it gives."""

    def __init__(self, command: str, folder: Path) -> None:
        self.command, self.folder = command, folder
        self.out = folder / "out.bin"
        images, model = folder / "images", folder / "tiny.safetensors"
        self.arguments = {
            "compress": ["compress", images, "-m", model, "-o", self.out, "--batch-size", "4", "--force"],
            "append": ["append", self.out, images, "-m", model, "--batch-size", "4"],
            "merge": ["merge", *[folder / "a.bin"] * 6, "-o", self.out, "--force"],
            "transcode": ["transcode", folder / "a.bin", "-o", self.out, "--latents", "20", "--refit", "--force"],
        }[command]
        self.old = (folder / "cats.bin").read_bytes()
        self.mark = folder / "mark"
        self.prepare()
        child = self.begin(self.arguments)
        started = time.monotonic()
        assert os.waitpid(child, 0)[1] == 0, f"{command} fails"
        self.seconds = time.monotonic() - started
        self.expected = symbols(self.out)

    def begin(self, arguments: list) -> int:
        """Start the program in a process of its own, and return its number when it writes for the first time."""
        self.mark.unlink(missing_ok=True)
        child = start(arguments, self.mark)
        while not self.mark.exists():
            if os.waitpid(child, os.WNOHANG)[0]:
                raise AssertionError(f"{arguments[0]} ends before it writes")
            time.sleep(0.0005)
        return child

    def prepare(self) -> None:
        for path in self.folder.glob("out.bin*"):
            path.unlink()
        self.out.write_bytes(self.old)

    def killed(self, after: float) -> str:
        """Kill the command after so many seconds, check what is left, go on, and say how it was left."""
        self.prepare()
        child = self.begin(self.arguments)
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        data = self.out.read_bytes()
        left = self.judge(data)
        if left != "complete":
            again = [a for a in self.arguments if a != "--force"] if self.command != "append" else self.arguments
            if self.command != "append":
                self.out.unlink()
                again = [*again, "--resume"]
            run(again)
        np.testing.assert_array_equal(symbols(self.out), self.expected)
        # Between the renaming and the end, the journal is still there; nothing looks at it any more.
        allowed = (
            {"out.bin", "out.bin.partial.journal", "out.bin.append.journal", "out.bin.lock"}
            if left == "complete"
            else {"out.bin"}
        )
        if rest := {path.name for path in self.folder.glob("out.bin*")} - allowed:
            raise AssertionError(f"{rest} are left")
        return left

    def judge(self, data: bytes) -> str:
        """Say what a killed command has left."""
        if data == self.old:
            there = any(self.folder.glob("out.bin.partial"))
            return "old, with a partial file" if there else "old"
        with Archive(self.out) as archive:
            end, left_over = archive.size, archive.left_over
        complete = symbols(self.out)
        if left_over:
            assert self.command == "append"
            assert data[:end] == self.old
            return "interrupted"
        np.testing.assert_array_equal(complete, self.expected)
        return "complete"


def start(arguments: list, mark: Path) -> int:
    """Fork a process that runs the program: it has torch imported already, which takes longer than all the rest."""
    child = os.fork()
    if child:
        return child
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.setsid()
        slow_down(mark)
        from stochcl.cli.main import main

        main([os.fspath(argument) for argument in arguments], standalone_mode=True)
    except SystemExit as exc:
        os._exit(exc.code if isinstance(exc.code, int) else 1)
    except BaseException:
        traceback.print_exc()
    os._exit(99)


def run(arguments: list) -> None:
    status = os.waitpid(start(arguments, Path(tempfile.gettempdir(), f"mark{os.getpid()}")), 0)[1]
    if status:
        raise AssertionError(f"{arguments[0]} ends with {os.waitstatus_to_exitcode(status)}")


def symbols(path: Path) -> np.ndarray:
    with Archive(path) as archive:
        archive.verify()
        return archive.to_numpy()


def prepare(folder: Path) -> None:
    """Make images, a model and archives of them."""
    images = write_images(folder / "images")
    child = os.fork()  # a process that has computed with threads is not to be forked
    if not child:
        make_model(folder / "tiny.safetensors", images)
        os._exit(0)
    os.waitpid(child, 0)
    shutil.copytree(images / "cats", folder / "some" / "cats")
    for source, name in ((images, "a.bin"), (folder / "some", "cats.bin")):
        run(["compress", source, "-m", folder / "tiny.safetensors", "-o", folder / name])


def crash(times: int, seed: int, commands: tuple[str, ...] = COMMANDS) -> dict[str, Counter]:
    """Kill so many times, the commands by turns; return how often each was left in which state."""
    import torch  # noqa: F401 - for all the processes to come

    import stochcl.api.codec  # noqa: F401

    rng = random.Random(seed)
    found: dict[str, Counter] = {command: Counter() for command in commands}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        cases = [Case(command, Path(folder)) for command in commands]
        for i in range(times):
            case = cases[i % len(cases)]
            found[case.command][case.killed(case.seconds * 1.05 * rng.random())] += 1
            if (i + 1) % 20 == 0:
                print(f"{i + 1} of {times}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = crash(options.times, options.seed)
    print(json.dumps({"times": options.times, "seed": options.seed, "left": found}, indent=2))


if __name__ == "__main__":
    main()
