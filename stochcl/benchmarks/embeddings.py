"""Embeddings compressed by our models and by others: bits on disk, and what the decoded vectors are good for."""

from __future__ import annotations

import shlex
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl.benchmarks import machine
from stochcl.benchmarks.baselines import BASELINES, FLOATS
from stochcl.benchmarks.extras import need
from stochcl.benchmarks.matrices import Data
from stochcl.benchmarks.pricing import CODINGS, codings_of, price
from stochcl.errors import MissingExtraError, UsageError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stochcl.benchmarks.baselines.base import Baseline

SCHEMA = "stochcl.benchmark.embeddings/0"
METHODS = (*BASELINES, *FLOATS)

_MANY = 1_000_000  # rows over which side information is spread in one column


@dataclass(frozen=True)
class Request:
    """What to measure.

    Parameters
    ----------
    train, test : Path
        Matrices, .npy: what is learned from, and what is compressed and measured on.
    labels, test_labels : Path, optional
        Arrays of integers or strings, .npy, one a row; accuracy is left out without them.
    models : tuple of Path
        Model files of ours.
    bits : tuple of int
        Bits of a row.
    methods : tuple of str
        Keys of :data:`METHODS`; all by default.
    codings : tuple of str
        Of :data:`~stochcl.benchmarks.pricing.CODINGS`.
    seed : int
    """

    train: Path
    test: Path
    labels: Path | None = None
    test_labels: Path | None = None
    models: tuple[Path, ...] = ()
    bits: tuple[int, ...] = (32, 64, 128, 256)
    methods: tuple[str, ...] = METHODS
    codings: tuple[str, ...] = CODINGS[:3]
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError where the parts do not go together."""
        if (self.labels is None) != (self.test_labels is None):
            raise UsageError("--labels and --test-labels belong together; give both, or neither.")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise UsageError(f"there is no method {unknown[0]!r}; there are {', '.join(METHODS)}.")
        if not self.bits or min(self.bits) < 1:
            raise UsageError("--bits are the bits of a row, each 1 or more.")

    @property
    def command(self) -> str:
        """The command line that asks for this, without folders of the machine that it ran on."""
        words = ["stochcl", "benchmark", "embeddings", printable(self.train.name)]
        for name in ("test", "labels", "test_labels"):
            path = getattr(self, name)
            words += [] if path is None else [f"--{name.replace('_', '-')}", printable(path.name)]
        words += [word for path in self.models for word in ("--model", printable(path.name))]
        words += [word for bits in self.bits for word in ("--bits", str(bits))]
        if self.methods != METHODS:
            words += [word for name in self.methods for word in ("--only", name)]
        if self.codings != CODINGS[:3]:
            words += [word for name in self.codings for word in ("--coding", name)]
        return shlex.join([*words, "--seed", str(self.seed), "-o", "results/"])


def benchmark_embeddings(
    request: Request,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every method at every rate."""
    from threadpoolctl import threadpool_limits

    request.check()
    data = Data.read(request.train, request.test, request.labels, request.test_labels, request.seed)
    left_out: list[str] = []
    rows: list[dict[str, Any]] = []
    jobs = list(_jobs(request, data))
    for done, (name, job) in enumerate(jobs):
        progress(done, len(jobs), name)
        try:
            with threadpool_limits(1):  # sums in another order give other codes
                rows += job()
        except (MissingExtraError, UsageError) as exc:
            if job.func is _of_model:  # a file that somebody named
                raise
            left_out.append(f"{name} was left out: {exc}")
            say(left_out[-1])
    return {
        "schema": SCHEMA,
        "command": request.command,
        "commit": machine.commit(),
        "seed": request.seed,
        "n": {"train": len(data.train), "test": len(data.test), "queries": len(data.queries)},
        "columns": data.test.shape[1],
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "left_out": left_out,
        "rows": rows,
    }


def _jobs(request: Request, data: Data) -> Iterator[tuple[str, partial[list[dict[str, Any]]]]]:
    width = data.train.shape[1]
    for path in request.models:
        yield printable(path.stem), partial(_of_model, path, request, data)
    for name in request.methods:
        if name in FLOATS:
            kind, each = FLOATS[name]
            yield name, partial(_of_baseline, kind, each * width, request, data)
            continue
        for bits in request.bits:
            yield f"{name}, {bits} bits", partial(_of_baseline, BASELINES[name], bits, request, data)


