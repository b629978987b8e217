"""What all entropy models share: serialisation, code lengths and fitting."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes, bits_per_symbol
from stochcl.entropy import autoregressive as net
from stochcl.entropy.autoregressive import AutoregressiveModel, logistic_levels
from stochcl.entropy.independent import DENOMINATOR, IndependentModel, node_counts, places, quantised
from stochcl.errors import FormatError
from stochcl.framing import MAX_TABLE, inflate_any
from stochcl.messages import Progress, silent

if TYPE_CHECKING:
    from numpy.typing import NDArray


INDEPENDENT, OWN, NETWORK, FITTED = 0, 1, 2, 3
"""A segment's entropy model: the tables' independent model, a table in the segment, the tables' autoregressive
network, or one of the models fitted to this archive.
"""

_NAME = struct.Struct("<16s")
_KINDS: dict[str, type[EntropyModel]] = {kind.kind: kind for kind in (IndependentModel, AutoregressiveModel)}


@dataclass(frozen=True)
class Candidate:
    """An entropy model that a segment may use without storing it, and how the segment's head names it.

    ``kind`` is INDEPENDENT, NETWORK or FITTED; ``number`` is the index of a fitted model.
    """

    model: EntropyModel
    kind: int = INDEPENDENT
    number: int = 0

    def cost(self, codes: Codes) -> tuple[float, NDArray[np.uint8] | None]:
        """Return the bits of codes, and for a network the level of every decision, uint8, shape (T, N)."""
        if isinstance(self.model, IndependentModel):
            return self.model.ideal_bits(codes), None
        indices = self.model.level_indices(codes.decisions())
        return float(self.model.bits_of(codes.decisions(), indices).sum()), indices


def pack_model(model: EntropyModel) -> bytes:
    """Write a model that an archive stores itself: its kind in 16 bytes and its bytes, deflated."""
    return zlib.compress(_NAME.pack(model.kind.encode()) + model.to_bytes(), 9)


def _most_bytes(latents: int, alphabet: int) -> int:
    """Return the maximum size of a model of such codes: a network with all its units."""
    bits = bits_per_symbol(alphabet)
    t, nodes = latents * bits, latents * ((1 << bits) - 1)
    return 256 + 2 * net.MAX_LEVELS + net.MAX_HIDDEN * (8 + 2 * t) + 2 * t + 4 * nodes + t * t


def size_in_memory(model: EntropyModel) -> int:
    """Return the bytes that a model's arrays take in memory."""
    return sum(array.nbytes for array in vars(model).values() if isinstance(array, np.ndarray))


def unpack_model(data: bytes, latents: int, alphabet: int) -> EntropyModel:
    """Read what :func:`pack_model` wrote."""
    raw = inflate_any(data, min(MAX_TABLE, _most_bytes(latents, alphabet)), "an entropy model")
    name = raw[: _NAME.size].rstrip(b"\0").decode("ascii", "replace")
    if len(raw) < _NAME.size or name not in _KINDS:
        raise FormatError(f"there is no kind of entropy model called {name[:16]!r}")
    model = _KINDS[name].from_bytes(raw[_NAME.size :])
    if (model.latents, model.alphabet) != (latents, alphabet):
        raise FormatError("an entropy model of the archive is for other latents")
    return model


EntropyModel = IndependentModel | AutoregressiveModel
"""Any entropy model."""


def measure_ones(codes: Codes) -> NDArray[np.int32]:
    """Return the numerators of a table fitted to codes, 1..4095, shape (D, 2**bits - 1); a half if unvisited."""
    ones, visits = node_counts(codes)
    return quantised((ones + 0.5) / (visits + 1))


def hard_rate(codes: Codes, ones: NDArray[np.int32]) -> float:
    """Return the mean bits of hard codes under a table: a file's bits per image without overhead."""
    return IndependentModel(ones.astype(np.uint16), codes.alphabet).ideal_bits(codes) / len(codes)


_BATCH = 1024
_PASSES, _LEAST, _MOST = 30, 200, 1500  # passes over the rows; fewest and most steps
_RATE = 0.01
_PENALTY = 2e-3  # on a squared weight, divided by rows, in nats: a prior deviation of 16 on log-odds per row
_MAX_WEIGHT = 12.0
_MAX_SAMPLE = 1 << 16  # rows


def fit_linear(codes: Codes, *, seed: int = 0, progress: Progress = silent) -> AutoregressiveModel:
    """Fit a model whose log-odds are linear in the earlier decisions, and round it to 8 bits.

    Each decision is a logistic regression on its predecessors. All are fitted together by Adam (arXiv 1412.6980) on
    batches of rows, starting from the independent probabilities.
    """
    rng = np.random.default_rng(seed)
    if len(codes) > _MAX_SAMPLE:
        codes = codes[np.sort(rng.choice(len(codes), _MAX_SAMPLE, replace=False))]
    bits, t = bits_per_symbol(codes.alphabet), codes.decisions_per_row
    independent = IndependentModel.fit(codes)
    odds = np.log(independent.ones / (DENOMINATOR - independent.ones.astype(np.float64)))
    below = np.tri(t, k=-1, dtype=np.float32)
    # Decisions are centred, so that the biases keep their value where nothing depends on anything.
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
        logits = signs @ weights.T + shift + odds[places(part)].astype(np.float32)
        error = (1 / (1 + np.exp(-logits)) - decisions) / len(part)
        gradients = (error.T @ signs + _PENALTY / len(codes) * weights) * below, error.sum(axis=0)
        rate = _RATE * min(1, (step + 1) / 20) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for x, g, moment in zip((weights, shift), gradients, moments, strict=True):
            _adam(x, g, moment, step, rate)
        progress(step + 1, steps)
    np.clip(weights, -_MAX_WEIGHT, _MAX_WEIGHT, out=weights)
    constant = (shift - weights @ mean).reshape(-1, bits)
    level_of_node = np.repeat(np.arange(bits), 1 << np.arange(bits))
    return rounded_model(codes.latents, codes.alphabet, odds + constant[:, level_of_node], weights)


