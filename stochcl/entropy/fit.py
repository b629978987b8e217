"""Fitting a linear autoregressive model to codes, in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.codes import bits_per_symbol
from stochcl.entropy.autoregressive import AutoregressiveModel, logistic_levels
from stochcl.entropy.independent import DENOMINATOR, IndependentModel, node_counts, quantised

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stochcl.codes import Codes
    from stochcl.entropy.model import EntropyModel
    from stochcl.entropy.tables import Tables


def measure_ones(codes: Codes) -> NDArray[np.int32]:
    """Return the numerators of a table fitted to codes, 1..4095, shape (D, 2**bits - 1); even for unvisited nodes."""
    ones, visits = node_counts(codes)
    return quantised((ones + 0.5) / (visits + 1))


def hard_rate(codes: Codes, ones: NDArray[np.int32]) -> float:
    """Return the mean bits of hard codes under a table: a file's bits per image, before its overhead."""
    return IndependentModel(ones.astype(np.uint16), codes.alphabet).ideal_bits(codes) / len(codes)


_STEP = 0.2  # between levels, in log-odds
_BATCH = 1024
_PASSES, _LEAST, _MOST = 30, 200, 1500  # over the rows; of steps
_RATE = 0.01
_PENALTY = 2e-3  # of a weight's square and a row, in nats: a prior deviation of 16 on the log-odds of a row
_MAX_WEIGHT = 12.0
_MAX_SAMPLE = 1 << 16  # rows


def fit_linear(
    codes: Codes,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AutoregressiveModel:
    """Fit log-odds of every decision that are linear in those before it, and round them to 8 bits.

    Every decision is a logistic regression on its predecessors; all are fitted together by Adam
    (arXiv 1412.6980) on batches of rows, from the independent probabilities on.
    """
    rng = np.random.default_rng(seed)
    if len(codes) > _MAX_SAMPLE:
        codes = codes[np.sort(rng.choice(len(codes), _MAX_SAMPLE, replace=False))]
    bits, t = bits_per_symbol(codes.alphabet), codes.decisions_per_row
    independent = IndependentModel.fit(codes)
    odds = np.log(independent.ones / (DENOMINATOR - independent.ones.astype(np.float64)))
    below = np.tri(t, k=-1, dtype=np.float32)
    # Centred decisions leave the biases what they are where nothing depends on anything.
    mean: NDArray[np.float32] = np.zeros(t, np.float32)
    for start in range(0, len(codes), 4096):
        mean += codes[start : start + 4096].decisions().sum(axis=0, dtype=np.float32)
    mean = (mean / len(codes) * 2 - 1).astype(np.float32)
    weights, shift = np.zeros((t, t), np.float32), np.zeros(t, np.float32)
    moments = [(np.zeros_like(x), np.zeros_like(x)) for x in (weights, shift)]
    steps = int(np.clip(_PASSES * len(codes) / _BATCH, _LEAST, _MOST))
    for step in range(steps):
        part = codes if len(codes) <= _BATCH else codes[rng.integers(len(codes), size=_BATCH)]
        decisions = part.decisions()
        signs = decisions.astype(np.float32) * 2 - 1 - mean
        logits = signs @ weights.T + shift + _base(odds, decisions, bits)
        error = (1 / (1 + np.exp(-logits)) - decisions) / len(part)
        gradients = (error.T @ signs + _PENALTY / len(codes) * weights) * below, error.sum(axis=0)
        rate = _RATE * min(1, (step + 1) / 20) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for x, g, moment in zip((weights, shift), gradients, moments, strict=True):
            _adam(x, g, moment, step, rate)
        progress(step + 1, steps)
    np.clip(weights, -_MAX_WEIGHT, _MAX_WEIGHT, out=weights)
    constant = shift - weights @ mean
    return _rounded(codes, weights, odds + constant.reshape(-1, bits)[:, _levels_of_nodes(bits)])


def _adam(
    x: NDArray[np.float32],
    g: NDArray[np.floating],
    moment: tuple[NDArray[np.float32], NDArray[np.float32]],
    step: int,
    rate: float,
) -> None:
    """Move ``x`` in place by one step of Adam, with decays of 0.9 and 0.99."""
    mean, square = moment
    mean += 0.1 * (g - mean)
    square += 0.01 * (g * g - square)
    corrected = np.sqrt(square / np.float32(1 - 0.99 ** (step + 1))) + np.float32(1e-8)
    x -= np.float32(rate / (1 - 0.9 ** (step + 1))) * mean / corrected


def _levels_of_nodes(bits: int) -> NDArray[np.intp]:
    """Return which of a symbol's decisions each node of its tree stands for."""
    return np.concatenate([np.full(1 << level, level, np.intp) for level in range(bits)])


def _base(odds: NDArray[np.float64], decisions: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    """Return the independent log-odds of every decision, shape (N, T) or (1, T)."""
    if bits == 1:
        return odds[:, 0][None].astype(np.float32)
    grouped = decisions.reshape(len(decisions), -1, bits).astype(np.intp)
    out = np.empty(grouped.shape, np.float32)
    prefix = np.zeros(grouped.shape[:2], np.intp)
    for level in range(bits):
        out[:, :, level] = odds[np.arange(len(odds)), (1 << level) - 1 + prefix]
        prefix = prefix * 2 + grouped[:, :, level]
    return out.reshape(len(decisions), -1)


def _rounded(codes: Codes, weights: NDArray[np.float32], odds: NDArray[np.float64]) -> AutoregressiveModel:
    """Return the integers nearest to a model of floats: log-odds = weights @ signs + odds of the node."""
    t = len(weights)
    levels = logistic_levels(_STEP)
    scale = np.maximum(np.abs(weights).max(axis=1), 1e-6).astype(np.float64) / 127
    # z = 128 * rounded @ signs, and weights @ signs = z * scale / 128; a level is _STEP wide.
    multiplier = np.clip(np.rint(scale / 128 / _STEP * (1 << 24)), 1, 65535)
    rounded = np.clip(np.rint(weights / (multiplier * 128 * _STEP / (1 << 24))[:, None]), -127, 127)
    # Levels are at -8, -7.8 ...; rounding down after adding a half takes the nearest.
    bias = np.rint(256 * (odds / _STEP + (len(levels) - 1) / 2 + 0.5))
    return AutoregressiveModel(
        latents=codes.latents,
        alphabet=codes.alphabet,
        levels=levels,
        degrees=np.zeros(0, np.uint16),
        hidden_weights=np.zeros((0, t), np.int8),
        hidden_bias=np.zeros(0, np.int32),
        hidden_multiplier=np.zeros(0, np.uint16),
        direct=rounded.astype(np.int8),
        output=np.zeros((t, 0), np.int8),
        multiplier=multiplier.astype(np.uint16),
        bias=bias.astype(np.int32),
    )


def expected_bits(tables: Tables, latents: int | None = None) -> float:
    """Return what a row of the first latents costs on average by the tables' independent probabilities, in bits."""
    costs = _symbol_costs(tables.entropy if latents is None else tables.entropy.prefix(latents))
    return float((np.exp2(-costs) * costs).sum())


_ROWS = 512


def code_lengths(codes: Codes, tables: Tables, selection: Sequence[int] | None = None) -> NDArray[np.float32]:
    """Return the bits that each row takes under the tables' network, or table where there is no network.

    Always the tables', whatever an archive's segments are coded with: so rows of different archives compare.
    """
    model = tables.candidates(codes.latents, selection)[-1].model
    out = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), _ROWS):
        rows = slice(start, min(start + _ROWS, len(codes)))
        part = np.arange(len(codes))[rows]
        out[rows] = _lengths(model, codes.__class__(codes.packed[part], codes.latents, codes.alphabet))
    return out


