"""Orders in which codes are laid out as bytes before a general compressor sees them."""

from __future__ import annotations

import numpy as np

from stochcl.codes import Codes, symbol_dtype

ROWS, COLUMNS, PLANES = "rows", "columns", "planes"
"""Row after row, packed; latent after latent; and for wider alphabets also bit after bit of every latent."""


def layouts(alphabet: int) -> tuple[str, ...]:
    """Return the layouts that differ for an alphabet: binary latents are their own bit planes.

    Examples
    --------
    >>> layouts(2), layouts(256)
    (('rows', 'columns'), ('rows', 'columns', 'planes'))
    """
    return (ROWS, COLUMNS) if alphabet == 2 else (ROWS, COLUMNS, PLANES)


def lay_out(codes: Codes, layout: str) -> bytes:
    """Write codes as bytes: packed rows, symbols of one latent after the other, or transposed bit planes."""
    if layout == ROWS:
        return codes.packed.tobytes()
    if layout == COLUMNS and codes.alphabet > 2:
        return np.ascontiguousarray(codes.symbols().T).tobytes()
    return np.packbits(np.ascontiguousarray(codes.decisions().T), axis=1).tobytes()


def take_up(data: bytes, layout: str, rows: int, latents: int, alphabet: int) -> Codes:
    """Invert :func:`lay_out`."""
    empty = Codes.from_symbols(np.empty((0, latents), np.uint8), alphabet=alphabet)
    if layout == ROWS:
        packed = np.frombuffer(data, np.uint8).reshape(rows, empty.packed.shape[1])
        return Codes(packed, latents, alphabet)
    if layout == COLUMNS and alphabet > 2:
        symbols = np.frombuffer(data, symbol_dtype(alphabet)).reshape(latents, rows)
        return Codes.from_symbols(np.ascontiguousarray(symbols.T), alphabet=alphabet)
    planes = np.frombuffer(data, np.uint8).reshape(empty.decisions_per_row, -1)
    decisions = np.unpackbits(planes, axis=1, count=rows).T
    return Codes(np.packbits(np.ascontiguousarray(decisions), axis=1), latents, alphabet)
