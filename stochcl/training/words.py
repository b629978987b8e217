"""Words of residual codes: their space, k-means, the beam, and the refit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stochcl.encoders.latents import BEAM, WordSearch
from stochcl.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Rows = NDArray[np.floating]
    Names = NDArray[np.intp]

GRID = 31
"""Integers on each side to which a word's numbers are rounded: they deflate to five bits without loss of quality."""

_MOST = 127  # integers on each side in decoding tables
_NEIGHBOURS = 20
_ROUNDS = 25  # of k-means; with 10, text embeddings at 64 bits have 2 % more error
_CANDIDATES_A_WORD = 256  # beam candidates per word that k-means sees
_MOST_PAIRED = 20_000  # rows in which neighbours are searched


def on_grid(numbers: Rows, axis: int | None = None, grid: int | Rows = GRID) -> Rows:
    """Round numbers to the exact values of decoding tables, with one scale, or one along ``axis``.

    ``grid`` is the number of integers on each side, 1 to 127, for all numbers or for each.
    """
    largest = np.maximum(np.abs(numbers).max(axis=axis, keepdims=True, initial=0), 1e-12)
    integers = np.rint(np.rint(numbers / largest * grid) * (_MOST / grid))
    found: Rows = (integers * (largest / _MOST)).astype(np.float32)
    return found


def nearest(rows: Rows, words: Rows) -> tuple[Names, Rows]:
    """Return the nearest word of each row, and its distance minus the row's own square."""
    scores = rows @ words.T
    scores *= -2
    scores += (words * words).sum(1)
    index = scores.argmin(1)
    return index, scores[np.arange(len(rows)), index]


def kmeans(rows: Rows, count: int, rng: np.random.Generator, rounds: int = _ROUNDS, block: int = 8192) -> Rows:
    """Return ``count`` centres by Lloyd's algorithm from random rows; an empty cluster splits a large one."""
    words = rows[rng.permutation(len(rows))[:count]].copy()
    if len(words) < count:
        words = np.concatenate([words, words[rng.integers(0, len(words), count - len(words))]])
    for _ in range(rounds):
        index = np.concatenate([nearest(rows[i : i + block], words)[0] for i in range(0, len(rows), block)])
        sizes = np.bincount(index, minlength=count)
        order = np.argsort(index, kind="stable")
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        used = sizes > 0
        words[used] = np.add.reduceat(rows[order], starts[used], axis=0) / sizes[used, None]
        empty = np.flatnonzero(~used)
        if len(empty):
            large = np.argsort(-sizes, kind="stable")[: len(empty)]
            shift = 1e-3 * rng.standard_normal((len(empty), rows.shape[1])).astype(np.float32) * words.std()
            words[empty] = words[large] + shift
    return words


def beam_step(residual: Rows, cost: Rows, words: Rows, width: int) -> tuple[Names, Names, Rows, Rows]:
    """Extend each row's candidates by one stage; return the best ones' parents, symbols, residuals and costs."""
    n, beams, m = residual.shape
    count = len(words)
    scores = residual.reshape(-1, m) @ (words.T * -2)
    scores += (words * words).sum(1)
    scores = scores.reshape(n, beams, count)
    scores += cost[:, :, None]
    scores = scores.reshape(n, beams * count)
    keep = min(width, beams * count)
    best = np.argpartition(scores, keep - 1, axis=1)[:, :keep]
    cost = np.take_along_axis(scores, best, 1)
    parent, symbol = np.divmod(best, count)
    residual = np.take_along_axis(residual, parent[:, :, None], 1) - words[symbol]
    return parent, symbol, residual, cost


def beam_encode(rows: Rows, books: Sequence[Rows], block: int = 4096) -> Names:
    """Return the symbols (n, stages) of the nearest sums by the encoder's own search."""
    search = WordSearch(books, rows.shape[1])
    parts = (search.distances(rows[start : start + block]) for start in range(0, len(rows), block))
    found: Names = np.concatenate([search.nearest(part, len(books)) for part in parts]) - np.array(search.ends[:-1])
    return found


