"""Live figures of a run (rate, kNN accuracy), health of codes, and calibration of posteriors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.encoders.engine import features
from stochcl.encoders.inference import encode, network_of
from stochcl.entropy.independent import node_counts
from stochcl.entropy.model import hard_rate, measure_ones

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.codes import Codes
    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.posteriors import Posterior
    from stochcl.training.quantiser import Metric


DEAD_BITS = 0.05
"""A latent with less entropy is dead: fewer than six rows in a thousand differ from the others."""

_FEW = 50  # with fewer rows there are no warnings
_COLLAPSED = 1.0  # bits of all latents together
_MOSTLY_DEAD, _SAME, _UNDECIDED = 0.9, 0.8, 0.1


def code_health(codes: Codes, family: str) -> dict[str, Any]:
    """Return figures on hard codes for a training record."""
    entropies = marginal_entropies(codes)
    used = entropies > DEAD_BITS
    entropy = certainty = None
    if codes.uncertainty is not None and len(codes) and family != "residual":  # which covers one word only
        entropy = round(float(np.mean(codes.uncertainty, dtype=np.float64)), 3)
        certainty = round(1 - entropy / (codes.latents * float(np.log2(codes.alphabet))), 4)
    return {
        "rows": len(codes), "latents": codes.latents, "used": int(used.sum()), "dead": int((~used).sum()),
        "bits": round(float(entropies.sum()), 3), "distinct": len(np.unique(codes.packed, axis=0)),
        "correlation": round(_correlation(codes.symbols()[:, used], family), 4), "entropy": entropy,
        "certainty": certainty,
    }  # fmt: skip


def health_warnings(health: dict[str, Any]) -> tuple[str, ...]:
    """Return warnings about a dead or dying code; none for few rows."""
    rows, latents, used = health["rows"], health["latents"], health["used"]
    if rows < _FEW:
        return ()
    problems = []
    if health["bits"] < _COLLAPSED:
        problems.append(
            f"the code has collapsed: its {latents:,} latents together say {health['bits']:.2f} bits of an input, "
            f"and {health['distinct']:,} different codes stand for {rows:,} inputs; make bits cheaper (a higher "
            "rate, a lower beta, a longer warm-up) or lower the learning rate"
        )
    elif used < (1 - _MOSTLY_DEAD) * latents:
        problems.append(
            f"{health['dead']:,} of {latents:,} latents are dead: they have the same value for nearly every input; "
            "fewer latents would give the same code, and cheaper bits would bring them to life"
        )
    if used > 1 and health["correlation"] > _SAME:
        problems.append(
            f"the latents repeat each other: the mean correlation of two of them is {health['correlation']:.2f}; the "
            "objective does not tell inputs apart by more than a few directions"
        )
    if health["certainty"] is not None and health["certainty"] < _UNDECIDED:
        problems.append(
            f"the posterior is undecided: its entropy is {health['entropy']:,.0f} bits an input, near that of coin "
            "tosses; train for longer, or make noise weigh less (a lower temperature)"
        )
    return tuple(f"warning: {sentence}" for sentence in problems)


def marginal_entropies(codes: Codes) -> NDArray[np.float64]:
    """Return the entropy of each latent's symbols over the rows, in bits, shape (D,)."""
    if not len(codes):
        return np.zeros(codes.latents)
    ones, visits = node_counts(codes)
    # A symbol's entropy is the sum of its decisions' entropies, weighted by how often each is taken.
    bits = sum(-n * np.log2(np.maximum(n, 1) / np.maximum(visits, 1)) for n in (ones, visits - ones))
    found: NDArray[np.float64] = np.maximum(np.sum(bits, axis=1) / len(codes), 0)
    return found


def _correlation(symbols: NDArray[np.integer], family: str) -> float:
    """Return the mean absolute correlation between two columns, none of them constant."""
    latents = symbols.shape[1]
    if latents < 2 or len(symbols) < 2:
        return 0.0
    if family == "categorical":
        symbols = symbols == np.array([np.bincount(column).argmax() for column in symbols.T])
    r = np.abs(np.corrcoef(symbols, rowvar=False, dtype=np.float64))
    return float((r.sum() - np.trace(r)) / (latents * (latents - 1)))


_MEASURED = 20_000  # images to measure the features' mean and variance on


