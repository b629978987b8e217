"""How well codes find images of the same class: mean average precision, at so many bits."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api.archives import transcode
from stochcl.api.evaluate import has_categories, labels_of
from stochcl.benchmarks import machine
from stochcl.benchmarks.baselines import BASELINES
from stochcl.benchmarks.matrices import _matrix
from stochcl.codes import bits_per_symbol
from stochcl.compress import Archive
from stochcl.downstream.metrics import average_precision
from stochcl.downstream.neighbors import DISTANCES, Nearest
from stochcl.errors import ModelMismatch, SourceError, UsageError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SCHEMA = "stochcl.benchmark.retrieval/0"

SIGNS = ("itq", "pca-signs", "random-signs")
"""What stands beside, of :data:`~stochcl.benchmarks.baselines.BASELINES`, where float features are given."""

_BLOCK = 512  # queries at a time
_RESAMPLES = 1000


@dataclass(frozen=True)
class Request:
    """What to measure.

    Parameters
    ----------
    train, test : Path
        Archives of one model: what is searched, and what is looked for.
    labels, test_labels : Path, optional
        CSV files; by default the archives' own labels.
    bits : tuple of int
        Of a code.
    count : int
        How many are returned for a query: mAP@count.
    features, test_features : Path, optional
        Float features of both in the archives' order, .npy.
    queries : int, optional
        At most so many, a seeded choice.
    seed : int
    """

    train: Path
    test: Path
    labels: Path | None = None
    test_labels: Path | None = None
    bits: tuple[int, ...] = (16, 32, 64)
    count: int = 1000
    features: Path | None = None
    test_features: Path | None = None
    queries: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError where the parts do not go together."""
        if not self.bits or min(self.bits) < 1:
            raise UsageError("--bits are numbers of 1 or more.")
        if self.count < 1 or (self.queries is not None and self.queries < 1):
            raise UsageError("-k and --queries are 1 or more.")
        if (self.features is None) != (self.test_features is None):
            raise UsageError("--features and --test-features belong together; give both, or neither.")

    @property
    def command(self) -> str:
        """The command line that asks for this, without folders of the machine that it ran on."""
        words = ["stochcl", "benchmark", "retrieval", printable(self.train.name), printable(self.test.name)]
        for name in ("labels", "test_labels", "features", "test_features"):
            path = getattr(self, name)
            words += [] if path is None else [f"--{name.replace('_', '-')}", printable(path.name)]
        words += ["--bits", ",".join(map(str, self.bits)), "-k", str(self.count)]
        words += [] if self.queries is None else ["--queries", str(self.queries)]
        return shlex.join([*words, "--seed", str(self.seed), "-o", "results/"])


@dataclass(frozen=True, eq=False)
class Task:
    """Whose neighbours are looked for, and which are right.

    Parameters
    ----------
    labels, wanted : ndarray of str
        Of what is searched, and of the queries.
    count : int
    seed : int
        Of the bootstrap, and of the order of rows.
    """

    labels: NDArray[np.str_]
    wanted: NDArray[np.str_]
    count: int
    seed: int

    def row(self, base: NDArray[Any], queries: NDArray[Any], metric: str, **facts: Any) -> dict[str, Any]:
        """Return facts with the mean average precision and its 95 % interval over queries."""
        # Equal distances are many among short codes, and go by the order of rows, which archives have by class.
        order = np.random.default_rng([self.seed, 41]).permutation(len(base))
        base, labels = base[order], self.labels[order]
        parts = []
        for start in range(0, len(queries), _BLOCK):
            found = Nearest(queries[start : start + _BLOCK], DISTANCES[metric], self.count)
            found.add(base)
            _, numbers = found.sorted()
            parts.append(average_precision(labels[numbers] == self.wanted[start : start + _BLOCK, None]))
        precision = np.concatenate(parts)
        rng = np.random.default_rng([self.seed, 31])
        draws = [precision[rng.integers(len(precision), size=len(precision))].mean() for _ in range(_RESAMPLES)]
        low, high = np.quantile(draws, [0.025, 0.975])
        return facts | {
            "distance": metric,
            "map": float(precision.mean()),
            "map_low": float(low),
            "map_high": float(high),
        }


def benchmark_retrieval(
    request: Request, *, progress: Callable[[int, int, str], None] = lambda done, total, note: None
) -> dict[str, Any]:
    """Measure codes of every number of bits, by symbols and by decoded vectors."""
    request.check()
    with Archive(request.train) as train, Archive(request.test) as test:
        if train.header.model_sha256 != test.header.model_sha256:
            raise ModelMismatch(f"{printable(request.test)}: it was made by another model than the other archive.")
        labels = np.asarray(labels_of(train, request.train, request.labels))
        wanted = np.asarray(labels_of(test, request.test, request.test_labels))
        facts = {"model": {"name": test.header.model, "sha256": test.header.model_sha256}}
    chosen = np.arange(len(wanted))
    if request.queries is not None:
        chosen = np.sort(np.random.default_rng([request.seed, 37]).permutation(len(wanted))[: request.queries])
    task = Task(labels, wanted[chosen], min(request.count, len(labels)), request.seed)
    jobs = list(_jobs(request, task, chosen))
    rows = []
    for done, (name, job) in enumerate(jobs):
        progress(done, len(jobs), name)
        if (row := job()) is not None:
            rows.append(row)
    return {
        "schema": SCHEMA,
        "command": request.command,
        "commit": machine.commit(),
        "seed": request.seed,
        "count": task.count,
        "n": {"searched": len(labels), "queries": len(chosen)},
        **facts,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "rows": rows,
    }