def decode_words(symbols: Names, books: Sequence[Rows], width: int) -> Rows:
    """Return the sum of the named words."""
    total = np.zeros((len(symbols), width), np.float32)
    for stage, book in enumerate(books):
        total += book[symbols[:, stage]]
    return total


def refit(rows: Rows, symbols: Names, books: Sequence[Rows], ridge: float = 1e-2) -> list[Rows]:
    """Return books of least squared error over all prefixes, each weighted by the octaves to the next.

    So 8 bits count as much as 32, though fewer prefixes are near them; the last counts as one octave.
    """
    sizes = [len(b) for b in books]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    stage = np.repeat(np.arange(len(sizes)), sizes)
    bits = np.cumsum(np.log2(sizes))
    share = np.append(np.log2(bits[1:] / bits[:-1]), 1)
    tail = (np.cumsum(share[::-1])[::-1] / share.sum()).astype(np.float32)
    n, total = len(rows), int(offsets[-1])
    onehot = np.zeros((total, n), np.float32)
    for s in range(len(sizes)):
        onehot[symbols[:, s] + offsets[s], np.arange(n)] = 1
    gram = (onehot @ onehot.T) * tail[np.maximum(stage[:, None], stage[None, :])]
    old = np.concatenate(books)
    target = (onehot @ rows) * tail[stage][:, None] - gram @ old
    pull = ridge * (gram.diagonal() + 1)
    new = (old + np.linalg.solve(gram + np.diag(pull), target)).astype(np.float32)
    return [new[offsets[i] : offsets[i + 1]] for i in range(len(books))]


def shrink_words(rows: Rows, words: Rows, fitted: int) -> Rows:
    """Shrink words by each coordinate's share of variance that is noise of their means (James and Stein)."""
    index, _ = nearest(rows, words)
    noise = ((rows - words[index]) ** 2).mean(0) * len(words) / fitted
    kept = np.maximum(1 - noise / np.maximum((words**2).mean(0), 1e-12), 0)
    found: Rows = (words * kept).astype(np.float32)
    return found


def residual_books(
    rows: Rows, sizes: Sequence[int], rng: np.random.Generator, width: int = BEAM, rounds: int = _ROUNDS
) -> list[Rows]:
    """Fit books stage by stage to the residuals of a beam search."""
    books: list[Rows] = []
    residual, cost = rows[:, None, :], np.zeros((len(rows), 1), np.float32)
    for count in sizes:
        flat = residual.reshape(-1, rows.shape[1])
        limit = max(_CANDIDATES_A_WORD * count, 4096)
        few = flat if len(flat) <= limit else flat[rng.choice(len(flat), limit, replace=False)]
        words = shrink_words(few, kmeans(few, count, rng, rounds), min(len(rows), len(few)))
        books.append(words)
        starts = range(0, len(rows), 2048)
        parts = [beam_step(residual[i : i + 2048], cost[i : i + 2048], words, width)[2:] for i in starts]
        residual, cost = (np.concatenate(part) for part in zip(*parts, strict=True))
    return books


def power(matrix: Rows, exponent: float) -> Rows:
    """Return a symmetric positive matrix raised to an exponent."""
    values, vectors = np.linalg.eigh(matrix)
    found: Rows = (vectors * np.maximum(values, 1e-9) ** exponent) @ vectors.T
    return found


