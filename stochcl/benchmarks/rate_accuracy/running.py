"""The run: jobs one after the other, each kept as soon as it is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks import machine
from stochcl.benchmarks.baselines import BASELINES, FLOATS
from stochcl.benchmarks.rate_accuracy import measuring
from stochcl.benchmarks.rate_accuracy.cache import Cache
from stochcl.benchmarks.rate_accuracy.comparing import reductions, savings
from stochcl.benchmarks.rate_accuracy.encoding import both, encode_part
from stochcl.benchmarks.rate_accuracy.inputs import read_inputs
from stochcl.benchmarks.rate_accuracy.measuring import ELSEWHERE, Judge, Measured
from stochcl.benchmarks.rate_accuracy.pixels import FORMATS, SIDES, PixelCode
from stochcl.benchmarks.rate_accuracy.request import DEFAULT_MODEL
from stochcl.errors import MissingExtraError, SourceError, UsageError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from stochcl.api.codec import Codec
    from stochcl.benchmarks.rate_accuracy.encoding import Encoded
    from stochcl.benchmarks.rate_accuracy.inputs import Inputs
    from stochcl.benchmarks.rate_accuracy.request import Request

    Told = Callable[[int, int], None]

SCHEMA = "stochcl.benchmark.rate-accuracy/0"

CACHE = "cache"
"""The folder beside the results in which a run leaves what it has measured."""

_HERE = "training images"


@dataclass(frozen=True)
class Job:
    """One measurement.

    Parameters
    ----------
    name : str
    depends : tuple
        What its result depends on, beside the images and the probe.
    call : callable
    fitted_to : str or None
        What a quantiser is fitted to; None where nothing is.
    """

    name: str
    depends: tuple[object, ...]
    call: Callable[[Told], Measured]
    fitted_to: str | None = None


def benchmark_rate_accuracy(
    request: Request,
    folder: Path,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure everything that was asked for."""
    from threadpoolctl import threadpool_limits

    request.check()
    cache = Cache(folder / CACHE)
    inputs = read_inputs(request)
    codecs = _codecs(request, inputs)
    judge = Judge(inputs, request.probe, request.seed)
    measured: list[Measured] = []
    left_out: list[str] = []
    encoded: list[tuple[Encoded, Encoded]] = []
    for at, codec in enumerate(codecs):
        told = _within(progress, at, len(codecs), codec.model.name)
        encoded.append(tuple(both(inputs, partial(_encoded, codec, cache, told))))
    fit = None
    if inputs.fit is not None:
        fit = _encoded(codecs[0], cache, _within(progress, 0, len(codecs), "fitted to elsewhere"), inputs.fit)
    jobs = list(_jobs(request, judge, codecs, encoded, fit))
    prints = inputs.train.fingerprint(), inputs.test.fingerprint()
    for done, job in enumerate(jobs):
        progress(done, len(jobs), job.name)
        key = cache.key("row", *prints, request.probe, request.seed, *job.depends)
        if (kept := cache.get(key)) is not None:
            arrays, facts = kept
            found = Measured(facts, arrays["right"])
        else:
            try:
                with threadpool_limits(1):  # sums in another order give other codes
                    found = job.call(_within(progress, done, len(jobs), job.name))
            except (MissingExtraError, UsageError, SourceError) as exc:
                left_out.append(f"{job.name} was left out: {exc}")
                say(left_out[-1])
                continue
            cache.put(key, found.rows, right=found.right)
        if fit is not None:  # here, not in what is kept: runs with it and without share that
            found = replace(found, rows=[row | {"fitted_to": job.fitted_to} for row in found.rows])
        measured.append(found)
    rows = [row for found in measured for row in found.rows]
    right = np.concatenate([found.right for found in measured]) if measured else np.zeros((0, len(inputs.test)), bool)
    dimension = encoded[0][0].features.shape[1]
    return {
        "schema": SCHEMA,
        "command": request.command,
        "commit": machine.commit(),
        "seed": request.seed,
        "probe": request.probe,
        "precision": request.precision,
        "n": {"train": len(inputs.train), "test": len(inputs.test)},
        **_fit_facts(request, inputs),
        "classes": len(np.unique(inputs.train.labels)),
        "models": [{"name": codec.model.name, "sha256": codec.model.sha256} for codec in codecs],
        "features": dimension,
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "left_out": left_out,
        "rows": rows,
        "savings": savings(rows, right, seed=request.seed),
        "reductions": reductions(rows, dimension, inputs.source_side()),
    }


