"""The entropy network: what each binary decision of a code says about those after it, in integers."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from stochcl.codes import Codes, bits_per_symbol
from stochcl.encoders.inference import encode_images, precision_used
from stochcl.encoders.priors import MaskedNetwork, quantise
from stochcl.entropy.autoregressive import _ROWS
from stochcl.entropy.fit import measure_ones
from stochcl.entropy.independent import node_counts, places, quantised

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.encoders.encoder import Encoder
    from stochcl.entropy.autoregressive import EntropyNetwork


MIN_CODES = 1000
"""Fewer codes than this fit no network: it would learn them by heart."""

DEFAULT_HIDDEN = 1024
"""Hidden units of a network for many codes; see :func:`hidden_units`."""
_BATCH, _LEAST_BATCH, _STEPS = 512, 32, 40  # rows a step, and steps that a pass should have
# Chosen by the bits of held-out codes of training images after three passes (1,024 latents): 297.5 with these, 299.3
# with twice the first weights, 314.8 with rates of 1e-3 and 1e-2 besides.
_LR, _HIDDEN_LR = 4e-3, 8e-3
_DECAY = 0.03
_AGAIN = 0.3  # of these rates, where a network is gone on with
_HELD, _MOST_HELD = 0.05, 4000  # of the codes: the choice between passes, and what is reported
_WORTH = 0.99  # of the bits of independent symbols: a network that costs more is not kept


def _network(codes: Codes, hidden: int, seed: int) -> MaskedNetwork:
    """Return a network with real weights that begins as independent symbols."""
    ones, visits = node_counts(codes)
    p = (ones + 0.5) / (visits + 1)
    bias = torch.from_numpy(np.log(p / (1 - p)).astype(np.float32))
    return MaskedNetwork(bias, codes.decisions_per_row, hidden, seed)


def independent_bits(log_odds: NDArray[np.float32], codes: Codes) -> NDArray[np.float64]:
    """Return what each decision costs on average where decisions do not see each other, in bits, shape (T,)."""
    total = np.zeros(codes.decisions_per_row)
    for start in range(0, len(codes), _ROWS):
        part = codes[start : start + _ROWS]
        latent, node = places(part)
        odds = np.asarray(log_odds, np.float64)[latent, node]
        p = quantised(1 / (1 + np.exp(-odds))) / 4096
        total -= np.log2(np.where(part.decisions() == 1, p, 1 - p)).sum(axis=0)
    return total / len(codes)


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
    """Fit an entropy network to codes, by the bits that they cost."""
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


_MEASURED_IMAGES = {"independent": 20_000, "autoregressive": 100_000}


def fit_tables(
    encoder: Encoder, images: NDArray[np.uint8], device: torch.device, *, entropy: str = "autoregressive",
    hidden: int | None = None, max_time: float | None = None, seed: int = 0, precision: str = "auto",
    progress: Callable[[float, str], None] = lambda fraction, line: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the table of independent symbols, and fit the entropy network, on codes of training images."""
    chosen = np.random.default_rng(seed).permutation(len(images))[: _MEASURED_IMAGES[entropy]]
    images = images[np.sort(chosen)]
    codes = encode_images(encoder, images, device).codes
    networked = entropy == "autoregressive" and len(codes) >= MIN_CODES
    more = encode_images(encoder, smaller_images(images, seed), device).codes if networked else None
    return fit_code_tables(
        encoder, codes, more, entropy=entropy, hidden=hidden, max_time=max_time, seed=seed, precision=precision,
        progress=progress,
    )  # fmt: skip


def fit_code_tables(
    encoder: Encoder, codes: Codes, more: Codes | None = None, *, entropy: str = "autoregressive", **options: Any
) -> dict[str, Any]:
    """Measure the table of independent symbols, and fit the entropy network, on given codes."""
    encoder.ones.copy_(torch.from_numpy(measure_ones(codes)))
    if entropy == "independent" or len(codes) < MIN_CODES:
        encoder.set_entropy(None)
        return {}
    versions = 1
    if more is not None:
        codes, versions = Codes(np.concatenate([codes.packed, more.packed]), codes.latents, codes.alphabet), 2
    fitted = fit_entropy(codes, encoder.config.ladder, versions=versions, **options)
    encoder.set_entropy(fitted.network)
    return fitted.record
