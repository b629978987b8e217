"""The command: runs cases in processes of their own, one of which may die of a case, and reports."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from multiprocessing import sharedctypes
from pathlib import Path
from typing import Any

_MOST = 50  # findings after which a process stops


def work(seed: int, cases: range, queue: Any, current: Any) -> None:
    """Judge some cases; say which one is being judged, and report findings at once and the rest at the end."""
    from tests.fuzz.judge import Judge

    judge = Judge(seed)
    found = 0
    for number in cases:
        current.value = number
        finding = judge.case(number)
        if finding is not None:
            queue.put(("finding", finding))
            found += 1
            if found >= _MOST:
                break
    queue.put(("done", (judge.outcomes, number + 1)))


def run(cases: range, seed: int, workers: int) -> tuple[Counter[str], list[Any]]:
    """Judge all cases; a process that dies is a finding, and another goes on behind it."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    outcomes: Counter[str] = Counter()
    findings: list[Any] = []
    bounds = [cases.start + len(cases) * i // workers for i in range(workers + 1)]
    waiting = [range(a, b) for a, b in pairwise(bounds) if a < b]
    running: list[tuple[Any, range, Any]] = []
    while waiting or running:
        while waiting:
            part = waiting.pop()
            current = sharedctypes.Value("q", part.start)
            process = context.Process(target=work, args=(seed, part, queue, current))
            process.start()
            running.append((process, part, current))
        time.sleep(0.05)
        _drain(queue, outcomes, findings)
        for process, part, current in list(running):
            if process.is_alive():
                continue
            process.join()
            running.remove((process, part, current))
            _drain(queue, outcomes, findings)
            if process.exitcode:
                from tests.fuzz.judge import Finding

                what = f"the process died with {process.exitcode}"
                findings.append(Finding(current.value, "", "", what, ""))
                waiting.append(range(current.value + 1, part.stop))
                waiting = [left for left in waiting if left]
    _drain(queue, outcomes, findings)
    return outcomes, findings


def _drain(queue: Any, outcomes: Counter[str], findings: list[Any]) -> None:
    while not queue.empty():
        kind, value = queue.get()
        if kind == "finding":
            findings.append(value)
        else:
            outcomes.update(value[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Damage and forge archives.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--report", type=Path, help="write a JSON report there")
    parser.add_argument("--keep", type=Path, help="write the files of findings into this folder")
    options = parser.parse_args()
    start = time.monotonic()
    outcomes, findings = run(range(options.first, options.first + options.cases), options.seed, options.workers)
    seconds = time.monotonic() - start
    for finding in findings:
        print(f"case {finding.case} ({finding.base}): {finding.what}\n  {finding.done}\n  {finding.where}")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{options.seed}-{finding.case}.bin").write_bytes(finding.data)
    judged = sum(outcomes.values())
    print(f"{judged:,} cases, {len(findings)} findings, {seconds:.0f} s, {judged / seconds:,.0f} cases/s")
    if options.report:
        options.report.write_text(json.dumps(report(options, outcomes, findings, seconds), indent=2) + "\n")
    return 1 if findings or judged < options.cases else 0


def report(options: argparse.Namespace, outcomes: Counter[str], findings: list[Any], seconds: float) -> dict:
    """What a run was and what came of it, as plain JSON."""
    judged = sum(outcomes.values())
    return {
        "schema": "stochcl.fuzz/0",
        "command": f"python -m tests.fuzz --cases {options.cases} --seed {options.seed}",
        "first": options.first,
        "cases": judged,
        "damaged": sum(n for kind, n in outcomes.items() if kind.startswith("damaged")),
        "forged": sum(n for kind, n in outcomes.items() if kind.startswith("forged")),
        "findings": [{k: v for k, v in asdict(f).items() if k != "data"} for f in findings],
        "outcomes": dict(sorted(outcomes.items())),
        "seconds": round(seconds, 1),
        "cases_per_second": round(judged / seconds),
        "workers": options.workers,
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("stochcl", "numpy", "constriction")},
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    sys.exit(main())