def nearest_rows(rows: Rows, count: int, block: int = 1024) -> Names:
    """Return the indices (N, count) of each row's nearest other rows by cosine."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    near = np.empty((len(rows), count), np.intp)
    for start in range(0, len(rows), block):
        scores = unit[start : start + block] @ unit.T
        scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -np.inf
        near[start : start + block] = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return near


def neighbour_moments(rows: Rows, count: int = _NEIGHBOURS, limit: int = _MOST_PAIRED) -> tuple[Rows, Rows]:
    """Return the scatter between near neighbours and their shared part, over at most ``limit`` rows."""
    rows = rows[:limit] - rows[:limit].mean(0)
    near = nearest_rows(rows, min(count, len(rows) - 1))
    shared = np.zeros_like(rows)
    for column in near.T:
        shared += rows[column]
    cross = rows.T @ shared
    used = np.bincount(near.ravel(), minlength=len(rows)).astype(np.float32)
    square = near.shape[1] * (rows.T @ rows) + (rows * used[:, None]).T @ rows
    between = (cross + cross.T) / (2 * near.size)
    return square / (2 * near.size) - between, between


def view_moments(first: Rows, second: Rows) -> tuple[Rows, Rows]:
    """Return the scatter between two views of the same rows and their shared part."""
    first, second = first - first.mean(0), second - second.mean(0)
    gap = first - second
    return gap.T @ gap / (2 * len(gap)), (first.T @ second + second.T @ first) / (2 * len(first))


def metric(within: Rows, between: Rows, shrink: float = 1.0, ridge: float = 0.02) -> Rows:
    """Return the map (m x m) that whitens the views' differences and shrinks what they do not share."""
    m = len(within)
    white = power(within + (ridge * np.trace(within) / m + 1e-9) * np.eye(m, dtype=np.float32), -0.5)
    ratio, axes = np.linalg.eigh(white @ between @ white)
    ratio, axes = np.maximum(ratio[::-1], 0), axes[:, ::-1]
    found: Rows = (white @ (axes * (ratio / (1 + ratio)) ** shrink)).astype(np.float32)
    return found


def space(
    rows: Rows, views: Rows | None, objective: str, width: int, shrink: float, seen: int = 0
) -> tuple[Rows, Rows]:
    """Return mean (d,) and map (d x m) to the space in which the squared error is an error's cost.

    Views of the rows, in their order, show how a row varies; without them its nearest neighbours do. The metric is
    computed in the first ``seen`` principal axes, or in ``width`` if that is more.
    """
    mean = rows.mean(0, dtype=np.float64).astype(np.float32)
    centred = rows - mean
    _, axes = np.linalg.eigh(centred.T @ centred / len(rows))
    axes = axes[:, ::-1][:, : max(width, seen)].astype(np.float32)
    flat = centred @ axes
    spread = float(np.sqrt((flat**2).mean()))
    if not spread > 0:
        raise TrainingError("the rows to train on are all alike, and no code can tell them apart; give other rows.")
    if objective != "reconstruct":
        flat = flat / spread
        moments = neighbour_moments(flat) if views is None else view_moments(flat, (views - mean) @ axes / spread)
        axes = axes @ metric(*moments, shrink)
    axes = axes[:, :width]
    scale = np.sqrt(((centred @ axes) ** 2).sum(1).mean() / 96)
    return mean, (axes / max(scale, 1e-12)).astype(np.float32)


def sign_stages(residual: Rows, count: int, narrow: int) -> Rows:
    """Return the words (count, m) of one-bit stages; each takes the axis with most variance left, possibly again.

    Axes are principal among the first ``narrow`` coordinates, and single coordinates beyond, which deflate to
    nothing.
    """
    m = residual.shape[1]
    axes = np.eye(m, dtype=np.float32)
    head = residual[:, :narrow]
    _, axes[:narrow, :narrow] = np.linalg.eigh(head.T @ head / len(residual))
    left = residual @ axes
    variance = (left**2).mean(0)
    out = np.zeros((count, m), np.float32)
    for k in range(count):
        axis = int(variance.argmax())
        size = float(np.abs(left[:, axis]).mean())
        left[:, axis] -= np.where(left[:, axis] > 0, size, -size)
        variance[axis] = (left[:, axis] ** 2).mean()
        out[k] = size * axes[:, axis]
    return out


def ordered(words: Rows) -> Rows:
    """Order words so that each bit of their names halves them along the axis of most variance.

    So the first bits of a name say the most, and leave only near words open.
    """
    if len(words) < 2:
        return words
    centred = words - words.mean(0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    along = centred @ (axis * np.sign(axis[np.abs(axis).argmax()]))
    order = np.argsort(along, kind="stable")
    half = len(words) // 2
    return np.concatenate([ordered(words[order[:half]]), ordered(words[order[half:]])])