def _adam(
    x: NDArray[np.float32], g: NDArray[np.floating], moment: tuple[NDArray[np.float32], NDArray[np.float32]],
    step: int, rate: float,
) -> None:  # fmt: skip
    """Take one Adam step on ``x`` in place, with decays 0.9 and 0.99."""
    mean, square = moment
    mean += 0.1 * (g - mean)
    square += 0.01 * (g * g - square)
    corrected = np.sqrt(square / np.float32(1 - 0.99 ** (step + 1))) + np.float32(1e-8)
    x -= np.float32(rate / (1 - 0.9 ** (step + 1))) * mean / corrected


def rounded_model(
    latents: int, alphabet: int, bias: NDArray[np.floating], direct: NDArray[np.floating], *,
    degrees: NDArray[np.integer] | None = None, hidden: NDArray[np.floating] | None = None,
    hidden_bias: NDArray[np.floating] | None = None, output: NDArray[np.floating] | None = None,
) -> AutoregressiveModel:  # fmt: skip
    """Round a network of floats to integers, with one scale per hidden unit and per decision.

    ``bias``, shape (D, 2**bits - 1), and ``direct``, shape (T, T), are in log-odds; hidden units have values of 0..1.
    """
    t = len(direct)
    hidden = np.zeros((0, t)) if hidden is None else hidden
    hidden_bias = np.zeros(len(hidden)) if hidden_bias is None else hidden_bias
    output = np.zeros((t, len(hidden))) if output is None else output
    hidden_multiplier, hidden_scale = _multipliers(_largest(hidden), 2.0**-net.HIDDEN_SHIFT / net.SIGN)
    unit = net.LEVEL_STEP * net.SIGN / 2.0**net.SHIFT  # z is in units of 1/128
    multiplier, scale = _multipliers(np.maximum(_largest(direct), _largest(output)), unit)
    levels = logistic_levels()

    def integers(values: NDArray[np.floating], dtype: type[np.integer], most: int) -> NDArray[Any]:
        return np.clip(np.rint(values), -most, most).astype(dtype)

    return AutoregressiveModel(
        latents, alphabet, levels=levels,
        degrees=np.zeros(0, np.uint16) if degrees is None else degrees,
        hidden_weights=integers(hidden / hidden_scale[:, None], np.int8, net.FULL),
        # Shifts round down: adding half a unit rounds to the nearest.
        hidden_bias=integers((hidden_bias + 0.5 / net.SIGN) / hidden_scale, np.int32, net.MAX_BIAS),
        hidden_multiplier=integers(hidden_multiplier, np.uint16, net.MAX_MULTIPLIER),
        direct=integers(direct / scale[:, None], np.int8, net.FULL),
        output=integers(output / scale[:, None], np.int8, net.FULL),
        multiplier=integers(multiplier, np.uint16, net.MAX_MULTIPLIER),
        # In units of a level / 2**(SHIFT - BIAS_SHIFT); the middle level is even odds.
        bias=integers(
            (bias / net.LEVEL_STEP + (len(levels) - 1) / 2 + 0.5) * 2.0 ** (net.SHIFT - net.BIAS_SHIFT), np.int32,
            net.MAX_BIAS,
        ),
    )  # fmt: skip


def _multipliers(largest: NDArray[np.floating], unit: float) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return integer multipliers and the scale of a weight of 1, both shape (rows,).

    The scale is computed from the rounded multiplier, so rounding costs nothing. Weights beyond the largest
    multiplier's range are clipped later.
    """
    multiplier = np.clip(np.ceil(largest / net.FULL / unit), 1, net.MAX_MULTIPLIER)
    return multiplier, multiplier * unit


def _largest(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the largest absolute weight, shape (rows,)."""
    return np.abs(weights).max(axis=1, initial=0).astype(np.float64)


def expected_bits(model: IndependentModel) -> float:
    """Return the mean bits per row if a table's probabilities are true."""
    bits, symbols = bits_per_symbol(model.alphabet), np.arange(model.alphabet)
    costs = np.zeros((model.latents, model.alphabet))  # per latent and symbol
    for level in range(bits):
        one = model.ones[:, (1 << level) - 1 + (symbols >> bits - level)] / DENOMINATOR
        costs -= np.log2(np.where(symbols >> bits - level - 1 & 1, one, 1 - one))
    return float((np.exp2(-costs) * costs).sum())


_ROWS = 512


def code_lengths(codes: Codes, model: EntropyModel) -> NDArray[np.float32]:
    """Return the bits of each row under a model."""
    out = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), _ROWS):
        part = codes[start : start + _ROWS]
        decisions = part.decisions()
        if isinstance(model, AutoregressiveModel):
            ones = model.levels[model.level_indices(decisions)].T
        else:
            ones = model.ones[places(part)]
        out[start : start + _ROWS] = -np.log2(np.where(decisions, ones, DENOMINATOR - ones) / DENOMINATOR).sum(axis=1)
    return out


def latent_lengths(codes: Codes, model: EntropyModel) -> NDArray[np.float64]:
    """Return the mean bits of each latent under a model, given earlier latents, shape (D,)."""
    return model.bits_by_latent(codes) / max(1, len(codes))
