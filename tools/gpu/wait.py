"""Wait for jobs, showing the ends of their logs, until they are finished or the time is over.

    python tools/gpu/wait.py RESULTS --seconds 540 [--every 30] [--export EXPORTED]

With --export, what there is by then is exported before this ends: results, models, checkpoints of what still runs.
Exit code 0: the list has been gone through; 3: jobs still run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from export import export


def state(results: Path) -> tuple[bool, list[str]]:
    """Return whether the list is finished, and a line for each job that has begun."""
    try:
        found = json.loads((results / "jobs.json").read_text())
    except (OSError, ValueError):
        return False, ["no job has begun"]
    return bool(found["finished"]), [
        f"{name}: {', '.join(str(v) for v in facts.values())}"
        for name, facts in found["jobs"].items()
        if facts["state"] != "waiting"
    ]


def tail(results: Path) -> str:
    logs = sorted(results.glob("*.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return ""
    lines = logs[-1].read_text("utf-8", "replace").replace("\r", "\n").splitlines()
    return f"{logs[-1].name}: {lines[-1]}" if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--every", type=float, default=30)
    parser.add_argument("--export", type=Path, metavar="EXPORTED")
    parser.add_argument("--moments", default="second")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    finished, lines = state(options.results)
    while not finished and time.monotonic() < deadline:
        print(tail(options.results), flush=True)
        time.sleep(max(0.1, min(options.every, deadline - time.monotonic())))
        finished, lines = state(options.results)
    print("\n".join(lines))
    if options.export:
        export(options.results, options.export, moments=options.moments)
    sys.exit(0 if finished else 3)


if __name__ == "__main__":
    main()
