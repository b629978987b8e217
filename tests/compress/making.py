"""Codes, tables and archives that the tests of this room are made of; everything is a formula, nothing random."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from stochcl.codes import Codes, bits_per_symbol
from stochcl.compress import Header, Writer
from stochcl.entropy.autoregressive import AutoregressiveModel
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables
from stochcl.entropy.vectors import ResidualDecoder, VectorDecoder
from stochcl.framing import VERSION

STAGES = (3, 2, 1, 1)  # bits of the words of residual codes
LEVELS = np.array([1, 9, 74, 194, 488, 1000, 1500, 2048, 2596, 3096, 3608, 3902, 4022, 4087, 4095], np.uint16)


class Stop(Exception):
    """Ends a test's writing halfway."""


def partials(folder: Path) -> list[str]:
    """The names of what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Numbers from 0 to 1 that look random."""
    i = np.arange(rows, dtype=np.uint64)[:, None] + np.uint64(seed * 7919 + 1)
    j = np.arange(columns, dtype=np.uint64)[None, :] + np.uint64(1)
    mixed = (i * np.uint64(0x9E3779B97F4A7C15)) ^ (j * np.uint64(0xBF58476D1CE4E5B9))
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def make_codes(rows: int, latents: int, alphabet: int = 2, seed: int = 0, **extra) -> Codes:
    """Codes whose latents have different, skewed distributions."""
    unit = noise(rows, latents, seed)
    power = 0.3 + 3 * (np.arange(latents) % 7) / 6
    return Codes.from_symbols(
        np.minimum(unit**power * alphabet, alphabet - 1).astype(int), alphabet=alphabet, **extra
    )


def make_chain(rows: int, latents: int, alphabet: int = 2, seed: int = 0, **extra) -> Codes:
    """Codes whose latents are mostly what the one before them is: a network's, and no table's."""
    unit = noise(rows, latents, seed)
    symbols = np.minimum((noise(rows, latents, seed + 1) * alphabet).astype(int), alphabet - 1)
    for j in range(1, latents):
        symbols[:, j] = np.where(unit[:, j] < 0.9, symbols[:, j - 1], symbols[:, j])
    return Codes.from_symbols(symbols, alphabet=alphabet, **extra)


def make_network(latents: int, alphabet: int = 2, hidden: int = 0) -> AutoregressiveModel:
    """A network that expects what :func:`make_chain` makes, with other small weights everywhere."""
    bits = bits_per_symbol(alphabet)
    t = latents * bits
    j, i = np.indices((t, t))
    direct = np.where(i == j - bits, 50, (37 * i + 11 * j) % 7 - 3) * (i < j)
    hidden = hidden if t > 1 else 0
    degrees = 1 + np.arange(hidden) * (t - 1) // max(1, hidden)
    h, i = np.indices((hidden, t))
    weights = ((29 * h + 17 * i) % 31 - 15) * (i < degrees[:, None])
    output = ((13 * h + 7 * i) % 15 - 7).T * (degrees[None, :] <= np.arange(t)[:, None])
    node, latent = np.indices(((1 << bits) - 1, latents))
    return AutoregressiveModel(
        latents=latents,
        alphabet=alphabet,
        levels=LEVELS,
        degrees=degrees.astype(np.uint16),
        hidden_weights=weights.astype(np.int8),
        hidden_bias=((np.arange(hidden) * 5) % 11 - 5).astype(np.int32),
        hidden_multiplier=np.full(hidden, 40_000, np.uint16),
        direct=direct.astype(np.int8),
        output=output.astype(np.int8),
        multiplier=(9000 + np.arange(t) % 5 * 100).astype(np.uint16),
        bias=(256 * 7 + 128 + (31 * node + 17 * latent).T % 101 - 50).astype(np.int32),
    )


def make_names(rows: int) -> list[str]:
    return [f"{'cat' if i % 2 else 'dog'}/{i:04d}.jpg" for i in range(rows)]


