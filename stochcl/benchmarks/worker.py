"""One method, measured in a process of its own: ``python -m stochcl.benchmarks.worker JOB RESULT``."""

from __future__ import annotations

import ctypes
import gc
import json
import pickle
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.benchmarks.machine import stay_on_one_core

if TYPE_CHECKING:
    from collections.abc import Callable

    from stochcl.benchmarks.methods import Method
    from stochcl.codes import Codes

WARM_ROWS = 8
_SLOW = 5.0
"""Seconds beyond which a function is not run again: its first time stands, and ``repeats`` says 1."""


@dataclass(frozen=True)
class Job:
    """What a process is told to measure.

    Parameters
    ----------
    warm : Method
        The same method for the first few rows: it loads what is loaded at first use, so that neither the time
        nor the memory of an import is counted.
    """

    method: Method
    warm: Method
    codes: Codes
    repeat: int


def measure(job: Job) -> dict[str, Any]:
    """Encode and decode, and return bytes, seconds, memory and whether the codes came back.

    The first run of each function gives the memory, and those after it the time: the median of ``repeat`` runs.
    Memory is what the function adds at its highest to the process as it stood before, its result included:
    the growth of the resident set's high-water mark, after the mark was brought down to what is in use (on Linux;
    elsewhere the mark only rises, and a peak below an earlier one shows as 0).
    """
    few = job.codes[: job.warm.rows]
    job.warm.decode(job.warm.encode(few))
    data, encoding = _run(lambda: job.method.encode(job.codes), job.repeat)
    decoded, decoding = _run(lambda: job.method.decode(data), job.repeat)
    correct = (
        decoded.packed.shape == job.codes.packed.shape
        and (decoded.latents, decoded.alphabet) == (job.codes.latents, job.codes.alphabet)
        and bool((decoded.packed == job.codes.packed).all())
    )
    return {"bytes": len(data), "correct": correct, "encode": encoding, "decode": decoding}


def _run(function: Callable[[], Any], repeat: int) -> tuple[Any, dict[str, Any]]:
    before = _restart_peak()
    first, value = _timed(function)
    peak = max(0, _peak() - before)
    times = [first] if first > _SLOW else [_timed(function)[0] for _ in range(repeat)]
    return value, {"seconds": statistics.median(times), "repeats": len(times), "peak_bytes": peak}


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = function()
    return time.perf_counter() - started, value


def _restart_peak() -> int:
    """Give back memory that is free, bring the high-water mark down to what is in use, and return it."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only; without it free memory is used again and not counted
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    return _peak()


def _peak() -> int:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Measure the job in the file that is named first; write the result as JSON to the second."""
    stay_on_one_core()
    with Path(sys.argv[1]).open("rb") as file:
        job: Job = pickle.load(file)  # from the process that started this one, in a folder that is its own
    Path(sys.argv[2]).write_text(json.dumps(measure(job)), "utf-8")


if __name__ == "__main__":
    main()