def knn_accuracy(
    bank: NDArray[np.float32], bank_labels: NDArray[np.str_], query: NDArray[np.float32],
    query_labels: NDArray[np.str_], neighbours: int = 20,
) -> float:  # fmt: skip
    """Return the accuracy of a similarity-weighted vote of the nearest features by cosine.

    The live measure of Wu et al. (arXiv 1805.01978, section 3.4), with its temperature of 0.07.
    """
    from sklearn.neighbors import KNeighborsClassifier

    voter = KNeighborsClassifier(
        min(neighbours, len(bank)), metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    return float(voter.fit(bank, bank_labels).score(query, query_labels))


def measure_features(
    encoder: Encoder, images: NDArray[np.uint8], device: torch.device, precision: str = "fp32"
) -> None:
    """Standardise a finished network's features to zero mean and unit variance, in place.

    Training does this continually. Published weights have no such statistics, nor has a network whose pooling differs
    from its training.
    """
    width, norm = encoder.feature_dim, encoder.norm

    def standardise(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> None:
        statistics = {"running_mean": torch.from_numpy(mean), "running_var": torch.from_numpy(variance)}
        norm.load_state_dict(norm.state_dict() | statistics)

    standardise(np.zeros(width), np.ones(width))
    measured = images[:: max(1, len(images) // _MEASURED)]
    found = features(network_of(encoder, device, precision), measured, width)
    standardise(found.mean(axis=0, dtype=np.float64), found.var(axis=0, dtype=np.float64))


class Monitor:
    """Measures rate and kNN accuracy on fixed, seeded subsets.

    Without held-out images, training images replace them, and no accuracy is measured.
    """

    def __init__(
        self, train: NDArray[np.uint8], held: NDArray[np.uint8], train_labels: tuple[str, ...],
        held_labels: tuple[str, ...], *, seed: int, bank: int = 4000, queries: int = 2000, precision: str = "fp32",
    ) -> None:  # fmt: skip
        self._precision = precision
        rng = np.random.default_rng(seed)
        bank_rows = np.sort(rng.permutation(len(train))[:bank])
        query_rows = np.sort(rng.permutation(len(held))[:queries])
        self._bank, self._queries = train[bank_rows], held[query_rows]
        self._bank_labels = np.array([train_labels[i] for i in bank_rows])
        self._query_labels = np.array([held_labels[i] for i in query_rows])

    def health(self, encoder: Encoder, device: torch.device) -> dict[str, Any]:
        """Return :func:`code_health` of the held-out images' codes."""
        images = self._queries if len(self._queries) else self._bank
        return code_health(encode(encoder, images, device, self._precision).codes, encoder.config.posterior)

    def __call__(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """Return ``rate`` (bits per image of held-out hard codes) and, with labels, ``knn`` (a fraction)."""
        was_training = encoder.training
        encoder.eval()
        bank = encode(encoder, self._bank, device, self._precision)
        queries = encode(encoder, self._queries, device, self._precision) if len(self._queries) else bank
        encoder.train(was_training)
        result = {"rate": hard_rate(queries.codes, measure_ones(bank.codes))}
        if len(set(self._query_labels.tolist())) > 1:
            result["knn"] = knn_accuracy(bank.features, self._bank_labels, queries.features, self._query_labels)
        return result


_BINS = 15
_NOISE = 0.5  # deviations per feature of a simulated view, without augmented ones
_CALIBRATION_ROWS = 2000
_TEMPERATURES = np.geomspace(0.1, 1e4, 201)  # numbers trained with almost no noise need thousands


@torch.no_grad()
def calibrate(
    encoder: Encoder, features: NDArray[np.floating], views: NDArray[np.floating] | None, metric: Metric, *, seed: int
) -> tuple[float, dict[str, Any]]:
    """Fit a temperature to how often symbols change between an input and a view of it.

    Noise anneals away in training: logits grow until draws are hard, and are then margins rather than probabilities.
    Users read them as how certain a symbol is. So the clean input's posterior, its logits divided by T, predicts the
    symbol of a view; T minimises the negative log likelihood (temperature scaling: Guo et al., arXiv 1706.04599,
    section 4.2). The expected calibration error (section 2 there, 15 bins of equal width) compares the predicted
    probability that the most probable symbol changes with the observed frequency.
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
    return temperature, record


def _error(posterior: Posterior, mode: Tensor, changed: Tensor) -> tuple[float, float]:
    """Return the expected calibration error of the probability that a symbol changes, and its mean."""
    predicted = (1 - posterior.log_prob(mode).exp()).clamp(0, 1).flatten()
    bins = (predicted * _BINS).long().clamp(max=_BINS - 1)
    totals = [torch.zeros(_BINS, dtype=torch.float64) for _ in range(2)]
    for total, values in zip(totals, (predicted, changed.flatten()), strict=True):
        total.index_add_(0, bins, values.double())
    return float((totals[0] - totals[1]).abs().sum() / len(predicted)), float(predicted.mean())
