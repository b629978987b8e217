"""Measure what an archive's codes take on disk and to decode, in processor time, which other programs do not prolong.

    stochcl compress cifar10-test.zip -o cifar10-test.bin
    stochcl transcode cifar10-test.bin -o cifar10-test-32.bin --latents 32
    python tools/measure_decoding.py cifar10-test.bin cifar10-test-32.bin -o benchmarks/results/decoding.json

Each archive is read from front to back several times in a separate process on one core; the result is the median.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure_streaming import peak

from stochcl.benchmarks.run import ONE_THREAD, commit, hardware, stay_on_one_core, versions
from stochcl.compress import Archive

REPEATS = 5


def measure(path: Path) -> dict[str, Any]:
    """Read an archive from front to back several times."""
    stay_on_one_core()
    spent = []
    for _ in range(REPEATS):
        with Archive(path) as archive:
            started = time.process_time()
            rows = sum(len(codes) for codes in archive.iter_codes())
            spent.append(time.process_time() - started)
            if rows != len(archive):
                raise ValueError(f"{rows} rows of {len(archive)}")
            header, parts = archive.header, archive.parts()
    return {
        "archive": path.name,
        "model": f"{header.model} {header.model_sha256[:12]}",
        "rows": rows,
        "latents": header.latents,
        "alphabet": header.alphabet,
        "bytes_per_row": {name: round(parts[name] / rows, 3) for name in ("codes", "index")},
        "processor_us_each": round(1e6 * float(np.median(spent)) / rows, 2),
        "processor_us_each_low": round(1e6 * min(spent) / rows, 2),
        "processor_us_each_high": round(1e6 * max(spent) / rows, 2),
        "repeats": REPEATS,
        "peak_mb": round(peak() / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archives", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)  # for child processes
    found = []
    for path in options.archives:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(measure, (path,)))
        print(found[-1], flush=True)
    report = {
        "schema": "stochcl.decoding/0",
        "command": shlex.join(["python", "tools/measure_decoding.py", *(path.name for path in options.archives)]),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "archives": found,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
