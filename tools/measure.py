"""Make the files of benchmarks/results, each by the commands that benchmarks/measure.toml has for it.

    python tools/measure.py --list
    python tools/measure.py uncertainty selection --data DATA
    python tools/measure.py all --data DATA [--work WORK] [--force]

DATA has cifar10-train.zip, cifar10-test.zip and tiny-imagenet-train-0.zip to -2.zip. Results that are there are left
alone, unless --force is given. WORK keeps what several results need, such as archives of CIFAR-10, and what commands
have done so far: after an interruption the same command goes on. benchmarks/results/measured.json says of each result
by which commands, commit, default model and machine it was made. Commit before you measure. Commands take one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
TABLE, RESULTS = ROOT / "benchmarks" / "measure.toml", ROOT / "benchmarks" / "results"
RECORD = "measured.json"


@dataclass(frozen=True)
class Entry:
    """Result files, "made as file" if a command uses another name, and the commands that make them."""

    files: list[str]
    minutes: int
    commands: list[str]
    each: dict[str, list[Any]] = field(default_factory=dict)

    def named(self) -> dict[str, str]:
        """Return the name under which each file is made."""
        pairs = (file.rpartition(" as ") for file in self.files)
        return {name: made or name for made, _, name in pairs}

    def expanded(self) -> Iterator[str]:
        """Yield the commands; one that names a key of ``each`` is repeated for all its values."""
        for command in self.commands:
            keys = [key for key in self.each if f"{{{key}}}" in command]
            for values in product(*(self.each[key] for key in keys)):
                text = command
                for key, value in zip(keys, values, strict=True):
                    text = text.replace(f"{{{key}}}", str(value))
                yield text


def read_table() -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the entries, and the commands that make their inputs."""
    table = tomllib.loads(TABLE.read_text("utf-8"))
    return {name: Entry(**entry) for name, entry in table["results"].items()}, table["inputs"]


class Measure:
    """Runs commands of entries, in a folder that keeps their output."""

    def __init__(self, data: Path, work: Path, results: Path) -> None:
        self.data, self.work, self.results = data.absolute(), work.absolute(), results
        self.entries, self.inputs = read_table()

    def is_missing(self, name: str) -> bool:
        return not all((self.results / file).exists() for file in self.entries[name].named())

    def make(self, name: str, *, force: bool) -> None:
        from stochcl.api.models import find_model
        from stochcl.benchmarks.run import commit, hardware, versions
        from stochcl.encoders.modelfile import load_model

        entry, out = self.entries[name], self.work / "out" / name
        if force:
            shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True, exist_ok=True)
        commands = list(entry.expanded())
        for command in commands:
            self.provide_for(command)
        ran, started, used = commit(), time.monotonic(), processor_seconds()
        for command in commands:
            self.run(command, out=out)
        seconds = {"seconds": time.monotonic() - started, "processor_seconds": processor_seconds() - used}
        record = {
            "commands": [command.format(data="DATA", work="WORK", out="OUT") for command in commands],
            "commit": ran, **{key: round(value, 1) for key, value in seconds.items()},
            "general": load_model(find_model("general")).sha256, "hardware": hardware(), "versions": versions(),
        }  # fmt: skip
        for file, made in entry.named().items():
            (self.results / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / made, self.results / file)
        path = self.results / RECORD
        records = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps(dict(sorted((records | {name: record}).items())), indent=1) + "\n", "utf-8")

    def provide_for(self, command: str) -> None:
        """Make a command's missing inputs, and their inputs in turn."""
        for name in re.findall(r"\{work\}/([\w.-]+)", command):
            if name in self.inputs and not (self.work / name).exists():
                self.provide_for(self.inputs[name])
                to = self.work / "parts" / name
                to.parent.mkdir(parents=True, exist_ok=True)
                self.run(self.inputs[name], to=to)
                to.rename(self.work / name)

    def run(self, command: str, **folders: Path) -> None:
        """Run a command on one thread in the checkout; exit if it fails."""
        say(f"$ {command}")
        text, _, target = command.partition(" > ")
        text = text.format(data=self.data, work=self.work, **folders)
        program, *words = shlex.split(text)
        module = ["-m", "stochcl"] if program == "stochcl" else []
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "STOCHCL_DATA": str(self.data)}
        done = subprocess.run(
            [sys.executable, *module, *words], cwd=ROOT, env=os.environ | settings, check=False,
            stdout=subprocess.PIPE if target else sys.stderr,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"This command ended with {done.returncode}: {text}")
        if target:
            told = done.stdout.decode()
            for folder, shown in ((folders["out"], "OUT"), (self.work, "WORK"), (self.data, "DATA")):
                told = told.replace(str(folder), shown)
            with Path(target.format(**folders)).open("a", encoding="utf-8") as file:
                file.write(told)


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="results, or all")
    parser.add_argument("--list", action="store_true", help="show the results, and which of them are there")
    parser.add_argument("--data", type=Path, default=os.environ.get("STOCHCL_DATA"), help="[default: $STOCHCL_DATA]")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "measure", help="[default: runs/measure]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="[default: benchmarks/results]")
    parser.add_argument("--force", action="store_true", help="measure again what is there")
    options = parser.parse_args(arguments)
    measure = Measure(Path(options.data or "."), options.work, options.results)
    if unknown := sorted({*options.names} - {*measure.entries, "all"}):
        parser.error(f"there is no result {unknown[0]}; --list shows them.")
    if options.list:
        for name, entry in measure.entries.items():
            state = "not measured" if measure.is_missing(name) else "measured"
            print(f"{name:<40} {entry.minutes:>4} min  {state}")
        return
    if not options.names or options.data is None:
        parser.error("name results, or all, and --data with the folder of images.")
    for name in measure.entries if "all" in options.names else dict.fromkeys(options.names):
        if options.force or measure.is_missing(name):
            measure.make(name, force=options.force)
        else:
            say(f"{name}: measured already; --force measures it again.")


if __name__ == "__main__":
    main()
