"""The entropy network: what each binary decision of a code says about those after it, in integers."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from stochcl.codes import bits_per_symbol
from stochcl.encoders.masked import MaskedNetwork
from stochcl.encoders.precision import precision_used
from stochcl.encoders.tree import node_counts, places, quantised

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.codes import Codes

MAX_HIDDEN = 4096
"""Most hidden units of a network."""

LEVELS = 81
"""Probabilities that a decision can have: log-odds in steps of 0.2, from -8 to 8."""

MIN_CODES = 1000
"""Fewer codes than this fit no network: it would learn them by heart."""

DEFAULT_HIDDEN = 1024
"""Hidden units of a network for many codes; see :func:`hidden_units`."""

_STEP = 0.2
_BATCH, _LEAST_BATCH, _STEPS = 512, 32, 40  # rows a step, and steps that a pass should have
# Chosen by the bits of held-out codes of training images after three passes (1,024 latents): 297.5 with these, 299.3
# with twice the first weights, 314.8 with rates of 1e-3 and 1e-2 besides.
_LR, _HIDDEN_LR = 4e-3, 8e-3
_DECAY = 0.03
_AGAIN = 0.3  # of these rates, where a network is gone on with
_HELD, _MOST_HELD = 0.05, 4000  # of the codes: the choice between passes, and what is reported
_WORTH = 0.99  # of the bits of independent symbols: a network that costs more is not kept
_ROWS = 2048  # of codes at a time where nothing is learned

_UNIT = 128  # a hidden activation of 1 is 128, clipped to 127
_HIDDEN_SHIFT, _INDEX_SHIFT, _BIAS_SHIFT = 14, 24, 16
_MAX_MULTIPLIER = 65535
_MAX_BIAS = 1 << 24
_TOP = 127  # of an int8 weight, both ways


def _levels() -> NDArray[np.uint16]:
    odds = (np.arange(LEVELS) - (LEVELS - 1) / 2) * _STEP
    levels: NDArray[np.uint16] = np.clip(np.rint(4096 / (1 + np.exp(-odds))), 1, 4095).astype(np.uint16)
    return levels


@dataclass(frozen=True, eq=False)
class EntropyNetwork:
    """An autoregressive model of codes that is integers only, so that every machine finds the same probabilities.

    A row is T = D * bits decisions d_0, d_1, ..., each seen by those after it as s_i = 2 d_i - 1. With floor shifts::

        u_h = hidden_bias_h + sum_i hidden_weights_hi s_i
        a_h = min(127, max(0, (u_h * hidden_multiplier_h) >> 14))
        z_j = 128 * sum_{i<j} direct_ji s_i + sum_{degrees_h <= j} output_jh a_h
        index_j = clip((z_j * multiplier_j + (bias_j << 16)) >> 24, 0, n - 1)
        P(d_j = 1) = levels[index_j] / 4096

    Parameters
    ----------
    latents, alphabet : int
        D and K; bits = ceil(log2 K).
    levels : ndarray of uint16, shape (n,)
    degrees : ndarray of int32, shape (H,)
        Hidden unit h sees the decisions before this one; ascending.
    hidden_weights : ndarray of int8, shape (H, T)
    hidden_bias : ndarray of int32, shape (H,)
    hidden_multiplier : ndarray of uint16, shape (H,)
    direct : ndarray of int8, shape (T, T)
        Strictly lower triangular.
    output : ndarray of int8, shape (T, H)
    multiplier : ndarray of uint16, shape (T,)
    bias : ndarray of int32, shape (D, 2**bits - 1)
        One for each node of a symbol's binary tree, in 1/256 of a level.
    """

    latents: int
    alphabet: int
    levels: NDArray[np.uint16]
    degrees: NDArray[np.int32]
    hidden_weights: NDArray[np.int8]
    hidden_bias: NDArray[np.int32]
    hidden_multiplier: NDArray[np.uint16]
    direct: NDArray[np.int8]
    output: NDArray[np.int8]
    multiplier: NDArray[np.uint16]
    bias: NDArray[np.int32]

    @property
    def hidden(self) -> int:
        """H, the number of hidden units."""
        return len(self.degrees)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by their names."""
        return {name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], *, latents: int, alphabet: int) -> EntropyNetwork:
        """Make a network of arrays of any integer type.

        Raises
        ------
        ValueError
            If the arrays are not such a network, or a number is not one that its array can hold.
        """
        found = {}
        for name, dtype in _TYPES.items():
            array = np.asarray(arrays[name]).astype(np.int64)
            low, high = _RANGES.get(name, (np.iinfo(dtype).min, np.iinfo(dtype).max))
            if array.size and not (low <= array.min() and array.max() <= high):
                msg = f"{name} holds {array.min()}..{array.max()}, outside {low}..{high}"
                raise ValueError(msg)
            found[name] = array.astype(dtype)
        network = cls(latents, alphabet, **found)
        network._check()
        return network

    def _check(self) -> None:
        """Refuse a network in which a decision would see itself or a later one."""
        t = self.latents * bits_per_symbol(self.alphabet)
        degrees, places = self.degrees.astype(np.int64), np.arange(t)
        if len(degrees) and not (degrees.min() >= 1 and degrees.max() < t and (np.diff(degrees) >= 0).all()):
            msg = f"degrees do not ascend within 1..{t - 1}"
            raise ValueError(msg)
        unseen = {
            "direct": places >= places[:, None],
            "hidden_weights": places >= degrees[:, None],
            "output": degrees > places[:, None],
        }
        for name, mask in unseen.items():
            if getattr(self, name)[mask].any():
                msg = f"{name} has weights of decisions that come later"
                raise ValueError(msg)

    def numerators(self, codes: Codes) -> NDArray[np.uint16]:
        """Return 4096 P(decision is 1) of every decision given those before it, uint16, shape (N, T)."""
        signs = codes.decisions().astype(np.float64) * 2 - 1
        # Products of integers whose sums stay below 2**53: exact in any order.
        total = signs @ self.direct.T.astype(np.float64) * _UNIT
        if self.hidden:
            u = (signs @ self.hidden_weights.T.astype(np.float64)).astype(np.int64) + self.hidden_bias
            active = np.clip((u * self.hidden_multiplier.astype(np.int64)) >> _HIDDEN_SHIFT, 0, _TOP)
            total += active.astype(np.float64) @ self.output.T.astype(np.float64)
        latent, node = places(codes)
        bias = self.bias[latent, node].astype(np.int64) << _BIAS_SHIFT
        index = (total.astype(np.int64) * self.multiplier.astype(np.int64) + bias) >> _INDEX_SHIFT
        found: NDArray[np.uint16] = self.levels[np.clip(index, 0, len(self.levels) - 1)]
        return found

    def decision_bits(self, codes: Codes) -> NDArray[np.float64]:
        """Return what each decision of a row costs on average over these codes, in bits, shape (T,)."""
        total = np.zeros(codes.decisions_per_row)
        for start in range(0, len(codes), _ROWS):
            part = codes[start : start + _ROWS]
            p = self.numerators(part) / 4096
            total -= np.log2(np.where(part.decisions() == 1, p, 1 - p)).sum(axis=0)
        return total / len(codes)


