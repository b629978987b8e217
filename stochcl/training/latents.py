"""The latent stage: head, prior and decoder trained on finished features to the target rate."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from stochcl.encoders.inference import precision_used
from stochcl.encoders.posteriors import POSTERIORS
from stochcl.encoders.priors import AutoregressivePrior
from stochcl.entropy.model import hard_rate
from stochcl.errors import TrainingError
from stochcl.training.entropy import MIN_CODES, fit_code_tables, hard_codes, hidden_units
from stochcl.training.loop import FitProgress, Schedule, TotalLoss, TrainingLoop
from stochcl.training.monitor import calibrate
from stochcl.training.objectives import OBJECTIVES, Objective, nt_xent
from stochcl.training.quantiser import Metric, principal_decoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.encoders.encoder import Encoder
    from stochcl.training.options import LatentOptions


_MISSED = 0.05  # relative deviation from the target that gives a warning


class RateController:
    """Finds the beta at which codes cost the target rate.

    beta changes by a bounded factor per step, in proportion to the rate's relative error, and stays between two
    bounds: it starts feasible and cannot wind up, unlike dual ascent from zero. Without a target it is constant.

    Steps measure the rate of sampled codes, but the target is for the stored hard ones; their ratio is measured
    periodically.

    The target is in bits per image, beta in nats per bit; the gain is the relative change of beta in a step whose
    rate is twice the target.
    """

    LOWEST, HIGHEST, GAIN = 1e-6, 3.0, 0.03

    def __init__(self, target: float | None, beta: float = 1e-4, gain: float = GAIN) -> None:
        self.target, self.beta, self.gain, self.hard_ratio = target, beta, gain, 1.0

    def jump(self, rate: float, target: float, factor: float) -> None:
        """Multiply or divide beta by a factor, towards the target rate."""
        self._set(self.beta * factor if rate > target else self.beta / factor)

    def _set(self, beta: float) -> None:
        self.beta = max(self.LOWEST, min(self.HIGHEST, beta))

    def set_hard_ratio(self, hard: float, sampled: float) -> None:
        """Set the ratio of the rates of hard and sampled codes, in bits."""
        if sampled > 0:
            self.hard_ratio = max(0.1, min(2.0, hard / sampled))

    def update(self, rate: float) -> None:
        """Move beta after a step, given the rate of its sampled codes in bits per image."""
        if self.target is None:
            return
        off = max(-1.0, min(1.0, rate * self.hard_ratio / self.target - 1))
        self._set(self.beta * (1 + self.gain * off))


def rate_warnings(rate: float, target: float | None, unit: str = "image") -> tuple[str, ...]:
    """Return a warning if hard codes miss the target rate by more than 5 %.

    Examples
    --------
    >>> rate_warnings(63, 64), rate_warnings(63, None)
    ((), ())
    """
    if target is None or abs(rate / target - 1) <= _MISSED:
        return ()
    missed = f"the codes take {rate:,.1f} bits per {unit}, not {target:,g} as asked"
    advice = f"more steps or more {unit}s to train on bring the rate closer; --latents and --alphabet bound it"
    return (f"warning: {missed}; {advice}",)


# Weight of its nats: AdamW moves a prior that only this term trains by its learning rate at any weight.
_BESIDE = 0.01


class LatentLosses(NamedTuple):
    """One step's terms: the total and the agreement in nats, relative squared errors, the rate in bits."""

    total: Tensor
    reconstruction: Tensor
    agreement: Tensor
    rate: Tensor


def latent_loss(
    stage: LatentStage, views: Tensor, targets: Tensor, noise: Tensor, *, latents: int | None, beta: float
) -> LatentLosses:
    r"""Return the loss of one batch.

    With the code z ~ q(z|v) of a view v of the feature f, z_k its first k latents, g the decoder and W the metric,

        L = sum over c in {z, z_k}:  |W (g(c) - f)|^2 / E|W f|^2  +  A(W g(c), W f)   +   beta * E_q[-log2 p(z)]

    where A, the agreement, is by default the normalised temperature-scaled cross-entropy: to identify a code's
    feature among those of the batch, and the reverse. It is a lower bound of the code's information about its input
    (van den Oord et al., arXiv 1807.03748, equation 9), and keeps what distinguishes inputs, whereas the squared
    error keeps what has variance. p is the autoregressive prior, if there is one: the kind of model that the coder
    uses. The factorised prior is then fitted to the codes without influencing them.
    """
    encoder, prior = stage.encoder, stage.prior
    posterior = encoder.posterior(views)
    draw = posterior.sample(noise, stage.options.estimator)
    reconstruction, agreed = stage.decoded(draw, targets, latents)
    total = reconstruction + agreed
    if prior is None:
        rate = posterior.rate(encoder.prior).sum(1).mean()
        total = total + beta * rate
    else:
        rate = prior.bits(posterior.decisions(draw)).sum(1).mean()
        costs = -encoder.factorised.log_prob()
        beside = costs.gather(1, posterior.symbols(draw).T).sum(0).mean()
        total = total + beta * rate + _BESIDE * beside
    return LatentLosses(total, reconstruction.detach(), agreed.detach(), rate.detach())


