"""Bits per image against accuracy, recall or mAP: our codes beside the alternatives for the same images."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks.baselines import Baseline, fit_and_code
from stochcl.benchmarks.curves import savings
from stochcl.benchmarks.inputs import BASELINES, ELSEWHERE, FLOATS, FORMATS, SIDES, PixelCode, read_inputs
from stochcl.benchmarks.probes import Judge, codings_of, price, through_a_file
from stochcl.benchmarks.run import Cache, Job, Measured, record, run_jobs
from stochcl.codes import Codes
from stochcl.errors import UsageError, require
from stochcl.messages import Progress, escape_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.benchmarks.inputs import Inputs, RateAccuracyConfig, Split

    Told = Progress

SCHEMA = "stochcl.benchmark.rate-accuracy/0"

CACHE = "cache"
"""The folder beside the results that keeps finished measurements."""

MANY = 1_000_000
"""Images that share the side information in one of the columns."""

_DEFAULT_MODEL = "general"
_HERE = "training images"


@dataclass(frozen=True, eq=False)
class Encoded:
    """A network's output for a part: codes, and standardised features, float32, shape (N, V)."""

    codes: Codes
    features: NDArray[np.float32]

    def digest(self) -> str:
        """Return a digest of the features; models of the same matrix rows share it."""
        return hashlib.sha256(self.features.tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with its outputs for the training and test images, and the judge of its rows."""

    codec: Codec
    train: Encoded
    test: Encoded
    judge: Judge

    @property
    def depends(self) -> tuple[object, ...]:
        """The identity of the network as it runs here, which rows depend on besides the images."""
        return self.codec.model.sha256, self.codec.precision, self.codec.device_type

    def rows(
        self, named: dict[str, Any], costs: list[dict[str, Any]], decoded: tuple[NDArray[Any], NDArray[Any]],
        start: float, distance: str = "cosine",
    ) -> Measured:  # fmt: skip
        """Return a row for each way to store one code: its costs, and the scores of its decoded rows."""
        n = len(self.test.features)
        total = n + len(self.train.features)
        scores, values = self.judge.scores(*decoded, distance)
        rows = []
        for cost in costs:
            payload, side = cost["bytes"] * 8 / n, cost["side_bytes"] * 8
            bits = {
                "bits_per_image": round(payload, 3),
                "bits_with_side": round(payload + side / total, 3),
                "bits_with_side_of_a_million": round(payload + side / MANY, 3),
            }
            rows.append(named | cost | bits | scores | {"seconds": round(time.monotonic() - start, 1)})
        return Measured(rows, {name: np.repeat(value[None], len(rows), axis=0) for name, value in values.items()})


def benchmark_rate_accuracy(
    config: RateAccuracyConfig, folder: Path, *,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure everything requested, and cache it in ``folder/cache`` for another run.

    Returns JSON values under the schema ``stochcl.benchmark.rate-accuracy/0``: ``rows``, one per code and way to
    store it; ``failed``, jobs whose process died; ``left_out``, sentences; ``savings``, ours against other curves.
    With --fit-to, ``fit`` names the sources that quantisers are also fitted to, and ``fitted_to`` gives each row's.
    """
    for module, extra in (("torch", "train"), ("matplotlib", "plots"), ("jinja2", "plots")):
        require(module, "this benchmark", extra)
    cache = Cache(folder / CACHE)
    inputs = read_inputs(config)
    codecs = _codecs(config, inputs)
    subjects = [
        _subject(config, inputs, codec, cache, partial(progress, at, len(codecs))) for at, codec in enumerate(codecs)
    ]
    fit = None
    if inputs.fit is not None:
        told = _told(partial(progress, 0, len(codecs)), "images to fit to")
        fit = encode_part(codecs[0], inputs.fit, cache, told)
    prints = inputs.train.fingerprint(), inputs.test.fingerprint()
    key = (*prints, config.probe, config.seed, config.metric, config.queries)
    outcome = run_jobs(list(_jobs(config, inputs, subjects, fit)), cache, key, progress=progress, say=say)
    rows = [row for found in outcome.measured for row in found.rows]
    values = {}
    if outcome.measured:
        names = outcome.measured[0].values
        values = {name: np.concatenate([found.values[name] for found in outcome.measured]) for name in names}
    told_fit = {}
    if inputs.fit is not None:
        sources = [escape_name(path.name) for path in config.fit_to]
        told_fit = {"fit": {"sources": sources, "images": len(inputs.fit), "hold_out": config.fit_hold_out}}
    return record(
        SCHEMA, config, probe=config.probe, metrics=list(config.metric), precision=config.precision,
        n={"train": len(inputs.train), "test": len(inputs.test), "queries": len(subjects[0].judge.queries)},
        **told_fit, classes=len(np.unique(inputs.train.labels)),
        models=[{"name": codec.model.name, "sha256": codec.model.sha256} for codec in codecs],
        features=subjects[0].train.features.shape[1], left_out=outcome.left_out, failed=outcome.failed, rows=rows,
        savings=savings(rows, values, seed=config.seed),
    )  # fmt: skip


def _codecs(config: RateAccuracyConfig, inputs: Inputs) -> list[Codec]:
    """Load the models, and refuse those of another kind of input."""
    from stochcl.api.codec import Codec

    names = config.model or ((_DEFAULT_MODEL,) if inputs.images else ())
    if not names:
        raise UsageError(
            "a matrix of embeddings takes a model that was trained on such rows: `stochcl train train.npy -o "
            "head.safetensors --rate 64`, then --model head.safetensors."
        )
    codecs = []
    for name in names:
        codec = Codec(str(name), device=config.device, precision=config.precision)
        if inputs.images == (codec.columns is not None):
            raise UsageError(f"{codec.model.name}: this model takes {'vectors' if codec.columns else 'images'}.")
        if wrong := [k for k in config.ladder if k > codec.latents]:
            raise UsageError(f"{codec.model.name}: this model has {codec.latents:,} latents, not {wrong[0]:,}.")
        codecs.append(codec)
    return codecs


def _subject(
    config: RateAccuracyConfig, inputs: Inputs, codec: Codec, cache: Cache, progress: Callable[[str], None]
) -> Subject:
    told = _told(progress, codec.model.name)
    train, test = (encode_part(codec, part, cache, told) for part in (inputs.train, inputs.test))
    judge = Judge(
        inputs.train.labels, inputs.test.labels, train.features.mean(axis=0), test.features, config.metric,
        config.probe, config.queries, config.seed,
    )  # fmt: skip
    return Subject(codec, train, test, judge)


def _told(progress: Callable[[str], None], name: str) -> Told:
    return lambda done, total: progress(f"{name}: {done:,} of {total:,} images")


def encode_part(codec: Codec, part: Split, cache: Cache, told: Told) -> Encoded:
    """Encode a part, or load it from the cache."""
    key = cache.key("encoded", codec.model.sha256, codec.precision, codec.device_type, part.fingerprint())
    if (kept := cache.get(key)) is not None:
        arrays, _ = kept
        return Encoded(Codes(arrays["packed"], codec.latents, codec.alphabet), arrays["features"])
    codes, features, done = [], [], 0
    for batch in part.batches(codec):
        found = codec.encode_prepared(batch)
        codes.append(found.codes.packed)
        features.append(found.features)
        done += len(batch)
        told(done, len(part))
    encoded = Encoded(Codes(np.concatenate(codes), codec.latents, codec.alphabet), np.concatenate(features))
    cache.put(key, {}, packed=encoded.codes.packed, features=encoded.features)
    return encoded


def _jobs(config: RateAccuracyConfig, inputs: Inputs, subjects: list[Subject], fit: Encoded | None) -> Iterator[Job]:
    def fitted(to: str | None) -> dict[str, Any]:
        return {} if fit is None else {"fitted_to": to}

    for subject in subjects:
        name = subject.codec.model.name
        ladder = config.ladder or subject.codec.tables.ladder
        for latents in ladder:
            both = latents == max(ladder) or "map@1000" in config.metric  # mAP searches by symbols at every rate
            for given in ("vectors", "symbols") if both else ("vectors",):
                depends = (*subject.depends, name, latents, given)
                call = partial(of_codes, subject, latents, given)
                yield Job(name, f"{latents} latents, {given}", depends, call, facts=fitted(None))
    first = subjects[0]
    for name in config.methods:
        if name in FLOATS:
            kind = FLOATS[name]
            to = _HERE if kind.coded else None
            bits = (kind.bits_of(first.train.features.shape[1]),)
            yield from _baseline_jobs(config, first, name, kind, bits, "features", None, (), fitted(to))
        elif name in BASELINES:
            jobs_of = partial(_baseline_jobs, config, first, name, BASELINES[name], config.bits, "quantisers")
            yield from jobs_of(None, (), fitted(_HERE))
            if fit is not None and inputs.fit is not None:
                sources = ", ".join(escape_name(path.name) for path in config.fit_to)
                yield from jobs_of(fit, ("fit", inputs.fit.fingerprint()), fitted(sources))
        elif inputs.images and name in FORMATS:
            for side in (side for side in SIDES if side <= first.codec.size):
                code = PixelCode(name, side)
                depends = (*first.depends, name, side, FORMATS[name][1])
                call = partial(of_pixels, first, inputs, code)
                yield Job(code.name, code.coding, depends, call, code.need, fitted(None))


def _baseline_jobs(
    config: RateAccuracyConfig, subject: Subject, name: str, kind: type[Baseline], bits: tuple[int, ...], group: str,
    fit: Encoded | None, depends: tuple[object, ...], facts: dict[str, Any],
) -> Iterator[Job]:  # fmt: skip
    """Yield the jobs of a baseline, fitted to the training images or to others."""
    label = kind.name if fit is None else kind.name + ELSEWHERE
    fitting = (fit or subject.train).features
    prints = subject.train.digest(), subject.test.digest()
    for each in bits:
        for suffix, options in kind.variants(config.beam, config.trials):
            named = {"method": label, "group": group, "code": f"{each} bits{suffix}", "input": "vectors"}
            call = partial(of_baseline, subject, kind, each, named, config.coding, fit, options)
            on = (*prints, name, *depends, each, sorted(options.items()), config.coding)
            check = partial(kind.check, len(fitting), fitting.shape[1], each)
            yield Job(label, named["code"], on, call, check, facts)


def of_codes(subject: Subject, latents: int, given: str, told: Told) -> Measured:
    """Measure a prefix of our codes from a real file, by its decoded ``vectors`` or its ``symbols``."""
    start, codec = time.monotonic(), subject.codec
    train, codes = (codec.narrowed(part.codes, part.features, latents) for part in (subject.train, subject.test))
    codes = replace(codes, names=None, labels=None, uncertainty=None)
    size, codes = through_a_file(codec.header(latents=latents, source_kind="benchmark"), codec.tables, codes)
    both = train.symbols(), codes.symbols()
    distance = "hamming" if codec.alphabet == 2 else "levels"
    decoder = codec.tables.decoder
    decoded = both[0].astype(np.float32), both[1].astype(np.float32)
    if given == "vectors" and decoder is not None:
        train_vectors, test_vectors = (codec.standardised(decoder.decode(symbols)) for symbols in both)
        decoded, distance = (train_vectors, test_vectors), "cosine"
    named = {"method": codec.model.name, "group": "ours", "code": f"{latents} latents", "input": given}
    cost = {"coding": "archive", "bytes": size, "side_bytes": len(codec.tables.data)}
    return subject.rows(named, [cost], decoded, start, distance)


def of_baseline(
    subject: Subject, kind: type[Baseline], bits: int, named: dict[str, Any], codings: tuple[str, ...],
    fit: Encoded | None, options: dict[str, int], told: Told,
) -> Measured:  # fmt: skip
    """Measure features compressed by a baseline, packed and entropy-coded.

    If ``fit`` is given, the baseline and its entropy model are fitted to it; the probe always learns from the
    training images.
    """
    start, seed = time.monotonic(), subject.judge.seed
    matrices = [subject.train.features, subject.test.features, *([] if fit is None else [fit.features])]
    fitting = matrices[0 if fit is None else 2]
    method, (learned, codes, *other) = fit_and_code(kind, fitting, matrices, bits, seed, **options)
    costs = []
    for coding in codings_of(codes, codings if kind.coded else ("packed",)):
        paid = price(other[0] if other else learned, codes, coding, seed)
        costs.append({"coding": coding, "bytes": paid.bytes, "side_bytes": method.side_bytes + paid.model_bytes})
    return subject.rows(named, costs, (method.vectors(learned), method.vectors(codes)), start)


def of_pixels(subject: Subject, inputs: Inputs, code: PixelCode, told: Told) -> Measured:
    """Measure small images in a format, decoded and encoded by the network."""
    start = time.monotonic()
    train, *_ = _encode_pixels(subject.codec, inputs.train, code, told)
    test, size, bare = _encode_pixels(subject.codec, inputs.test, code, told)
    named = {"method": code.name, "group": "pixels", "code": code.coding, "input": "features"}
    costs = [{"coding": "files", "bytes": size, "side_bytes": 0}]
    if bare < size:
        costs.append({"coding": "files without fixed headers", "bytes": bare, "side_bytes": 0})
    return subject.rows(named, costs, (train, test), start)


def _encode_pixels(codec: Codec, part: Split, code: PixelCode, told: Told) -> tuple[NDArray[np.float32], int, int]:
    """Return the features of images after a pixel code, and its bytes with and without headers."""
    features, size, bare, done = [], 0, 0, 0
    for batch in part.batches(codec):
        out = np.empty_like(batch)
        for i, image in enumerate(batch):
            out[i], whole, least = code.code(image)
            size, bare = size + whole, bare + least
        features.append(codec.encode_prepared(out).features)
        done += len(batch)
        told(done, len(part))
    return np.concatenate(features), size, bare