ARRAYS = tuple(f.name for f in fields(EntropyNetwork) if f.name not in ("latents", "alphabet"))
"""Names of the arrays of a network."""

_TYPES: dict[str, type[np.integer]] = dict(zip(
    ARRAYS,
    [np.uint16, np.int32, np.int8, np.int32, np.uint16, np.int8, np.int8, np.uint16, np.int32], strict=True,
))  # fmt: skip
_RANGES = {"levels": (1, 4095), "hidden_bias": (-_MAX_BIAS, _MAX_BIAS)}


def array_shapes(latents: int, hidden: int, alphabet: int = 2) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return the type and shape in which a model file holds each array; torch has little that is unsigned."""
    bits = bits_per_symbol(alphabet)
    t, i8, i32 = latents * bits, torch.int8, torch.int32
    return {
        "levels": (i32, (LEVELS,)),
        "degrees": (i32, (hidden,)),
        "hidden_weights": (i8, (hidden, t)),
        "hidden_bias": (i32, (hidden,)),
        "hidden_multiplier": (i32, (hidden,)),
        "direct": (i8, (t, t)),
        "output": (i8, (t, hidden)),
        "multiplier": (i32, (t,)),
        "bias": (i32, (latents, (1 << bits) - 1)),
    }


def _network(codes: Codes, hidden: int, seed: int) -> MaskedNetwork:
    """Return a network with real weights that begins as independent symbols."""
    ones, visits = node_counts(codes)
    p = (ones + 0.5) / (visits + 1)
    bias = torch.from_numpy(np.log(p / (1 - p)).astype(np.float32))
    return MaskedNetwork(bias, codes.decisions_per_row, hidden, seed)


def independent_bits(log_odds: NDArray[np.float32], codes: Codes) -> NDArray[np.float64]:
    """Return what each decision costs on average where decisions do not see each other, in bits, shape (T,).

    Parameters
    ----------
    log_odds : ndarray of float32, shape (D, 2**bits - 1)
    codes : Codes
    """
    total = np.zeros(codes.decisions_per_row)
    for start in range(0, len(codes), _ROWS):
        part = codes[start : start + _ROWS]
        latent, node = places(part)
        odds = np.asarray(log_odds, np.float64)[latent, node]
        p = quantised(1 / (1 + np.exp(-odds))) / 4096
        total -= np.log2(np.where(part.decisions() == 1, p, 1 - p)).sum(axis=0)
    return total / len(codes)


def _multipliers(largest: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """Return integer multipliers and the scale of a weight of 1, both shape (rows,).

    The multiplier comes first and the scale from it, so that its own rounding costs nothing; what is larger than
    the largest multiplier expresses is clipped.
    """
    multiplier = (largest / _TOP / unit).ceil().clamp(1, _MAX_MULTIPLIER)
    return multiplier, multiplier * unit


@torch.no_grad()
def quantise(network: MaskedNetwork, latents: int, alphabet: int) -> EntropyNetwork:
    """Round a network to integers: a scale for every hidden unit and for every decision."""
    direct, hidden, output = (network.masked(n).double() for n in ("direct", "hidden", "output"))
    unit = 2.0**-_HIDDEN_SHIFT / _UNIT
    hidden_multiplier, hidden_scale = _multipliers(_largest(hidden), unit)
    # Shifts round down: half a unit is added where the rounding should be to the nearest.
    hidden_bias = (network.hidden_bias.double() + 0.5 / _UNIT) / hidden_scale
    unit = _STEP * 2.0 ** -(_INDEX_SHIFT - 7)  # 7: z counts in units of 1/128
    multiplier, scale = _multipliers(torch.maximum(_largest(direct), _largest(output)), unit)
    bias = 256 * (network.bias.double() / _STEP + (LEVELS - 1) / 2 + 0.5)

    def integers(values: Tensor, dtype: type, most: int) -> NDArray[Any]:
        return values.round().clamp(-most, most).cpu().numpy().astype(dtype)

    return EntropyNetwork(
        latents=latents,
        alphabet=alphabet,
        levels=_levels(),
        degrees=network.degrees,
        hidden_weights=integers(hidden / hidden_scale[:, None], np.int8, _TOP),
        hidden_bias=integers(hidden_bias, np.int32, _MAX_BIAS),
        hidden_multiplier=integers(hidden_multiplier, np.uint16, _MAX_MULTIPLIER),
        direct=integers(direct / scale[:, None], np.int8, _TOP),
        output=integers(output / scale[:, None], np.int8, _TOP),
        multiplier=integers(multiplier, np.uint16, _MAX_MULTIPLIER),
        bias=integers(bias, np.int32, _MAX_BIAS),
    )


def _largest(weights: Tensor) -> Tensor:
    """Return the largest weight, shape (rows,), of either sign; 0 where there are no columns."""
    return weights.abs().amax(dim=1) if weights.shape[1] else weights.new_zeros(len(weights))


@dataclass(frozen=True)
class Fitted:
    """An entropy network and what it saves.

    Parameters
    ----------
    network : EntropyNetwork or None
        None where independent symbols cost no more.
    record : dict
        Bits per image at every rung, of codes that were not fitted to.
    """

    network: EntropyNetwork | None
    record: dict[str, Any] = field(default_factory=dict)


def smaller_images(images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Return images as they look where their sources are smaller: shrunk to a random side, and enlarged again.

    Codes of enlarged images are of another distribution (enlarged photographs lack fine detail, and some latents say
    so), in which a network that never saw any saves little. Sides are even on a logarithmic scale between a
    quarter of the size and all of it.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, S, S, 3)
    seed : int
        Of the sides.

    Returns
    -------
    ndarray of uint8, shape (N, S, S, 3)
    """
    size = images.shape[1]
    exponents = np.random.default_rng([seed, len(images)]).uniform(-2, 0, len(images))
    sides = np.maximum(1, np.rint(size * 2.0**exponents)).astype(int)
    out = np.empty_like(images)
    for i, side in enumerate(sides.tolist()):
        small = Image.fromarray(images[i]).resize((side, side), Image.Resampling.BICUBIC)
        out[i] = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))
    return out