def _fit_facts(request: Request, inputs: Inputs) -> dict[str, Any]:
    """Return what is recorded of what quantisers are fitted to besides, where that is anything."""
    if inputs.fit is None:
        return {}
    sources = [printable(path.name) for path in request.fit]
    return {"fit": {"sources": sources, "images": len(inputs.fit), "hold_out": request.fit_hold_out}}


def _within(progress: Callable[[int, int, str], None], job: int, jobs: int, name: str) -> Told:
    """Return what tells how far a job has come, as a note beside how many there are."""
    return lambda done, total: progress(job, jobs, f"{name}: {done:,} of {total:,} images")


def _encoded(codec: Codec, cache: Cache, told: Told, part: Any) -> Encoded:
    return encode_part(codec, part, cache, told)


def _codecs(request: Request, inputs: Inputs) -> list[Codec]:
    """Load the models, and refuse those that take something else."""
    from stochcl.api.codec import Codec

    names = request.models or ((DEFAULT_MODEL,) if inputs.images else ())
    if not names:
        raise UsageError(
            "a matrix of embeddings takes a model that was trained on such rows: `stochcl train train.npy -o "
            "head.safetensors --rate 64`, then --model head.safetensors."
        )
    codecs = []
    for name in names:
        codec = Codec(name, device=request.device, precision=request.precision)
        if inputs.images == (codec.columns is not None):
            raise UsageError(f"{codec.model.name}: this model takes {'vectors' if codec.columns else 'images'}.")
        if wrong := [k for k in request.ladder if k > codec.latents]:
            raise UsageError(f"{codec.model.name}: this model has {codec.latents:,} latents, not {wrong[0]:,}.")
        codecs.append(codec)
    return codecs


def _jobs(
    request: Request,
    judge: Judge,
    codecs: list[Codec],
    encoded: list[tuple[Encoded, Encoded]],
    fit: Encoded | None,
) -> Iterator[Job]:
    """Yield what is measured, in the order of the table."""
    for codec, parts in zip(codecs, encoded, strict=True):
        who = (codec.model.sha256, codec.model.name, codec.precision, codec.device.type)
        ladder = request.ladder or codec.tables.ladder
        for latents in ladder:
            for given in ("vectors", "symbols") if latents == max(ladder) else ("vectors",):
                call = partial(measuring.of_codes, judge, codec, latents, given, *parts)
                name = f"{codec.model.name}, {latents} latents, {given}"
                yield Job(name, (*who, latents, given), _untold(call))
    codec, parts = codecs[0], encoded[0]
    who = (codec.model.sha256, "", codec.precision, codec.device.type)  # what is not ours has not its name
    for name in request.methods:
        if name in FLOATS:
            fitted_to = _HERE if FLOATS[name][0].coded else None
            yield Job(name, (*who, name), _untold(partial(measuring.of_numbers, judge, name, *parts)), fitted_to)
        elif name in BASELINES:
            for bits in request.bits:
                call = partial(measuring.of_quantiser, judge, name, bits, *parts)
                yield Job(f"{name}, {bits} bits", (*who, name, bits), _untold(call), _HERE)
            if fit is not None:
                yield from _elsewhere(request, judge, name, who, parts, fit)
        elif judge.inputs.images and name in FORMATS:
            for side in (side for side in SIDES if side <= codec.size):
                code = PixelCode(name, side)
                job = partial(measuring.of_pixels, judge, codec, code)
                yield Job(f"{code.name}, {code.coding}", (*who, name, side, FORMATS[name][1]), job)


def _elsewhere(
    request: Request, judge: Judge, name: str, who: tuple[str, ...], parts: tuple[Encoded, Encoded], fit: Encoded
) -> Iterator[Job]:
    """Yield the jobs of a quantiser that is fitted to other sources."""
    assert judge.inputs.fit is not None
    fitted_to = ", ".join(printable(path.name) for path in request.fit)
    depends = (*who, name, "fit", judge.inputs.fit.fingerprint())
    for bits in request.bits:
        call = partial(measuring.of_quantiser, judge, name, bits, *parts, fit)
        yield Job(f"{name}{ELSEWHERE}, {bits} bits", (*depends, bits), _untold(call), fitted_to)


def _untold(call: Callable[[], Measured]) -> Callable[[Told], Measured]:
    """Return a job that has nothing to tell while it runs."""
    return lambda told: call()
