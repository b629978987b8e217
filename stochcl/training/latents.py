"""The latent stage: head, prior and decoder trained on features that stand still, to the rate that was asked for."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.codes import Codes
from stochcl.encoders.inference import precision_used
from stochcl.encoders.posteriors import BIT, POSTERIORS
from stochcl.encoders.priors import AutoregressivePrior
from stochcl.entropy.fit import hard_rate
from stochcl.errors import TrainingError
from stochcl.training.entropy import MIN_CODES, fit_code_tables, hidden_units
from stochcl.training.loop import Fitting, RateController
from stochcl.training.objectives import OBJECTIVES, Objective, nt_xent
from stochcl.training.quantiser import Metric, PrincipalDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.encoders.config import EncoderConfig
    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.posteriors import Posterior
    from stochcl.training.options import LatentOptions


_BINS = 15
_NOISE = 0.5  # deviations of a feature: a view, where no augmented one is at hand
_CALIBRATION_ROWS = 2000
_TEMPERATURES = np.geomspace(0.1, 1e4, 201)  # numbers of whose draws training made near nothing need thousands


@dataclass(frozen=True)
class Calibration:
    """A temperature, and how far predictions are off with it and without."""

    temperature: float
    record: dict[str, Any] = field(default_factory=dict)

    def applied(self, config: EncoderConfig) -> EncoderConfig:
        """Return the configuration with this temperature."""
        return replace(config, temperature=self.temperature)


@torch.no_grad()
def calibrate(
    encoder: Encoder, features: NDArray[np.floating], views: NDArray[np.floating] | None, metric: Metric, *, seed: int
) -> Calibration:
    """Fit a temperature to how often symbols change between an input and a view of it.

    Noise anneals away while an encoder is trained: its logits grow until draws are hard, and are margins then
    rather than probabilities. What a user takes them for is how sure a symbol is. So: the posterior of the clean
    input, its logits divided by T, predicts the symbol of a view; T minimises the negative log likelihood
    (temperature scaling: Guo et al., arXiv 1706.04599, section 4.2), and the expected calibration error (section 2
    there, 15 bins of equal width) compares the predicted probability that the most probable symbol changes with how
    often it does.
    """
    clean = torch.from_numpy(np.asarray(features[:_CALIBRATION_ROWS], np.float32))
    if views is None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(clean), len(metric.deviation), generator=generator)
        other = clean + _NOISE * (drawn * metric.deviation) @ metric.axes.T
    else:
        other = torch.from_numpy(np.asarray(views[:_CALIBRATION_ROWS], np.float32))
    posterior = encoder.posterior(clean)
    mode, seen = posterior.mode().long(), encoder.posterior(other).mode().long()
    costs = [-float(posterior.tempered(t).log_prob(seen).mean()) for t in _TEMPERATURES]
    temperature = round(float(_TEMPERATURES[int(np.argmin(costs))]), 4)
    changed = seen != mode
    before, predicted_before = _error(posterior, mode, changed)
    after, predicted = _error(posterior.tempered(temperature), mode, changed)
    record = {
        "temperature": temperature, "views": "augmented" if views is not None else f"noise of {_NOISE} deviations",
        "inputs": len(clean), "measured_change": round(float(changed.float().mean()), 5),
        "predicted_change": round(predicted, 5), "predicted_change_uncalibrated": round(predicted_before, 5),
        "ece": round(after, 5), "ece_uncalibrated": round(before, 5),
    }  # fmt: skip
    return Calibration(temperature, record)


def _error(posterior: Posterior, mode: Tensor, changed: Tensor) -> tuple[float, float]:
    """Return the expected calibration error of the probability that a symbol changes, and its mean."""
    predicted = (1 - posterior.log_prob(mode).exp()).clamp(0, 1).flatten()
    bins = (predicted * _BINS).long().clamp(max=_BINS - 1)
    totals = [torch.zeros(_BINS, dtype=torch.float64) for _ in range(2)]
    for total, values in zip(totals, (predicted, changed.flatten()), strict=True):
        total.index_add_(0, bins, values.double())
    return float((totals[0] - totals[1]).abs().sum() / len(predicted)), float(predicted.mean())


_BESIDE = 0.01  # of its nats: whatever it is, AdamW moves a prior that nothing else pulls at by its learning rate


@dataclass(frozen=True)
class LatentLosses:
    """One step's terms: the total and the agreement in nats, relative squared errors, the rate in bits."""

    total: Tensor
    reconstruction: Tensor
    agreement: Tensor
    rate: Tensor


