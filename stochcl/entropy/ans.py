"""The ANS coder: rows of binary decisions to 32-bit words and back, with constriction."""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes, bits_per_symbol, decisions_to_symbols
from stochcl.entropy.autoregressive import AutoregressiveModel, Stepper
from stochcl.entropy.independent import DENOMINATOR, IndependentModel
from stochcl.errors import ChecksumMismatch, FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stochcl.entropy.model import EntropyModel

    Bits = NDArray[np.uint8]


# A block is coded in passes. Independent symbols: pass l holds the l-th decision of every symbol. Autoregressive:
# pass j holds decision j of every row. A decision whose P(1) exceeds a half is coded inverted, so all probabilities
# are at most a half and there are half as many of them. Within a pass, decisions are sorted by numerator, then by
# row, then by latent. A pass is then a few calls, each with one fixed model and many symbols: 0.5 us a call and
# 5 ns a symbol, against 120 ns a symbol with one parameter per symbol.

_START = 1 << 24
"""The coder's initial state: the smallest from which every decision costs its information content.

From a state of 0, the library's default, a zero leaves the state unchanged: rows of zeros would cost nothing, and
no number of words would bound the rows they hold. It costs nothing: the first decision would set 24 bits anyway.
"""

_HALF = DENOMINATOR // 2

_SHORT = 6
"""Mean run length of equal probabilities below which one call with a parameter per symbol is faster."""

_FEW = 96
"""Rows per block up to which runs are too short or too few to search for."""


@lru_cache(maxsize=DENOMINATOR)
def _model(numerator: int) -> Any:
    import constriction

    p = numerator / DENOMINATOR
    return constriction.stream.model.Categorical(np.array([1 - p, p]), perfect=True)


@cache
def _family() -> Any:
    """Return the model that takes one parameter per symbol; for multiples of 1/4096 it equals the fixed model."""
    import constriction

    return constriction.stream.model.Bernoulli(perfect=True)


def _coder(words: NDArray[np.uint32]) -> Any:
    import constriction

    return constriction.stream.stack.AnsCoder(words)


def _bounds(values: NDArray[np.integer]) -> list[int]:
    """Return the starts of runs of equal values, and the end of the last run."""
    return [0, *((values[1:] != values[:-1]).nonzero()[0] + 1).tolist(), len(values)]