_TRAVEL, _GAIN = 12.0, 0.01  # log of the factor that beta may move by in a run; least gain of a step
_FIRST_BETA = 5e-4  # initial beta
_PRIOR_SCALE = 10.0  # factor of the learning rate: a factorised prior has to keep up with the latents' means
_WARM, _BETA_WARM = 100, 300  # warm-up steps of the learning rate, and of beta
_HARD_ROWS = 2000
_SETTLING = 0.2  # share of the steps for the decoder alone, on hard codes
_PASSES = 20  # over the codes, to fit the coder's network
_PASSES_AGAIN = 8  # the same from the trained prior: usually the first pass is the best
_ROUNDS, _NEAR = 6, 0.015  # most corrections of the rate; relative tolerance
_ROUND, _APPROACH = 0.15, 100  # steps of a correction: as a share of all, and at least
_SMALL, _FACTOR = 0.4, 3.0  # factors of the learning rate and of beta in a correction
_DESCENT, _FITTING = 0.6, 0.15  # shares of the stage's time: the descent, a fit of the entropy network
_MOST_CODES = 100_000  # for the tables


@dataclass(frozen=True)
class FittedLatents:
    """The rate reached, in bits, and the stage's part of the training record."""

    rate: float
    record: dict[str, Any] = field(default_factory=dict)


