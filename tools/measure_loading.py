"""Measure what shuffling costs a PyTorch data loader over an archive: rows a second in order, shuffled, and naively.

    python tools/measure_loading.py -o benchmarks/results/loading.json [--rows 500000]

The codes are those of `tools/measure_streaming.py` with a network: 128 latents, 57 bits per row. Every step runs in a
separate process on one core without worker processes; times are processor time, which other programs do not prolong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure_streaming import Case, peak, write

from stochcl.benchmarks.run import ONE_THREAD, commit, hardware, stay_on_one_core, versions

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 512
NAIVE_BATCHES = 2


def passed(loader: Any, most: int | None = None) -> dict[str, float]:
    """Iterate over a loader, or ``most`` batches of it."""
    rows, started = 0, time.process_time()
    for i, batch in enumerate(loader):
        rows += len(batch)
        if most is not None and i + 1 == most:
            break
    spent = time.process_time() - started
    return {"rows": rows, "processor_seconds": round(spent, 2), "rows_per_processor_second": round(rows / spent)}


def in_order(path: Path) -> dict[str, Any]:
    from torch.utils.data import DataLoader

    from stochcl.torch import CodesDataset

    return passed(DataLoader(CodesDataset(path, output="symbols", labels=False), BATCH))


def shuffled(path: Path) -> dict[str, Any]:
    """Run two epochs: the first decodes the archive and keeps it packed."""
    from torch.utils.data import DataLoader

    from stochcl.torch import CodesDataset

    loader = DataLoader(CodesDataset(path, output="symbols", labels=False), BATCH, shuffle=True)
    return {"first_epoch": passed(loader), "second_epoch": passed(loader)}


def naive(path: Path) -> dict[str, Any]:
    """Shuffle without a cache, so that every batch decodes its rows' blocks."""
    from torch.utils.data import DataLoader

    from stochcl.torch import CodesDataset

    data = CodesDataset(path, output="symbols", labels=False, keep_bytes=0)
    return passed(DataLoader(data, BATCH, shuffle=True), NAIVE_BATCHES)


def stream(path: Path) -> dict[str, Any]:
    from torch.utils.data import DataLoader

    from stochcl.torch import CodesStream

    return passed(DataLoader(CodesStream(path, output="symbols", labels=False, batch_size=BATCH), batch_size=None))


STEPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "CodesDataset, in order": in_order,
    "CodesDataset, shuffled": shuffled,
    "CodesStream, shuffled": stream,
    "CodesDataset, shuffled, keep_bytes=0": naive,
}


def run(step: str, path: Path) -> dict[str, Any]:
    import torch

    stay_on_one_core()
    torch.manual_seed(0)
    before = peak()
    return STEPS[step](path) | {"peak_mb": round(peak() / 1e6, 1), "peak_mb_before": round(before / 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=500_000)
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)  # for child processes
    case, measured = Case("network, with names", options.rows, 128, network=True, names=True), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.bin"
        write(case, path)
        for step in STEPS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured[step] = pool.apply(run, (step, path))
            print(step, measured[step], file=sys.stderr, flush=True)
        size = path.stat().st_size
    report = {
        "schema": "stochcl.loading/0",
        "command": shlex.join(["python", "tools/measure_loading.py", "--rows", str(options.rows)]),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "seed": 0,
        "rows": options.rows,
        "latents": case.latents,
        "bytes": size,
        "batch_size": BATCH,
        "steps": measured,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
