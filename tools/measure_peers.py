"""Measure other tools that shrink embeddings on the rows of benchmarks/results/rate-accuracy/text.json.

    pip install rabitqlib==0.7.1 turbovec==1.1.2 remex==2.1.0 turboquant-pro==1.9.1
    python tools/measure_peers.py text/ -o benchmarks/results/peers.json

Bytes are those of the files that a tool writes: per row, and a constant part. No float copy is kept. Recall is of
float queries, by the tool's own search if it has one; accuracy is of a logistic regression on decoded rows, if the
tool decodes them. Tools that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from stochcl.benchmarks.inputs import RateAccuracyConfig, read_inputs
from stochcl.benchmarks.probes import NEIGHBOURS, Judge, interval, recalls
from stochcl.benchmarks.run import commit, hardware, versions

Matrix = np.ndarray
Search = Callable[[Matrix, int], Matrix]
Made = tuple[Search | None, Matrix | None]  # the tool's own search, and decoded vectors
Peer = tuple[str, str, Callable[[Matrix, Path], Made]]


def unit(x: Matrix) -> Matrix:
    return np.ascontiguousarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def remex(bits: int, x: Matrix, path: Path) -> Made:
    from remex import Quantizer

    quantiser = Quantizer(d=x.shape[1], bits=bits)
    codes = quantiser.encode(x)
    codes.save(str(path.with_suffix(".npz")))
    return None, quantiser.decode(codes)


def turbovec(bits: int, x: Matrix, path: Path) -> Made:
    from turbovec import TurboQuantIndex

    index = TurboQuantIndex(dim=x.shape[1], bit_width=bits)
    index.add(x)
    index.write(str(path.with_suffix(".tv")))
    return lambda queries, k: index.search(queries, k=k)[1], None


def rabitq(bits: int, x: Matrix, path: Path) -> Made:
    from rabitqlib import IvfIndex

    index = IvfIndex(dim=x.shape[1], max_elements=len(x), num_clusters=1, nbits=bits, metric="ip")
    index.build(x, x.mean(axis=0, keepdims=True), np.zeros(len(x), np.uint32))
    index.save(str(path.with_suffix(".rabitq")))
    return lambda queries, k: index.search(queries, k=k, nprobe=1)[0], None


def turboquant_pro(bits: int, x: Matrix, path: Path, *, dimensions: int, train: Matrix) -> Made:
    from turboquant_pro import PCAMatryoshka

    pca = PCAMatryoshka(input_dim=x.shape[1], output_dim=dimensions)
    pca.fit(train)
    pipeline = pca.with_quantizer(bits=bits)
    codes = [pipeline.compress(row) for row in x]
    # It has no file format for such codes: a row needs its packed numbers and its length, besides the axes.
    with path.with_suffix(".codes").open("wb") as file:
        file.writelines(code.packed_bytes + np.float32(code.norm).tobytes() for code in codes)
    pca.save(str(path.with_suffix(".axes")))
    return None, np.stack([pipeline.decompress(code) for code in codes]).astype(np.float32)


def peers(train: Matrix) -> Iterator[Peer]:
    for bits in (1, 2, 4):
        yield "remex", f"{bits} bits", lambda x, path, bits=bits: remex(bits, x, path)
    for bits in (2, 4):
        yield "turbovec", f"{bits} bits", lambda x, path, bits=bits: turbovec(bits, x, path)
    for bits in (1, 2, 4):
        yield "rabitqlib", f"{bits} bits", lambda x, path, bits=bits: rabitq(bits, x, path)
    for dimensions, bits in ((64, 2), (128, 2), (256, 3)):
        yield (
            "turboquant-pro", f"{dimensions} axes, {bits} bits",
            lambda x, path, bits=bits, d=dimensions: turboquant_pro(bits, x, path, dimensions=d, train=train),
        )  # fmt: skip


def measure(make: Callable[[Matrix, Path], Made], judge: Judge, train: Matrix, folder: Path) -> dict[str, Any]:
    started = time.process_time()
    _, train_vectors = make(train, folder / "train")
    search, vectors = make(judge.test, folder / "test")
    seconds = time.process_time() - started
    big, small = (sum(f.stat().st_size for f in folder.glob(f"{name}.*")) for name in ("train", "test"))
    each = (big - small) / (len(train) - len(judge.test))
    found: dict[str, Any] = {
        "bytes_per_row": round(each, 2), "file_bytes_besides": round(small - each * len(judge.test)),
        "processor_s": round(seconds, 1),
    }  # fmt: skip
    if vectors is not None and train_vectors is not None:
        return found | judge.scores(train_vectors, vectors)[0]
    near = np.asarray(search(judge.test[judge.queries], NEIGHBOURS + 1)).astype(np.int64)
    kept = np.stack([row[row != own][:NEIGHBOURS] for row, own in zip(near, judge.queries, strict=True)])
    scores = recalls(judge.true, kept)
    low, high = interval(scores, judge.seed)
    return found | {"recall": round(float(scores.mean()), 4), "recall_low": low, "recall_high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="folder of train.npy, test.npy and their labels")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    config = RateAccuracyConfig(
        sources=(args.text / "train.npy",), test=args.text / "test.npy", labels=args.text / "train.csv",
        test_labels=args.text / "test.csv", metric=("accuracy", "recall@10"), test_images=5000, seed=0,
    )  # fmt: skip
    inputs = read_inputs(config)
    train, test = (unit(split.source[split.rows]) for split in (inputs.train, inputs.test))
    judge = Judge(inputs.train.labels, inputs.test.labels, train.mean(axis=0), test, config.metric, seed=0)
    made_by = commit()
    rows, left_out = [], set()
    for tool, code, make in peers(train):
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(make, judge, train, Path(folder))
        except ImportError:
            left_out.add(tool)
            continue
        rows.append({"tool": tool, "version": metadata.version(tool), "code": code} | found)
        print(rows[-1], flush=True)
    result = {
        "schema": "stochcl.peers/0",
        "command": shlex.join(["python", "tools/measure_peers.py", "text/", "-o", "peers.json"]),
        "commit": made_by, "hardware": hardware(), "versions": versions(), "seed": 0,
        "n": {"train": len(train), "test": len(test), "queries": len(judge.queries)}, "columns": train.shape[1],
        "left_out": sorted(left_out), "rows": rows,
    }  # fmt: skip
    args.output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
