"""The golden archives: what they hold, and how they are made. ``pytest --remake-golden`` writes them anew."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stochcl.codes import Codes
from stochcl.compress import Tables
from tests.compress.making import make_codes, make_names, make_tables

SKIPPED = (("broken/\udce9.png", "it is empty"), ("cat/0003.jpg", "it is cut short"))


@dataclass(frozen=True)
class Golden:
    """What one golden archive holds, and the options that it is written with."""

    codes: Codes
    tables: Tables
    skipped: tuple[tuple[str, str], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def archives() -> dict[str, Golden]:
    """Return every golden archive by name."""
    names = [*make_names(29), "dog/\udcff ä"]
    everything = make_codes(
        30, 20, names=names, labels=["x", "y", ""] * 10, uncertainty=np.arange(30, dtype=np.float32) / 8
    )
    constant = Codes.from_symbols(np.zeros((2000, 6), int))
    return {
        "binary.bin": Golden(everything, make_tables(20), SKIPPED, {"segment_rows": 16}),
        "prefix.bin": Golden(everything.prefix(7), make_tables(20), (), {"names": False}),
        "five.bin": Golden(make_codes(25, 6, 5), make_tables(6, 5, decoder=False)),
        "own-table.bin": Golden(constant, make_tables(6, decoder=False)),
        "outside.bin": Golden(make_codes(3000, 20, seed=3), make_tables(20), (), {"embed": False}),
        "empty.bin": Golden(everything[:0], make_tables(20), SKIPPED),
    }