def hidden_units(codes: int) -> int:
    """Return how many hidden units so many codes are worth: a linear network is enough for a few thousand.

    Examples
    --------
    >>> [hidden_units(n) for n in (1_000, 10_000, 60_000)]
    [0, 0, 1024]
    """
    return DEFAULT_HIDDEN if codes >= 20_000 else 0


def fit_entropy(
    codes: Codes,
    ladder: tuple[int, ...],
    *,
    versions: int = 1,
    hidden: int | None = None,
    passes: int = 20,
    max_time: float | None = None,
    seed: int = 0,
    precision: str = "auto",
    initial: MaskedNetwork | None = None,
    progress: Callable[[float, str], None] = lambda fraction, line: None,
) -> Fitted:
    """Fit an entropy network to codes, by the bits that they cost.

    Parameters
    ----------
    codes : Codes
        Of training images; every 20th image, in a seeded order, is not fitted to but chooses among the passes.
    ladder : tuple of int
        Prefixes to report.
    versions : int
        How often each image is there: the codes are so many stacked parts, each of all images in one order. An
        image is held out in all its versions, for one tells what another's code is like.
    hidden : int, optional
        H, as :func:`hidden_units` says by default; 0 is a linear network.
    passes : int
        Over the codes.
    max_time : float, optional
        Seconds after which it ends, whatever the passes.
    seed : int
        Of everything random.
    precision : str
        auto, bf16 (autocast) or fp32, see :func:`~stochcl.encoders.precision.computes_in_bf16`.
    initial : MaskedNetwork, optional
        What to go on from, in place of ``hidden``; it is given the weights that are found.
    progress : callable
        Told the fraction that is done, and a line about it, after every pass.
    """
    if len(codes) < MIN_CODES or codes.decisions_per_row < 2:
        return Fitted(None, {"codes": len(codes), "reason": "too few codes"})
    started, precision = time.monotonic(), precision_used(precision, "cpu")
    hidden = hidden_units(len(codes)) if hidden is None else hidden
    images = len(codes) // versions
    order = np.random.default_rng(seed).permutation(images)
    out = np.isin(np.arange(images), order[: int(min(_MOST_HELD / versions, images * _HELD))])
    out = np.tile(out, versions)
    held, fitted = codes[out], codes[~out]
    network = _network(fitted, hidden, seed)
    independent = independent_bits(network.bias.detach().numpy(), held)
    if initial is not None:
        network, hidden = copy.deepcopy(initial), len(initial.degrees)
    scale = 1.0 if initial is None else _AGAIN
    best = _descend(network, fitted, held, passes, max_time, seed, precision, progress, scale)
    if initial is not None:
        initial.load_state_dict(network.state_dict())
    real = float_bits(network, held)
    integers = quantise(network, codes.latents, codes.alphabet)
    coded = integers.decision_bits(held)
    bits = bits_per_symbol(codes.alphabet)

    def rungs(cost: NDArray[np.float64]) -> dict[str, float]:
        return {str(k): round(float(cost[: k * bits].sum()), 2) for k in ladder}

    record = {
        "codes": len(fitted), "measured_codes": len(held), "hidden": hidden, "best_pass": best, "seed": seed,
        "precision": precision, "seconds": round(time.monotonic() - started), "independent_bits": rungs(independent),
        "autoregressive_bits": rungs(coded), "autoregressive_bits_float": rungs(real),
    }  # fmt: skip
    return Fitted(integers if coded.sum() < _WORTH * independent.sum() else None, record)


