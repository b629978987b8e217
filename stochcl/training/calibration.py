"""Calibration: the temperature at which a posterior's certainty is how often its symbols change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.posteriors import Posterior
    from stochcl.training.quantiser import Metric


_BINS = 15
_NOISE = 0.5  # deviations of a feature: a view, where no augmented one is at hand
_CALIBRATION_ROWS = 2000
_TEMPERATURES = np.geomspace(0.1, 1e4, 201)  # numbers of whose draws training made near nothing need thousands


@torch.no_grad()
def calibrate(
    encoder: Encoder, features: NDArray[np.floating], views: NDArray[np.floating] | None, metric: Metric, *, seed: int
) -> tuple[float, dict[str, Any]]:
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
    return temperature, record


def _error(posterior: Posterior, mode: Tensor, changed: Tensor) -> tuple[float, float]:
    """Return the expected calibration error of the probability that a symbol changes, and its mean."""
    predicted = (1 - posterior.log_prob(mode).exp()).clamp(0, 1).flatten()
    bins = (predicted * _BINS).long().clamp(max=_BINS - 1)
    totals = [torch.zeros(_BINS, dtype=torch.float64) for _ in range(2)]
    for total, values in zip(totals, (predicted, changed.flatten()), strict=True):
        total.index_add_(0, bins, values.double())
    return float((totals[0] - totals[1]).abs().sum() / len(predicted)), float(predicted.mean())
