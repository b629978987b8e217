"""Rewrite an archive: fewer latents, refitted models, other names, labels or tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from stochcl.codes import Codes, pick
from stochcl.compress.archive import Archive
from stochcl.compress.columns import pack_labels
from stochcl.compress.edit import facts_of, move_rows, rewriting, stored_codes
from stochcl.compress.segment_writer import SEGMENT_ROWS
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import Candidate, EntropyModel, fit_linear, pack_model
from stochcl.framing import CHUNK, FITTED, unpack_texts
from stochcl.messages import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from stochcl.compress.header import Header
    from stochcl.compress.segment import RawSegment
    from stochcl.compress.writer import Writer
    from stochcl.files import PathLike


_SAMPLE = 1 << 16  # rows that models are fitted to
_RUN = 1 << 10  # consecutive rows per run, so that few blocks are decoded
_STREAM = 128 + 64  # overhead of a block in bits: its head, its entry in the segment's head, its stream's ends
_BLOCK = 1 << 16  # bits per block


def sample(archive: Archive) -> Codes:
    """Return up to 65,536 rows, in runs spread over the archive, without names."""
    starts, run = np.zeros(1, np.int64), len(archive)
    if len(archive) > _SAMPLE:
        starts, run = np.linspace(0, len(archive) - _RUN, _SAMPLE // _RUN).astype(np.int64), _RUN
    rows = (starts[:, None] + np.arange(run)).reshape(-1)
    return archive.header.codes(archive._packed(rows))


def fit_models(codes: Codes, rows: int, *, progress: Progress = silent) -> list[EntropyModel]:
    """Fit an independent and a linear autoregressive model to a sample of ``rows`` rows.

    The second is left out if all rows take less than a bit per weight, because it could not pay for itself.
    """
    if not len(codes):
        return []
    independent = IndependentModel.fit(codes)
    t = codes.decisions_per_row
    if independent.ideal_bits(codes) * rows / len(codes) <= t * (t - 1) / 2 or t == 1:
        return [independent]
    return [independent, fit_linear(codes, progress=progress)]


def price(model: EntropyModel) -> int:
    """Return the bits for storing a model, including its entry in the index."""
    return 8 * (CHUNK.size + 4 + len(pack_model(model)) + FITTED.size)


def cost(candidates: Sequence[Candidate], codes: Codes) -> tuple[float, list[float]]:
    """Return the bits of a segment with its own table, including the table, and with each candidate."""
    own = IndependentModel.fit(codes)
    return own.ideal_bits(codes) + 8 * len(pack_model(own)), [c.cost(codes)[0] for c in candidates]


def choose(
    segments: Iterable[Codes], given: Sequence[Candidate], models: Sequence[EntropyModel], *,
    before: float | None = None, progress: Callable[[int], None] = lambda rows: None,
) -> list[EntropyModel]:  # fmt: skip
    """Return the models that save more, over all segments, than storing them costs."""
    candidates = [*given, *(Candidate(model) for model in models)]
    base, spent, rows = [], [], 0
    for codes in segments:
        own, costs = cost(candidates, codes)
        base.append(min([own, *costs[: len(given)]]))
        spent.append(costs[len(given) :])
        rows += len(codes)
        progress(rows)
    if not base:
        return []
    chosen = _greedy(np.array(base), np.array(spent).T, [price(model) for model in models])
    if before is not None and chosen:
        total = float(np.minimum(base, np.array(spent).T[chosen].min(axis=0)).sum())
        blocks = total / _BLOCK + len(base)
        if total + blocks * _STREAM + sum(price(models[i]) for i in chosen) >= before:
            return []
    return [models[i] for i in chosen]


def _greedy(base: NDArray[np.float64], spent: NDArray[np.float64], prices: Sequence[int]) -> list[int]:
    """Choose models greedily: at each step the one with the largest saving beyond its price."""
    chosen: list[int] = []
    while True:
        others = [i for i in range(len(prices)) if i not in chosen]
        gains = {i: float((base - np.minimum(base, spent[i])).sum()) - prices[i] for i in others}
        best = max(gains, key=gains.__getitem__, default=None)
        if best is None or gains[best] <= 0:
            return sorted(chosen)
        chosen.append(best)
        base = np.minimum(base, spent[best])


def segments_of(archive: Archive, cut: Callable[[Codes], Codes]) -> Iterable[Codes]:
    """Yield all rows after ``cut``, a segment at a time, without names."""
    for start in range(0, len(archive), SEGMENT_ROWS):
        rows = np.arange(start, min(start + SEGMENT_ROWS, len(archive)))
        yield cut(archive.header.codes(archive._packed(rows)))


def cumulative(candidates: Sequence[Candidate], codes: Codes) -> NDArray[np.float64]:
    """Return the bits of the first k latents of a segment for every k, shape (D,).

    This is exact, because a latent's cost does not depend on later ones. A segment's own table is used where it
    pays; its size is not counted, because it is not part of the codes.
    """
    own = IndependentModel.fit(codes)
    table = np.arange(1, codes.latents + 1) * (8 * len(pack_model(own)) / codes.latents)
    best = np.min([np.cumsum(candidate.model.bits_by_latent(codes)) for candidate in candidates], axis=0)
    alone = np.cumsum(own.bits_by_latent(codes))
    bits: NDArray[np.float64] = np.where(alone + table < best, alone, best)
    return bits + (bits / _BLOCK + 1) * _STREAM


@dataclass(frozen=True)
class Transcoding:
    """An archive to be rewritten, at any width.

    ``embed``, ``names`` and ``uncertainty`` say what the new one stores. ``labels`` returns labels for the names of
    rows; without it, stored ones are kept. ``models`` are fitted to all kept latents; those worth their size are
    stored. ``columns`` are the latents to keep, ascending, before ``latents`` cuts them; by default all.
    """

    archive: Archive
    embed: bool
    names: bool = True
    labels: Callable[[Sequence[str]], tuple[str, ...]] | None = None
    models: Sequence[EntropyModel] = ()
    columns: tuple[int, ...] | None = None
    uncertainty: bool = True

    @property
    def width(self) -> int:
        """Number of latents before the cut."""
        return self.archive.header.latents if self.columns is None else len(self.columns)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Widths that a rate may choose: rungs of the model's ladder and the full width, or any for a selection."""
        if self.columns is not None or self.archive.header.selection is not None:
            return tuple(range(1, self.width + 1))
        return (*(rung for rung in self.archive.tables.ladder if rung < self.width), self.width)

    def header(self, latents: int) -> Header:
        """Return the header of an archive with the first ``latents`` latents."""
        header = self.archive.header
        chosen = range(header.latents) if self.columns is None else self.columns
        of_model = range(header.model_latents) if header.selection is None else header.selection
        kept = tuple(of_model[column] for column in chosen[:latents])
        prefix = kept == tuple(range(latents))
        return replace(header, latents=latents, selection=None if prefix else kept)

    def cut(self, codes: Codes, latents: int) -> Codes:
        """Cut codes to the first ``latents`` of the kept latents."""
        if self.columns is None:
            return codes if latents == codes.latents else codes.prefix(latents)
        return pick(codes, self.columns[:latents])

    def given(self, latents: int) -> list[Candidate]:
        """Return the tables' models at this width."""
        header = self.header(latents)
        return self.archive.tables.candidates(latents, header.selection)

    def costs(self) -> NDArray[np.float64]:
        """Return the bits per image of every prefix, shape (D,)."""
        total = np.zeros(self.width)
        candidates = [*self.given(self.width), *(Candidate(model) for model in self.models)]
        for codes in segments_of(self.archive, lambda codes: self.cut(codes, self.width)):
            total += cumulative(candidates, codes)
        return total / max(1, len(self.archive))

    def write(
        self, path: PathLike, latents: int, *, force: bool = False, resume: bool = False, progress: Progress = silent
    ) -> float:
        """Write the first ``latents`` latents; return the bits per image of their codes on disk.

        Segments with unchanged codes are copied without recoding.
        """
        archive, header = self.archive, self.header(latents)
        same = header.latents == archive.header.latents
        fitted = self._chosen(latents, same=same, progress=lambda rows: progress(rows, len(archive)))
        recode = not same or bool(fitted)
        if not recode:
            with archive._errors:
                fitted = list(archive._fitted)
        options = {"names": self.names, "labels": self.labels is not None, "embed": self.embed}
        options |= {} if self.uncertainty else {"uncertainty": False}
        with rewriting(
            path, header, archive.tables, embed_tables=self.embed, fitted=fitted, names=self.names,
            uncertainty=self.uncertainty, force=force, resume=resume, facts=facts_of([archive], **options),
        ) as writer:  # fmt: skip
            if not writer.position:
                for name, reason in archive.skipped:
                    writer.skip(name, reason)
            if recode:
                self._recode(writer, latents, progress)
            else:
                numbers = {i: i for i in range(len(fitted))}
                move_rows(
                    writer, archive, numbers=numbers, change=self._change,
                    progress=lambda rows: progress(rows, len(archive)),
                )  # fmt: skip
        with Archive(path, tables=[archive.tables]) as written:
            return written.parts()["codes"] * 8 / max(1, len(written))

    def _chosen(self, latents: int, *, same: bool, progress: Callable[[int], None]) -> list[EntropyModel]:
        """Return the fitted models that pay for themselves; none if the segments are better left unchanged."""
        archive = self.archive
        if same and not self.models:
            return []
        with archive._errors:
            old = [_cut(model, self.columns) for model in archive._fitted]
        models = [model.prefix(latents) for model in [*old, *self.models] if model is not None]
        if not models:
            return []
        segments = segments_of(archive, lambda codes: self.cut(codes, latents))
        return choose(
            segments, self.given(latents), models, before=_spent(archive) if same else None, progress=progress
        )

    def _change(self, segment: RawSegment) -> RawSegment:
        """Give a copied segment its new labels."""
        if self.labels is None:
            return segment
        names = unpack_texts(segment.parts[1], segment.head.rows, "the names of a segment")
        return segment.having(labels=pack_labels(self.labels(names), segment.head.version))

    def _recode(self, writer: Writer, latents: int, progress: Progress) -> None:
        """Write the cut rows from the writer's position on."""
        bytes_of, total = self.archive.source_bytes, max(1, len(self.archive))
        for codes in stored_codes(self.archive, writer.position):
            cut = self.cut(codes, latents)
            if self.labels is not None and codes.names is not None:
                cut = replace(cut, labels=self.labels(codes.names))
            row = writer.rows
            shares = [bytes_of * r // total for r in range(row, row + len(codes) + 1)]
            writer.add(cut, sizes=[b - a for a, b in pairwise(shares)])
            progress(row + len(codes), total)


def _cut(model: EntropyModel, columns: Sequence[int] | None) -> EntropyModel | None:
    """Return a model of these latents, or None for a network, which needs all earlier latents."""
    if columns is None or list(columns) == list(range(len(columns))):
        return model if columns is None else model.prefix(len(columns))
    return model.select(columns) if isinstance(model, IndependentModel) else None


def _spent(archive: Archive) -> float:
    """Return the bits of an archive's codes, including the models stored for them."""
    heads = [segment.head for segment in archive._segments]
    fitted = sum(size + FITTED.size for _, size in archive._index.fitted)
    return 8.0 * (fitted + sum(head.payload + head.table.size for head in heads))


def widest(
    costs: NDArray[np.float64], write: Callable[[int], float], rate: float, rungs: Sequence[int]
) -> int | None:
    """Write prefixes until one keeps to a rate and the next rung's does not; return its width."""
    expected = costs[np.asarray(rungs) - 1]
    fits, too_wide, correction = 0, len(rungs) + 1, 1.0
    while fits + 1 < too_wide:
        rung = int(np.searchsorted(expected * correction, rate, side="right"))
        rung = min(max(rung, fits + 1), too_wide - 1)
        spent = write(rungs[rung - 1])
        if spent <= rate:
            fits = rung
        else:
            too_wide = rung
        if math.isfinite(ratio := spent / expected[rung - 1]) and ratio > 0:
            correction = ratio
    return rungs[fits - 1] if fits else None
