"""Measure `stochcl dedup` and searches over a million codes of embeddings, with copies planted among them.

    python tools/measure_million.py train.npy --queries test.npy -m reconstruct64.safetensors -o million.json

Rows are mixtures of two embeddings and noise of their covariance, all of length 1; the last ones are copies of others
plus noise of 0.003 to 0.2 of their length. Times are of one processor, which other programs do not prolong; each step
runs in a separate process to measure its memory. Precision is the share of pairs whose floats have a cosine of at
least 0.95.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure_streaming import peak

from stochcl.benchmarks.run import ONE_THREAD, commit, hardware, versions

NOISE = (0.003, 0.01, 0.03, 0.1, 0.2)
THRESHOLDS = (0.95, 0.85)  # thresholds to run
ALSO = (0.9, 1.0)  # thresholds applied to the pairs of the last run
COPIES = 2000  # per noise level
PART = 50_000
QUERIES = 100


def unit(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def make_rows(source: Path, path: Path, count: int, seed: int) -> np.ndarray:
    """Write the rows, float16, and return the numbers of the copied ones, in the order of their copies."""
    rng, given = np.random.default_rng(seed), unit(np.load(source))
    centred = given - given.mean(axis=0)
    root = np.linalg.cholesky(centred.T @ centred / len(given) + 1e-6 * np.eye(given.shape[1])).astype(np.float32)
    rows = np.lib.format.open_memmap(path, "w+", np.float16, (count, given.shape[1]))
    originals = count - COPIES * len(NOISE)
    for start in range(0, originals, PART):
        n = min(PART, originals - start)
        share = rng.uniform(0.3, 0.7, (n, 1)).astype(np.float32)
        a, b = given[rng.integers(0, len(given), (2, n))]
        noise = rng.standard_normal((n, given.shape[1]), np.float32) @ root.T
        rows[start : start + n] = unit(share * a + (1 - share) * b + 0.5 * noise)
    copied = rng.choice(originals, count - originals, replace=False)
    noise = rng.standard_normal((len(copied), given.shape[1]), np.float32) / np.sqrt(given.shape[1])
    rows[originals:] = unit(unit(rows[copied]) + np.repeat(NOISE, COPIES)[:, None].astype(np.float32) * noise)
    rows.flush()
    return copied


def timed(function: Any, *given: Any) -> dict[str, Any]:
    """Run a function in a separate process; return its result, time and memory."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_timed, (function, given))


def _timed(function: Any, given: Any) -> dict[str, Any]:
    started = time.process_time()
    found = function(*given)
    return found | {"processor_s": round(time.process_time() - started, 1), "peak_mb": round(peak() / 1e6)}


def compress(model: Path, rows: Path, codes: Path) -> dict[str, Any]:
    import stochcl

    report = stochcl.load(model, device="cpu").compress(rows, codes, force=True)
    return {"bits_per_row": round(report.codes_bits_per_image, 2), "archive_bytes": codes.stat().st_size}


def dedup(codes: Path, pairs: Path, threshold: float) -> dict[str, Any]:
    from stochcl.api.search import dedup

    found = dedup(codes, pairs, threshold=threshold, force=True)
    return {"threshold": threshold} | {name: found[name] for name in ("pairs", "equal")}


def score(rows: Path, copied: np.ndarray, pairs: Path, threshold: float) -> dict[str, Any]:
    """Return the share of planted copies found, by noise, and the share of near pairs."""
    x = np.load(rows, mmap_mode="r")
    first, second, similarity = np.loadtxt(pairs, delimiter=",", skiprows=1, ndmin=2).T
    kept = similarity >= threshold
    first, second = first[kept].astype(int), second[kept].astype(int)
    near = sum(
        int((np.einsum("nd,nd->n", unit(x[first[i : i + PART]]), unit(x[second[i : i + PART]])) >= 0.95).sum())
        for i in range(0, len(first), PART)
    )
    origin = len(x) - len(copied)
    of_copies = second >= origin
    hit = np.zeros(len(copied), bool)
    hit[second[of_copies] - origin] |= copied[second[of_copies] - origin] == first[of_copies]
    recall = {str(noise): float(part.mean()) for noise, part in zip(NOISE, np.split(hit, len(NOISE)), strict=True)}
    return {"threshold": threshold, "recall": recall, "precision": round(near / max(1, len(first)), 4)}


def search(codes: Path, queries: Path) -> dict[str, Any]:
    import stochcl
    from stochcl.downstream import ArchiveIndex

    started = time.process_time()
    with stochcl.open(codes) as archive:
        index = ArchiveIndex(archive)
    opened, spent = time.process_time() - started, []
    for query in np.load(queries)[: QUERIES + 1]:
        started = time.process_time()
        index.kneighbors(query, 10)
        spent.append(1000 * (time.process_time() - started))
    low, median, high = np.quantile(spent[1:], [0.05, 0.5, 0.95]).round(2).tolist()
    return {"open_s": round(opened, 1), "query_ms": median, "query_ms_low": low, "query_ms_high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("-m", "--model", type=Path, action="append", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    os.environ.update(ONE_THREAD)  # for child processes
    words = [args.vectors.name, "--queries", args.queries.name, *(w for m in args.model for w in ("-m", m.name))]
    words += ["--rows", str(args.rows), "--seed", str(args.seed)]
    result: dict[str, Any] = {
        "schema": "stochcl.million/0", "command": shlex.join(["python", "tools/measure_million.py", *words]),
        "commit": commit(), "hardware": hardware(), "versions": versions(),
        "rows": args.rows, "seed": args.seed, "copies_of_each_noise": COPIES, "models": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        rows, codes, pairs = (Path(folder) / name for name in ("rows.npy", "codes.bin", "pairs.csv"))
        copied = make_rows(args.vectors, rows, args.rows, args.seed)
        for model in args.model:
            found: dict[str, Any] = {"model": model.name, "compress": timed(compress, model, rows, codes)}
            found["search"] = timed(search, codes, args.queries)
            found["dedup"], found["pairs"] = [], []
            for threshold in THRESHOLDS:
                found["dedup"].append(timed(dedup, codes, pairs, threshold))
            for threshold in sorted({*THRESHOLDS, *ALSO}):
                found["pairs"].append(score(rows, copied, pairs, threshold))
            result["models"].append(found)
            args.output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