def latent_lengths(codes: Codes, model: EntropyModel) -> NDArray[np.float64]:
    """Return the mean bits of each latent under a model, given those before it, shape (D,)."""
    if not isinstance(model, AutoregressiveModel):
        return model.bits_by_latent(codes) / max(1, len(codes))
    decisions = model.bits_by_decision(codes).reshape(codes.latents, -1)
    bits: NDArray[np.float64] = decisions.sum(axis=1) / max(1, len(codes))
    return bits


def _lengths(model: EntropyModel, codes: Codes) -> NDArray[np.float64]:
    if isinstance(model, AutoregressiveModel):
        decisions = codes.decisions()
        one = model.levels.astype(np.float64)[model.level_indices(decisions)] / DENOMINATOR
        bits: NDArray[np.float64] = -np.log2(np.where(decisions.T != 0, one, 1 - one)).sum(axis=0)
        return bits
    costs = _symbol_costs(model)
    taken: NDArray[np.float64] = costs[np.arange(codes.latents), codes.symbols()].sum(axis=1)
    return taken


def _symbol_costs(model: IndependentModel) -> NDArray[np.float64]:
    """Return what every symbol of every latent costs, in bits, shape (D, K)."""
    bits, symbols = bits_per_symbol(model.alphabet), np.arange(model.alphabet)
    costs = np.zeros((model.latents, model.alphabet))
    for level in range(bits):
        one = model.ones[:, (1 << level) - 1 + (symbols >> bits - level)] / DENOMINATOR
        costs -= np.log2(np.where(symbols >> bits - level - 1 & 1, one, 1 - one))
    return costs
