"""Posteriors q(z|x) over latents: one interface for all families."""

from __future__ import annotations

from stochcl.encoders.posteriors.base import ESTIMATORS, Posterior
from stochcl.encoders.posteriors.bernoulli import Bernoulli
from stochcl.encoders.posteriors.categorical import Categorical
from stochcl.encoders.posteriors.gaussian import Gaussian

__all__ = ["ESTIMATORS", "POSTERIORS", "Bernoulli", "Categorical", "Gaussian", "Posterior"]

POSTERIORS: dict[str, type[Posterior]] = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "gaussian": Gaussian,
}
"""Posterior families by the name that a model file holds."""