def _jobs(
    request: Request, task: Task, chosen: NDArray[np.intp]
) -> Iterator[tuple[str, Callable[[], dict[str, Any] | None]]]:
    for bits in request.bits:
        yield f"symbols, {bits} bits", lambda bits=bits: _by_symbols(request, task, chosen, bits)  # type: ignore[misc]
        yield f"vectors, {bits} bits", lambda bits=bits: _by_vectors(request, task, chosen, bits)  # type: ignore[misc]
    if request.features is None or request.test_features is None:
        return
    base, queries = _matrix(request.features), _matrix(request.test_features)
    for path, array, rows in (
        (request.features, base, len(task.labels)), (request.test_features, queries, int(chosen.max()) + 1),
    ):  # fmt: skip
        if len(array) < rows or (path is request.features and len(array) != rows):
            raise SourceError(f"{printable(path)}: it has {len(array):,} rows, and the archive has others.")
    queries = queries[chosen]
    named: dict[str, Any] = {
        "method": "float32",
        "code": f"{base.shape[1]} numbers",
        "code_bits": 32 * base.shape[1],
        "bits": None,
    }
    for bits in request.bits:
        yield (
            f"vectors, float queries, {bits} bits",
            lambda bits=bits: _by_vectors(request, task, chosen, bits, queries),  # type: ignore[misc]
        )
    yield "float features", lambda: task.row(base, queries, "cosine", **named)
    for name in SIGNS:
        for bits in request.bits:

            def job(name: str = name, bits: int = bits) -> dict[str, Any]:
                method = BASELINES[name].fit(base, bits, request.seed)
                searched, wanted = (method.codes(array).symbols() for array in (base, queries))
                told: dict[str, Any] = {"method": method.name, "code": f"{bits} bits", "code_bits": bits}
                return task.row(searched, wanted, "hamming", **told, bits=float(bits))

            yield f"{name}, {bits} bits", job


def _by_symbols(request: Request, task: Task, chosen: NDArray[np.intp], bits: int) -> dict[str, Any] | None:
    """Measure the symbols of a prefix of so many bits, packed; None where there is none."""
    with Archive(request.train) as train, Archive(request.test) as test:
        latents = bits // bits_per_symbol(train.header.alphabet)
        if not 1 <= latents <= train.header.latents:
            return None
        metric = "hamming" if train.header.alphabet == 2 else ("symbols" if has_categories(train) else "levels")
        base, queries = train.to_numpy(latents), test.to_numpy(latents)[chosen]
        width = latents * bits_per_symbol(train.header.alphabet)
    told = {"method": "ours, symbols", "code": f"{latents} latents", "code_bits": width}
    return task.row(base, queries, metric, **told, bits=_on_disk(request.test, latents=latents)[1])


def _by_vectors(
    request: Request, task: Task, chosen: NDArray[np.intp], bits: int, asked: NDArray[np.float32] | None = None
) -> dict[str, Any] | None:
    """Measure decoded vectors of the widest prefix that takes at most so many bits on disk; None where none does.

    Queries are decoded, too, or else float features.
    """
    try:
        latents, spent = _on_disk(request.test, rate=bits)
    except UsageError:
        return None
    with Archive(request.train) as train, Archive(request.test) as test:
        if not train.has_decoder:
            return None
        base = train.to_vectors(latents)
        queries = test.to_vectors(latents)[chosen] if asked is None else asked
        width = latents * bits_per_symbol(test.header.alphabet)
    method = "ours, vectors" if asked is None else "ours, vectors, float queries"
    return task.row(base, queries, "cosine", method=method, code=f"{latents} latents", code_bits=width, bits=spent)


def _on_disk(path: Path, **options: Any) -> tuple[int, float]:
    """Return the latents of a narrower copy of an archive, and its codes' bits per image, as --rate counts them."""
    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        out = Path(folder, "codes.bin")
        transcode(path, out, names=False, **options)
        with Archive(out) as archive:
            return archive.header.latents, round(archive.parts()["codes"] * 8 / len(archive), 3)


COLUMNS = ("method", "code", "code bits", "bits on disk", "mAP", "95 % interval")
"""Of the table for people: bits of a code before entropy coding, and bits per image in the file."""


def title(result: dict[str, Any]) -> str:
    """Return what stands above the table."""
    n = result["n"]
    return (
        f"mAP@{result['count']:,} of {n['queries']:,} queries among {n['searched']:,} images, same class is relevant"
    )


def lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table."""
    return [
        (
            row["method"],
            row["code"],
            f"{row['code_bits']:,}",
            "-" if row["bits"] is None else f"{row['bits']:,.1f}",
            f"{row['map']:.2%}",
            f"{row['map_low']:.1%} to {row['map_high']:.1%}",
        )
        for row in result["rows"]
    ]
