"""Codes, tables and archives that the tests of this room are made of; everything is a formula, nothing random."""

import numpy as np

from stochcl.codes import Codes
from stochcl.compress import Header, IndependentModel, Tables, VectorDecoder, Writer


def make_codes(rows: int, latents: int, alphabet: int = 2, seed: int = 0, **extra) -> Codes:
    """Codes whose latents have different, skewed distributions."""
    i = np.arange(rows, dtype=np.uint64)[:, None] + np.uint64(seed * 7919 + 1)
    j = np.arange(latents, dtype=np.uint64)[None, :] + np.uint64(1)
    noise = (i * np.uint64(0x9E3779B97F4A7C15)) ^ (j * np.uint64(0xBF58476D1CE4E5B9))
    noise = (noise ^ (noise >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    unit = (noise >> np.uint64(11)).astype(np.float64) / 2**53
    power = 0.3 + 3 * (np.arange(latents) % 7) / 6
    return Codes.from_symbols(
        np.minimum(unit**power * alphabet, alphabet - 1).astype(int), alphabet=alphabet, **extra
    )


def make_names(rows: int) -> list[str]:
    return [f"{'cat' if i % 2 else 'dog'}/{i:04d}.jpg" for i in range(rows)]


def make_decoder(latents: int, dim: int = 3) -> VectorDecoder:
    """A decoder of two layers whose weights are small fractions."""
    grid = np.arange(4 * latents, dtype=np.float32).reshape(4, latents)
    first = ((grid * 37 % 19) - 9) / 32
    second = ((np.arange(4 * dim, dtype=np.float32).reshape(dim, 4) * 11 % 7) - 3) / 8
    layers = [(first, np.full(4, 0.25)), (second, np.linspace(-1, 1, dim))]
    return VectorDecoder.from_arrays(np.full(latents, 0.5), np.full(latents, 2.0), layers)


def make_tables(latents: int, alphabet: int = 2, *, decoder: bool = True) -> Tables:
    model = IndependentModel.fit(make_codes(500, latents, alphabet, seed=99))
    ladder = tuple(sorted({1, max(1, latents // 2), latents}))
    return Tables(ladder, model, make_decoder(latents) if decoder else None)


def make_header(tables: Tables, latents: int | None = None) -> Header:
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
    )


def write(path, codes: Codes, tables: Tables, *, embed=True, step=None, skipped=(), **options):
    """Write codes to an archive, so many rows at a time."""
    with Writer(path, make_header(tables, codes.latents), tables, embed_tables=embed, **options) as writer:
        for name, reason in skipped:
            writer.skip(name, reason)
        for start in range(0, len(codes), step or max(1, len(codes))):
            part = codes[start : start + (step or len(codes))]
            writer.add(part, sizes=[100] * len(part))
    return path
