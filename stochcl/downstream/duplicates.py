"""Pairs of codes that decode to nearly the same vector, found in a small multiple of the codes' memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stochcl.errors import UsageError
from stochcl.messages import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Decode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

_AXES = 128  # projections; they never increase a distance
_PROBES = 6  # cells searched per code
_CELL = 256  # average codes per cell: with fewer, comparing more is cheap anyway
_ROWS = 1 << 12  # decoded at a time
_VALUES = 1 << 22  # in the sample that fits the axes, and per block of distances
_SLACK = 1e-3  # on half a squared distance, for float16 rounding
_PENDING = 1 << 18  # pairs to collect before computing exact cosines
_BATCH = 1 << 14  # pairs whose vectors are in memory together
_MOST = 20_000_000  # pairs


class Pairs(NamedTuple):
    """Pairs of rows with ``first < second`` and the cosine of their decoded vectors; sorted by rows."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float32]


def find_duplicates(
    packed: NDArray[np.uint8], decode: Decode | None, threshold: float, *, seed: int = 0, progress: Progress = silent
) -> Pairs:
    """Return the pairs of rows, shape (N, W), whose vectors have at least this cosine; at 1 only equal codes.

    Rows with equal codes are each paired with the first of them, and only that one is compared with other codes.
    Codes fall into cells by their nearest pivot code, in a projection onto a few axes. Each code is compared with the
    members of its nearest cells: the projection rules out distant pairs, and the exact cosine decides the rest. So
    every pair found is right, and a pair is missed only if neither code is near the other's cell.
    """
    words = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1])))[:, 0]
    _, leaders, group = np.unique(words, return_index=True, return_inverse=True)
    first = leaders[group]
    second = np.flatnonzero(first != np.arange(len(packed)))
    first, similarity = first[second], np.ones(len(second), np.float32)
    if threshold < 1 and decode is not None and len(leaders) > 1:
        near = _near(packed[leaders], decode, threshold, np.random.default_rng(seed), progress)
        ends = np.sort(np.stack([leaders[near.first], leaders[near.second]]), axis=0)
        first, second = np.concatenate([first, ends[0]]), np.concatenate([second, ends[1]])
        similarity = np.concatenate([similarity, near.similarity])
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], similarity[order])


