"""The entropy models that codes are coded under: the tables' own, or fitted to rows that are not coded."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stochcl.entropy.independent import IndependentModel

if TYPE_CHECKING:
    from stochcl.codes import Codes
    from stochcl.entropy.tables import Tables

INDEPENDENT, AUTOREGRESSIVE = "independent", "autoregressive"

_AUTOREGRESSIVE = "stochcl.entropy.autoregressive"


@dataclass(frozen=True)
class EntropyModel:
    """A model with what a reader of the figures must know of it.

    Parameters
    ----------
    model : object
        With ``ideal_bits(codes)``, as :class:`~stochcl.entropy.independent.IndependentModel` has it.
    origin : str
        ``tables``; ``fitted`` to other rows; or ``own table``, fitted to the very rows and stored with them.
    bytes : int
        What a reader needs beside the coded symbols.
    """

    model: Any
    origin: str
    bytes: int

    @classmethod
    def of(cls, model: Any, origin: str) -> EntropyModel:
        """Take a model's size from its own bytes."""
        return cls(model, origin, len(model.to_bytes()))


def has_autoregressive() -> bool:
    """Tell whether this version has autoregressive models."""
    return find_spec(_AUTOREGRESSIVE) is not None


def fitted(rows: Codes) -> dict[str, EntropyModel]:
    """Fit every kind of model that numpy can fit to rows, by kind."""
    found = {INDEPENDENT: EntropyModel.of(IndependentModel.fit(rows), "fitted")}
    if has_autoregressive():
        model = import_module("stochcl.entropy.fit").fit_linear(rows)
        found[AUTOREGRESSIVE] = EntropyModel.of(model, "fitted")
    return found


def of_tables(tables: Tables, latents: int) -> dict[str, EntropyModel]:
    """Return the models that decoding tables hold, cut to so many latents, by kind."""
    there = [getattr(tables, name, None) for name in ("entropy", INDEPENDENT, AUTOREGRESSIVE)]
    found = {}
    for model in there:
        if model is not None:
            kind = INDEPENDENT if isinstance(model, IndependentModel) else AUTOREGRESSIVE
            found[kind] = EntropyModel.of(model.prefix(latents), "tables")
    return found


def cheaper_table(found: EntropyModel | None, codes: Codes) -> EntropyModel:
    """Return the tables' independent symbols, or a table of the codes' own where that pays for itself.

    It is the choice that a writer makes; codes of images unlike those that a model was trained on gain by it.
    """
    model = IndependentModel.fit(codes)
    own = EntropyModel(model, "own table", len(zlib.compress(model.to_bytes(), 9)))
    if found is None or model.ideal_bits(codes) + 8 * own.bytes < found.model.ideal_bits(codes):
        return own
    return found
