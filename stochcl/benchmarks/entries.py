"""Which methods code a set: ours, under every model that there is, and all others."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from stochcl.benchmarks import methods, models
from stochcl.benchmarks.extras import need
from stochcl.benchmarks.layouts import layouts
from stochcl.benchmarks.methods import Blocks, Method
from stochcl.codes import bits_per_symbol
from stochcl.compress import Header
from stochcl.compress.transcode import choose
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables
from stochcl.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from stochcl.benchmarks.codesets import CodeSet
    from stochcl.entropy.model import EntropyModel

_NO_MODEL = "0" * 64


@dataclass(frozen=True)
class Entry:
    """A method with what is said of it beside its measurement.

    Parameters
    ----------
    method : Method
    tables_bytes : int
        What a reader needs beside the bytes that are counted: tables outside the file.
    model : str or None
        The entropy model that it codes under.
    origin : str or None
        Where that model comes from: ``tables``, or ``fitted``.
    """

    method: Method
    tables_bytes: int = 0
    model: str | None = None
    origin: str | None = None


def entries_of(code_set: CodeSet, leave_out: Callable[[str], None]) -> list[Entry]:
    """Return ours and all others for a set, in the order of the table."""
    codes = code_set.codes
    shape = (len(codes), codes.latents, codes.alphabet)
    entries = []
    for kind, entropy in code_set.models.items():
        block_rows = Blocks.block_rows(entropy.model.ideal_bits(codes) / len(codes), codes.decisions_per_row)
        entries.append(Entry(Blocks(kind, *shape, entropy.model, block_rows), entropy.bytes, kind, entropy.origin))
    entries.append(_archive(code_set, shape))
    entries.append(Entry(methods.Packed("packed", *shape)))
    for compressor in methods.GENERAL:
        try:
            if compressor.module is not None:
                need(compressor.module)
        except MissingExtraError as exc:
            leave_out(f"{compressor.label} was left out: {exc}")
            continue
        entries += [
            Entry(compressor(f"{compressor.label}, {layout}", *shape, layout)) for layout in layouts(codes.alphabet)
        ]
    entropy = code_set.models[models.INDEPENDENT]
    for perfect in (True, False):
        name = f"constriction, perfect={perfect}"
        method = methods.PerSymbol(name, *shape, entropy.model, perfect)
        entries.append(Entry(method, entropy.bytes, models.INDEPENDENT, entropy.origin))
    return entries


def _archive(code_set: CodeSet, shape: tuple[int, int, int]) -> Entry:
    """Return the row of the whole file: tables inside it, unless they come with the package.

    Codes without a model of theirs get tables that know nothing, and the fitted models that are worth their bytes
    in the file, as ``stochcl transcode --refit`` would give it.
    """
    header, tables = code_set.header, code_set.tables
    fitted: tuple[EntropyModel, ...] = ()
    if header is None or tables is None:
        _, latents, alphabet = shape
        nodes = (1 << bits_per_symbol(alphabet)) - 1
        tables = Tables((latents,), IndependentModel(np.full((latents, nodes), 2048, np.uint16), alphabet))
        header = Header("benchmark", _NO_MODEL, latents, latents, alphabet, "none", tables.sha256)
        fits = [entropy.model for entropy in code_set.models.values()]
        fitted = tuple(choose([code_set.codes], tables.candidates(latents), fits))
    packaged = resources.files("stochcl").joinpath("tables", f"{tables.sha256}.tables").is_file()
    method = methods.WholeArchive("archive", *shape, header, tables, embed_tables=not packaged, fitted=fitted)
    return Entry(method, len(tables.data) if packaged else 0)
