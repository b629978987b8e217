"""Measure what many codes take to write, to read, and to read one of: time, and the most memory that was resident.

    python tools/measure_streaming.py -o codec-streaming.json [--rows 10000000] [--network-rows 1000000]

The codes are made from a seed: skewed independent bits, and bits drawn from a random network of 512 hidden units,
which also codes them. Every step runs in a separate process on one core, and checks the codes it reads.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks.run import ONE_THREAD, commit, hardware, stay_on_one_core, versions
from stochcl.codes import Codes
from stochcl.compress import Archive, Header, Writer
from stochcl.entropy.autoregressive import AutoregressiveModel, Stepper, logistic_levels
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH = 8192
HIDDEN = 512
ANY_ORDER = 10_000  # single rows, read in random order
LATENCIES = 9


@dataclass(frozen=True)
class Case:
    """Codes to write: their number, width, source (a network or independent bits), and names."""

    name: str
    rows: int
    latents: int
    network: bool
    names: bool


def random_network(latents: int, hidden: int = HIDDEN, seed: int = 0) -> AutoregressiveModel:
    """Return a masked network whose log-odds spread over most of the levels."""
    rng = np.random.default_rng(seed)
    seen = np.arange(latents)
    degrees = 1 + np.arange(hidden) * (latents - 1) // hidden
    known = np.searchsorted(degrees, seen, side="right")

    def weights(shape: tuple[int, int], scale: float, mask: np.ndarray) -> np.ndarray:
        return (np.clip(np.rint(rng.normal(0, scale, shape)), -127, 127) * mask).astype(np.int8)

    spread = np.sqrt((128 * 8) ** 2 * (seen + 1) + (30 * 40) ** 2 * known)
    levels = logistic_levels()
    return AutoregressiveModel(
        latents=latents,
        alphabet=2,
        levels=levels,
        degrees=degrees.astype(np.uint16),
        hidden_weights=weights((hidden, latents), 30, seen[None, :] < degrees[:, None]),
        hidden_bias=np.zeros(hidden, np.int32),
        hidden_multiplier=np.minimum(2 * (1 << 14) / np.sqrt(degrees + 1), 65535).astype(np.uint16),
        direct=weights((latents, latents), 8, seen[None, :] < seen[:, None]),
        output=weights((latents, hidden), 30, degrees[None, :] <= seen[:, None]),
        multiplier=np.clip(np.rint(18 * (1 << 24) / spread), 1, 65535).astype(np.uint16),
        bias=np.rint(256 * (len(levels) / 2 + rng.normal(0, 4, (latents, 1)))).astype(np.int32),
    )


def draw(network: AutoregressiveModel, rows: int, seed: int) -> np.ndarray:
    """Draw rows from the network's distribution, packed."""
    rng, stepper = np.random.default_rng(seed), Stepper(network, rows)
    for indices in stepper:
        stepper.tell((rng.integers(0, 4096, rows) < network.levels[indices]).astype(np.uint8))
    return np.packbits(stepper.decisions.T, axis=1)


def batches(case: Case) -> Iterator[Codes]:
    """Yield the case's codes, always the same; a network's are a few thousand rows in many orders."""
    network = random_network(case.latents) if case.network else None
    pool = None if network is None else draw(network, min(BATCH, case.rows), 1)
    p = np.random.default_rng(2).beta(0.5, 0.5, case.latents).astype(np.float32)
    for start in range(0, case.rows, BATCH):
        rng, rows = np.random.default_rng([3, start]), min(BATCH, case.rows - start)
        if pool is None:
            packed = np.packbits(rng.random((rows, case.latents), np.float32) < p, axis=1)
        else:
            packed = pool[rng.permutation(len(pool))[:rows]]
        names = [name_of(start + i) for i in range(rows)] if case.names else None
        yield Codes(packed, case.latents, names=None if names is None else tuple(names))


def name_of(row: int) -> str:
    """Return the name of a row, as in a data set of folders."""
    return f"train/n{row // 1300:08d}/n{row // 1300:08d}_{row * 2654435761 % 100_000}.JPEG"


def write(case: Case, path: Path) -> dict[str, Any]:
    network = random_network(case.latents) if case.network else None
    tables = Tables((case.latents,), IndependentModel.fit(next(batches(case))), None, network)
    header = Header(
        model="measured",
        model_sha256="00" * 32,
        model_latents=case.latents,
        latents=case.latents,
        alphabet=2,
        precision="fp32",
        tables_sha256=tables.sha256,
        feature_dim=0,
        input_bytes=0,
        source_kind="made",
        preprocess={},
    )
    seconds, crc = 0.0, 0
    with Writer(path, header, tables, embed_tables=True, names=case.names) as writer:
        for codes in batches(case):
            crc = zlib.crc32(codes.packed.tobytes(), crc)
            started = time.perf_counter()
            writer.add(codes)
            seconds += time.perf_counter() - started
        started = time.perf_counter()
    seconds += time.perf_counter() - started
    return {"rows_per_second": round(case.rows / seconds), "bytes": path.stat().st_size, "crc": crc}


