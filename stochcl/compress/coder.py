"""The coder: rows of decisions to 32-bit words and back, through constriction's ANS, pass by pass."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes, bits_per_symbol, decisions_to_symbols
from stochcl.compress.independent import DENOMINATOR
from stochcl.errors import ChecksumMismatch, FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.compress.independent import IndependentModel

# A block is coded in passes. Pass l holds the l-th decision of every symbol, whose probabilities are known once
# the passes before it are; an autoregressive model will have more passes, and nothing else changes. Within a
# pass decisions stand in ascending order of their numerators, and for equal ones row by row, then by latent.
# So a pass is a few calls, each with one fixed model and many symbols: 4-11 ns a symbol, where a parameter
# for each symbol costs 110 ns.

_START = 1 << 24
"""The coder's state before the first decision: the least in which every decision costs what it should.

From a state of 0, the library's default, a zero leaves the state as it is: rows of zeros would cost nothing, and no
bound on what a number of words can hold would be true. It costs no more: the first one would set 24 bits anyway.
"""


@lru_cache(maxsize=DENOMINATOR)
def _model(numerator: int) -> Any:
    import constriction

    p = numerator / DENOMINATOR
    return constriction.stream.model.Categorical(np.array([1 - p, p]), perfect=True)


def _runs(numerators: NDArray[np.uint16]) -> tuple[NDArray[np.intp], list[tuple[int, int, int]]]:
    """Sort numerators stably; return the order and the runs of equal ones as (numerator, start, end)."""
    order = np.argsort(numerators, kind="stable")
    values, starts = np.unique(numerators[order], return_index=True)
    ends = [*starts[1:].tolist(), len(order)]
    return order, list(zip(values.tolist(), starts.tolist(), ends, strict=True))


def encode_block(codes: Codes, model: IndependentModel) -> NDArray[np.uint32]:
    """Code all rows into one ANS stream.

    Parameters
    ----------
    codes : Codes
        At least one row, with the model's latents and alphabet.
    model : IndependentModel

    Returns
    -------
    ndarray of uint32, shape (words,)
    """
    import constriction

    coder = constriction.stream.stack.AnsCoder(np.array([_START], np.uint32))
    bits = bits_per_symbol(codes.alphabet)
    decisions = codes.decisions()
    # A stack gives back last what it took first, so everything goes in backwards.
    if bits == 1:
        order, runs = _runs(model.ones[:, 0])
        ordered = decisions[:, order]
        for numerator, start, end in reversed(runs):
            part = np.ascontiguousarray(ordered[:, start:end], dtype=np.int32).reshape(-1)
            coder.encode_reverse(part, _model(numerator))
        return np.asarray(coder.get_compressed(), dtype=np.uint32)
    symbols = codes.symbols()
    grouped = decisions.reshape(len(codes), codes.latents, bits)
    for level in reversed(range(bits)):
        order, runs = _runs(_numerators(model, symbols >> (bits - level), level))
        ordered = grouped[:, :, level].reshape(-1)[order].astype(np.int32)
        for numerator, start, end in reversed(runs):
            coder.encode_reverse(ordered[start:end], _model(numerator))
    return np.asarray(coder.get_compressed(), dtype=np.uint32)


def decode_block(words: NDArray[np.uint32], rows: int, model: IndependentModel) -> NDArray[np.uint8]:
    """Decode what :func:`encode_block` coded.

    Returns
    -------
    ndarray of uint8, shape (rows, ceil(decisions / 8))
        Packed as in :class:`~stochcl.codes.Codes`.

    Raises
    ------
    FormatError
        If the words are not a stream of just these rows, or hold a symbol that the alphabet does not have.
    """
    import constriction

    bits = bits_per_symbol(model.alphabet)
    if not len(words) or words[-1] == 0:
        raise FormatError("the stream of a block is empty or ends in an empty word")
    try:
        coder = constriction.stream.stack.AnsCoder(words)
        decoded = _decode_bits(coder, rows, model) if bits == 1 else _decode_trees(coder, rows, model, bits)
        spent = coder.get_compressed().tolist() == [_START]
    except (ValueError, RuntimeError, AssertionError, OverflowError) as exc:
        raise FormatError(f"the stream of a block cannot be decoded ({exc})") from exc
    if not spent:
        raise ChecksumMismatch("the stream of a block does not end where its rows do")
    if bits > 1 and model.alphabet != 1 << bits:
        largest = int(decisions_to_symbols(decoded, model.alphabet).max(initial=0))
        if largest >= model.alphabet:
            raise FormatError(f"a block holds the symbol {largest} of an alphabet of {model.alphabet}")
    return np.packbits(decoded, axis=1)


def _decode_bits(coder: Any, rows: int, model: IndependentModel) -> NDArray[np.uint8]:
    order, runs = _runs(model.ones[:, 0])
    ordered = np.empty((rows, model.latents), np.uint8)
    for numerator, start, end in runs:
        ordered[:, start:end] = coder.decode(_model(numerator), rows * (end - start)).reshape(rows, -1)
    decisions = np.empty_like(ordered)
    decisions[:, order] = ordered
    return decisions


def _decode_trees(coder: Any, rows: int, model: IndependentModel, bits: int) -> NDArray[np.uint8]:
    decisions = np.empty((rows, model.latents, bits), np.uint8)
    symbols = np.zeros((rows, model.latents), np.uint16)
    for level in range(bits):
        order, runs = _runs(_numerators(model, symbols, level))
        flat = np.empty(rows * model.latents, np.uint8)
        for numerator, start, end in runs:
            flat[order[start:end]] = coder.decode(_model(numerator), end - start)
        decisions[:, :, level] = flat.reshape(rows, model.latents)
        symbols <<= 1
        symbols |= decisions[:, :, level]
    return decisions.reshape(rows, -1)


def _numerators(model: IndependentModel, prefix: NDArray[np.integer], level: int) -> NDArray[np.uint16]:
    """Return the numerator of every symbol's next decision, given those before it, flattened row by row."""
    nodes = (1 << level) - 1 + prefix.astype(np.intp)
    return model.ones[np.arange(model.latents), nodes].reshape(-1)
