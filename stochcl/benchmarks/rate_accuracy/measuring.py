"""Rows of the table: one code of the test images each, what it costs, and which images a probe gets right with it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks.baselines import BASELINES, FLOATS
from stochcl.benchmarks.errors import BenchmarkError
from stochcl.benchmarks.extras import need
from stochcl.benchmarks.pricing import codings_of, price
from stochcl.benchmarks.probing import answers
from stochcl.benchmarks.rate_accuracy.encoding import both, encode_pixels
from stochcl.downstream.metrics import wilson

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.benchmarks.rate_accuracy.encoding import Encoded
    from stochcl.benchmarks.rate_accuracy.inputs import Inputs
    from stochcl.benchmarks.rate_accuracy.pixels import PixelCode
    from stochcl.codes import Codes

MANY = 1_000_000
"""Images over which side information is spread in one column."""

CODINGS = ("packed", "linear")
"""How codes of others are stored: bits as they are, and through our coder with a linear network."""

ELSEWHERE = " fitted elsewhere"
"""Behind the name of a quantiser that never saw the images that the probe learns from."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Rows of one job, and the answers of each.

    Parameters
    ----------
    rows : list of dict
        JSON values.
    right : ndarray of bool, shape (len(rows), N)
        Which test images the probe got right.
    """

    rows: list[dict[str, Any]]
    right: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Judge:
    """The probe, the same for every row.

    Parameters
    ----------
    inputs : Inputs
    probe : str
    seed : int
    """

    inputs: Inputs
    probe: str
    seed: int

    def right(self, train: NDArray[np.float32], test: NDArray[np.float32]) -> tuple[NDArray[np.bool_], float]:
        """Return which test images are classified rightly, and the setting chosen inside the training images."""
        labels = self.inputs.train.labels, self.inputs.test.labels
        return answers(self.probe, train, labels[0], test, labels[1], seed=self.seed)

    def rows(
        self,
        method: dict[str, Any],
        costs: list[dict[str, Any]],
        right: NDArray[np.bool_],
        chosen: float,
        start: float,
    ) -> Measured:
        """Return a row for each way to store one code."""
        n, all_images = len(right), len(self.inputs.train) + len(self.inputs.test)
        low, high = wilson(int(right.sum()), n)
        rows = []
        for cost in costs:
            payload, side = cost["bytes"] * 8 / n, cost["side_bytes"] * 8
            bits = {
                "bits_per_image": round(payload, 3),
                "bits_with_side": round(payload + side / all_images, 3),
                "bits_with_side_of_a_million": round(payload + side / MANY, 3),
            }
            scores = {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high, "chosen": chosen}
            rows.append(method | cost | bits | scores | {"seconds": round(time.monotonic() - start, 1)})
        return Measured(rows, np.repeat(right[None], len(rows), axis=0))


def of_codes(judge: Judge, codec: Codec, latents: int, given: str, train: Encoded, test: Encoded) -> Measured:
    """Measure a prefix of our codes, from a real file."""
    start = time.monotonic()
    size, codes = through_a_file(codec, test.codes, latents)
    fitting = train.codes.prefix(latents)
    decoder = codec.tables.decoder
    if given == "vectors" and decoder is not None:
        parts = [decoder.decode(fitting.symbols()), decoder.decode(codes.symbols())]
    else:
        parts = [fitting.symbols().astype(np.float32), codes.symbols().astype(np.float32)]
    right, chosen = judge.right(*parts)
    method = {"method": codec.model.name, "group": "ours", "code": f"{latents} latents", "input": given}
    cost = {"coding": "archive", "bytes": size, "side_bytes": len(codec.tables.data)}
    return judge.rows(method, [cost], right, chosen, start)


def through_a_file(codec: Codec, codes: Codes, latents: int) -> tuple[int, Codes]:
    """Write a prefix of codes without names or tables, read it again; return the file's size in bytes, and its codes."""
    from stochcl.compress import Archive, Writer

    codes = replace(codes.prefix(latents), names=None, labels=None, uncertainty=None)
    header = codec.header(latents=latents, source_kind="benchmark")
    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, "codes.bin")
        with Writer(path, header, codec.tables, embed_tables=False, names=False) as out:
            out.add(codes)
        with Archive(path, tables=[codec.tables]) as archive:
            back = archive[:]
            if (back.packed != codes.packed).any():
                raise BenchmarkError("an archive gave back other codes; no figure of this run counts.")
            return archive.size, back


def of_numbers(judge: Judge, name: str, train: Encoded, test: Encoded) -> Measured:
    """Measure the features as numbers of a type."""
    kind, each = FLOATS[name]
    return _of_baseline(judge, kind, each * train.features.shape[1], "features", train, test)


def of_quantiser(
    judge: Judge, name: str, bits: int, train: Encoded, test: Encoded, fit: Encoded | None = None
) -> Measured:
    """Measure features that are quantised to so many bits, plain and through our entropy coder."""
    return _of_baseline(judge, BASELINES[name], bits, "quantisers", train, test, fit)


def _of_baseline(
    judge: Judge, kind: Any, bits: int, group: str, train: Encoded, test: Encoded, fit: Encoded | None = None
) -> Measured:
    start = time.monotonic()
    if kind.module is not None:
        need(kind.module, kind.name)
    method = kind.fit((fit or train).features, bits, judge.seed)
    learned, codes = method.codes(train.features), method.codes(test.features)
    right, chosen = judge.right(method.vectors(learned), method.vectors(codes))
    fitting = learned if fit is None else method.codes(fit.features)
    costs = []
    for coding in codings_of(codes, CODINGS if kind.coded else CODINGS[:1]):
        paid = price(fitting, codes, coding, judge.seed)
        costs.append({"coding": coding, "bytes": paid.bytes, "side_bytes": method.side_bytes + paid.model_bytes})
    name = kind.name if fit is None else kind.name + ELSEWHERE
    named = {"method": name, "group": group, "code": f"{bits} bits", "input": "vectors"}
    return judge.rows(named, costs, right, chosen, start)


def of_pixels(judge: Judge, codec: Codec, code: PixelCode, told: Callable[[int, int], None]) -> Measured:
    """Measure small images in a format, decoded and given to the network."""
    start = time.monotonic()
    code.need()
    (train, *_), (test, size, bare) = both(judge.inputs, lambda part: encode_pixels(codec, part, code, told))
    right, chosen = judge.right(train, test)
    named = {"method": code.name, "group": "pixels", "code": code.coding, "input": "features"}
    costs = [{"coding": "files", "bytes": size, "side_bytes": 0}]
    if bare < size:
        costs.append({"coding": "files without fixed headers", "bytes": bare, "side_bytes": 0})
    return judge.rows(named, costs, right, chosen, start)
