"""What is coded: built-in sets, seeded, and codes that somebody has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from stochcl.benchmarks import models
from stochcl.codes import Codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.benchmarks.models import EntropyModel
    from stochcl.compress import Header
    from stochcl.entropy.tables import Tables

_FACTORS = 6
"""Hidden bits of the correlated set; their 64 states are summed over for the exact entropy."""


@dataclass(frozen=True, eq=False)
class CodeSet:
    """Codes that every method is given, with what they are coded under.

    Parameters
    ----------
    name : str
    codes : Codes
        Without names, labels or uncertainty: every method codes the same symbols and nothing else.
    models : dict of str to EntropyModel
        By kind.
    about : str
        What these codes are, for the report.
    source_bits : float or None
        Bits per image under the distribution that the rows were drawn from, where it is known.
    header, tables : Header, Tables
        Of the archive that they come from, if any.
    notes : tuple of str
        What a reader of the figures should know.
    """

    name: str
    codes: Codes
    models: dict[str, EntropyModel]
    about: str
    source_bits: float | None = None
    header: Header | None = None
    tables: Tables | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def ideal(self) -> tuple[float, str]:
        """Bits of all rows under the best of the models, and which that is."""
        return min((entry.model.ideal_bits(self.codes), kind) for kind, entry in self.models.items())


def skewed(rows: int, latents: int, seed: int) -> CodeSet:
    """Independent bits, each latent with its own probability of a one, from Beta(0.4, 0.4): many are skewed."""
    rng = np.random.default_rng([seed, 1])
    p = np.clip(rng.beta(0.4, 0.4, latents), 1 / 4096, 4095 / 4096)
    coded, others = (rng.random((rows, latents)) < p for _ in range(2))
    bits = -np.where(coded, np.log2(p), np.log2(1 - p)).sum() / rows
    return _drawn("skewed", coded, others, "independent bits, probabilities from Beta(0.4, 0.4)", float(bits))


def correlated(rows: int, latents: int, seed: int) -> CodeSet:
    """Bits that depend on six hidden ones: logit of latent j is ``b[j] + w[j] . h``, h uniform in {-1, 1}**6."""
    rng = np.random.default_rng([seed, 2])
    weights = rng.normal(0, 1.0, (_FACTORS, latents))
    bias = rng.normal(0, 1.0, latents)
    states = 1.0 - 2.0 * ((np.arange(1 << _FACTORS)[:, None] >> np.arange(_FACTORS)) & 1)
    p = 1 / (1 + np.exp(-(states @ weights + bias)))
    coded, others = (rng.random((rows, latents)) < p[rng.integers(len(states), size=rows)] for _ in range(2))
    bits = _mixture_bits(coded, p)
    about = f"bits that depend on {_FACTORS} hidden bits through a logistic model"
    return _drawn("correlated", coded, others, about, bits)


def _mixture_bits(bits: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    """Return -log2 of the probability of rows under equally likely products, per row; exact."""
    total = 0.0
    for start in range(0, len(bits), 8192):
        part = bits[start : start + 8192].astype(np.float64)
        log = part @ np.log(p).T + (1 - part) @ np.log1p(-p).T
        top = log.max(axis=1)
        total -= (top + np.log(np.exp(log - top[:, None]).mean(axis=1))).sum()
    return float(total / np.log(2) / max(len(bits), 1))


def _drawn(name: str, coded: NDArray[np.bool_], others: NDArray[np.bool_], about: str, bits: float) -> CodeSet:
    codes, fitting = Codes.from_symbols(coded), Codes.from_symbols(others)
    return CodeSet(name, codes, models.fitted(fitting), about, source_bits=bits)


def split(name: str, codes: Codes, about: str) -> CodeSet:
    """Fit models to every second row and code the others: a model fitted to what it codes flatters itself."""
    note = f"{name}: the tables are fitted to every second row, and the others are coded."
    return CodeSet(name, codes[::2], models.fitted(codes[1::2]), about, notes=(note,))