def make_decoder(latents: int, dim: int = 3, books: tuple[int, int] | None = None) -> VectorDecoder:
    """A decoder of two layers whose weights are small fractions; with codebooks for K symbols of e numbers."""
    alphabet, width = books or (0, 1)
    inputs = latents * width
    grid = np.arange(4 * inputs, dtype=np.float32).reshape(4, inputs)
    first = ((grid * 37 % 19) - 9) / 32
    second = ((np.arange(4 * dim, dtype=np.float32).reshape(dim, 4) * 11 % 7) - 3) / 8
    layers = [(first, np.full(4, 0.25)), (second, np.linspace(-1, 1, dim))]
    if books is None:
        return VectorDecoder.from_arrays(np.full(latents, 0.5), np.full(latents, 2.0), layers)
    numbers = np.arange(inputs * alphabet, dtype=np.float32).reshape(latents, alphabet, width)
    embeddings = ((numbers * 29 % 23) - 11) / 16
    return VectorDecoder.from_arrays(np.full(inputs, 0.125), np.full(inputs, 1.5), layers, embeddings)


def make_tables(
    latents: int, alphabet: int = 2, *, decoder: bool = True, network: AutoregressiveModel | None = None,
    width: int = 0,
) -> Tables:  # fmt: skip
    """Tables of so many latents; the decoder has codebooks of so wide embeddings, or none."""
    model = IndependentModel.fit(make_codes(500, latents, alphabet, seed=99))
    ladder = tuple(sorted({1, max(1, latents // 2), latents}))
    books = (alphabet, width) if width else None
    return Tables(ladder, model, make_decoder(latents, books=books) if decoder else None, network)


def make_header(tables: Tables, latents: int | None = None, selection: tuple[int, ...] | None = None) -> Header:
    return Header(
        model="test",
        model_sha256="ab" * 32,
        model_latents=tables.latents,
        latents=tables.latents if latents is None else latents,
        alphabet=tables.alphabet,
        precision="fp32",
        tables_sha256=tables.sha256,
        feature_dim=3,
        input_bytes=192,
        source_kind="folder",
        preprocess={"size": 8, "fit": "crop"},
        selection=selection,
    )


def write(
    path,
    codes: Codes,
    tables: Tables,
    *,
    embed=True,
    step=None,
    skipped=(),
    selection=None,
    version=VERSION,
    **options,
):
    """Write codes to an archive, so many rows at a time."""
    header = replace(make_header(tables, codes.latents, selection), version=version)
    with Writer(path, header, tables, embed_tables=embed, **options) as writer:
        for name, reason in skipped:
            writer.skip(name, reason)
        for start in range(0, len(codes), step or max(1, len(codes))):
            part = codes[start : start + (step or len(codes))]
            writer.add(part, sizes=[100] * len(part))
    return path


def usual_zlib() -> bool:
    """Tell whether this zlib deflates as zlib itself does; zlib-ng, for one, gives other bytes."""
    probe = "".join(f"{i * i % 97:x}/{i:04d}.jpg" for i in range(200)).encode()
    return zlib.crc32(zlib.compress(probe, 9)) == 0xD1D0892C


def make_residual(stages=STAGES, width=4, dim=0) -> ResidualDecoder:
    words = [noise(1 << bits, width, seed) - 0.5 for seed, bits in enumerate(stages)]
    if not dim:
        return ResidualDecoder.of_stages(words)
    return ResidualDecoder.of_stages(words, noise(width, dim, 50) - 0.5, noise(1, dim, 51)[0])


def make_residual_tables(stages=STAGES, dim=0) -> Tables:
    latents = sum(stages)
    ends = tuple(int(end) for end in np.cumsum(stages))
    entropy = IndependentModel.fit(make_codes(200, latents))
    return Tables(ends, entropy, make_residual(stages, dim=dim), make_network(latents, hidden=3))