def latent_loss(
    encoder: Encoder,
    prior: AutoregressivePrior | None,
    agree: Callable[[Tensor, Tensor], Tensor] | None,
    metric: Metric,
    views: Tensor,
    targets: Tensor,
    noise: Tensor,
    *,
    latents: int | None,
    beta: float,
    agreement: float,
    estimator: str,
) -> LatentLosses:
    r"""Return the loss of one batch.

    With the code z ~ q(z|v) of a view v of the feature f, z_k its first k latents, g the decoder and W the metric,

        L = sum over c in {z, z_k}:  |W (g(c) - f)|^2 / E|W f|^2  +  a * A(W g(c), W f)   +   beta * E_q[-log2 p(z)]

    where A, the agreement, is by default the normalised temperature-scaled cross-entropy: to find the feature that a
    code stands for among those of the batch, and the other way round. It bounds from below what the code says about
    which input it was (van den Oord et al., arXiv 1807.03748, equation 9), and keeps what tells inputs apart where
    the squared error keeps what has variance. p is the autoregressive prior, if there is one: the coder's own kind
    of model. The factorised prior is then fitted beside, to codes that it has no influence on.
    """
    posterior = encoder.posterior(views)
    draw = posterior.sample(noise, estimator)
    widths = [None] if latents is None else [None, latents]
    guesses = [encoder.decode(draw, k) for k in widths]
    reconstruction = sum((metric.error(guess, targets) for guess in guesses[1:]), metric.error(guesses[0], targets))
    total = reconstruction
    agreed = targets.new_zeros(())
    if agree is not None and agreement:
        weight = metric.weight / metric.power**0.5
        agreed = sum((agree(guess * weight, targets * weight) for guess in guesses), agreed)
        total = total + agreement * agreed
    if prior is None:
        rate = posterior.rate(encoder.prior).sum(1).mean()
        total = total + beta * rate
    else:
        rate = prior.bits(posterior.decisions(draw)).sum(1).mean()
        costs = -encoder.factorised.log_prob()
        beside = costs.gather(1, posterior.symbols(draw).T).sum(0).mean()
        total = total + beta * rate + _BESIDE * beside
    return LatentLosses(total, reconstruction.detach(), agreed.detach(), rate.detach())


WHITENING = {"reconstruct": 0.0}
"""Power of the variance by which errors are divided, where it is not :data:`_WHITENING`."""