def _of_baseline(kind: type[Baseline], bits: int, request: Request, data: Data) -> list[dict[str, Any]]:
    """Return the rows of a baseline at a rate: judged once, priced with every coding."""
    if kind.module is not None:
        need(kind.module, kind.name)
    started = time.monotonic()
    method = kind.fit(data.train, bits, request.seed)
    fitted = time.monotonic() - started
    fitting, codes = method.codes(data.train), method.codes(data.test)
    found = data.judge(method.vectors(fitting), method.vectors(codes), request.seed)
    codings = codings_of(codes, request.codings if kind.coded else request.codings[:1])
    out = []
    for coding in codings:
        paid = price(fitting, codes, coding, request.seed)
        size = {"bytes": paid.bytes, "side_bytes": method.side_bytes + paid.model_bytes}
        out.append(_row(kind.name, False, bits, coding, size, len(codes), found, fitted))
    return out


def _of_model(path: Path, request: Request, data: Data) -> list[dict[str, Any]]:
    """Return the rows of a model: at full width, and its widest prefix for every rate that this exceeds."""
    from stochcl.api.codec import Codec

    codec = Codec(path, device="cpu")
    out: list[dict[str, Any]] = []
    seen: set[int] = set()
    with tempfile.TemporaryDirectory(prefix="stochcl-") as name:
        for rate in (None, *sorted(request.bits, reverse=True)):
            test = Path(name, f"{rate}.bin")
            try:
                codec.compress(request.test, test, rate=rate, names=False, external_tables=True)
            except UsageError:
                if rate is None:
                    raise
                continue  # not even one latent
            with _opened(test, codec) as archive:
                latents, size, decoded = archive.header.latents, archive.size, archive.to_vectors()
            if latents in seen:
                continue
            seen.add(latents)
            train = Path(name, "train.bin")
            codec.compress(request.train, train, latents=latents, names=False, external_tables=True, force=True)
            with _opened(train, codec) as archive:
                found = data.judge(archive.to_vectors(), decoded, request.seed)
            paid = {"bytes": size, "side_bytes": len(codec.tables.data)}
            coding = f"{latents} latents"
            seconds = codec.model.record.get("seconds")
            out.append(_row(codec.model.name, True, rate, coding, paid, len(decoded), found, seconds))
    return out


def _opened(path: Path, codec: Any) -> Any:
    from stochcl.compress import Archive

    return Archive(path, tables=[codec.tables])


def _row(
    method: str,
    ours: bool,
    bits: int | None,
    coding: str,
    size: dict[str, int],
    rows: int,
    found: dict[str, Any],
    seconds: float | None,
) -> dict[str, Any]:
    payload, side = size["bytes"] * 8 / rows, size["side_bytes"] * 8
    return {
        "method": method,
        "ours": ours,
        "bits": bits,
        "coding": coding,
        **size,
        "bits_per_vector": round(payload, 3),
        "bits_with_side": round(payload + side / rows, 3),
        "bits_with_side_of_a_million": round(payload + side / _MANY, 3),
        **found,
        "fit_seconds": None if seconds is None else round(seconds, 1),
    }


COLUMNS = (
    "method", "coding", "bits", "+ side", "at a million", "side B", "accuracy", "error", "recall@10", "symmetric",
)  # fmt: skip
"""Of the table for people: bits a vector in the file, with side information at so many rows, and at a million."""


def title(result: dict[str, Any]) -> str:
    """Return what stands above the table."""
    n = result["n"]
    return f"{n['test']:,} rows of {result['columns']:,} columns, after {n['train']:,} to learn from"


def lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table."""
    return [
        (
            row["method"] + ("" if row["bits"] is None else f" {row['bits']}"),
            row["coding"],
            f"{row['bits_per_vector']:,.1f}",
            f"{row['bits_with_side']:,.1f}",
            f"{row['bits_with_side_of_a_million']:,.1f}",
            f"{row['side_bytes']:,}",
            "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}",
            f"{row['relative_error']:.4f}",
            f"{row['recall']:.1%}",
            f"{row['recall_symmetric']:.1%}",
        )
        for row in result["rows"]
    ]
