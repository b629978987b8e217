"""The uncertainty of a segment's rows, as bytes: two each in version 1 of the format, one, deflated, in version 2."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from stochcl.compress.framing import inflate, pack_varints, unpack_varints
from stochcl.errors import FormatError, Truncated

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXPONENT = struct.Struct("<b")
_FINEST, _COARSEST = -8, 12  # of a step: 1/256 of a bit is finer than half precision has it for 64 bits
_MOST = 1 << 16  # bits, and more than a row can have
_LEVELS = 255


def pack_uncertainty(values: NDArray[np.floating], version: int) -> bytes:
    """Write the entropies of a segment's rows.

    In version 2 each is a whole number of steps above the least, 0 to 255; the step is the smallest power of two
    for which that is enough. So what was read from one archive, and any choice of it, is written to another without
    a further loss.

    Parameters
    ----------
    values : ndarray of float, shape (N,)
        In bits.
    version : int
        Of the format.

    Raises
    ------
    ValueError
        If one is negative, or no number, or more than 65,536 (version 2).
    """
    if version == 1:
        return values.astype("<f2").tobytes()
    exact = np.asarray(values, np.float64)
    if not ((exact >= 0) & (exact <= _MOST)).all():
        msg = "an uncertainty is an entropy in bits: 0 or more, and finite"
        raise ValueError(msg)
    low, high = float(exact.min()), float(exact.max())
    exponent = _FINEST
    while _whole(high, exponent) - _whole(low, exponent) > _LEVELS:
        exponent += 1
    steps = np.rint(np.ldexp(exact, -exponent)).astype(np.int64)
    while exponent < _COARSEST and not (steps & 1).any():  # fewer values for the same numbers deflate better
        exponent, steps = exponent + 1, steps >> 1
    least = int(steps.min())
    return _EXPONENT.pack(exponent) + pack_varints([least]) + _deflated((steps - least).astype(np.uint8).tobytes())


def _whole(value: float, exponent: int) -> int:
    return int(np.rint(np.ldexp(value, -exponent)))


def _deflated(data: bytes) -> bytes:
    """Deflate by frequencies alone, which suits numbers in no order, or as usual, whichever is less."""
    by_frequency = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return min(by_frequency.compress(data) + by_frequency.flush(), zlib.compress(data, 9), key=len)


def unpack_uncertainty(data: bytes, rows: int, version: int, what: str = "the uncertainty") -> NDArray[np.float32]:
    """Read what :func:`pack_uncertainty` wrote, float32, shape (rows,).

    Raises
    ------
    FormatError
        If it is not that.
    """
    if version == 1:
        if len(data) != 2 * rows:
            raise FormatError(f"{what} of {rows} rows has {len(data)} bytes, not two a row")
        return np.frombuffer(data, "<f2").astype(np.float32)
    if not data:
        raise Truncated(f"{what} has no bytes")
    (exponent,) = _EXPONENT.unpack_from(data)
    (least,), start = unpack_varints(data, 1, _EXPONENT.size)
    if not _FINEST <= exponent <= _COARSEST or np.ldexp(float(least), exponent) > _MOST:
        raise FormatError(f"{what} begins at {least:,} steps of 2^{exponent} bits, which makes no sense")
    steps = np.frombuffer(inflate(data[start:], rows, what), np.uint8)
    return np.ldexp((least + steps.astype(np.int64)).astype(np.float64), exponent).astype(np.float32)
