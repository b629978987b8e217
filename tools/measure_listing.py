"""Measure what listing a source takes, for each image: seconds, and bytes that the list holds in memory.

    python tools/measure_listing.py -o benchmarks/results/listing.json [--images 200000]

The sources are a folder of files in folders of 1,000, and a plain tar with the same number. No file is an image,
because listing reads none. Every measurement has its own process. A folder's time depends on the file system: here it
is local, and its entries are in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shlex
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from stochcl.benchmarks.run import commit, hardware, versions

PER_FOLDER = 1000


def name_of(i: int) -> str:
    return f"train/n{i // PER_FOLDER:08d}/n{i // PER_FOLDER:08d}_{i % PER_FOLDER}.JPEG"


def make(folder: Path, images: int) -> None:
    with (folder / "images.tar").open("wb") as out:
        for i in range(images):
            member = tarfile.TarInfo(name_of(i))
            member.size = 4
            out.write(member.tobuf(tarfile.USTAR_FORMAT) + b"none" + bytes(508))
        out.write(bytes(1024))
    for i in range(images):
        path = folder / "images" / name_of(i)
        if i % PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.touch()


def resident() -> int:
    """Return this process's resident bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def listed(path: Path) -> dict[str, Any]:
    from stochcl.data import open_source

    before, started, clock = resident(), time.process_time(), time.perf_counter()
    source = open_source(path)
    spent, elapsed = time.process_time() - started, time.perf_counter() - clock
    images = len(source)
    return {
        "images": images,
        "processor_us_each": round(1e6 * spent / images, 2),
        "clock_us_each": round(1e6 * elapsed / images, 2),
        "bytes_each": round((resident() - before) / images),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.images)
        found = {}
        for kind, path in (("folder", Path(folder, "images")), ("tar", Path(folder, "images.tar"))):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[kind] = pool.apply(listed, (path,))
            print(kind, found[kind], flush=True)
    report = {
        "schema": "stochcl.listing/0",
        "command": shlex.join(["python", "tools/measure_listing.py", "--images", str(options.images)]),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "sources": found,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
