"""The golden archives: what they hold, and how they are made. ``pytest --remake-golden`` writes them anew."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stochcl.codes import Codes
from stochcl.compress import Archive
from stochcl.compress.segment import write_segment
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.model import FITTED, INDEPENDENT, NETWORK, OWN
from stochcl.entropy.tables import Tables
from stochcl.framing import crc
from tests.compress.making import (
    make_chain,
    make_codes,
    make_names,
    make_network,
    make_residual_tables,
    make_tables,
    write,
)

SKIPPED = (("broken/\udce9.png", "it is empty"), ("cat/0003.jpg", "it is cut short"))


@dataclass(frozen=True)
class Golden:
    """What one golden archive holds, the options that it is written with, and the models of its segments."""

    codes: Codes
    tables: Tables
    skipped: tuple[tuple[str, str], ...] = ()
    models: tuple[int, ...] = (INDEPENDENT,)
    options: dict[str, Any] = field(default_factory=dict)
    appended: int = 0
    """Rows, the last ones, that were appended to an archive of the others."""

    def write(self, path: Path) -> Path:
        """Write the archive."""
        before = self.codes[: len(self.codes) - self.appended]
        write(path, before, self.tables, skipped=self.skipped, **{"version": 1} | self.options)
        if self.appended:
            append(path, self.codes[len(before) :], self.tables)
        return path


def append(path: Path, codes: Codes, tables: Tables) -> None:
    """Append a segment as docs/FORMAT.md says: behind the old index and trailer, which are a retired part now."""
    data = path.read_bytes()
    with Archive(path) as archive:
        old = archive._index
    head, chunk = write_segment(codes, tables.candidates(codes.latents), old.version)
    new = replace(
        old,
        rows=old.rows + len(codes),
        source_bytes=old.source_bytes + 100 * len(codes),
        segments=(*old.segments, (len(data), head)),
        start=len(data) + len(chunk),
        retired=(*old.retired, (old.start, len(data) - old.start, crc(data[old.start :]))),
    )
    path.write_bytes(data + chunk + new.to_bytes())


def archives() -> dict[str, Golden]:
    """Return every golden archive by name."""
    names = [*make_names(29), "dog/\udcff ä"]
    everything = make_codes(
        30, 20, names=names, labels=["x", "y", ""] * 10, uncertainty=np.arange(30, dtype=np.float32) / 8
    )
    constant = Codes.from_symbols(np.zeros((2000, 6), int))
    chain, five = make_chain(60, 12, names=make_names(60)), make_chain(40, 6, 5)
    linear = make_tables(12, network=make_network(12))
    masked = make_tables(12, network=make_network(12, hidden=7))
    masked_five = make_tables(6, 5, decoder=False, network=make_network(6, 5, 7))
    both = Codes.concatenate([make_codes(400, 12, seed=5), make_chain(400, 12, seed=5)])
    fitted = [IndependentModel.fit(both[:400]), make_network(12, hidden=3)]
    chosen = (1, 2, 5, 8, 11)
    selected = Codes.from_symbols(chain.symbols()[:, chosen], names=chain.names)
    return (
        {
            "binary.bin": Golden(everything, make_tables(20), SKIPPED, (INDEPENDENT,) * 2, {"segment_rows": 16}),
            "uncertainty.bin": Golden(
                everything, make_tables(20), options={"segment_rows": 16, "version": 2}, models=(INDEPENDENT,) * 2
            ),
            "prefix.bin": Golden(everything.prefix(7), make_tables(20), options={"names": False}),
            "five.bin": Golden(make_codes(25, 6, 5), make_tables(6, 5, decoder=False)),
            "categorical.bin": Golden(
                five, make_tables(6, 5, network=make_network(6, 5, 7), width=2), models=(NETWORK,)
            ),
            "categorical-prefix.bin": Golden(five.prefix(4), make_tables(6, 5, width=2)),
            "own-table.bin": Golden(constant, make_tables(6, decoder=False), models=(OWN,)),
            "outside.bin": Golden(make_codes(3000, 20, seed=3), make_tables(20), options={"embed": False}),
            "empty.bin": Golden(everything[:0], make_tables(20), SKIPPED, ()),
            "linear.bin": Golden(chain, linear, SKIPPED, (NETWORK,) * 3, {"segment_rows": 25}),
            "masked.bin": Golden(chain, masked, models=(NETWORK,)),
            "masked-prefix.bin": Golden(chain.prefix(5), masked, models=(NETWORK,)),
            "masked-five.bin": Golden(five, masked_five, models=(NETWORK,)),
            "fitted.bin": Golden(
                both, make_tables(12, decoder=False), (), (FITTED,) * 2, {"fitted": fitted, "segment_rows": 400}
            ),
            "selection.bin": Golden(selected, masked, options={"selection": chosen}),
            "selection-fitted.bin": Golden(
                selected, linear, (), (FITTED,), {"selection": chosen, "fitted": [make_network(5)]}
            ),
            "appended.bin": Golden(chain, linear, SKIPPED, (NETWORK,) * 2, appended=20),
            "residual.bin": Golden(make_codes(60, 7, seed=8), make_residual_tables(), SKIPPED),
            "residual-map.bin": Golden(make_codes(60, 7, seed=8).prefix(4), make_residual_tables(dim=6)),
            "residual-selection.bin": Golden(
                Codes.from_symbols(make_codes(40, 7, seed=9).symbols()[:, (0, 2, 4, 6)]),
                make_residual_tables(),
                options={"selection": (0, 2, 4, 6)},
            ),
            "wide.bin": Golden(make_codes(330, 512, seed=7), make_tables(512, decoder=False)),
            "blocks.bin": Golden(
                make_chain(12_000, 16),
                make_tables(16, network=make_network(16)),
                (),
                (NETWORK,),
                {"segment_rows": 12_000},
            ),
        }
        | _version_3(everything, chain, selected, chosen)
        | _version_4()
    )


def _version_3(everything: Codes, chain: Codes, selected: Codes, chosen: tuple[int, ...]) -> dict[str, Golden]:
    linear, new = make_tables(12, network=make_network(12)), {"version": 3}
    return {
        "v3-one.bin": Golden(everything[:1], make_tables(20), options=new | {"embed": False}),
        "v3-empty.bin": Golden(everything[:0], make_tables(20), SKIPPED, (), new),
        "v3-everything.bin": Golden(
            everything, make_tables(20), SKIPPED, (INDEPENDENT,) * 2, new | {"segment_rows": 16}
        ),
        "v3-appended.bin": Golden(chain, linear, SKIPPED, (NETWORK,) * 2, new, appended=20),
        "v3-selection.bin": Golden(
            selected, linear, (), (FITTED,), new | {"selection": chosen, "fitted": [make_network(5)]}
        ),
    }


def _version_4() -> dict[str, Golden]:
    """Labels of a segment as numbers of one byte, of two, and as texts."""
    labels = [*["x", "y", ""] * 200, *(f"class {7 * i % 300}" for i in range(600)), *map(str, range(5))]
    codes = make_codes(1205, 5, labels=labels)
    options = {"version": 4, "segment_rows": 600}
    return {"v4-labels.bin": Golden(codes, make_tables(5, decoder=False), SKIPPED, (INDEPENDENT,) * 3, options)}
