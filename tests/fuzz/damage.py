"""What happens to files by accident."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

from stochcl.compress import Archive
from stochcl.framing import BLOCK

if TYPE_CHECKING:
    from random import Random

    from tests.fuzz.bases import Base


def damage(rng: Random, base: Base, others: list[Base]) -> tuple[str, bytes]:
    """Return what was done, and what came of it."""
    how = rng.choice(_WAYS)
    data = how(rng, base, others)
    if rng.random() < 0.1:
        data = rng.choice(_SIMPLE)(rng, data)
    return how.__name__.strip("_"), data


def _simple(rng: Random, base: Base, _: list[Base]) -> bytes:
    return rng.choice(_SIMPLE)(rng, base.data)


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: Random, data: bytes) -> bytes:
    start, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 40))
    new = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size))
    return data[:start] + new[: len(data) - start] + data[start + size :]


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _insert(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 3, 4, 30))) + data[at:]


def _delete(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 3, 4, 30)) :]


def _repeat(rng: Random, data: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b] + data[b:]


def _move(rng: Random, data: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


_SIMPLE = (_flip, _flip, _flip, _overwrite, _overwrite, _truncate, _insert, _delete, _repeat, _move)


@cache
def pieces(data: bytes, outside: tuple) -> tuple[tuple[int, int], ...]:
    """Where blocks, parts, segments and other chunks of an archive begin and end."""
    archive = Archive(io.BytesIO(data), tables=outside)
    index = archive._index
    found = [(0, archive._header_size), (index.start, len(data)), (len(data) - 32, len(data))]
    found += [(offset, offset + size) for offset, size in (*index.fitted, index.tables) if size]
    found += [(offset, offset + size) for offset, size, _ in index.retired]
    for offset, head in index.segments:
        found.append((offset, offset + head.size))
        at = offset + head.parts_at
        for part in head.parts:
            found.append((at, at + part.size))
            at += part.size
        for start, words in zip(head.block_offsets.tolist(), head.words, strict=True):
            found.append((offset + start, offset + start + BLOCK.size + 4 * words))
    return tuple(found)


def _pieces(rng: Random, base: Base, others: list[Base]) -> bytes:
    """Swap, repeat, leave out or replace whole blocks, parts, segments and chunks, most likely of one size."""
    data = base.data
    if base.is_tables:
        return _simple(rng, base, others)
    places = pieces(data, base.outside)
    (a, b), (c, d) = sorted(rng.sample(places, 2))
    alike = [(e, f) for e, f in places if f - e == b - a and e >= b]
    if alike and rng.random() < 0.7:
        c, d = rng.choice(alike)
    how = rng.randrange(4)
    if how == 0 and b <= c:
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    if how == 1:
        return data[:b] + data[a:b] + data[b:]
    if how == 2 and b <= c:
        return data[:c] + data[a:b] + data[d:]
    return data[:a] + data[b:]


def _splice(rng: Random, base: Base, others: list[Base]) -> bytes:
    """Put bytes of another file, or of another place, into this one, which keeps its size or not."""
    data, other = base.data, rng.choice(others).data
    if rng.random() < 0.3:
        return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    size = rng.choice((1, 4, 16, 60, 200))
    start, source = rng.randrange(len(data)), rng.randrange(len(other))
    if rng.random() < 0.5:
        source = start
    piece = other[source : source + size]
    return data[:start] + piece + data[start + len(piece) :]


_WAYS = (_simple, _simple, _simple, _pieces, _pieces, _splice)
