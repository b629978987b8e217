"""What codes cost as files: packed, and as archives under models fitted to other rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stochcl.benchmarks.errors import BenchmarkError
from stochcl.benchmarks.methods import WholeArchive
from stochcl.compress import Header
from stochcl.entropy.fit import fit_linear
from stochcl.entropy.independent import MAX_DECISIONS, IndependentModel
from stochcl.entropy.tables import Tables

if TYPE_CHECKING:
    from stochcl.codes import Codes
    from stochcl.entropy.autoregressive import AutoregressiveModel

CODINGS = ("packed", "independent", "linear", "network")
"""Bits as they are; symbols each with its own table; logistic regressions on those before; a masked network."""

_NO_MODEL = "0" * 64
_MOST_LINEAR = 1024  # decisions of a row; the weights grow with their square


@dataclass(frozen=True)
class Price:
    """What rows cost.

    Parameters
    ----------
    bytes : int
        Of the file.
    model_bytes : int
        Of the entropy model that it is read with, which lies beside it.
    """

    bytes: int
    model_bytes: int


def codings_of(codes: Codes, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of some codings that rows of this width can have."""
    most = {"packed": 1 << 32, "independent": MAX_DECISIONS, "linear": _MOST_LINEAR, "network": _MOST_LINEAR}
    return tuple(coding for coding in asked if codes.decisions_per_row <= most[coding])


def price(fitting: Codes, codes: Codes, coding: str, seed: int = 0) -> Price:
    """Write codes to a file under a model fitted to others, read it again, and return its size."""
    if coding == "packed":
        return Price(codes.packed.nbytes, 0)
    tables = _tables(fitting, coding, seed)
    header = Header("benchmark", _NO_MODEL, codes.latents, codes.latents, codes.alphabet, "none", tables.sha256)
    method = WholeArchive(coding, len(codes), codes.latents, codes.alphabet, header, tables, embed_tables=False)
    data = method.encode(codes)
    if (method.decode(data).packed != codes.packed).any():
        raise BenchmarkError(f"an archive of {coding} symbols gave back other codes; no figure of this run counts.")
    return Price(len(data), len(tables.data))


def _tables(fitting: Codes, coding: str, seed: int) -> Tables:
    network = None
    if coding == "linear":
        network = fit_linear(fitting, seed=seed)
    elif coding == "network":
        network = _hidden_network(fitting, seed)
    return Tables((fitting.latents,), IndependentModel.fit(fitting), autoregressive=network)


def _hidden_network(fitting: Codes, seed: int) -> AutoregressiveModel | None:
    """Fit what a model trained by stochcl brings along; None where independent symbols do as well."""
    from stochcl.training.entropy import fit_entropy

    return fit_entropy(fitting, (fitting.latents,), seed=seed, precision="fp32").network