def _descend(
    network: MaskedNetwork, codes: Codes, held: Codes, passes: int, max_time: float | None, seed: int, precision: str,
    progress: Callable[[float, str], None], scale: float = 1.0,
) -> int:  # fmt: skip
    """Minimise the bits of ``codes``; leave the weights of the pass that codes ``held`` in fewest, return which."""
    hidden = {"hidden", "hidden_bias", "output"}
    named = dict(network.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if n in hidden], "peak": _HIDDEN_LR, "weight_decay": _DECAY},
        {"params": [network.direct], "peak": _LR, "weight_decay": _DECAY},
        {"params": [network.bias], "peak": _LR, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=_LR, betas=(0.9, 0.98))
    batch = min(_BATCH, max(_LEAST_BATCH, len(codes) // _STEPS))
    started, per_pass, step = time.monotonic(), len(codes) // batch, 0
    warm = min(50, passes * per_pass / 10)
    lowest, best, kept = math.inf, 0, {k: v.clone() for k, v in network.state_dict().items()}
    fraction = 0.0
    while fraction < 1:
        order = np.random.default_rng([seed, step]).permutation(len(codes))
        for i in range(per_pass):
            part = codes[order[i * batch : (i + 1) * batch]]
            fraction = step / (passes * per_pass)
            if max_time:
                fraction = max(fraction, (time.monotonic() - started) / max_time)
            if fraction >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = (
                    scale * group["peak"] * min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * fraction))
                )
            optimizer.zero_grad(set_to_none=True)
            loss = _cost(network, part, precision).sum() / len(part)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
        bits = float(float_bits(network, held).sum())
        fraction = max(fraction, step / (passes * per_pass))
        if bits < lowest:
            lowest, best = bits, round(step / per_pass)
            kept = {k: v.clone() for k, v in network.state_dict().items()}
        progress(min(1.0, fraction), f"entropy network: {bits:,.1f} bits/image")
    network.load_state_dict(kept)
    network.apply_masks()
    return best


def _cost(network: MaskedNetwork, codes: Codes, precision: str = "fp32") -> Tensor:
    """Return what every decision costs, in nats, shape (B, T)."""
    decisions = torch.from_numpy(codes.decisions()).float()
    latent, node = map(torch.from_numpy, places(codes))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = network(decisions, latent, node)
    return functional.binary_cross_entropy_with_logits(logits, decisions, reduction="none")


@torch.no_grad()
def float_bits(network: MaskedNetwork, codes: Codes) -> NDArray[np.float64]:
    """Return what each decision of a row costs under the real network, in bits, shape (T,)."""
    total = torch.zeros(codes.decisions_per_row, dtype=torch.float64)
    for start in range(0, len(codes), _ROWS):
        total += _cost(network, codes[start : start + _ROWS]).double().sum(0)
    found: NDArray[np.float64] = (total / len(codes) / math.log(2)).numpy()
    return found
