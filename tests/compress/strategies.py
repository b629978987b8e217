"""What hypothesis makes: archives of every kind of model, shape and option."""

import numpy as np
from hypothesis import strategies as st

from stochcl.codes import Codes
from stochcl.entropy.independent import IndependentModel
from tests.compress.golden import SKIPPED
from tests.compress.making import make_chain, make_codes, make_names, make_network, make_tables, noise


def codes_of(kind: str, rows: int, latents: int, alphabet: int, **extra) -> Codes:
    """Codes that are constant, uniform, skewed, or each mostly what the one before it is."""
    if kind == "constant":
        return Codes.from_symbols(np.full((rows, latents), rows % alphabet), alphabet=alphabet, **extra)
    if kind == "uniform":
        return Codes.from_symbols((noise(rows, latents) * alphabet).astype(int), alphabet=alphabet, **extra)
    return (make_chain if kind == "chain" else make_codes)(rows, latents, alphabet, **extra)


@st.composite
def archives_of(draw, most_rows=25, most_latents=6):
    """Codes, tables and the options to write them with."""
    alphabet = draw(st.sampled_from([2, 2, 3, 5, 16, 300, 4096]))
    latents = draw(st.integers(1, most_latents if alphabet < 300 else 4))
    rows = draw(st.integers(0, most_rows))
    named, labelled, sure = (draw(st.booleans()) for _ in range(3))
    extra = {
        "names": make_names(rows) if named else None,
        "labels": [("a", "", "ä\udcff")[i % 3] for i in range(rows)] if labelled else None,
        "uncertainty": np.arange(rows, dtype=np.float32) % 256 / 4 if sure else None,
    }
    kind = draw(st.sampled_from(["skewed", "chain", "constant", "uniform"]))
    codes = codes_of(kind, rows, latents, alphabet, **extra)
    width = latents + draw(st.integers(0, 2))
    network = make_network(width, alphabet, draw(st.integers(0, 5))) if draw(st.booleans()) else None
    decoder, embedding = draw(st.booleans()), draw(st.integers(0, 3))
    tables = make_tables(width, alphabet, decoder=decoder, network=network, width=embedding)
    chosen = sorted(draw(st.permutations(range(width)))[:latents]) if draw(st.booleans()) else None
    own = {
        "independent": lambda: IndependentModel.fit(make_codes(50, latents, alphabet, seed=3)),
        "linear": lambda: make_network(latents, alphabet),
        "masked": lambda: make_network(latents, alphabet, 4),
    }
    kinds = draw(st.lists(st.sampled_from(sorted(own)), max_size=2))
    options = {
        "segment_rows": draw(st.integers(1, max(12, most_rows // 2))),
        "embed": draw(st.booleans()),
        "names": draw(st.booleans()),
        "selection": None if chosen is None else tuple(chosen),
        "version": draw(st.sampled_from([1, 2, 3, 4])),
        "fitted": [own[kind]() for kind in kinds],
        "skipped": SKIPPED[: draw(st.integers(0, 2))],
    }
    return codes, tables, options
