"""Entropy models fitted to an archive's own codes, and which of them are worth their own bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.codes import Codes
from stochcl.compress.autoregressive import AutoregressiveModel
from stochcl.compress.framing import CHUNK, FITTED
from stochcl.compress.gathering import SEGMENT_ROWS
from stochcl.compress.independent import IndependentModel
from stochcl.compress.model import Candidate, pack_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from stochcl.compress.archive import Archive
    from stochcl.compress.coder import EntropyModel

_SAMPLE = 1 << 16  # rows that models are fitted to
_RUN = 1 << 10  # rows that are read one after the other, so that few blocks are decoded
_STREAM = 128 + 64  # bits that a block's own head, its entry in the segment's, and the ends of its stream take
_BLOCK = 1 << 16  # bits of a block


def sample(archive: Archive) -> Codes:
    """Return up to 65,536 rows, runs of them from everywhere, without names."""
    starts, run = np.zeros(1, np.int64), len(archive)
    if len(archive) > _SAMPLE:
        starts, run = np.linspace(0, len(archive) - _RUN, _SAMPLE // _RUN).astype(np.int64), _RUN
    rows = (starts[:, None] + np.arange(run)).reshape(-1)
    header = archive.header
    return Codes(archive._packed(rows), header.latents, header.alphabet)


def fit_models(
    codes: Codes, rows: int, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[EntropyModel]:
    """Fit an independent and a linear autoregressive model to a sample of so many rows.

    The latter is left out where all rows together have less than a bit for each of its weights: it could not pay.
    """
    if not len(codes):
        return []
    independent = IndependentModel.fit(codes)
    t = codes.decisions_per_row
    if independent.ideal_bits(codes) * rows / len(codes) <= t * (t - 1) / 2 or t == 1:
        return [independent]
    return [independent, AutoregressiveModel.fit_linear(codes, progress=progress)]


def price(model: EntropyModel) -> int:
    """Return the bits that storing a model takes, its place in the index included."""
    return 8 * (CHUNK.size + 4 + len(pack_model(model)) + FITTED.size)


def cost(candidates: Sequence[Candidate], codes: Codes) -> tuple[float, list[float]]:
    """Return the bits of a segment with a table of its own, that included, and with each of some models."""
    own = IndependentModel.fit(codes)
    return own.ideal_bits(codes) + 8 * len(pack_model(own)), [c.cost(codes)[0] for c in candidates]


def choose(
    segments: Iterable[Codes],
    given: Sequence[Candidate],
    models: Sequence[EntropyModel],
    *,
    before: float | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[EntropyModel]:
    """Return those of some models that save more, over all segments, than it takes to store them.

    Parameters
    ----------
    segments : iterable of Codes
        The rows as they will be written.
    given : sequence of Candidate
        What segments can be coded with anyway.
    models : sequence of IndependentModel or AutoregressiveModel
    before : float, optional
        Bits that the codes take now, where they could stay as they are: models that do not get below are of no use.
    progress : callable
        Told how many rows have been looked at.
    """
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
    """Take the model that saves most beyond its price, then the next, as long as there is one."""
    chosen: list[int] = []
    while True:
        gains = {
            i: float((base - np.minimum(base, spent[i])).sum()) - prices[i]
            for i in range(len(prices))
            if i not in chosen
        }
        best = max(gains, key=gains.__getitem__, default=None)
        if best is None or gains[best] <= 0:
            return sorted(chosen)
        chosen.append(best)
        base = np.minimum(base, spent[best])


def segments_of(archive: Archive, cut: Callable[[Codes], Codes]) -> Iterable[Codes]:
    """Yield all rows as an archive of some of the latents will have them, a segment at a time, without names."""
    for start in range(0, len(archive), SEGMENT_ROWS):
        rows = np.arange(start, min(start + SEGMENT_ROWS, len(archive)))
        yield cut(Codes(archive._packed(rows), archive.header.latents, archive.header.alphabet))


def cumulative(candidates: Sequence[Candidate], codes: Codes) -> NDArray[np.float64]:
    """Return what the first latents of a segment cost, for every number of them: bits, shape (D,).

    Exact for every model, as each latent costs what it does whatever follows. A table of a segment's own counts
    where it pays; its own bytes do not, as they are not the codes'.
    """
    own = IndependentModel.fit(codes)
    table = np.arange(1, codes.latents + 1) * (8 * len(pack_model(own)) / codes.latents)
    by_latent = [_by_latent(candidate.model, codes) for candidate in candidates]
    best = np.min([np.cumsum(bits) for bits in by_latent], axis=0)
    alone = np.cumsum(own.bits_by_latent(codes))
    bits: NDArray[np.float64] = np.where(alone + table < best, alone, best)
    return bits + (bits / _BLOCK + 1) * _STREAM


def _by_latent(model: EntropyModel, codes: Codes) -> NDArray[np.float64]:
    if isinstance(model, IndependentModel):
        return model.bits_by_latent(codes)
    return model.bits_by_decision(codes).reshape(codes.latents, -1).sum(axis=1)
