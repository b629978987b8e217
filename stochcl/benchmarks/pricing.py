"""What codes cost as files: packed, and as archives under models fitted to other rows."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stochcl.benchmarks.run import BenchmarkError
from stochcl.compress import Archive, Header, Writer
from stochcl.entropy.fit import fit_linear
from stochcl.entropy.independent import MAX_DECISIONS, IndependentModel
from stochcl.entropy.tables import Tables

if TYPE_CHECKING:
    from stochcl.codes import Codes
    from stochcl.entropy.autoregressive import AutoregressiveModel
    from stochcl.entropy.model import EntropyModel

CODINGS = ("packed", "independent", "linear", "network")
"""Bits as they are; symbols each with its own table; logistic regressions on those before; a masked network."""

_NO_MODEL = "0" * 64
_MOST_LINEAR = 1024  # decisions of a row; the weights grow with their square


class Price(NamedTuple):
    """Bytes of the file, and of the entropy model beside it that it is read with."""

    bytes: int
    model_bytes: int


def codings_of(codes: Codes, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return the codings that rows of this width can have; where a network is too wide, independent symbols."""
    most = {"packed": 1 << 32, "independent": MAX_DECISIONS, "linear": _MOST_LINEAR, "network": _MOST_LINEAR}
    wide = codes.decisions_per_row > _MOST_LINEAR
    narrowed = ("independent" if wide and most[coding] == _MOST_LINEAR else coding for coding in asked)
    return tuple(c for c in dict.fromkeys(narrowed) if codes.decisions_per_row <= most[c])


def price(fitting: Codes, codes: Codes, coding: str, seed: int = 0) -> Price:
    """Return the size of codes as a file, under a model fitted to the codes of other rows.

    Raises BenchmarkError if the file gives back other codes.
    """
    if coding == "packed":
        return Price(codes.packed.nbytes, 0)
    tables = _tables(fitting, coding, seed)
    header = Header("benchmark", _NO_MODEL, codes.latents, codes.latents, codes.alphabet, "none", tables.sha256)
    size, _ = through_a_file(header, tables, codes)
    return Price(size, len(tables.data))


def through_a_file(header: Header, tables: Tables, codes: Codes) -> tuple[int, Codes]:
    """Write codes without names or tables, read them again; return the file's size in bytes, and its codes."""
    data = write_archive(header, tables, codes)
    with Archive(io.BytesIO(data), tables=[tables]) as archive:
        back = archive[:]
    if (back.packed != codes.packed).any():
        raise BenchmarkError("an archive gave back other codes; no figure of this run counts.")
    return len(data), back


def write_archive(
    header: Header, tables: Tables, codes: Codes, *, embed_tables: bool = False, fitted: tuple[EntropyModel, ...] = ()
) -> bytes:
    """Return the file that a writer leaves, with header, index and checksums; without names."""
    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, "codes.bin")
        with Writer(path, header, tables, embed_tables=embed_tables, fitted=fitted, names=False) as out:
            out.add(codes)
        return path.read_bytes()


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
