"""Estimate the bytes, time and quality of an archive from a sample, without writing anything."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api import source as sources
from stochcl.api.codec import Codec
from stochcl.api.compress import Compression, CompressOptions
from stochcl.api.models import DEFAULT
from stochcl.api.target import Sample, Target, sample_of, spread
from stochcl.compress.columns import pack_labels
from stochcl.data import ArrowVectors, MatrixSource, VectorSource
from stochcl.data.array import row_names
from stochcl.data.arrow import ArrowSource
from stochcl.downstream.metrics import wilson
from stochcl.errors import LabelsError, TrainingError, UsageError
from stochcl.framing import VERSION, pack_texts
from stochcl.messages import Progress, duration, escape_name, plural, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stochcl.api.source import Given, Source
    from stochcl.files import PathLike

_RUNGS = (8, 16, 32, 64, 128, 256, 512, 1024)
_FITTED = 0.6  # share of a sample of embeddings that a model is trained on if none is given; the rest is scored
_LEAST_ROWS = 100
_FLOAT = 4
_ACCURACY = "   accuracy (95 % interval)"
_BLOCK = 1 / 600  # overhead of blocks and their checksums, relative to the codes


@dataclass(frozen=True)
class Rung:
    """The estimate for codes of the first ``latents`` latents; qualities are on held-out rows.

    ``interval`` is the 95 % interval of the accuracy.
    """

    latents: int
    bits: float
    bytes: int
    accuracy: float | None
    interval: tuple[float, float] | None
    recall: float | None


@dataclass(frozen=True)
class Estimate:
    """The estimate for compressing a source.

    Parameters
    ----------
    path, unit : str
        The source, and the noun for its rows.
    rows, looked_at : int
        Rows of the source, and of the sample.
    model : str
    floats : int
        Bytes of the vectors that codes decode to approximately, as float32. For images these are fewer numbers than
        the network's features.
    accuracy, interval : optional
        Of a linear probe on those vectors, if there are labels, and its 95 % interval.
    seconds : float
        Estimated time for reading and encoding all rows here.
    training : float, optional
        Seconds of training the model on the sample, if none was given.
    rungs : tuple of Rung
    """

    path: str
    unit: str
    rows: int
    looked_at: int
    model: str
    floats: int
    accuracy: float | None
    interval: tuple[float, float] | None
    seconds: float
    training: float | None
    rungs: tuple[Rung, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        values = vars(self) | {"path": escape_name(self.path), "rungs": [vars(rung) for rung in self.rungs]}
        return {"schema": "stochcl.estimate/0"} | values

    def lines(self) -> list[str]:
        """Return the figures for people, one line per width."""
        unit, labelled = self.unit, self.accuracy is not None
        made = "" if self.training is None else f", trained on the sample in {duration(self.training)}"
        head = [
            f"{escape_name(self.path)}: {plural(self.rows, unit)}, {self.looked_at:,} looked at; nothing is written",
            f"  model {escape_name(self.model)}{made}; to encode all {unit}s takes about {duration(self.seconds)}",
            f"  {'latents':>9} {f'bits per {unit}':>15} {'bytes':>15}{_ACCURACY if labelled else ''}  recall@10",
        ]

        def line(first: str, bits: float, size: int, of: Rung | Estimate, recall: float | None) -> str:
            score = " " * len(_ACCURACY) * labelled
            if of.accuracy is not None and of.interval is not None:
                low, high = (100 * bound for bound in of.interval)
                score = f"{f'{of.accuracy:.1%} ({low:.1f} to {high:.1f})':>{len(_ACCURACY)}}"
            return f"  {first:>9} {bits:>15,.1f} {size:>15,}{score}{recall or 0:>11.2f}"

        body = [line(f"{rung.latents:,}", rung.bits, rung.bytes, rung, rung.recall) for rung in self.rungs]
        width = 8 * self.floats // max(1, self.rows)
        whole = line("vectors", width, self.floats, self, 1.0)
        note = f"  vectors: the {width // (8 * _FLOAT):,} float32 numbers that codes stand for, without a code"
        return [*head, *body, whole, note]


def estimate(
    source: Given, model: PathLike | None = None, *, rate: float | None = None, device: str = "auto",
    progress: Progress = silent, **options: Any,
) -> Estimate:  # fmt: skip
    """Estimate bytes, time and quality of an archive from evenly spread rows of a source; write nothing.

    Parameters
    ----------
    source : as for :meth:`stochcl.Codec.compress`
        Not a source that is read only once.
    model : str or path-like, optional
        The default model for images; for embeddings, one is trained on a part of the sample.
    rate : float, optional
        Bits per row that such a model is trained for.
    device : str
    progress : callable
        Called with the number of widths done and the total.
    **options
        Fields of :class:`~stochcl.api.compress.CompressOptions`: column, id_column, label_column, label_level, ...

    Raises
    ------
    SourceError, TrainingError, UsageError
    """
    asked = CompressOptions(**options)
    opened = sources.open_given(source, asked, None if model is None else Codec(model).columns or 0)
    codec, training = None, None
    if isinstance(opened, MatrixSource | ArrowVectors) and model is None:
        codec, few, training = _trained(opened, rate)
    else:
        if rate is not None:
            raise UsageError("--rate is for a model trained on the sample, and this one exists; omit it.")
        codec = Codec(model or DEFAULT, device=device, size=asked.size)
        opened = sources.check_source_fits_model(opened, codec)
        few = sample_of(codec, opened, Compression(codec, opened, asked).preprocess, level=asked.label_level)
    if len(few.vectors) < _LEAST_ROWS:
        raise UsageError(
            f"{escape_name(opened.path)}: {plural(len(few.vectors), 'row')} are too few for an estimate; give more."
        )
    rungs, beside = list[Rung](), _beside(few, opened)
    fixed = 0 if codec.has_packaged_tables else len(codec.tables.data)
    widths = [rung for rung in codec.config.ladder if rung in (*_RUNGS, codec.latents)]
    for latents in widths:
        vectors, bits = few.decode(latents), few.bits(latents)
        size = fixed + few.total * (bits * (1 + _BLOCK) + beside) / 8
        rungs.append(Rung(latents, round(bits, 2), round(size), *_qualities(few, vectors)))
        progress(len(rungs), len(widths))
    reference, interval, _ = _qualities(few, few.vectors)
    floats = few.total * few.vectors.shape[1] * _FLOAT
    return Estimate(
        str(opened.path), opened.unit, few.total, len(few.vectors), codec.model.name, floats, reference,
        interval, round(few.seconds, 1), training, tuple(rungs),
    )  # fmt: skip


def _qualities(few: Sample, vectors: Any) -> tuple[float | None, tuple[float, float] | None, float]:
    """Return accuracy and its interval, if there are labels to learn from, and recall of the ten nearest."""
    accuracy = interval = None
    if few.labels is not None:
        with suppress(LabelsError):  # a single class, or one class per row
            accuracy = round(few.score(Target("accuracy", 0), vectors), 4)
            interval = wilson(round(accuracy * few.held), few.held)
    return accuracy, interval, round(few.score(Target("recall", 0), vectors), 4)


def _beside(few: Sample, source: Source) -> float:
    """Return the bits per row of names and labels."""
    count = len(few.names)
    names: Sequence[str] = few.names if source.has_names else row_names(range(count), max(few.total, count))
    stored = isinstance(source, ArrowSource) and few.labels is not None
    size = len(pack_texts(names)) + (len(pack_labels(few.labels or (), VERSION)) if stored else 0)
    return 8 * size / count


def _trained(source: MatrixSource | ArrowVectors, rate: float | None) -> tuple[Codec, Sample, float]:
    """Train a model on part of a sample; return its codec, the sample of the other rows, and the seconds."""
    from stochcl.api.embedding_model import code_shape, codec_of, to_bytes, train_head

    _, few = spread(source)
    assert isinstance(few, VectorSource)
    vectors = np.concatenate([batch.vectors for batch in few.batches()])
    order = np.random.default_rng(0).permutation(len(vectors))
    fitted, rest = np.split(order, [round(_FITTED * len(order))])
    if len(fitted) < _LEAST_ROWS:
        there = plural(len(vectors), "row")
        raise TrainingError(f"{escape_name(source.path)}: {there} are too few for an estimate; give more.")
    shape = code_shape(rate=rate)
    latents, started = shape.pop("latents"), time.monotonic()
    how: dict[str, Any] = {} if rate is None else {"rate": rate}
    encoder, record = train_head(vectors[fitted], vectors[rest][:0], latents=latents, config=shape, **how)
    codec = codec_of(to_bytes(encoder, record))
    seconds = round(time.monotonic() - started, 1)
    whole = sample_of(codec, source, codec.preprocess)
    return codec, whole.at(np.sort(rest)), seconds
