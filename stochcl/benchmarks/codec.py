"""The codec beside others: size, speed, memory and correctness of every method on every set of codes."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.benchmarks import codesets, machine, models, opq, sources
from stochcl.benchmarks.entries import Entry, entries_of
from stochcl.benchmarks.errors import BenchmarkError, NoDataError
from stochcl.benchmarks.worker import WARM_ROWS, Job
from stochcl.errors import MissingExtraError, UsageError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stochcl.benchmarks.codesets import CodeSet
    from stochcl.benchmarks.methods import Method

SCHEMA = "stochcl.benchmark.codec/0"
SETS = ("skewed", "correlated", "opq", "cifar10")
"""Built-in sets, in the order in which they are measured."""

_ROWS = 10_000
_LATENTS = 128


@dataclass(frozen=True)
class Request:
    """What to measure.

    Parameters
    ----------
    sources : tuple of Path
        Archives, .npy or .npz files; without any, the built-in sets.
    latents : int or None
        Bits of a row of the built-in sets (128 by default; CIFAR-10's codes at full width besides), and the
        prefix taken of a source (all of it by default).
    rows : int or None
        Rows of the built-in sets (10,000 by default), and most rows taken of a source.
    seed : int
        Of the built-in sets.
    repeat : int
        Runs whose median is the time.
    only : tuple of str
        Names of built-in sets; all by default.
    refit : bool
        Fit tables to half of an archive's rows and code the others.
    """

    sources: tuple[Path, ...] = ()
    latents: int | None = None
    rows: int | None = None
    seed: int = 0
    repeat: int = 5
    only: tuple[str, ...] = ()
    refit: bool = False

    def check(self) -> None:
        """Raise UsageError where the parts do not go together."""
        if self.sources and self.only:
            raise UsageError("--only chooses among the built-in sets; leave it out where files are named.")
        if unknown := [name for name in self.only if name not in SETS]:
            raise UsageError(f"there is no set {unknown[0]!r}; there are {', '.join(SETS)}.")

    @property
    def command(self) -> str:
        """The command line that asks for this, without folders of the machine that it ran on."""
        words = ["stochcl", "benchmark", "codec", *(printable(path.name) for path in self.sources)]
        for name in ("latents", "rows", "seed", "repeat"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}", str(value)]
        words += [word for name in self.only for word in ("--only", name)]
        words += ["--refit"] if self.refit else []
        return shlex.join([*words, "-o", "results/"])


def benchmark_codec(
    request: Request,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every method on every set."""
    request.check()
    left_out: list[str] = []

    def leave_out(sentence: str) -> None:
        if sentence not in left_out:
            left_out.append(sentence)
            say(sentence)

    if not models.has_autoregressive():
        leave_out("autoregressive was left out: this version has no autoregressive models.")
    sets, rows = [], []
    for code_set in code_sets(request, folder, leave_out, say):
        for note in code_set.notes:
            leave_out(note)
        sets.append(_describe(code_set))
        entries = entries_of(code_set, leave_out)
        for done, entry in enumerate(entries):
            progress(done, len(entries), f"{code_set.name}: {entry.method.name}")
            rows.append(_row(code_set, entry, run(entry.method, code_set, request.repeat)))
    return {
        "schema": SCHEMA,
        "command": request.command,
        "commit": machine.commit(),
        "seed": request.seed,
        "n": {entry["set"]: entry["n"] for entry in sets},
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "left_out": left_out,
        "sets": sets,
        "rows": rows,
    }


def code_sets(
    request: Request, folder: Path, leave_out: Callable[[str], None], say: Callable[[str], None]
) -> Iterator[CodeSet]:
    """Make the sets that are asked for, one at a time; built-in ones that cannot be made are left out."""
    given: dict[str, Any] = {"rows": request.rows, "refit": request.refit}
    for path in request.sources:
        yield sources.read_source(path, latents=request.latents, seed=request.seed, **given)
    if request.sources:
        return
    size = request.rows or _ROWS, request.latents or _LATENTS, request.seed
    widths = [None, _LATENTS] if request.latents is None else [request.latents]
    makers: dict[str, list[Callable[[], CodeSet]]] = {
        "skewed": [lambda: codesets.skewed(*size)],
        "correlated": [lambda: codesets.correlated(*size)],
        "opq": [lambda: opq.opq(*size)],
        "cifar10": [partial(sources.cifar10, folder, latents=width, say=say, **given) for width in widths],
    }
    for name in request.only or SETS:
        for make in makers[name]:
            try:
                yield make()
            except MissingExtraError as exc:
                leave_out(f"{name} was left out: {exc}")
            except NoDataError as exc:
                leave_out(str(exc))


def run(method: Method, code_set: CodeSet, repeat: int) -> dict[str, Any]:
    """Measure a method in a fresh process on one core, and see that it gave the codes back."""
    warm = replace(method, rows=min(WARM_ROWS, len(code_set.codes)))
    where = f"{method.name} on {code_set.name}"
    with tempfile.TemporaryDirectory(prefix="stochcl-") as name:
        job, result = Path(name, "job"), Path(name, "result")
        job.write_bytes(pickle.dumps(Job(method, warm, code_set.codes, repeat)))
        command = [sys.executable, "-m", "stochcl.benchmarks.worker", str(job), str(result)]
        done = subprocess.run(
            command, env=os.environ | machine.ONE_THREAD, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise BenchmarkError(f"{where}: its process failed: {printable(last)}.")
        found: dict[str, Any] = json.loads(result.read_text("utf-8"))
    if not found["correct"]:
        raise BenchmarkError(f"{where}: it gave back other codes than it was given; no figure of this run counts.")
    return found


def _describe(code_set: CodeSet) -> dict[str, Any]:
    bits, kind = code_set.ideal
    codes = code_set.codes
    return {
        "set": code_set.name,
        "about": code_set.about,
        "n": len(codes),
        "latents": codes.latents,
        "alphabet": codes.alphabet,
        "ideal_bits_per_image": round(bits / len(codes), 4),
        "ideal_model": kind,
        "ideal_origin": code_set.models[kind].origin,
        "source_bits_per_image": None if code_set.source_bits is None else round(code_set.source_bits, 4),
    }


def _row(code_set: CodeSet, entry: Entry, found: dict[str, Any]) -> dict[str, Any]:
    codes, encode, decode = code_set.codes, found["encode"], found["decode"]
    rows, bits = len(codes), found["bytes"] * 8
    own = code_set.models[entry.model].model.ideal_bits(codes) if entry.model else None
    return {
        "set": code_set.name,
        "n": rows,
        "latents": codes.latents,
        "alphabet": codes.alphabet,
        "method": entry.method.name,
        "ours": entry.method.ours,
        "bytes": found["bytes"],
        "bytes_per_image": round(found["bytes"] / rows, 4),
        "ratio_to_ideal": round(bits / code_set.ideal[0], 5),
        "model": entry.model,
        "model_origin": entry.origin,
        "ratio_to_own_model": None if own is None else round(bits / own, 5),
        "tables_bytes": entry.tables_bytes,
        "encode_images_per_second": round(rows / encode["seconds"], 1),
        "decode_images_per_second": round(rows / decode["seconds"], 1),
        "encode_repeats": encode["repeats"],
        "decode_repeats": decode["repeats"],
        "encode_peak_bytes": encode["peak_bytes"],
        "decode_peak_bytes": decode["peak_bytes"],
        "correct": found["correct"],
    }