class LatentStage(TrainingLoop):
    """Trains head, prior and decoder on features; the backbone is not touched.

    It starts from the encoder's weights. Features are standardised, shape (N, V); with ``versions`` 2 they are
    stacked: the inputs, and a variant of each in the same order. Held-out features, shape (M, V), are only measured
    on, and ``views`` are features of augmented views of them; the defaults are training features and noise.
    """

    progress_type, log_every, first_log = FitProgress, 50, 0

    def __init__(
        self, encoder: Encoder, features: NDArray[np.floating], held: NDArray[np.floating], options: LatentOptions, *,
        versions: int = 1, views: NDArray[np.floating] | None = None,
        report: Callable[[Any], None] = lambda progress: None,
    ) -> None:  # fmt: skip
        if len(features) < 2:
            raise TrainingError("latents cannot be trained on fewer than two inputs.")
        self.encoder, self.options = encoder, options
        self.precision = precision_used(options.precision, "cpu")  # always on the CPU
        self.features, self.inputs = features, len(features) // versions
        self.held = held if len(held) else features[: min(self.inputs, _HARD_ROWS)]
        self.views = views if len(held) else None
        whitening = 0.0 if options.objective == "reconstruct" else 0.125
        self.metric = Metric.of(np.asarray(features), whitening if options.whitening is None else options.whitening)
        self.targets = self.metric.coordinates(features)
        self.agree = make_agreement(options, self.metric)
        self.prior = self._make_prior()
        # A short run must find its beta in fewer steps; in a long one beta must not outrun its effect.
        gain = min(0.1, max(_GAIN, _TRAVEL / options.steps))
        start = options.beta if options.rate is None else max(_FIRST_BETA, options.beta)
        self.controller = RateController(options.rate, start, gain)
        self.batch = min(options.batch_size, len(features))
        self._ramp = min(_BETA_WARM, max(1, options.steps // 5))
        self.hard = math.nan  # the rate of hard codes
        warmup = min(_WARM, max(1, options.steps // 10))
        super().__init__(
            Schedule(options.steps, options.max_time and _DESCENT * options.max_time, warmup), report=report
        )

    def _make_prior(self) -> AutoregressivePrior | None:
        """Return an autoregressive prior if there is a target rate and the coder uses such a model."""
        config, options = self.encoder.config, self.options
        networked = options.entropy == "autoregressive" and self.inputs >= MIN_CODES and config.latents > 1
        if options.rate is None or not networked:
            return None
        hidden = hidden_units(self.inputs) if options.prior_hidden is None else options.prior_hidden
        return AutoregressivePrior(config, hidden, options.seed)

    def run(self) -> FittedLatents:
        """Train, set the encoder's tables and entropy network, and return the rate reached."""
        encoder, options, started = self.encoder, self.options, time.monotonic()
        encoder.eval()
        frozen = [p for p in encoder.backbone.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        for name, parameter in encoder.named_parameters():  # averaged weights and twins come without gradients
            if not name.startswith(("backbone.", "classifier.")):
                parameter.requires_grad_(True)
        with principal_decoder(encoder, self.metric):
            self.optimizer = torch.optim.AdamW(self._groups(), lr=options.lr, betas=(0.9, 0.98))
            self.clipped = [p for m in (encoder.head, encoder.decoder) for p in m.parameters()]
            self.run_steps()
            steps = self.step
            rounds, entropy, rate = self._meet_rate(steps)
            DecoderStage(self, max(1, round(steps * _SETTLING))).run_steps()
        for parameter in frozen:
            parameter.requires_grad_(True)
        temperature, calibration = calibrate(encoder, self.held, self.views, self.metric, seed=options.seed)
        encoder.config = replace(encoder.config, temperature=temperature)
        record = {
            "options": asdict(options), "precision": self.precision, "rounds": rounds,
            "steps": self.step, "beta": self.controller.beta,
            "rate": round(rate, 3), "entropy": entropy, "calibration": calibration,
            "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        return FittedLatents(rate, record)

    def losses(self) -> LatentLosses:  # noqa: D102
        options, encoder = self.options, self.encoder
        rng = np.random.default_rng([options.seed, self.step])
        rows = rng.integers(len(self.features), size=self.batch)
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        views = torch.from_numpy(np.asarray(self.features[rows], np.float32))
        count = POSTERIORS[encoder.config.posterior].noise(encoder.config)
        uniform = torch.rand(len(rows), count, generator=generator)
        latents = self.rung(rng)
        beta = self.controller.beta * min(1.0, (self.step + 1) / self._ramp)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            return latent_loss(self, views, self.targets[torch.from_numpy(rows)], uniform, latents=latents, beta=beta)

    def rung(self, rng: np.random.Generator) -> int | None:
        """Draw the prefix to train beside the full width, or None."""
        rungs = self.encoder.config.ladder[:-1] if self.options.nested else ()
        return int(rng.choice(rungs)) if len(rungs) else None

    def decoded(self, draw: Tensor, targets: Tensor, latents: int | None) -> tuple[Tensor, Tensor]:
        """Return error and agreement of the vectors decoded from a code and its prefix."""
        guesses = [self.encoder.decode(draw, k) for k in ([None] if latents is None else [None, latents])]
        error = torch.stack([self.metric.error(guess, targets) for guess in guesses]).sum()
        if self.agree is None:
            return error, error.new_zeros(())
        w = self.metric.relative
        return error, torch.stack([self.agree(guess * w, targets * w) for guess in guesses]).sum()

    def after_step(self, losses: LatentLosses, fraction: float) -> None:  # noqa: D102
        if isinstance(self.agree, Objective):
            self.agree.step(fraction)
        if self.step > self._ramp:  # before, an untrained prior charges too much
            self.controller.update(float(losses.rate))
        if self.step % self.log_every == 0:
            self.hard = self._hard_rate()
            self.controller.set_hard_ratio(self.hard, float(losses.rate))

    def figures(self, losses: LatentLosses) -> dict[str, Any]:  # noqa: D102
        error = f"error {float(losses.reconstruction):.3f} of the features' power"
        return {"text": f"latents: step {self.step:,}, {error}, rate {self.hard:,.1f} bits/input"}

    def _meet_rate(self, steps: int) -> tuple[int, dict[str, Any], float]:
        """After ``steps`` steps, train on until codes cost the target under the coder's model fitted to them.

        Return the number of corrections, that model's record, and the rate in bits.
        """
        target, rounds = self.options.rate, 0
        record, rate = self._fit_tables()
        while target is not None and abs(rate / target - 1) > _NEAR and rounds < _ROUNDS:
            # The prior has the weights of the coder's model, except for its rounding to integers.
            self._approach(target * self._hard_rate() / rate, max(_APPROACH, round(steps * _ROUND)))
            record, rate = self._fit_tables()
            rounds += 1
        return rounds, record, rate

    def _approach(self, target: float, steps: int) -> None:
        """Train on with another beta until hard codes cost the target under the prior, ``steps`` steps at most."""
        controller, last = self.controller, self.step + steps
        begin = self._hard_rate()
        side, beta = math.copysign(1, begin - target), controller.beta
        controller.jump(begin, target, _FACTOR)
        while (apart := side * (self._hard_rate() - target) > 0) and self.step < last:
            if self.step % self.log_every == 0:
                controller.jump(begin, target, _FACTOR)
            self.descend(_SMALL)
        if not apart:  # otherwise the next correction continues from here
            controller.beta = beta

    def _groups(self) -> list[dict[str, Any]]:
        """Return groups in which only layer weights decay, and priors learn at higher rates."""
        encoder, decay, lr = self.encoder, self.options.decay, self.options.lr
        layers = [p for m in (encoder.head, encoder.decoder) for p in m.parameters()]
        if isinstance(self.agree, Objective):
            layers += self.agree.parameters()
        codebooks = [encoder.codebooks] if encoder.codebooks is not None else []
        prior = list(self.prior.parameters()) if self.prior else []
        return [
            {"params": [p for p in layers if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in layers if p.ndim <= 1] + codebooks, "weight_decay": 0.0},
            {"params": prior, "weight_decay": decay / 10, "lr": 2 * lr},
            {"params": [encoder.prior], "weight_decay": 0.0, "lr": _PRIOR_SCALE * lr},
        ]

    @torch.no_grad()
    def _hard_rate(self) -> float:
        """Return the cost of held-out inputs' hard codes under the trained prior, in bits."""
        codes = hard_codes(self.encoder, self.held[:_HARD_ROWS])
        if self.prior is None:
            return hard_rate(codes, self.encoder.factorised.numerators())
        return float(self.prior.bits(torch.from_numpy(codes.decisions()).float()).sum(1).mean())

    def _fit_tables(self) -> tuple[dict[str, Any], float]:
        """Measure the table, fit the entropy network; return its record and the bits of held-out codes."""
        encoder, options = self.encoder, self.options
        first, second = (part[:_MOST_CODES] for part in (self.features[: self.inputs], self.features[self.inputs :]))
        more = hard_codes(encoder, second) if len(second) else None
        record = fit_code_tables(
            encoder, hard_codes(encoder, first), more, entropy=options.entropy, hidden=options.prior_hidden,
            passes=_PASSES_AGAIN if self.prior else _PASSES, seed=options.seed, precision=options.precision,
            max_time=options.max_time and _FITTING * options.max_time, initial=self.prior, report=self.report,
        )  # fmt: skip
        return record, float(encoder.bits_by_latent(hard_codes(encoder, self.held)).sum())


class DecoderStage(TrainingLoop):
    """Trains only the decoder, on hard codes, after a latent stage."""

    first_log = 0

    def __init__(self, stage: LatentStage, steps: int) -> None:
        self.stage = stage
        self.symbols = torch.from_numpy(hard_codes(stage.encoder, stage.features).symbols().astype(np.int64))
        self.log_every = steps + 1
        encoder, options = stage.encoder, stage.options
        layers = [*encoder.decoder.parameters(), *([] if encoder.codebooks is None else [encoder.codebooks])]
        super().__init__(
            Schedule(steps),
            torch.optim.AdamW(layers, lr=options.lr / 2, betas=(0.9, 0.98), weight_decay=options.decay),
        )

    def losses(self) -> TotalLoss:  # noqa: D102
        stage = self.stage
        rng = np.random.default_rng([stage.options.seed, stage.step, self.step])
        rows = torch.from_numpy(rng.integers(len(self.symbols), size=stage.batch))
        draw, latents = stage.encoder.embed(self.symbols[rows]), stage.rung(rng)
        return TotalLoss(sum(stage.decoded(draw, stage.targets[rows], latents), torch.zeros(())))


def make_agreement(options: LatentOptions, metric: Metric) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the comparison of weighted decoded coordinates with those of the features, or None.

    The contrastive objective compares them without heads, which would only stand between the code and its aim; the
    others need heads.
    """
    if options.objective == "reconstruct":
        return None
    if options.objective == "nt-xent":
        return partial(nt_xent, temperature=options.temperature)
    return OBJECTIVES[options.objective](metric.axes.shape[1])
