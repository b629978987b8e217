"""The latent stage: data, loss, loop, and what is measured at the end."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.codes import Codes
from stochcl.encoders.entropy import MIN_CODES, fit_entropy, hidden_units
from stochcl.encoders.latents.calibration import calibrate
from stochcl.encoders.latents.loss import LatentLosses, latent_loss
from stochcl.encoders.latents.metric import Metric, PrincipalDecoder
from stochcl.encoders.measure import hard_rate, measure_ones
from stochcl.encoders.objectives import nt_xent
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.encoders.posteriors.base import BIT
from stochcl.encoders.priors import AutoregressivePrior
from stochcl.encoders.rate import RateController
from stochcl.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.encoders.latents.options import LatentOptions
    from stochcl.encoders.model import Encoder

WHITENING = {"reconstruct": 0.0}
"""Power of the variance by which errors are divided, where it is not :data:`_WHITENING`."""

_WHITENING = 0.125
_WARM, _BETA_WARM = 100, 300  # steps until the learning rate, and the price of a bit, are what they are to be
_HARD_EVERY = 50  # steps between two measurements of what hard codes cost
_HARD_ROWS = 2000
_FEW_ROWS = 256  # for what is only logged
_SETTLING = 0.2  # of the steps: the decoder alone, on the codes that a file will hold
_ROUNDS, _NEAR = 4, 0.015  # corrections of the rate, until it is that near
_ROUND = 0.15  # of the steps, for a correction
_ROWS = 4096
_MOST_CODES = 100_000  # for the tables
_LOG_EVERY = 50


@dataclass
class LatentProgress:
    """Where the stage stands; rates are in bits per input."""

    fraction: float
    step: int
    loss: float
    reconstruction: float
    agreement: float
    rate: float
    hard_rate: float
    kl: float
    beta: float

    def line(self) -> str:
        """Return the figures that matter, with their units, on one line."""
        return (
            f"latents: step {self.step:,}, error {self.reconstruction:.3f} of the features' power, "
            f"rate {self.hard_rate:,.1f} bits/input"
        )


@dataclass(frozen=True)
class FittedLatents:
    """What came of it; ``record`` belongs into the training record."""

    rate: float
    record: dict[str, Any] = field(default_factory=dict)


class LatentStage:
    """Training of head, prior and decoder on features; the backbone is not touched.

    Parameters
    ----------
    encoder : Encoder
        What is there of it is gone on with.
    features : ndarray of float, shape (N, V)
        Standardised features of the training inputs.
    held : ndarray of float, shape (M, V)
        Of inputs that nothing is trained on; where there are none, training features stand in.
    options : LatentOptions
    more : ndarray of float, shape (N, V), optional
        Features of the same inputs in another guise, whose codes the entropy network is to foresee too.
    views : ndarray of float, shape (M, V), optional
        Features of augmented views of the held-out inputs; where there are none, noise makes them.
    report : callable
        Told of the progress.
    """

    def __init__(
        self, encoder: Encoder, features: NDArray[np.floating], held: NDArray[np.floating], options: LatentOptions, *,
        more: NDArray[np.floating] | None = None, views: NDArray[np.floating] | None = None,
        report: Callable[[LatentProgress], None] = lambda progress: None,
    ) -> None:  # fmt: skip
        if len(features) < 2:
            raise TrainingError("the latents of fewer than two inputs cannot be trained.")
        self.encoder, self.options, self.report = encoder, options, report
        self.features, self.more = features, more
        self.held = held if len(held) else features[:_HARD_ROWS]
        self.views = views if len(held) else None
        whitening = WHITENING.get(options.objective, _WHITENING)
        self.metric = Metric.of(np.asarray(features), whitening)
        self.targets = self.metric.coordinates(features)
        self.agree = make_agreement(options, self.metric)
        self.prior = self._make_prior()
        self.controller = RateController(options.rate, options.beta)
        self.batch = min(options.batch_size, len(features))
        self.started = time.monotonic()
        self.step, self.hard = 0, math.nan

    def _make_prior(self) -> AutoregressivePrior | None:
        """Return an autoregressive prior where a rate is asked for, and codes are coded with such a one."""
        config, options = self.encoder.config, self.options
        if options.rate is None or options.entropy != "autoregressive" or config.latents < 2:
            return None
        hidden = hidden_units(len(self.features)) if options.prior_hidden is None else options.prior_hidden
        return AutoregressivePrior(config, hidden, options.seed)

    def run(self) -> FittedLatents:
        """Train, and return what was reached; the encoder holds its tables and its entropy network then."""
        encoder, options = self.encoder, self.options
        encoder.eval()
        frozen = [p for p in encoder.backbone.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        with PrincipalDecoder(encoder, self.metric):
            self._descend(options.steps, options.lr)
            rounds = self._meet_rate()
            self._settle(max(1, round(options.steps * _SETTLING)))
        for parameter in frozen:
            parameter.requires_grad_(True)
        fitted, rate = self._fit_tables(passes=20)
        found = calibrate(encoder, self.held, self.views, self.metric, seed=options.seed)
        encoder.config = found.applied(encoder.config)
        record = {
            "options": asdict(options), "rounds": rounds, "steps": self.step, "beta": self.controller.beta,
            "rate": round(rate, 3), "entropy": fitted, "calibration": found.record,
            "seconds": round(time.monotonic() - self.started, 1),
        }  # fmt: skip
        return FittedLatents(rate, record)

    def _descend(self, steps: int, peak: float) -> None:
        """Train head, prior and decoder for so many steps, the learning rate falling from its peak to zero."""
        encoder, options = self.encoder, self.options
        trained = [encoder.head, encoder.decoder]
        optimizer = torch.optim.AdamW(self._groups(), lr=peak, betas=(0.9, 0.98))
        first, started = self.step, time.monotonic()
        rungs = encoder.config.ladder[:-1] if options.nested else ()
        while (fraction := self._fraction(self.step - first, steps, started)) < 1:
            warm = min(1.0, (self.step - first + 1) / _WARM)
            for group in optimizer.param_groups:
                group["lr"] = peak * group["scale"] * warm * 0.5 * (1 + math.cos(math.pi * fraction))
            losses = self._losses(rungs)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_([p for m in trained for p in m.parameters()], 5.0)
            if not math.isfinite(float(losses.total.detach()) + float(norm)):
                raise TrainingError(f"the loss is not finite at step {self.step + 1:,}; try a lower learning rate.")
            optimizer.step()
            self.step += 1
            self.controller.update(float(losses.rate))
            if self.step % _HARD_EVERY == 0:
                self.hard = self._hard_rate()
                self.controller.measured(self.hard, float(losses.rate))
            if self.step % _LOG_EVERY == 0:
                self._log(losses, fraction)

    def _groups(self) -> list[dict[str, Any]]:
        """Decay weights of layers, not biases, priors or codebooks; priors learn at twice the rate."""
        encoder, decay = self.encoder, self.options.decay
        layers = [p for m in (encoder.head, encoder.decoder) for p in m.parameters()]
        rest = [encoder.prior] + ([encoder.codebooks] if encoder.codebooks is not None else [])
        prior = list(self.prior.parameters()) if self.prior else []
        heads = list(self.agree.parameters()) if isinstance(self.agree, torch.nn.Module) else []
        return [
            {"params": [p for p in layers + heads if p.ndim > 1], "weight_decay": decay, "scale": 1.0},
            {"params": [p for p in layers + heads if p.ndim <= 1] + rest, "weight_decay": 0.0, "scale": 1.0},
            {"params": prior, "weight_decay": decay / 10, "scale": 2.0},
        ]

    def _fraction(self, done: int, steps: int, started: float) -> float:
        """How much of a descent is done, by its steps or by the time that it may take."""
        fraction = done / steps
        if self.options.max_time:
            share = 0.6 * steps / self.options.steps * self.options.max_time
            fraction = max(fraction, (time.monotonic() - started) / share)
        return fraction

    def _losses(self, rungs: Sequence[int]) -> LatentLosses:
        options, encoder = self.options, self.encoder
        rng = np.random.default_rng([options.seed, self.step])
        rows = rng.integers(len(self.features), size=self.batch)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        views, targets = self._take(rows), self.targets[torch.from_numpy(rows)]
        if options.noise:
            views = views + self._noise(len(rows), generator)
        uniform = torch.rand(
            len(rows), POSTERIORS[encoder.config.posterior].noise(encoder.config), generator=generator
        )
        latents = int(rng.choice(rungs)) if len(rungs) else None
        beta = self.controller.beta * min(1.0, (self.step + 1) / _BETA_WARM)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            return latent_loss(
                encoder, self.prior, self.agree, self.metric, views, targets, uniform, latents=latents, beta=beta,
                agreement=options.agreement, estimator=options.estimator,
            )  # fmt: skip

    def _take(self, rows: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(np.asarray(self.features[rows], np.float32))

    def _noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Return noise of the features' own shape, (B, V)."""
        drawn = torch.randn(count, len(self.metric.deviation), generator=generator)
        return self.options.noise * (drawn * self.metric.deviation) @ self.metric.axes.T

    @torch.no_grad()
    def _symbols(self, features: NDArray[np.floating]) -> NDArray[np.generic]:
        """Return the symbols that a file would hold, shape (N, D)."""
        parts = []
        for start in range(0, len(features), _ROWS):
            part = torch.from_numpy(np.asarray(features[start : start + _ROWS], np.float32))
            parts.append(self.encoder.posterior(part).mode().numpy())
        return np.concatenate(parts)

    def _codes(self, features: NDArray[np.floating]) -> Codes:
        return Codes.from_symbols(self._symbols(features), alphabet=self.encoder.config.alphabet)

    @torch.no_grad()
    def _hard_rate(self) -> float:
        """Return what hard codes of held-out inputs cost under the prior that is trained, in bits."""
        codes = self._codes(self.held[:_HARD_ROWS])
        if self.prior is None:
            return hard_rate(codes, self.encoder.factorised.numerators())
        return float(self.prior.bits(torch.from_numpy(codes.decisions()).float()).sum(1).mean())

    @torch.no_grad()
    def _divergence(self) -> float:
        """Return KL(q||p) of held-out inputs under the factorised prior, in bits."""
        features = torch.from_numpy(np.asarray(self.held[:_FEW_ROWS], np.float32))
        return float(self.encoder.posterior(features).kl(self.encoder.prior).sum(1).mean()) / BIT

    def _meet_rate(self) -> int:
        """Correct the target by what the coder's own model makes of it, until that is near; return how often."""
        target, rounds = self.options.rate, 0
        while target is not None:
            _, rate = self._fit_tables(passes=3)
            off = rate / target - 1
            if abs(off) < _NEAR or rounds == _ROUNDS:
                break
            rounds += 1
            self.controller.target = (self.controller.target or target) * target / rate
            self._descend(max(1, round(self.options.steps * _ROUND)), self.options.lr / 2)
        return rounds

    def _settle(self, steps: int) -> None:
        """Train the decoder alone, on the codes that a file will hold."""
        encoder, options = self.encoder, self.options
        symbols = self._symbols(self.features)
        layers = [*encoder.decoder.parameters(), *([] if encoder.codebooks is None else [encoder.codebooks])]
        optimizer = torch.optim.AdamW(layers, lr=options.lr, betas=(0.9, 0.98), weight_decay=options.decay)
        rungs = encoder.config.ladder[:-1] if options.nested else ()
        for step in range(steps):
            rng = np.random.default_rng([options.seed, self.step, step])
            rows = rng.integers(len(symbols), size=self.batch)
            for group in optimizer.param_groups:
                group["lr"] = options.lr / 2 * 0.5 * (1 + math.cos(math.pi * step / steps))
            draw = self._embed(symbols[rows])
            targets = self.targets[torch.from_numpy(rows)]
            widths = [None, int(rng.choice(rungs))] if len(rungs) else [None]
            loss = torch.zeros(())
            for width in widths:
                guess = encoder.decode(draw, width)
                loss = loss + self.metric.error(guess, targets)
                if self.agree is not None:
                    loss = loss + options.agreement * self.agree(
                        guess * self.metric.weight, targets * self.metric.weight
                    )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _embed(self, symbols: NDArray[np.generic]) -> Tensor:
        family, config = POSTERIORS[self.encoder.config.posterior], self.encoder.config
        empty = family(torch.zeros(0, family.width(config)), config)
        return empty.embed(torch.from_numpy(symbols.astype(np.int64)))

    def _fit_tables(self, passes: int) -> tuple[dict[str, Any], float]:
        """Measure the table, fit the entropy network; return its record, and what held-out codes cost, in bits."""
        encoder, options = self.encoder, self.options
        codes, versions = self._codes(self.features[:_MOST_CODES]), 1
        encoder.ones.copy_(torch.from_numpy(measure_ones(codes)))
        held = self._codes(self.held)
        rate = hard_rate(held, encoder.ones.numpy())
        if options.entropy != "autoregressive" or len(codes) < MIN_CODES:
            encoder.set_entropy(None)
            return {}, rate
        if self.more is not None:
            other = self._codes(self.more[:_MOST_CODES])
            codes, versions = Codes(np.concatenate([codes.packed, other.packed]), codes.latents, codes.alphabet), 2
        fitted = fit_entropy(
            codes, encoder.config.ladder, versions=versions, hidden=options.prior_hidden, passes=passes,
            max_time=options.max_time and 0.15 * options.max_time, seed=options.seed, precision=options.precision,
            initial=self.prior.network if self.prior else None,
        )  # fmt: skip
        encoder.set_entropy(fitted.network)
        if fitted.network is not None:
            rate = float(fitted.network.decision_bits(held).sum())
        return fitted.record, rate

    def _log(self, losses: LatentLosses, fraction: float) -> None:
        progress = LatentProgress(
            fraction=min(1.0, fraction), step=self.step, loss=float(losses.total.detach()),
            reconstruction=float(losses.reconstruction), agreement=float(losses.agreement),
            rate=float(losses.rate), hard_rate=self.hard, kl=self._divergence(), beta=self.controller.beta,
        )  # fmt: skip
        self.report(progress)


def make_agreement(options: LatentOptions, metric: Metric) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return what compares weighted decoded coordinates with those of the features, or None."""
    if options.objective == "reconstruct":
        return None
    return partial(nt_xent, temperature=options.temperature)