def read(case: Case, path: Path) -> dict[str, Any]:
    """Read all codes in order, and check their names."""
    crc, row, started = 0, 0, time.perf_counter()
    with Archive(path) as archive:
        for codes in archive.iter_codes():
            crc = zlib.crc32(codes.packed.tobytes(), crc)
            if codes.names is not None and (names := list(codes.names))[0] != name_of(row):
                raise ValueError(f"row {row} is called {names[0]}")
            row += len(codes)
    return {"rows_per_second": round(case.rows / (time.perf_counter() - started)), "crc": crc}


def read_shuffled(case: Case, path: Path) -> dict[str, Any]:
    """Read all codes in random order, by blocks."""
    rows, started = 0, time.perf_counter()
    with Archive(path) as archive:
        for codes in archive.iter_shuffled(seed=0, rows=256):
            rows += len(codes)
    if rows != case.rows:
        raise ValueError(f"{rows} rows of {case.rows}")
    return {"rows_per_second": round(case.rows / (time.perf_counter() - started))}


def read_in_any_order(case: Case, path: Path) -> dict[str, Any]:
    """Read single rows in random order, without names."""
    rows = np.random.default_rng(4).integers(0, case.rows, ANY_ORDER).tolist()
    started = time.perf_counter()
    with Archive(path) as archive:
        for row in rows:
            archive[row]
    return {"rows": ANY_ORDER, "rows_per_second": round(ANY_ORDER / (time.perf_counter() - started))}


class Counting(io.FileIO):
    """A file that counts the bytes read."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) or b""
        self.count += len(data)
        return data


def read_one(case: Case, path: Path) -> dict[str, Any]:
    """Open the archive and read one row, in an interpreter that has done so before."""
    opened, whole, spent = [], [], []
    rows = np.random.default_rng(5).integers(0, case.rows, LATENCIES + 1).tolist()
    for row in rows:
        started, before = time.perf_counter(), time.process_time()
        with Archive(path) as archive:
            opened.append(time.perf_counter() - started)
            archive[row]
            whole.append(time.perf_counter() - started)
            spent.append(time.process_time() - before)
    with Counting(path) as file:
        Archive(file)[rows[0]]
    return {
        "open_ms": round(1e3 * float(np.median(opened[1:])), 2),
        "open_and_read_ms": round(1e3 * float(np.median(whole[1:])), 2),
        "open_and_read_processor_ms": round(1e3 * float(np.median(spent[1:])), 2),
        "bytes_read": file.count,
    }


STEPS: dict[str, Callable[[Case, Path], dict[str, Any]]] = {
    "write": write,
    "read": read,
    "read shuffled by blocks": read_shuffled,
    "read 10,000 rows in any order": read_in_any_order,
    "read one row": read_one,
}


def peak() -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def run(step: str, case: Case, path: Path) -> dict[str, Any]:
    stay_on_one_core()
    before = time.process_time()
    found = STEPS[step](case, path)
    # Processor time as well, which other processes on the core do not prolong.
    return {**found, "processor_seconds": round(time.process_time() - before, 2), "peak_mb": round(peak() / 1e6, 1)}


def measure(case: Case, folder: Path) -> dict[str, Any]:
    path, steps = folder / "codes.bin", {}
    for step in STEPS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            steps[step] = pool.apply(run, (step, case, path))
        print(case.name, step, steps[step], flush=True)
    if steps["write"].pop("crc") != steps["read"].pop("crc"):
        raise ValueError(f"{case.name}: other codes were read than were written")
    with Archive(path) as archive:
        parts = archive.parts()
        blocks = sum(len(head.words) for _, head in archive._index.segments)
    path.unlink()
    figures = {"rows": case.rows, "latents": case.latents, "network": case.network, "names": case.names}
    bits = 8 * (parts["codes"] + parts["index"]) / case.rows
    return {"case": case.name, **figures, "blocks": blocks, "bits_per_row": round(bits, 3), "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of independent bits; 10,000,000 by default")
    parser.add_argument("--network-rows", type=int, default=1_000_000, help="from a network; 1,000,000 by default")
    parser.add_argument("--wide-rows", type=int, default=20_000, help="of 2,048 latents; 20,000 by default")
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)  # for child processes
    cases = [
        Case("independent bits", options.rows, 128, network=False, names=False),
        Case("network, with names", options.network_rows, 128, network=True, names=True),
        Case("network of 2,048 latents", options.wide_rows, 2048, network=True, names=True),
    ]
    with tempfile.TemporaryDirectory() as folder:
        measured = [measure(case, Path(folder)) for case in cases]
    given = [options.output.name if text == str(options.output) else text for text in sys.argv[1:]]
    report = {
        "schema": "stochcl.streaming/0",
        "command": shlex.join(["python", "tools/measure_streaming.py", *given]),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "hidden_units": HIDDEN,
        "cases": measured,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
