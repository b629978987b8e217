"""The entropy network: fitted to codes, and rounded to integers for the coder."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from stochcl.codes import Codes
from stochcl.encoders.inference import encode, precision_used
from stochcl.encoders.latents import Latents
from stochcl.encoders.posteriors import BIT
from stochcl.encoders.priors import AutoregressivePrior
from stochcl.entropy.independent import IndependentModel, node_counts, quantised
from stochcl.entropy.model import latent_lengths, measure_ones
from stochcl.training.loop import EpochOrder, FitProgress, Schedule, TotalLoss, TrainingLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stochcl.encoders.encoder import Encoder
    from stochcl.entropy.autoregressive import AutoregressiveModel


MIN_CODES = 1000
"""The fewest codes that get a network; with fewer it would overfit."""

DEFAULT_HIDDEN = 1024
"""Hidden units for many codes; see :func:`hidden_units`."""
_ROWS, _FEATURES = 2048, 4096  # codes, and features, per block outside training
_BATCH, _LEAST_BATCH, _STEPS = 512, 32, 40  # rows per step, and the wanted steps per pass
# Chosen by the bits of held-out codes of training images after three passes (1,024 latents): 297.5 with these, 299.3
# with twice the first weights, 314.8 with rates of 1e-3 and 1e-2 as well.
_LR, _HIDDEN_LR = 4e-3, 8e-3
_DECAY = 0.03
_AGAIN = 0.3  # factor of these rates for an already trained network
_HELD, _MOST_HELD = 0.05, 4000  # codes held out, as a share and at most, to choose the pass and report
_WORTH = 0.99  # a network is dropped above this share of the independent symbols' bits


@dataclass(frozen=True)
class EntropyFit:
    """An entropy network and its savings.

    The network is None if independent symbols cost no more. The record has the bits per image at every rung for
    held-out codes.
    """

    network: AutoregressiveModel | None
    record: dict[str, Any] = field(default_factory=dict)


def smaller_images(images: NDArray[np.uint8], seed: int, sides: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return images as if their sources were smaller: shrunk to a random side, and enlarged again.

    Enlarged photographs lack fine detail, so their codes have another distribution, for which a network fitted
    without them saves little. Sides are log-uniform between a quarter of the size and the full size, or between
    ``sides``.
    """
    size = images.shape[1]
    low, high = (-2.0, 0.0) if sides is None else (min(0.0, math.log2(side / size)) for side in sides)
    exponents = np.random.default_rng([seed, len(images)]).uniform(low, high, len(images))
    drawn = np.maximum(1, np.rint(size * 2.0**exponents)).astype(int)
    out = np.empty_like(images)
    for i, side in enumerate(drawn.tolist()):
        small = Image.fromarray(images[i]).resize((side, side), Image.Resampling.BICUBIC)
        out[i] = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))
    return out


def hidden_units(codes: int) -> int:
    """Return the number of hidden units for a number of codes: a few thousand need only a linear network.

    Examples
    --------
    >>> [hidden_units(n) for n in (1_000, 10_000, 60_000)]
    [0, 0, 1024]
    """
    return DEFAULT_HIDDEN if codes >= 20_000 else 0


def fit_entropy(
    codes: Codes, ladder: tuple[int, ...], *, versions: int = 1, hidden: int | None = None, passes: int = 20,
    max_time: float | None = None, seed: int = 0, precision: str = "auto",
    initial: AutoregressivePrior | None = None, joint: int | None = None,
    report: Callable[[FitProgress], None] = lambda progress: None,
) -> EntropyFit:  # fmt: skip
    """Fit an entropy network to codes by minimising their bits.

    An input is held out in all of the ``versions`` stacked parts, which have the same inputs in the same order. The
    network starts from ``initial``, which receives the fitted weights. A new one treats decisions from ``joint`` on
    as independent.
    """
    if len(codes) < MIN_CODES or codes.decisions_per_row < 2:
        return EntropyFit(None, {"codes": len(codes), "reason": "too few codes"})
    started, precision = time.monotonic(), precision_used(precision, "cpu")
    images = len(codes) // versions
    order = np.random.default_rng(seed).permutation(images)
    out = np.isin(np.arange(images), order[: int(min(_MOST_HELD / versions, images * _HELD))])
    out = np.tile(out, versions)
    held, fitted = codes[out], codes[~out]
    ones, visits = node_counts(fitted)
    p = (ones + 0.5) / (visits + 1)
    if initial is None:
        hidden = hidden_units(len(codes)) if hidden is None else hidden
        network = AutoregressivePrior(codes, hidden, seed, torch.from_numpy(p), joint)
    else:
        network, hidden = copy.deepcopy(initial), len(initial.degrees)
    stage = EntropyStage(
        network, fitted, held, passes, seed=seed, max_time=max_time, precision=precision,
        rate=1.0 if initial is None else _AGAIN, report=report,
    )  # fmt: skip
    best = stage.run()
    if initial is not None:
        initial.load_state_dict(network.state_dict())
    integers = network.quantised()
    independent = latent_lengths(held, IndependentModel(quantised(p).astype(np.uint16), codes.alphabet))
    coded, real = latent_lengths(held, integers), float_bits(network, held)

    def rungs(latent_bits: NDArray[np.float64]) -> dict[str, float]:
        return {str(k): round(float(latent_bits[:k].sum()), 2) for k in ladder}

    record = {
        "codes": len(fitted), "measured_codes": len(held), "hidden": hidden, "best_pass": best, "seed": seed,
        "precision": precision, "seconds": round(time.monotonic() - started), "independent_bits": rungs(independent),
        "autoregressive_bits": rungs(coded), "autoregressive_bits_float": rungs(real),
    }  # fmt: skip
    return EntropyFit(integers if coded.sum() < _WORTH * independent.sum() else None, record)


