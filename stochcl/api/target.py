"""Choose a width by quality: the narrowest prefix that keeps enough of a sample's rows."""

from __future__ import annotations

import copy
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.api import source as sources
from stochcl.codes import Codes, folder_label
from stochcl.data import ImageSource, MatrixSource
from stochcl.data.arrow import ArrowSource
from stochcl.downstream.distances import DISTANCES, Nearest, without_own
from stochcl.downstream.metrics import labelled
from stochcl.errors import LabelsError, UsageError
from stochcl.messages import escape_name, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stochcl.api.encode import CodecBase
    from stochcl.api.source import Source
    from stochcl.data.preprocess import Preprocess
    from stochcl.entropy.tables import Decoder

    Vectors = NDArray[np.float32]

SAMPLE = {"image": 2_000, "row": 10_000}
"""Size of a sample, by unit."""

_QUERIES = 1_000
_BATCH, _ROWS = 256, 4096  # images, and rows, encoded at a time
_HELD = 0.3  # share of rows that probes are scored on
_WANTED = re.compile(r"\s*(accuracy|recall@(\d+))\s+([+-]?\d*\.?\d+)\s*(%?)\s*")


@dataclass(frozen=True)
class Target:
    """A quality that codes must keep.

    Parameters
    ----------
    metric : str
        accuracy, of a linear probe; or recall, of the ``neighbours`` nearest rows.
    least : float
        Minimum, as a share; if negative, relative to the quality of the vectors themselves.

    Examples
    --------
    >>> Target.parse("accuracy -1"), Target.parse("recall@10 0.9")
    (Target(metric='accuracy', least=-0.01, neighbours=10), Target(metric='recall', least=0.9, neighbours=10))
    """

    metric: str
    least: float
    neighbours: int = 10

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``accuracy -1`` (points), ``accuracy 0.8``, ``accuracy 80%`` or ``recall@10 0.9``.

        Raises
        ------
        UsageError
        """
        match = _WANTED.fullmatch(text)
        value = float(match[3]) if match else 0.0
        value = value / 100 if match and (value < 0 or match[4]) else value
        if match is None or not -1 < value <= 1 or (match[2] and not 1 <= int(match[2]) <= 100):
            raise UsageError(
                f"--target must be like 'accuracy -1' (at most a point less than with the vectors themselves), "
                f"'accuracy 80%' or 'recall@10 0.9', got {text!r}."
            )
        return cls(match[1].partition("@")[0], value, int(match[2] or 10))

    def goal(self, reference: float) -> float:
        """Return the quality to reach, given that of the vectors themselves."""
        return reference + self.least if self.least < 0 else self.least


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows: their vectors without a code, and what codes of each width decode to.

    Parameters
    ----------
    vectors : ndarray of float32, shape (N, V)
    labels : sequence of str, optional
    decode : callable
        Maps a width to decoded vectors, float32, shape (N, V).
    bits : callable
        Maps a width to the mean bits of a code.
    total : int
        Number of rows of the whole source.
    seconds : float
        Estimated time for reading and encoding all rows.
    names : sequence of str
        Names of the rows.
    """

    vectors: Vectors
    labels: Sequence[str] | None
    decode: Callable[[int], Vectors]
    bits: Callable[[int], float] = lambda latents: 0.0
    total: int = 0
    seconds: float = 0.0
    names: Sequence[str] = ()

    def at(self, rows: NDArray[np.integer]) -> Sample:
        """Return a subset of the rows; ``bits`` stays that of all."""
        labels = None if self.labels is None else [self.labels[row] for row in rows.tolist()]
        return replace(self, vectors=self.vectors[rows], labels=labels, decode=lambda width: self.decode(width)[rows])

    @property
    def held(self) -> int:
        """The number of labelled rows that probes are scored on."""
        return round(_HELD * sum(bool(label.strip()) for label in self.labels or ()))

    def score(self, target: Target, vectors: Vectors) -> float:
        """Return the quality of decoded vectors, or of the vectors themselves, on held-out rows."""
        return self._recall(vectors, target.neighbours) if target.metric == "recall" else self._accuracy(vectors)

    def _accuracy(self, vectors: Vectors) -> float:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        rows = labelled(vectors, self.labels or [""] * len(vectors), "classification")
        rows.check_learnable()
        order = np.random.default_rng(0).permutation(len(rows.y))
        held, fitted = np.split(order, [round(_HELD * len(order))])
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200, tol=1e-3))
        return float(probe.fit(rows.x[fitted], rows.y[fitted]).score(rows.x[held], rows.y[held]))

    def _recall(self, vectors: Vectors, count: int) -> float:
        """Return the share of each query's nearest rows, by angle, that are also nearest when decoded."""
        if len(vectors) <= count + 1:
            raise UsageError(f"{plural(len(vectors), 'row')}: too few to find the nearest {count}; give more.")
        queries = np.linspace(0, len(vectors) - 1, min(_QUERIES, len(vectors)), dtype=int)
        near = []
        for base in (self.vectors, vectors):
            nearest = Nearest(self.vectors[queries], DISTANCES["cosine"], count + 1)
            nearest.add(base)
            near.append(without_own(*nearest.sorted(), queries)[1])
        return float((near[0][:, :, None] == near[1][:, None, :]).any(axis=2).mean())


