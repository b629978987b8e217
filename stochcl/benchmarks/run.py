"""Shared by all benchmarks: options, cached jobs, child processes, the machine, and result files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stochcl import __version__
from stochcl.errors import MissingExtraError, SourceError, StochclError, UsageError
from stochcl.files import replacing, write_file
from stochcl.messages import Progress, escape_name
from stochcl.options import Options, declared, kind_of, option_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"),
    "1",
)
"""Variables that limit numerical libraries to one thread; libraries read them when first loaded."""

_DISTRIBUTIONS = ("numpy", "constriction", "zstandard", "brotli", "faiss-cpu", "scikit-learn", "torch")
_PACKAGES = {"faiss": "faiss-cpu", "pillow_jxl": "pillow-jxl-plugin"}
_EDITION = 3  # raise this when a change makes cached measurements invalid


class BenchmarkError(StochclError):
    """A method gave back other codes than it was given, or its process died, so its figures do not count."""


class ChildDiedError(BenchmarkError):
    """A child process ended without an answer."""


class MissingPackageError(MissingExtraError):
    """A package of the ``bench`` extra is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"it needs {package}; install it with: pip install 'stochcl[bench]'.")
        self.package = package


def need(module: str) -> None:
    """Raise MissingPackageError if a module of the ``bench`` extra cannot be imported."""
    if find_spec(module) is None:
        raise MissingPackageError(_PACKAGES.get(module, module))


class Config(Options):
    """Base of the options of a benchmark; a field without a help text is a positional argument."""

    command_name: ClassVar[str] = ""
    seed: int

    @property
    def command(self) -> str:
        """The command line of this request, without folders of the machine."""
        words, options = self.command_name.split(), []
        for one in declared(type(self)).values():
            given, flag = getattr(self, one.name), f"--{one.name.replace('_', '-')}"
            values = [_without_folder(value) for value in (given if isinstance(given, tuple) else (given,))]
            if not option_of(one).help:
                words += [] if given is None else values
            elif given is True:
                options.append(flag)
            elif given != one.default or one.name == "seed":
                repeated = values if kind_of(one) == "tuple[Path, ...]" else [",".join(values)]
                options += [word for value in repeated for word in (flag, value)]
        return shlex.join([*words, *options, "-o", "results/"])


def _without_folder(value: Any) -> str:
    return escape_name(Path(value).name) if isinstance(value, Path) or "/" in str(value) else str(value)


# Jobs: each is measured in turn and cached as soon as it is done.


@dataclass(frozen=True, eq=False)
class Measured:
    """The rows of one job as JSON values, and each metric's scores of the test rows, shape (len(rows), N)."""

    rows: list[dict[str, Any]]
    values: dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Job:
    """One measurement: its name, everything its result depends on, a check of what it needs, and the work."""

    method: str
    code: str
    depends: tuple[object, ...]
    call: Callable[[Progress], Measured]
    check: Callable[[], object] = lambda: None
    facts: dict[str, Any] = field(default_factory=dict)  # added to rows, not cached

    @property
    def name(self) -> str:
        """The job's name in progress and messages."""
        return f"{self.method}, {self.code}"


@dataclass
class Outcome:
    """What a run measured, what failed, and sentences about what was left out."""

    measured: list[Measured] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def run_jobs(
    jobs: Sequence[Job], cache: Cache, key: tuple[object, ...], *, progress: Callable[[int, int, str], None],
    say: Callable[[str], None],
) -> Outcome:  # fmt: skip
    """Check the needs of all jobs, then run the possible ones; use cached results."""
    from threadpoolctl import threadpool_limits

    outcome, refused, ready = Outcome(), [], []
    for job in jobs:
        try:
            job.check()
            ready.append(job)
        except (UsageError, SourceError) as exc:
            refused.append((job, exc))
    outcome.left_out += list(_refusals(refused))
    for line in outcome.left_out:
        say(line)
    for done, job in enumerate(ready):
        progress(done, len(ready), job.name)

        def told(part: int, of: int, done: int = done, name: str = job.name) -> None:
            progress(done, len(ready), f"{name}: {part:,} of {of:,} images")

        where = cache.key("row", *key, *job.depends)
        found = cache.get(where)
        if found is None:
            try:
                with threadpool_limits(1):  # sums in another order give other codes
                    measured = job.call(told)
            except (ChildDiedError, np.linalg.LinAlgError, ArithmeticError, MemoryError) as exc:
                reason = str(exc) or type(exc).__name__
                outcome.failed.append({"method": job.method, "code": job.code, "reason": reason})
                say(f"{job.name} failed: {reason}")
                continue
            except (UsageError, SourceError) as exc:
                outcome.left_out.append(f"{job.name} was left out: {exc}")
                say(outcome.left_out[-1])
                continue
            cache.put(where, measured.rows, **measured.values)
            found = measured.values, measured.rows
        outcome.measured.append(Measured([row | job.facts for row in found[1]], dict(found[0])))
    return outcome


