"""What each row's code takes under the decoding tables' own model: its length in bits, without coding it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.codes import bits_per_symbol
from stochcl.compress.autoregressive import AutoregressiveModel
from stochcl.compress.independent import DENOMINATOR, IndependentModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.codes import Codes
    from stochcl.compress.coder import EntropyModel
    from stochcl.compress.tables import Tables

_ROWS = 512


def code_lengths(codes: Codes, tables: Tables, selection: Sequence[int] | None = None) -> NDArray[np.float32]:
    """Return the bits that each row takes under the tables' network, or table where there is no network.

    Always the tables', whatever an archive's segments are coded with: so rows of different archives compare.

    Parameters
    ----------
    codes : Codes
        Of the tables' first latents, or of those that ``selection`` names.
    tables : Tables
    selection : sequence of int, optional

    Returns
    -------
    ndarray of float32, shape (N,)
        -log2 p(z), the information in each row.
    """
    model = tables.candidates(codes.latents, selection)[-1].model
    out = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), _ROWS):
        rows = slice(start, min(start + _ROWS, len(codes)))
        part = np.arange(len(codes))[rows]
        out[rows] = _lengths(model, codes.__class__(codes.packed[part], codes.latents, codes.alphabet))
    return out


def latent_lengths(codes: Codes, model: EntropyModel) -> NDArray[np.float64]:
    """Return the bits that each latent takes under a model, given those before it: shape (D,), the mean of all rows.

    Parameters
    ----------
    codes : Codes
    model : IndependentModel or AutoregressiveModel
        Of these latents, such as an archive's ``main_model``.
    """
    if not isinstance(model, AutoregressiveModel):
        return model.bits_by_latent(codes) / max(1, len(codes))
    decisions = model.bits_by_decision(codes).reshape(codes.latents, -1)
    bits: NDArray[np.float64] = decisions.sum(axis=1) / max(1, len(codes))
    return bits


def _lengths(model: EntropyModel, codes: Codes) -> NDArray[np.float64]:
    if isinstance(model, AutoregressiveModel):
        decisions = codes.decisions()
        one = model.levels.astype(np.float64)[model.level_indices(decisions)] / DENOMINATOR
        bits: NDArray[np.float64] = -np.log2(np.where(decisions.T != 0, one, 1 - one)).sum(axis=0)
        return bits
    costs = _symbol_costs(model)
    taken: NDArray[np.float64] = costs[np.arange(codes.latents), codes.symbols()].sum(axis=1)
    return taken


def _symbol_costs(model: IndependentModel) -> NDArray[np.float64]:
    """Return what every symbol of every latent costs, in bits, shape (D, K)."""
    bits, symbols = bits_per_symbol(model.alphabet), np.arange(model.alphabet)
    costs = np.zeros((model.latents, model.alphabet))
    for level in range(bits):
        one = model.ones[:, (1 << level) - 1 + (symbols >> bits - level)] / DENOMINATOR
        costs -= np.log2(np.where(symbols >> bits - level - 1 & 1, one, 1 - one))
    return costs