def _near(
    codes: NDArray[np.uint8], decode: Decode, threshold: float, rng: np.random.Generator, progress: Progress
) -> Pairs:
    points = _on_axes(codes, decode, rng)
    # Comparing N rows with C pivots and then with N / C members of each probed cell is cheapest at this C.
    count = max(1, min(int((_PROBES * len(points)) ** 0.5), len(points) // _CELL))
    pivots = rng.choice(len(points), count, replace=False)
    keys, similarity, pending = [np.empty(0, np.int64)], [np.empty(0, np.float32)], [np.empty(0, np.int64)]

    def decide() -> None:
        near = np.unique(np.concatenate(pending))
        cosine = _cosines(codes, decode, near)
        keys.append(near[cosine >= threshold])
        similarity.append(cosine[cosine >= threshold])
        pending[:] = [np.empty(0, np.int64)]
        if sum(map(len, keys)) > _MOST:
            raise UsageError(
                f"more than {_MOST:,} pairs have a cosine of {threshold:g}; raise the threshold, or take codes of "
                "more bits."
            )

    for close in _close_pairs(points, _cells(points, points[pivots]), count, 1 - threshold + _SLACK, progress):
        pending.append(close)
        if sum(map(len, pending)) > _PENDING:
            decide()
    decide()
    found, places = np.unique(np.concatenate(keys), return_index=True)
    return Pairs(*np.divmod(found, len(codes)), np.concatenate(similarity)[places])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors to length 1; zero or non-finite ones become zeros."""
    vectors = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0)
    length = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def _on_axes(codes: NDArray[np.uint8], decode: Decode, rng: np.random.Generator) -> NDArray[np.float16]:
    """Project vectors onto orthonormal axes that hold most of their variance, shape (N, A)."""
    width = decode(codes[:1]).shape[1]
    sample = rng.choice(len(codes), min(len(codes), max(_AXES, _VALUES // width)), replace=False)
    rows = _unit(decode(codes[np.sort(sample)]))
    centre = rows.mean(axis=0)
    rows -= centre
    axes = rng.standard_normal((width, min(_AXES, width))).astype(np.float32)
    for _ in range(2):
        axes = np.linalg.qr(rows.T @ (rows @ axes))[0]
    points = np.empty((len(codes), axes.shape[1]), np.float16)
    for start in range(0, len(codes), _ROWS):
        part = slice(start, start + _ROWS)
        points[part] = (_unit(decode(codes[part])) - centre) @ axes
    return points


def _cells(points: NDArray[np.float16], pivots: NDArray[np.float16]) -> NDArray[np.int32]:
    """Return the nearest pivots of each point, nearest first, shape (N, probes)."""
    centres = pivots.astype(np.float32)
    half = np.square(centres).sum(axis=1) / 2
    cells = np.empty((len(points), min(_PROBES, len(pivots))), np.int32)
    step = max(1, _VALUES // len(pivots))
    for start in range(0, len(points), step):
        score = points[start : start + step].astype(np.float32) @ centres.T - half
        rows = np.arange(len(score))
        for probe in range(cells.shape[1]):
            best = score.argmax(axis=1)
            cells[start : start + step, probe] = best
            score[rows, best] = -np.inf
    return cells


def _close_pairs(
    points: NDArray[np.float16], cells: NDArray[np.int32], count: int, most: float, progress: Progress
) -> Iterator[NDArray[np.int64]]:
    """Yield pairs ``smaller * N + larger`` whose half squared distance is at most ``most``; some repeat."""
    parts = (points[start : start + _ROWS].astype(np.float32) for start in range(0, len(points), _ROWS))
    half = np.concatenate([np.square(part).sum(axis=1) / 2 for part in parts])
    members, probing = _grouped(cells[:, :1], count), _grouped(cells, count)
    for number, (own, others) in enumerate(zip(members, probing, strict=True)):
        against = points[others].astype(np.float32)
        step = max(1, _VALUES // len(others)) if len(others) else 1
        for start in range(0, len(own), step):
            part = own[start : start + step]
            score = points[part].astype(np.float32) @ against.T
            score -= half[others]
            score -= half[part, None]
            a, b = np.divmod(np.flatnonzero(score >= -most), len(others))
            a, b = part[a], others[b]
            a, b = a[a != b], b[a != b]
            yield np.minimum(a, b) * len(points) + np.maximum(a, b)
        progress(number + 1, count)


def _grouped(cells: NDArray[np.int32], count: int) -> list[NDArray[np.int64]]:
    order = np.argsort(cells, axis=None, kind="stable")
    starts = np.searchsorted(cells.reshape(-1)[order], np.arange(1, count))
    return np.split(order // cells.shape[1], starts)


def _cosines(codes: NDArray[np.uint8], decode: Decode, keys: NDArray[np.int64]) -> NDArray[np.float32]:
    found = np.empty(len(keys), np.float32)
    for start in range(0, len(keys), _BATCH):
        pairs = np.stack(np.divmod(keys[start : start + _BATCH], len(codes)))
        rows, places = np.unique(pairs, return_inverse=True)  # pairs from a few cells share rows
        vectors = np.concatenate([_unit(decode(codes[rows[i : i + _ROWS]])) for i in range(0, len(rows), _ROWS)])
        a, b = places.reshape(pairs.shape)
        for i in range(0, len(a), _ROWS):
            part = slice(i, i + _ROWS)
            cosine = np.einsum("nd,nd->n", vectors[a[part]], vectors[b[part]])
            found[start : start + _BATCH][part] = cosine.clip(-1, 1).round(6)
    return found