def _refusals(refused: Sequence[tuple[Job, StochclError]]) -> Iterator[str]:
    """Yield a sentence for each reason and the jobs it leaves out; one for all missing packages."""
    reasons: dict[str, dict[str, list[str]]] = {}
    packages = sorted({exc.package for _, exc in refused if isinstance(exc, MissingPackageError)})
    extra = f"needs {' and '.join(packages)}; install with: pip install 'stochcl[bench]'."
    for job, exc in refused:
        reason = extra if isinstance(exc, MissingPackageError) else str(exc)
        reasons.setdefault(reason, {}).setdefault(job.method, []).append(job.code)
    for reason, methods in reasons.items():
        parts = [name if reason == extra else f"{name} ({', '.join(codes)})" for name, codes in methods.items()]
        yield f"left out: {', '.join(parts)}: {reason}"


class Cache:
    """A folder of arrays and facts, keyed by a digest of everything they depend on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def key(*parts: object) -> str:
        """Return the digest of a result's dependencies."""
        return hashlib.sha256(json.dumps([_EDITION, __version__, *parts]).encode()).hexdigest()[:24]

    def get(self, key: str) -> tuple[dict[str, NDArray[Any]], Any] | None:
        """Return the cached arrays and facts, or None if missing or unreadable."""
        try:
            data = (self.folder / f"{key}.npz").read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            return arrays, json.loads(str(arrays.pop("facts")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def put(self, key: str, facts: Any, **arrays: NDArray[Any]) -> None:
        """Store arrays and facts (JSON values) atomically."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
        with replacing(self.folder / f"{key}.npz") as file:
            file.write(buffer.getbuffer())


# Child processes: a crash of native code ends only its own process.


def call_in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module-level function in a fresh single-threaded process; return its value or raise its StochclError.

    Raises ChildDiedError if the process ends by a signal or without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        job, answer = Path(folder, "job"), Path(folder, "answer")
        job.write_bytes(pickle.dumps((function, arguments)))
        code = f"import sys; sys.path[:] = {sys.path!r}; from stochcl.benchmarks.run import _answer; _answer()"
        command = [sys.executable, "-c", code, str(job), str(answer)]
        done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            value, error = pickle.loads(answer.read_bytes())  # only this process and its child use the folder
            if error is not None:
                raise error
            return value
    how = f"exit status {done.returncode}"
    if done.returncode < 0:
        with suppress(ValueError):
            how = f"signal {signal.Signals(-done.returncode).name}"
    last = (done.stderr.strip() or "nothing on standard error").splitlines()[-1]
    raise ChildDiedError(f"its process ended by {how} ({escape_name(last)}).")


def _answer() -> None:
    """Run the job in the first file, and write its value or StochclError to the second."""
    function, arguments = pickle.loads(Path(sys.argv[1]).read_bytes())
    value, error = None, None
    try:
        value = function(*arguments)
    except StochclError as exc:
        error = exc
    Path(sys.argv[2]).write_bytes(pickle.dumps((value, error)))


# The machine.


def hardware() -> dict[str, Any]:
    """Return processor, cores and system under fixed keys, without names of the machine or its user."""
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "threads": 1,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, stochcl and the compared packages that are installed."""
    found = {"python": platform.python_version(), "stochcl": __version__}
    for name in _DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """Return the running commit, with ``-dirty`` if files were changed; None outside a checkout.

    Changed results do not count as dirty.
    """
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", "__init__.py")  # else another project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    return None


def stay_on_one_core() -> None:
    """Pin this process to its first allowed core, if the system supports that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def record(schema: str, config: Config, **facts: Any) -> dict[str, Any]:
    """Return a result with the common fields: schema, command, commit, seed, hardware, versions."""
    return {
        "schema": schema,
        "command": config.command,
        "commit": commit(),
        "seed": config.seed,
        "hardware": hardware(),
        "versions": versions(),
        **facts,
    }


# Result files.


def write_results(result: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Write ``name.json`` and ``name.csv``, and return their paths."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    return write_files({folder / f"{name}.json": text.encode(), folder / f"{name}.csv": to_csv(result).encode()})


def write_files(files: dict[Path, bytes]) -> list[Path]:
    """Replace files atomically; return their paths."""
    for path, data in files.items():
        write_file(path, data)
    return list(files)


def to_csv(result: dict[str, Any]) -> str:
    """Return the rows as CSV, each with seed, machine, versions and command so that it makes sense alone."""
    facts = {name: result[name] for name in ("seed", "hardware", "versions", "commit", "command")}
    for name in ("hardware", "versions"):
        facts[name] = "; ".join(f"{key} {value}" for key, value in facts[name].items())
    rows = [row | facts for row in [*result["rows"], *result.get("failed", [])]]
    columns = dict.fromkeys([name for row in rows for name in row if name not in facts] + list(facts))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