_WHITENING = 0.125
_TRAVEL, _GAIN = 12.0, 0.01  # by what factor, its logarithm, beta may move in a run; what it moves by at least
_FIRST_BETA = 5e-4  # where it starts
_PRIOR_SCALE = 10.0  # of the learning rate: a factorised prior has to keep up with what latents' means are
_WARM, _BETA_WARM = 100, 300  # steps until the learning rate, and the price of a bit, are what they are to be
_HARD_EVERY = 50  # steps between two measurements of what hard codes cost
_HARD_ROWS = 2000
_FEW_ROWS = 256  # for what is only logged
_SETTLING = 0.2  # of the steps: the decoder alone, on the codes that a file will hold
_PASSES = 20  # over the codes, to fit the coder's network
_PASSES_AGAIN = 8  # where it begins as the prior that was trained: its best pass is then mostly the first
_ROUNDS, _NEAR = 6, 0.015  # corrections of the rate, until it is that near
_ROUND, _APPROACH = 0.15, 100  # of the steps, and at least so many, for a correction
_SMALL, _FACTOR = 0.4, 3.0  # of the learning rate, and by what factor bits become dearer or cheaper, in a correction
_LARGEST_GRADIENT = 5.0
_DESCENT, _FITTING = 0.6, 0.15  # of the time that the stage may take: the descent, a fit of the entropy network
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
    versions : int
        1, or 2 where the features are two stacked parts, of the same inputs in one order: as they are, and in another
        guise. Both are trained on, and the entropy network foresees the codes of both.
    views : ndarray of float, shape (M, V), optional
        Features of augmented views of the held-out inputs; where there are none, noise makes them.
    report : callable
        Told of the progress.
    """

    def __init__(
        self, encoder: Encoder, features: NDArray[np.floating], held: NDArray[np.floating], options: LatentOptions, *,
        versions: int = 1, views: NDArray[np.floating] | None = None,
        report: Callable[[LatentProgress | Fitting], None] = lambda progress: None,
    ) -> None:  # fmt: skip
        if len(features) < 2:
            raise TrainingError("the latents of fewer than two inputs cannot be trained.")
        self.encoder, self.options, self.report = encoder, options, report
        self.precision = precision_used(options.precision, "cpu")  # whatever device the network was trained on
        self.features, self.inputs = features, len(features) // versions
        self.held = held if len(held) else features[: min(self.inputs, _HARD_ROWS)]
        self.views = views if len(held) else None
        whitening = options.whitening
        if whitening is None:
            whitening = WHITENING.get(options.objective, _WHITENING)
        self.metric = Metric.of(np.asarray(features), whitening)
        self.targets = self.metric.coordinates(features)
        self.agree = make_agreement(options, self.metric)
        self.prior = self._make_prior()
        # A short run has to find its beta in fewer steps; in a long one beta must not run ahead of what it moves.
        gain = min(0.1, max(_GAIN, _TRAVEL / options.steps))
        start = options.beta if options.rate is None else max(_FIRST_BETA, options.beta)
        self.controller = RateController(options.rate, start, gain)
        self.batch = min(options.batch_size, len(features))
        self._ramp = min(_BETA_WARM, max(1, options.steps // 5))
        self.started = time.monotonic()
        self.step, self.first, self.hard = 0, 0, math.nan  # first: steps of the first descent

    def _make_prior(self) -> AutoregressivePrior | None:
        """Return an autoregressive prior where a rate is asked for, and codes are coded with such a one."""
        config, options = self.encoder.config, self.options
        networked = options.entropy == "autoregressive" and self.inputs >= MIN_CODES and config.latents > 1
        if options.rate is None or not networked:
            return None
        hidden = hidden_units(self.inputs) if options.prior_hidden is None else options.prior_hidden
        return AutoregressivePrior(config, hidden, options.seed)

    def run(self) -> FittedLatents:
        """Train, and return what was reached; the encoder holds its tables and its entropy network then."""
        encoder, options = self.encoder, self.options
        encoder.eval()
        frozen = [p for p in encoder.backbone.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        for name, parameter in encoder.named_parameters():  # an average of weights, and a twin, come with none
            if not name.startswith(("backbone.", "classifier.")):
                parameter.requires_grad_(True)
        with PrincipalDecoder(encoder, self.metric):
            self.optimizer = torch.optim.AdamW(self._groups(), lr=options.lr, betas=(0.9, 0.98))
            self._descend(options.steps)
            self.first = self.step
            rounds, fitted, rate = self._meet_rate()
            self._settle(max(1, round(self.first * _SETTLING)))
        for parameter in frozen:
            parameter.requires_grad_(True)
        found = calibrate(encoder, self.held, self.views, self.metric, seed=options.seed)
        encoder.config = found.applied(encoder.config)
        record = {
            "options": asdict(options), "precision": self.precision, "rounds": rounds,
            "steps": self.step, "beta": self.controller.beta,
            "rate": round(rate, 3), "entropy": fitted, "calibration": found.record,
            "seconds": round(time.monotonic() - self.started, 1),
        }  # fmt: skip
        return FittedLatents(rate, record)

    def _descend(self, steps: int) -> None:
        """Train head, prior and decoder for so many steps, the learning rate falling from its peak to zero."""
        started = time.monotonic()
        while (fraction := self._fraction(steps, started)) < 1:
            warm = min(1.0, (self.step + 1) / min(_WARM, max(1, steps // 10)))
            losses = self._train_step(self.options.lr * warm * 0.5 * (1 + math.cos(math.pi * fraction)))
            if isinstance(self.agree, Objective):
                self.agree.step(fraction)
            if self.step > self._ramp:  # what a prior charges that has learned nothing yet says nothing of the price
                self.controller.update(float(losses.rate))
            if self.step % _HARD_EVERY == 0:
                self.hard = self._hard_rate()
                self.controller.measured(self.hard, float(losses.rate))
            if self.step % _LOG_EVERY == 0:
                self._log(losses, fraction)

    def _train_step(self, lr: float) -> LatentLosses:
        """Descend by one step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        losses = self._losses(self.encoder.config.ladder[:-1] if self.options.nested else ())
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        layers = [p for m in (self.encoder.head, self.encoder.decoder) for p in m.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(layers, _LARGEST_GRADIENT)
        if not math.isfinite(float(losses.total.detach()) + float(norm)):
            raise TrainingError(f"the loss is not finite at step {self.step + 1:,}; try a lower learning rate.")
        self.optimizer.step()
        self.step += 1
        return losses

    def _meet_rate(self) -> tuple[int, dict[str, Any], float]:
        """Let codes cost what was asked for under the coder's own model, fitted to them.

        Return how many corrections it took, that model's record, and the rate in bits.
        """
        target, rounds = self.options.rate, 0
        record, rate = self._fit_tables()
        while target is not None and abs(rate / target - 1) > _NEAR and rounds < _ROUNDS:
            # The prior was given what the coder's own model learned, but for the rounding to integers.
            self._approach(target * self._hard_rate() / rate)
            record, rate = self._fit_tables()
            rounds += 1
        return rounds, record, rate

    def _approach(self, target: float) -> None:
        """Train on, with bits dearer or cheaper, until hard codes cost this under the prior that is trained."""
        controller, least = self.controller, self.step + max(_APPROACH, round(self.first * _ROUND))
        begin = self._hard_rate()
        side, beta = math.copysign(1, begin - target), controller.beta
        controller.jump(begin, target, _FACTOR)
        while (apart := side * (self._hard_rate() - target) > 0) and self.step < least:
            if self.step % _HARD_EVERY == 0:
                controller.jump(begin, target, _FACTOR)
            self._train_step(self.options.lr * _SMALL)
        if not apart:  # else the next try goes on from here
            controller.beta = beta

    def _groups(self) -> list[dict[str, Any]]:
        """Decay weights of layers, not biases, priors or codebooks; priors learn at higher rates."""
        encoder, decay = self.encoder, self.options.decay
        layers = [p for m in (encoder.head, encoder.decoder) for p in m.parameters()]
        rest = [encoder.codebooks] if encoder.codebooks is not None else []
        prior = list(self.prior.parameters()) if self.prior else []
        heads = list(self.agree.parameters()) if isinstance(self.agree, Objective) else []
        return [
            {"params": [p for p in layers + heads if p.ndim > 1], "weight_decay": decay, "scale": 1.0},
            {"params": [p for p in layers + heads if p.ndim <= 1] + rest, "weight_decay": 0.0, "scale": 1.0},
            {"params": prior, "weight_decay": decay / 10, "scale": 2.0},
            {"params": [encoder.prior], "weight_decay": 0.0, "scale": _PRIOR_SCALE},
        ]

    def _fraction(self, steps: int, started: float) -> float:
        """How much of the descent is done, by its steps or by the time that it may take."""
        fraction = self.step / steps
        if self.options.max_time:
            fraction = max(fraction, (time.monotonic() - started) / (_DESCENT * self.options.max_time))
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
        beta = self.controller.beta * min(1.0, (self.step + 1) / self._ramp)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
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

    def _settle(self, steps: int) -> None:
        """Train the decoder alone, on the codes that a file will hold."""
        encoder, options = self.encoder, self.options
        symbols = self._symbols(self.features)
        layers = [*encoder.decoder.parameters(), *([] if encoder.codebooks is None else [encoder.codebooks])]
        optimizer = torch.optim.AdamW(layers, lr=options.lr, betas=(0.9, 0.98), weight_decay=options.decay)
        rungs = encoder.config.ladder[:-1] if options.nested else ()
        weight = self.metric.weight / self.metric.power**0.5
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
                    loss = loss + options.agreement * self.agree(guess * weight, targets * weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _embed(self, symbols: NDArray[np.generic]) -> Tensor:
        family, config = POSTERIORS[self.encoder.config.posterior], self.encoder.config
        empty = family(torch.zeros(0, family.width(config)), config)
        return empty.embed(torch.from_numpy(symbols.astype(np.int64)))

    def _fit_tables(self) -> tuple[dict[str, Any], float]:
        """Measure the table, fit the entropy network; return its record, and what held-out codes cost, in bits."""
        encoder, options = self.encoder, self.options
        first, second = (part[:_MOST_CODES] for part in (self.features[: self.inputs], self.features[self.inputs :]))
        record = fit_code_tables(
            encoder, self._codes(first), self._codes(second) if len(second) else None, entropy=options.entropy,
            hidden=options.prior_hidden, passes=_PASSES_AGAIN if self.prior else _PASSES,
            max_time=options.max_time and _FITTING * options.max_time,
            seed=options.seed, precision=options.precision, initial=self.prior.network if self.prior else None,
            progress=lambda fraction, line: self.report(Fitting(fraction, line)),
        )  # fmt: skip
        held, network = self._codes(self.held), encoder.entropy_network()
        if network is None:
            return record, hard_rate(held, encoder.ones.numpy())
        return record, float(network.decision_bits(held).sum())

    def _log(self, losses: LatentLosses, fraction: float) -> None:
        progress = LatentProgress(
            fraction=min(1.0, fraction), step=self.step, loss=float(losses.total.detach()),
            reconstruction=float(losses.reconstruction), agreement=float(losses.agreement),
            rate=float(losses.rate), hard_rate=self.hard, kl=self._divergence(), beta=self.controller.beta,
        )  # fmt: skip
        self.report(progress)


def make_agreement(options: LatentOptions, metric: Metric) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return what compares weighted decoded coordinates with those of the features, or None.

    The contrastive objective compares them as they are: heads would only stand between the code and what is asked of
    it. The others need heads.
    """
    if options.objective == "reconstruct":
        return None
    if options.objective == "nt-xent":
        return partial(nt_xent, temperature=options.temperature)
    agreement: Objective = OBJECTIVES[options.objective](metric.axes.shape[1])
    return agreement