class EntropyStage(TrainingLoop):
    """Fits a network to codes in place, and keeps the weights of the pass with the fewest held-out bits.

    ``rate`` is a factor of the learning rates.
    """

    progress_type, first_log = FitProgress, 0

    def __init__(
        self, network: AutoregressivePrior, codes: Codes, held: Codes, passes: int, *, seed: int,
        max_time: float | None = None, precision: str = "fp32", rate: float = 1.0,
        report: Callable[[FitProgress], None] = lambda progress: None,
    ) -> None:  # fmt: skip
        self.network, self.codes, self.held, self.precision = network, codes, held, precision
        self.order = EpochOrder(len(codes), min(_BATCH, max(_LEAST_BATCH, len(codes) // _STEPS)), seed)
        self.log_every = self.order.steps_per_epoch
        self.bits, self.best_pass = math.inf, 0  # of the best pass
        self._best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        hidden = [network.hidden, network.hidden_bias, network.output]
        groups = [
            {"params": hidden, "lr": rate * _HIDDEN_LR, "weight_decay": _DECAY},
            {"params": [network.direct], "lr": rate * _LR, "weight_decay": _DECAY},
            {"params": [network.bias], "lr": rate * _LR, "weight_decay": 0.0},
        ]
        steps = passes * self.order.steps_per_epoch
        super().__init__(
            Schedule(steps, max_time, min(50, steps / 10)),
            torch.optim.AdamW(groups, betas=(0.9, 0.98)),
            report=report,
        )

    def losses(self) -> TotalLoss:  # noqa: D102
        rows = self.order.take(self.step)[0]
        decisions = torch.from_numpy(self.codes[rows].decisions()).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            return TotalLoss(self.network.bits(decisions).sum() * BIT / len(rows))

    def after_step(self, losses: TotalLoss, fraction: float) -> None:  # noqa: D102
        if self.step % self.order.steps_per_epoch == 0:
            self._measure_pass()

    def figures(self, losses: TotalLoss) -> dict[str, Any]:  # noqa: D102
        return {"text": f"entropy network: {self.last_bits:,.1f} bits a code"}

    def run(self) -> int:
        """Fit, and return the number of the best pass."""
        self.run_steps()
        if self.step % self.order.steps_per_epoch:  # time ran out within a pass
            self._measure_pass()
            self.report(FitProgress(1.0, f"entropy network: {self.last_bits:,.1f} bits a code"))
        self.network.load_state_dict(self._best)
        self.network.apply_masks()
        return self.best_pass

    def _measure_pass(self) -> None:
        self.last_bits = float(float_bits(self.network, self.held).sum())
        if self.last_bits < self.bits:
            self.bits, self.best_pass = self.last_bits, round(self.step / self.order.steps_per_epoch)
            self._best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}


@torch.no_grad()
def float_bits(network: AutoregressivePrior, codes: Codes) -> NDArray[np.float64]:
    """Return the average cost of each latent under the float network, in bits, shape (D,)."""
    total = torch.zeros(codes.decisions_per_row, dtype=torch.float64)
    for start in range(0, len(codes), _ROWS):
        decisions = torch.from_numpy(codes[start : start + _ROWS].decisions()).float()
        total += network.bits(decisions).double().sum(0)
    return (total / len(codes)).reshape(codes.latents, -1).sum(1).numpy()


def hard_codes(encoder: Encoder, features: NDArray[np.floating]) -> Codes:
    """Return the codes to store for features."""
    latents, width = Latents.of(encoder.config, encoder.arrays()), encoder.config.latents
    parts = (np.asarray(features[i : i + _FEATURES], np.float32) for i in range(0, len(features), _FEATURES))
    symbols = [latents.symbols(latents.parameters(part), width) for part in parts]
    return Codes.from_symbols(np.concatenate(symbols), alphabet=encoder.config.alphabet)


_MEASURED_IMAGES = {"independent": 20_000, "autoregressive": 100_000}


def fit_tables(
    encoder: Encoder, images: NDArray[np.uint8], device: torch.device, *, entropy: str = "autoregressive",
    seed: int = 0, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Measure the table of independent symbols, and fit the entropy network, on codes of training images."""
    chosen = np.random.default_rng(seed).permutation(len(images))[: _MEASURED_IMAGES[entropy]]
    images = images[np.sort(chosen)]
    codes = encode(encoder, images, device).codes
    networked = entropy == "autoregressive" and len(codes) >= MIN_CODES
    more = encode(encoder, smaller_images(images, seed), device).codes if networked else None
    return fit_code_tables(encoder, codes, more, entropy=entropy, seed=seed, **options)


def fit_code_tables(
    encoder: Encoder, codes: Codes, more: Codes | None = None, *, entropy: str = "autoregressive", **options: Any
) -> dict[str, Any]:
    """Measure the table of independent symbols, and fit the entropy network, on given codes."""
    encoder.ones.copy_(torch.from_numpy(measure_ones(codes)))
    encoder.set_entropy(None)
    if entropy == "independent" or len(codes) < MIN_CODES:
        return {}
    if more is not None:
        codes = Codes(np.concatenate([codes.packed, more.packed]), codes.latents, codes.alphabet)
    fitted = fit_entropy(codes, encoder.config.ladder, versions=1 + (more is not None), **options)
    encoder.set_entropy(fitted.network)
    return fitted.record