def _fold(numerators: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Return numerators of at most a half, and a mask of the decisions that are inverted for it."""
    turned = numerators > _HALF
    return np.where(turned, DENOMINATOR - numerators, numerators).astype(np.uint16), turned


def _push(coder: Any, symbols: NDArray[np.int32], numerators: NDArray[np.uint16]) -> None:
    """Push symbols with ascending numerators, last first, because a stack returns them in reverse."""
    bounds = _bounds(numerators)
    if len(symbols) < _SHORT * (len(bounds) - 1):
        coder.encode_reverse(symbols, _family(), numerators / DENOMINATOR)
        return
    for start, end in zip(bounds[-2::-1], bounds[:0:-1], strict=True):
        coder.encode_reverse(symbols[start:end], _model(int(numerators[start])))


def _pop(coder: Any, numerators: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Pop the next symbols; their numerators ascend."""
    bounds = _bounds(numerators)
    if len(numerators) < _SHORT * (len(bounds) - 1):
        return coder.decode(_family(), numerators / DENOMINATOR)
    symbols = np.empty(len(numerators), np.int32)
    for start, end in pairwise(bounds):
        symbols[start:end] = coder.decode(_model(int(numerators[start])), end - start)
    return symbols


def encode_block(codes: Codes, model: EntropyModel, indices: Bits | None = None) -> NDArray[np.uint32]:
    """Code all rows into one ANS stream."""
    coder = _coder(np.array([_START], np.uint32))
    if isinstance(model, AutoregressiveModel):
        decisions = codes.decisions()
        _encode_autoregressive(
            coder, decisions, model, model.level_indices(decisions) if indices is None else indices
        )
    elif bits_per_symbol(codes.alphabet) == 1:
        _encode_bits(coder, codes.decisions(), model)
    else:
        _encode_trees(coder, codes, model)
    return np.asarray(coder.get_compressed(), dtype=np.uint32)


def decode_block(words: NDArray[np.uint32], rows: int, model: EntropyModel) -> Bits:
    """Decode what :func:`encode_block` coded."""
    return decode_blocks([words], [rows], model)[0]


def decode_blocks(words: Sequence[NDArray[np.uint32]], rows: Sequence[int], model: EntropyModel) -> list[Bits]:
    """Decode several blocks; an autoregressive model decodes them in lockstep to share the network's work."""
    if any(not len(stream) or stream[-1] == 0 for stream in words):
        raise FormatError("the stream of a block is empty or ends in an empty word")
    bits = bits_per_symbol(model.alphabet)
    try:
        coders = [_coder(stream) for stream in words]
        if isinstance(model, AutoregressiveModel):
            decoded = _decode_autoregressive(coders, rows, model)
        elif bits == 1:
            decoded = [_decode_bits(coder, n, model) for coder, n in zip(coders, rows, strict=True)]
        else:
            decoded = [_decode_trees(coder, n, model, bits) for coder, n in zip(coders, rows, strict=True)]
        spent = all(coder.get_compressed().tolist() == [_START] for coder in coders)
    except (ValueError, RuntimeError, AssertionError, OverflowError) as exc:
        raise FormatError(f"the stream of a block cannot be decoded ({exc})") from exc
    if not spent:
        raise ChecksumMismatch("the stream of a block does not end where its rows do")
    if bits > 1 and model.alphabet != 1 << bits:
        largest = max(int(decisions_to_symbols(block, model.alphabet).max(initial=0)) for block in decoded)
        if largest >= model.alphabet:
            raise FormatError(f"a block holds the symbol {largest} of an alphabet of {model.alphabet}")
    return [np.packbits(block, axis=1) for block in decoded]


# Independent symbols


def _encode_bits(coder: Any, decisions: Bits, model: IndependentModel) -> None:
    numerators, turned = _fold(model.ones[:, 0])
    order = np.argsort(numerators, kind="stable")
    ordered = decisions[:, order] ^ turned[order]
    bounds = _bounds(numerators[order])
    for start, end in zip(bounds[-2::-1], bounds[:0:-1], strict=True):
        part = np.ascontiguousarray(ordered[:, start:end], dtype=np.int32).reshape(-1)
        coder.encode_reverse(part, _model(int(numerators[order[start]])))


def _decode_bits(coder: Any, rows: int, model: IndependentModel) -> Bits:
    numerators, turned = _fold(model.ones[:, 0])
    order = np.argsort(numerators, kind="stable")
    bounds = _bounds(numerators[order])
    ordered = np.empty((rows, model.latents), np.uint8)
    for start, end in pairwise(bounds):
        part = coder.decode(_model(int(numerators[order[start]])), rows * (end - start))
        ordered[:, start:end] = part.reshape(rows, -1)
    decisions = np.empty_like(ordered)
    decisions[:, order] = ordered ^ turned[order]
    return decisions


def _encode_trees(coder: Any, codes: Codes, model: IndependentModel) -> None:
    bits = bits_per_symbol(codes.alphabet)
    symbols = codes.symbols()
    grouped = codes.decisions().reshape(len(codes), codes.latents, bits)
    for level in reversed(range(bits)):
        numerators, turned = _fold(_numerators(model, symbols >> (bits - level), level))
        order = np.argsort(numerators, kind="stable")
        ordered = (grouped[:, :, level].reshape(-1) ^ turned)[order].astype(np.int32)
        _push(coder, ordered, numerators[order])


def _decode_trees(coder: Any, rows: int, model: IndependentModel, bits: int) -> Bits:
    decisions = np.empty((rows, model.latents, bits), np.uint8)
    symbols = np.zeros((rows, model.latents), np.uint16)
    for level in range(bits):
        numerators, turned = _fold(_numerators(model, symbols, level))
        order = np.argsort(numerators, kind="stable")
        flat = np.empty(rows * model.latents, np.uint8)
        flat[order] = _pop(coder, numerators[order])
        decisions[:, :, level] = (flat ^ turned).reshape(rows, model.latents)
        symbols <<= 1
        symbols |= decisions[:, :, level]
    return decisions.reshape(rows, -1)


def _numerators(model: IndependentModel, prefix: NDArray[np.integer], level: int) -> NDArray[np.uint16]:
    """Return the numerator of each symbol's next decision given its earlier ones, flattened row by row."""
    nodes = (1 << level) - 1 + prefix.astype(np.intp)
    return model.ones[np.arange(model.latents), nodes].reshape(-1)


# Autoregressive networks


class _Levels:
    """A network's levels, folded and ranked: ranks are bytes, which sort faster than numerators."""

    def __init__(self, model: AutoregressiveModel) -> None:
        folded, self.turned = _fold(model.levels)
        self.numerators, ranks = np.unique(folded, return_inverse=True)
        self.ranks = ranks.astype(np.uint8)
        self.turned = self.turned.astype(np.uint8)
        self.models = [_model(int(k)) for k in self.numerators]
        self.probabilities = self.numerators / DENOMINATOR


def _encode_autoregressive(coder: Any, decisions: Bits, model: AutoregressiveModel, indices: Bits) -> None:
    levels = _Levels(model)
    ranks = levels.ranks[indices]
    order = np.argsort(ranks, axis=1, kind="stable")
    ranks = np.take_along_axis(ranks, order, axis=1)
    coded = np.take_along_axis(decisions.T ^ levels.turned[indices], order, axis=1).astype(np.int32)
    if ranks.shape[1] <= _FEW:  # all passes in one call
        coder.encode_reverse(coded.reshape(-1), _family(), levels.probabilities[ranks.reshape(-1)])
        return
    for j in reversed(range(len(ranks))):
        bounds = _bounds(ranks[j])
        if ranks.shape[1] < _SHORT * (len(bounds) - 1):
            coder.encode_reverse(coded[j], _family(), levels.probabilities[ranks[j]])
            continue
        first = ranks[j][bounds[:-1]].tolist()
        for start, end, rank in zip(bounds[-2::-1], bounds[:0:-1], reversed(first), strict=True):
            coder.encode_reverse(coded[j, start:end], levels.models[rank])


def _decode_autoregressive(coders: Sequence[Any], rows: Sequence[int], model: AutoregressiveModel) -> list[Bits]:
    levels = _Levels(model)
    total = sum(rows)
    places = list(pairwise(np.cumsum([0, *rows]).tolist()))
    family = _family()
    # One sort serves all blocks: the key's high part is the block, its low byte the rank. 16-bit keys sort faster.
    dtype: type[np.uint16] | type[np.uint32] = np.uint16 if len(rows) <= 256 else np.uint32
    block: NDArray[np.uint16 | np.uint32] = np.repeat((np.arange(len(rows)) << 8).astype(dtype), rows)
    ranks: NDArray[np.uint16 | np.uint32] = levels.ranks.astype(dtype)
    few = total <= _FEW * len(rows)
    stepper = Stepper(model, total)
    coded = np.empty(total, np.uint8)
    decisions = np.empty(total, np.uint8)
    for indices in stepper:
        keys = ranks[indices]
        keys |= block
        order = keys.argsort(kind="stable")
        keys = keys[order]
        bounds = [] if few else _bounds(keys)
        if few or total < _SHORT * (len(bounds) - 1):
            p = levels.probabilities[keys & 0xFF]
            for coder, (start, end) in zip(coders, places, strict=True):
                coded[start:end] = coder.decode(family, p[start:end])
        else:
            for start, end, key in zip(bounds[:-1], bounds[1:], keys[bounds[:-1]].tolist(), strict=True):
                coded[start:end] = coders[key >> 8].decode(levels.models[key & 0xFF], end - start)
        decisions[order] = coded
        decisions ^= levels.turned[indices]
        stepper.tell(decisions)
    return [np.ascontiguousarray(stepper.decisions[:, a:b].T) for a, b in places]