def narrowest(sample: Sample, target: Target, rungs: Sequence[int], shown: str) -> tuple[int, dict[str, Any]]:
    """Return the narrowest rung that keeps a quality on held-out rows, and the facts about it.

    Raises
    ------
    UsageError
        If there is none, or accuracy is asked for without labels.
    """
    try:
        reference = sample.score(target, sample.vectors)
    except LabelsError as exc:
        raise UsageError(
            f"{shown}: --target accuracy needs rows of at least two labels, and these have none or one; label "
            "them, or ask for 'recall@10 0.9'."
        ) from exc
    goal, found = target.goal(reference), dict[int, float]()
    for latents in sorted(rungs):
        found[latents] = sample.score(target, sample.decode(latents))
        if found[latents] >= goal:
            break
    else:
        raise UsageError(
            f"{shown}: no width keeps {target.metric} {goal:.3f}; all {max(rungs):,} latents have "
            f"{found[max(rungs)]:.3f}, the vectors themselves {reference:.3f}: ask for less, or train a model of a "
            "higher --rate."
        )
    facts = {
        "metric": target.metric, "goal": round(goal, 4), "value": round(found[latents], 4),
        "vectors": round(reference, 4), "rows": len(sample.vectors), "latents": latents,
    }  # fmt: skip
    return latents, facts


def target_note(facts: dict[str, Any], reference: str = "the vectors themselves") -> str:
    """Return the line that reports a target's result."""
    return (
        f"target     {facts['metric']} {facts['value']:.3f} with {plural(facts['latents'], 'latent')} (asked for "
        f"{facts['goal']:.3f}; {reference} {facts['vectors']:.3f}; {facts['rows']:,} rows looked at)"
    )


# Samples


def sample_of(codec: CodecBase, source: Source, preprocess: Preprocess, *, level: int | None = None) -> Sample:
    """Encode evenly spread rows of a source.

    Raises
    ------
    UsageError
        If it is a stream, which can be read only once.
    """
    total, few = spread(source)
    started = time.monotonic()
    inputs, labels, names = list[Any](), list[str](), list[str]()
    for batch in sources.read_batches(few, preprocess, _BATCH, None, 0):
        if batch.positions:
            inputs.append(batch.inputs)
            own = batch.labels if level is None else None
            labels += own if own is not None else [folder_label(name, level or 1) for name in batch.names]
            names += batch.names
    if not inputs:
        raise UsageError(f"{escape_name(source.path)}: none of the rows that were looked at can be read.")
    # Encode in full batches: a few rows take as long as a batch.
    rows, reading = np.concatenate(inputs), time.monotonic() - started
    size = _ROWS if codec.columns else _BATCH
    encoded = [codec.encode_prepared(rows[:size], uncertainty=False)]  # loads the network, so it is not timed
    before = time.monotonic()
    encoded += [codec.encode_prepared(rows[i : i + size], uncertainty=False) for i in range(size, len(rows), size)]
    if len(encoded) == 1:
        codec.encode_prepared(rows, uncertainty=False)
    encoding = (time.monotonic() - before) / (len(rows) - size if len(encoded) > 1 else len(rows))
    read_all = isinstance(few, ArrowSource)  # a table is read whole
    seconds = encoding * total + (reading if read_all else reading * total / len(rows))
    codes = Codes.from_symbols(np.concatenate([one.codes.symbols() for one in encoded]), alphabet=codec.alphabet)
    features = np.concatenate([one.features for one in encoded])
    vectors = rows.astype(np.float32) if codec.columns else np.concatenate([codec.vectors_of(one) for one in encoded])
    return Sample(
        vectors, labels if any(labels) else None,
        lambda latents: decoded(codec.narrowed(codes, features, latents), codec.tables.decoder),
        lambda latents: bits_of(codec, codec.narrowed(codes, features, latents)),
        total, seconds, names,
    )  # fmt: skip


def decoded(codes: Codes, decoder: Decoder | None) -> Vectors:
    """Return decoded vectors, or symbols without a decoder."""
    return codes.symbols().astype(np.float32) if decoder is None else decoder.decode(codes.symbols())


def bits_of(codec: CodecBase, codes: Codes) -> float:
    """Return the mean bits of codes."""
    return min(c.cost(codes)[0] for c in codec.tables.candidates(codes.latents)) / max(1, len(codes))


def spread(source: Source) -> tuple[int, Source]:
    """Return the number of rows of a source, and a source of at most as many rows as a sample has."""
    most = SAMPLE[source.unit]
    if isinstance(source, ArrowSource):
        total = source.count()
        thinned = copy.copy(source)
        thinned.step = max(1, -(-total // most))
        return total, thinned
    if not isinstance(source, MatrixSource | ImageSource):
        raise UsageError(f"{escape_name(source.path)}: a stream is read once, and a sample comes first; give a file.")
    rows = np.unique(np.linspace(0, len(source) - 1, min(most, len(source)), dtype=np.int64))
    return len(source), source.at(rows)
