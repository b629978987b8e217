"""The archives and tables that are damaged and forged: small, and one of every kind."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stochcl.codes import Codes
from stochcl.compress import Archive, segment
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables
from tests.compress.golden import append
from tests.compress.making import make_chain, make_codes, make_names, make_network, make_tables, write

SKIPPED = (("broken/\udce9.png", "it is empty"), ("cat/0003.jpg", "it is cut short"))


@dataclass(frozen=True, eq=False)
class Base:
    """A file, what it holds, and what it needs beside it."""

    name: str
    data: bytes
    tables: Tables
    outside: tuple[Tables, ...] = ()
    content: Any = None
    earlier: tuple[int, ...] = field(default=())
    """Where archives end that it was before rows were appended: cut there, it is one of them."""

    @property
    def is_tables(self) -> bool:
        return self.content is None


def content(archive: Archive) -> tuple:
    """Everything that an archive holds, as something to compare."""
    codes = archive[:]
    uncertainty = None if codes.uncertainty is None else codes.uncertainty.tobytes()
    texts = tuple(None if part is None else tuple(part) for part in (codes.names, codes.labels))
    return codes.packed.tobytes(), *texts, uncertainty, tuple(archive.skipped)


def large() -> list[Base]:
    """Return archives of some hundred bytes whose blocks, or names, are as large as they can be."""
    bases = []
    with tempfile.TemporaryDirectory() as folder:
        for latents, alphabet, hidden, named in (
            (16, 2, 0, False), (8, 3, 0, False), (1, 300, 0, False), (16, 2, 16, False), (1, 2, 0, True),
        ):  # fmt: skip
            rows = 1 << 16 if named else 1 << 18
            codes = Codes.from_symbols(
                np.zeros((rows, latents), np.uint8), alphabet=alphabet, names=[""] * rows if named else None
            )
            network = (
                replace(make_network(latents, alphabet, hidden), levels=np.ones(2, np.uint16)) if hidden else None
            )
            tables = Tables((latents,), IndependentModel.fit(codes), None, network)
            path = Path(folder, f"{latents}-{alphabet}-{hidden}")
            write(path, codes, tables, embed=False, segment_rows=rows, fitted=[network] if network else [])
            whole = (codes.packed.tobytes(), codes.names, None, None, ())
            bases.append(Base(f"large, {latents} of {alphabet}", path.read_bytes(), tables, (tables,), whole))
    return bases


def make() -> list[Base]:
    """Return those of which a thousand are read in a second."""
    before, segment._BLOCK_BITS = segment._BLOCK_BITS, 120  # so that few rows are several blocks
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _make(Path(folder, "a"))
    finally:
        segment._BLOCK_BITS = before


def _make(path: Path) -> list[Base]:
    bases = []

    def add(
        name: str, codes: Codes, tables: Tables, *, embed: bool = True, appended: int = 0, **options: Any
    ) -> None:
        path.unlink(missing_ok=True)
        write(path, codes[: len(codes) - appended], tables, embed=embed, **options)
        earlier = []
        for start in range(len(codes) - appended, len(codes), 4):
            earlier.append(path.stat().st_size)
            append(path, codes[start : start + 4], tables)
        data, outside = path.read_bytes(), () if embed else (tables,)
        whole = Archive(io.BytesIO(data), tables=outside)
        bases.append(Base(name, data, tables, outside, content(whole), tuple(earlier)))
        bases.extend(
            Base(
                f"{name}, before",
                data[:end],
                tables,
                outside,
                content(Archive(io.BytesIO(data[:end]), tables=outside)),
            )
            for end in earlier
        )

    def full(make: Any, rows: int, *shape: int) -> Codes:
        labels, bits = [("x", "yy", "")[i % 3] for i in range(rows)], np.arange(rows, dtype=np.float32) / 8
        return make(rows, *shape, names=make_names(rows), labels=labels, uncertainty=bits)

    for alphabet, latents in ((2, 7), (5, 4), (300, 2)):
        tables = make_tables(latents, alphabet, decoder=alphabet != 5)
        codes = full(make_codes, 24, latents, alphabet)
        add(f"independent, {alphabet} values", codes, tables, segment_rows=13, skipped=SKIPPED)
        for version in (1, 2, 3):
            add(f"version {version}, {alphabet} values", codes, tables, segment_rows=13, version=version)
        add(f"outside, {alphabet} values", codes, tables, embed=False, names=False)
        bases.append(Base(f"tables, {alphabet} values", tables.data, tables))
        for hidden in (0, 5):
            network = make_tables(latents, alphabet, decoder=False, network=make_network(latents, alphabet, hidden))
            chain = full(make_chain, 24, latents, alphabet)
            add(f"network of {hidden}, {alphabet} values", chain, network, segment_rows=13)
            add(f"network of {hidden} outside, {alphabet} values", chain.prefix(2), network, embed=False)
            bases.append(Base(f"tables with {hidden}, {alphabet} values", network.data, network))
    categorical = make_tables(4, 5, width=3)
    add("categorical", full(make_codes, 24, 4, 5), categorical, segment_rows=13)
    bases.append(Base("categorical tables", categorical.data, categorical))
    tables = make_tables(7)
    names = make_names(30)
    add("bare", make_codes(30, 7), tables, embed=False, names=False, segment_rows=10)
    add("one latent", make_codes(30, 1, names=names), make_tables(1))
    add("empty", make_codes(0, 7), tables, skipped=SKIPPED)
    constant = make_codes(300, 6)
    constant = replace(constant, packed=constant.packed * 0 + 8)
    add("own table", constant, make_tables(6, decoder=False), segment_rows=150)
    linear = make_tables(7, network=make_network(7))
    chosen = (1, 2, 5)
    selected = Codes.from_symbols(make_chain(20, 7).symbols()[:, chosen], names=names[:20])
    add("selection", selected, linear, selection=chosen)
    both = Codes.concatenate([make_codes(30, 7, seed=5, names=names), make_chain(30, 7, seed=5, names=names)])
    fitted = [IndependentModel.fit(both[:30]), make_network(7, hidden=3)]
    add("fitted", both, make_tables(7, decoder=False), fitted=fitted, segment_rows=30, embed=False)
    add("selection, fitted", selected, linear, selection=chosen, fitted=[make_network(3)])
    add("appended", make_chain(24, 7, names=names[:24]), linear, appended=8, embed=False, skipped=SKIPPED)
    add("version 1, appended", make_chain(24, 7, names=names[:24]), linear, appended=8, version=1)
    add("appended, embedded", make_codes(12, 7), tables, appended=4)
    return bases
