"""Residual latents fitted in closed form: the metric, the words, the signs, their temperatures."""

from __future__ import annotations

import time
import zlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.codes import Codes
from stochcl.encoders.config import residual_stages
from stochcl.encoders.encoder import Standardise
from stochcl.encoders.residual import (
    BEAM,
    GRID,
    Distances,
    Named,
    ReducedHead,
    Words,
    beam_search,
    on_grid,
    signed_root,
)  # fmt: skip
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.residual import MAX_RESIDUAL
from stochcl.entropy.tables import Tables
from stochcl.errors import TrainingError, UsageError
from stochcl.training.entropy import fit_code_tables
from stochcl.training.latents import FittedLatents
from stochcl.training.loop import FitProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stochcl.encoders.encoder import Encoder
    from stochcl.encoders.residual import Residual
    from stochcl.training.options import LatentOptions

    Rows = NDArray[np.floating]
    Names = NDArray[np.intp]

OBJECTIVES = ("nt-xent", "reconstruct")
"""Objectives that residual latents can be fitted for: what tells rows apart, or distances."""

_NEIGHBOURS = 20
_SHRINK = {"views": 1.5, "neighbours": 1.0}  # powers of what views share, and neighbours
_CANDIDATES_A_WORD = 256  # of the beam's, that k-means sees
_STEP = {"images": 0.3, "vectors": 0.5}  # of the root mean square error that a stage leaves: steps of its words
_MOST_ROWS = 40_000  # that words are fitted to
_MOST_PAIRED = 20_000  # rows among which neighbours are looked for
_WORDS_WIDTH = 96, 192  # coordinates in which words of two bits and more live, the least and, of vectors, the most
_WORDS_BY_COLUMNS = 192 * 384  # of vectors: the wider they are, the more of the tables is their map
_SEEN = 512  # principal axes in which the metric of vectors is found
_MAP_STEP = {"nt-xent": 1.0, "reconstruct": 0.5}  # of the error that codes leave: what an output map is rounded to
_COARSER = 17  # tries, each of steps 1.2 times as large, to keep tables small
_OTHER_TABLES = 11_000, 16  # bytes of tables besides words and map: the entropy network, a self-test by the column
_ROWS = 4096
_ROWS_A_WORD = 8
_HIDDEN = {"images": 96, "vectors": 128}  # units of the entropy network
_PASSES = {"images": 20, "vectors": 60}
_MOST_TABLES = {"images": 300_000, "vectors": 150_000}  # bytes; a network that leads beyond is not kept
_LINEAR_ROWS = 4000  # fewer rows get a network without hidden units
_NEAR, _ROUNDS = 0.02, 3  # close enough to the rate, relative to it; most fits
_MOST_CODES = 100_000
_PAIRS = 2000  # that temperatures are fitted to
_TEMPERATURES = np.geomspace(1e-3, 1e3, 121)  # relative to what words of the stage are apart


def nearest(rows: Rows, words: Rows) -> tuple[Names, Rows]:
    """Return the index of the word nearest to each row, and the distances less the row's own square."""
    scores = rows @ words.T
    scores *= -2
    scores += (words * words).sum(1)
    index = scores.argmin(1)
    return index, scores[np.arange(len(rows)), index]


def kmeans(rows: Rows, count: int, rng: np.random.Generator, rounds: int = 10, block: int = 8192) -> Rows:
    """Return count centres of the rows: Lloyd's rounds from random rows; an empty cluster halves a large one."""
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
    """Extend each row's candidates by one stage; return parents, symbols, residuals and costs of the best ones."""
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
    """Return the symbols (n, stages) of the nearest sums that the encoder's own search finds."""
    named = Named.of([torch.from_numpy(book) for book in books], torch.zeros(0, rows.shape[1]))
    begins = torch.tensor(named.ends[:-1])
    parts = (torch.from_numpy(rows[start : start + block]) for start in range(0, len(rows), block))
    return np.concatenate([(beam_search(Distances.of(part, named)) - begins).numpy() for part in parts])


def decode_words(symbols: Names, books: Sequence[Rows], width: int) -> Rows:
    """Return the sum of the words that the symbols name."""
    total = np.zeros((len(symbols), width), np.float32)
    for stage, book in enumerate(books):
        total += book[symbols[:, stage]]
    return total


def refit(rows: Rows, symbols: Names, books: Sequence[Rows], ridge: float = 1e-2) -> list[Rows]:
    """Return books of least squared error over all prefixes, each of which counts alike."""
    sizes = [len(b) for b in books]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    stage = np.repeat(np.arange(len(sizes)), sizes)
    tail = (np.arange(len(sizes), 0, -1) / len(sizes)).astype(np.float32)
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
    """Return words less the share of each coordinate's variance that is noise of their means (James and Stein)."""
    index, _ = nearest(rows, words)
    noise = ((rows - words[index]) ** 2).mean(0) * len(words) / fitted
    kept = np.maximum(1 - noise / np.maximum((words**2).mean(0), 1e-12), 0)
    shrunk: Rows = (words * kept).astype(np.float32)
    return shrunk


def residual_books(
    rows: Rows, sizes: Sequence[int], rng: np.random.Generator, width: int = BEAM, rounds: int = 10
) -> list[Rows]:
    """Return books fitted stage by stage to the residuals that a beam leaves."""
    books: list[Rows] = []
    residual, cost = rows[:, None, :], np.zeros((len(rows), 1), np.float32)
    for count in sizes:
        flat = residual.reshape(-1, rows.shape[1])
        limit = max(_CANDIDATES_A_WORD * count, 4096)
        few = flat if len(flat) <= limit else flat[rng.choice(len(flat), limit, replace=False)]
        words = shrink_words(few, kmeans(few, count, rng, rounds), min(len(rows), len(few)))
        books.append(words)
        parts = [
            beam_step(residual[i : i + 2048], cost[i : i + 2048], words, width)[2:] for i in range(0, len(rows), 2048)
        ]
        residual, cost = (np.concatenate(part) for part in zip(*parts, strict=True))
    return books


def power(matrix: Rows, exponent: float) -> Rows:
    """Return a symmetric positive matrix raised to an exponent."""
    values, vectors = np.linalg.eigh(matrix)
    raised: Rows = (vectors * np.maximum(values, 1e-9) ** exponent) @ vectors.T
    return raised


def nearest_rows(rows: Rows, count: int, block: int = 1024) -> Names:
    """Return the indices (N, count) of each row's nearest others by cosine."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    near = np.empty((len(rows), count), np.intp)
    for start in range(0, len(rows), block):
        scores = unit[start : start + block] @ unit.T
        scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -np.inf
        near[start : start + block] = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return near


def neighbour_moments(rows: Rows, count: int = _NEIGHBOURS, limit: int = _MOST_PAIRED) -> tuple[Rows, Rows]:
    """Return the scatter between near neighbours and what they share, over at most ``limit`` rows."""
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
    """Return the scatter between two views of the same rows and what they share."""
    first, second = first - first.mean(0), second - second.mean(0)
    gap = first - second
    return gap.T @ gap / (2 * len(gap)), (first.T @ second + second.T @ first) / (2 * len(first))


def metric(within: Rows, between: Rows, shrink: float = 1.0, ridge: float = 0.02) -> Rows:
    """Return the map (m x m) that whitens what differs between the views and shrinks what they do not share."""
    m = len(within)
    white = power(within + (ridge * np.trace(within) / m + 1e-9) * np.eye(m, dtype=np.float32), -0.5)
    ratio, axes = np.linalg.eigh(white @ between @ white)
    ratio, axes = np.maximum(ratio[::-1], 0), axes[:, ::-1]
    mapped: Rows = (white @ (axes * (ratio / (1 + ratio)) ** shrink)).astype(np.float32)
    return mapped


def space(
    rows: Rows, views: Rows | None, objective: str, width: int, shrink: float, seen: int = 0
) -> tuple[Rows, Rows]:
    """Return mean (d,) and map (d x m) to the space in which squared error is what an error costs.

    Views of the rows, in their order, say what differs in a row; without them its nearest neighbours do. The metric
    is found in the first ``seen`` principal axes, or in ``width`` of them where these are more.
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
    """Return the words (count, m) of one-bit stages: the axis with most variance left comes next, and may come again.

    Axes are principal among the first ``narrow`` coordinates, and the others themselves, which deflate to nothing.
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
    """Return words so ordered that their bits halve them, each time along the axis of most variance.

    So the first bits of a name say the most, and what they leave open is near.
    """
    if len(words) < 2:
        return words
    centred = words - words.mean(0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    along = centred @ (axis * np.sign(axis[np.abs(axis).argmax()]))
    order = np.argsort(along, kind="stable")
    half = len(words) // 2
    return np.concatenate([ordered(words[order[:half]]), ordered(words[order[half:]])])


def _rounded(numbers: Rows, dim: int | None = None, grid: int | torch.Tensor = GRID) -> Rows:
    """Return numbers as decoding tables hold them."""
    rounded: Rows = on_grid(torch.from_numpy(numbers), dim, grid).numpy()
    return rounded


def rounded_books(rows: Rows, books: list[Rows], share: float) -> list[Rows]:
    """Return books in steps that are a share of the error that each stage leaves: tables deflate to a third."""
    if not books:
        return books
    names, left, out = beam_encode(rows, books), rows.copy(), []
    for stage, book in enumerate(books):
        left -= book[names[:, stage]]
        step = max(share * float(np.sqrt((left**2).mean())), 1e-12)
        out.append(_rounded(book, grid=int(np.clip(np.rint(np.abs(book).max() / step), 1, 127))))
    return out


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit finds: the map to the reduced space, and words, named ones in ``narrow`` coordinates."""

    mean: Rows
    matrix: Rows
    books: list[Rows]
    signs: Rows
    narrow: int


def fit(
    rows: Rows, stages: Sequence[int], *, kind: str = "vectors", views: Rows | None = None,
    objective: str = "nt-xent", width: int = 256, shrink: float | None = None, seed: int = 0, refits: int = 3,
    known: Fitted | None = None,
) -> Fitted:  # fmt: skip
    """Fit a residual code of these stages to rows, shape (N, d), and where given to a view of each.

    ``kind`` is what the rows are features of, images or vectors; ``known`` an earlier fit to them, whose words are
    kept where they are as many. Signs of vectors are those of single coordinates,
    which tables hold for nothing: turned ones were no better on text, and worse from 128 bits on.
    """
    sizes = [1 << b for b in stages if b > 1]
    if known is not None and sizes == [len(book) for book in known.books]:
        return _with_signs(known, rows, len(stages), kind)
    rng = np.random.default_rng(seed)
    if shrink is None:
        shrink = _SHRINK["neighbours" if views is None else "views"]
    mean, matrix = space(rows, views, objective, width, shrink, _SEEN if kind == "vectors" else 0)
    matrix = matrix.astype(np.float16).astype(np.float32)
    flat = (rows - mean) @ matrix
    least, most = _WORDS_WIDTH
    narrow = min(
        least if kind == "images" else max(least, min(most, _WORDS_BY_COLUMNS // rows.shape[1])), flat.shape[1]
    )
    head = np.ascontiguousarray(flat[:, :narrow])
    books = residual_books(head, sizes, rng)
    for _ in range(refits if books else 0):
        books = refit(head, beam_encode(head, books), books)
    books = rounded_books(head, [ordered(book) for book in books], _STEP[kind])
    books = [np.pad(book, ((0, 0), (0, flat.shape[1] - narrow))) for book in books]
    fitted = Fitted(mean, matrix, books, np.zeros((0, flat.shape[1]), np.float32), narrow)
    return _with_signs(fitted, rows, len(stages), kind)


def _with_signs(fitted: Fitted, rows: Rows, stages: int, kind: str) -> Fitted:
    """Return a fit with the sign stages that it needs to have so many stages."""
    left = (rows - fitted.mean) @ fitted.matrix
    if fitted.books:
        left -= decode_words(beam_encode(left, fitted.books), fitted.books, left.shape[1])
    signs = sign_stages(left, stages - len(fitted.books), fitted.narrow if kind == "images" else 0)
    return replace(fitted, signs=_rounded(signs, dim=1))


def check_objective(objective: str) -> None:
    """Raise UsageError where residual latents cannot be fitted for an objective."""
    if objective not in OBJECTIVES:
        raise UsageError(
            f"residual latents are fitted for {' or '.join(OBJECTIVES)}, not {objective}; choose another --posterior."
        )


def fit_residual(
    encoder: Encoder,
    features: NDArray[np.floating],
    held: NDArray[np.floating],
    options: LatentOptions,
    *,
    views: NDArray[np.floating] | None = None,
    report: Callable[[Any], None] = lambda progress: None,
) -> FittedLatents:
    """Give an encoder residual latents, fitted to its features, at the rate that was asked for, and their tables.

    Parameters
    ----------
    encoder : Encoder
        Its latents are replaced.
    features : ndarray of float, shape (N, V)
        Standardised features of the training inputs.
    held : ndarray of float, shape (M, V)
        Of inputs that are not fitted to, which the rate is measured on; training features stand in if there are none.
    options : LatentOptions
    views : ndarray of float, shape (N, V), optional
        Features of an augmented view of each training input; near neighbours stand in.
    report : callable
    """
    check_objective(options.objective)
    started = time.monotonic()
    encoder.eval()
    held = held if len(held) else features[:_PAIRS]
    most = max(1, min(8, int(np.log2(max(2, len(features) / _ROWS_A_WORD)))))
    asked, kind = encoder.config.stages, _kind(encoder)
    bits, rounds, rate, record, fitted = encoder.config.latents, 0, 0.0, {}, None
    if options.rate is not None:
        bits = max(1, min(MAX_RESIDUAL, round(options.rate)))
    while rounds < _ROUNDS:
        stages = asked if sum(asked) == bits and max(asked) <= most else residual_stages(bits, most, kind)
        fitted = _set_latents(encoder, features, views, stages, options, fitted)
        record = _fit_tables(encoder, features, views, options, report)
        costs = encoder.bits_by_latent(_codes(encoder, held))
        rounds, rate = rounds + 1, float(costs.sum())
        report(FitProgress(rounds / _ROUNDS, f"residual latents: {bits} bits cost {rate:,.1f} of held-out rows"))
        if options.rate is None or abs(rate / options.rate - 1) <= _NEAR:
            break
        wanted = max(1, min(MAX_RESIDUAL, 2 * bits, round(bits * options.rate / rate)))
        if wanted == bits:
            break
        bits = wanted
    _fit_temperatures(encoder, features, views)
    record = {
        "options": asdict(options), "rounds": rounds, "steps": 0, "rate": round(rate, 3), "entropy": record,
        "stages": list(encoder.config.stages), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    return FittedLatents(rate, record)


@torch.no_grad()
def _set_latents(
    encoder: Encoder, features: NDArray[np.floating], views: NDArray[np.floating] | None, stages: tuple[int, ...],
    options: LatentOptions, known: Fitted | None,
) -> Fitted:  # fmt: skip
    """Fit metric and words, set the encoder's head and decoder to them, and return them."""
    config = encoder.config
    chosen = np.sort(np.random.default_rng(options.seed).permutation(len(features))[:_MOST_ROWS])
    shift, spread = _roots(encoder) if config.transform == "sqrt" else (None, 1.0)

    def transformed(rows: NDArray[np.floating]) -> Rows:
        part = np.asarray(rows[chosen], np.float32)
        return part if shift is None else signed_root(torch.from_numpy(part) + shift).numpy() * spread

    rows = transformed(features)
    fitted = fit(
        rows, stages, kind=_kind(encoder), views=None if views is None else transformed(views),
        objective=options.objective, width=config.reduced, seed=options.seed, known=known,
    )  # fmt: skip
    encoder.set_residual(stages, fitted.matrix.shape[1], config.transform)
    head, words = encoder.head, encoder.decoder
    assert isinstance(head, ReducedHead)
    assert isinstance(words, Words)
    head.weight.copy_(torch.from_numpy(np.ascontiguousarray((fitted.matrix * np.reshape(spread, (-1, 1))).T)).half())
    head.mean.copy_(torch.from_numpy(fitted.mean @ fitted.matrix))
    if shift is not None and head.shift is not None:
        head.shift.copy_(shift)
    for book, found in zip(words.books, fitted.books, strict=True):
        book.copy_(torch.from_numpy(found))
    words.signs.copy_(torch.from_numpy(fitted.signs))
    if words.output is not None and words.centre is not None:
        _set_output(encoder, np.asarray(features[chosen], np.float32), _MAP_STEP[options.objective])
    return fitted


def _kind(encoder: Encoder) -> str:
    return "images" if encoder.config.columns is None else "vectors"


def _roots(encoder: Encoder) -> tuple[torch.Tensor, Rows]:
    """Return what brings features to their network's zero, and factors that make the roots those of its numbers."""
    norm = encoder.norm
    if isinstance(norm, Standardise):
        return norm.centre / norm.scale, np.ones(len(norm.centre), np.float32)
    assert norm.running_mean is not None  # with statistics, as the encoder makes it
    assert norm.running_var is not None
    deviation = torch.sqrt(norm.running_var + norm.eps)
    return norm.running_mean / deviation, deviation.sqrt().numpy()


def _set_output(encoder: Encoder, rows: Rows, share: float) -> None:
    """Set the map, of least squared error, from what codes decode to to the rows.

    It is rounded in steps that are a share of the error that codes leave; in larger ones where tables would be too
    large.
    """
    words = encoder.decoder
    assert isinstance(words, Words)
    assert words.output is not None
    assert words.centre is not None
    points = np.concatenate(
        [
            _points(encoder, words, rows[start : start + _ROWS])
            for start in range(0, len(rows), _ROWS)
        ]
    )  # fmt: skip
    middle, centre = points.mean(0, dtype=np.float64), rows.mean(0, dtype=np.float64)
    points = points - middle
    gram = points.T @ points
    ridge = 1e-4 * np.trace(gram) / len(gram) + 1e-9
    product = points.T @ (rows - centre)
    exact = np.linalg.solve(gram + ridge * np.eye(len(gram)), product)
    error = max(np.square(rows - centre).sum() - (exact * product).sum(), 0) / rows.size
    deviation = np.sqrt(gram.diagonal() / len(rows))
    left = _MOST_TABLES["vectors"] - _OTHER_TABLES[0] - _OTHER_TABLES[1] * rows.shape[1]
    for coarser in range(_COARSER):
        step = share * 2 ** (coarser / 4) * float(np.sqrt(error / len(gram)))
        output = rounded_map(exact.astype(np.float32), deviation, step)
        words.output.copy_(torch.from_numpy(output))
        words.centre.copy_(torch.from_numpy((centre - middle @ output).astype(np.float32)))
        if len(zlib.compress(encoder.vector_decoder().to_bytes(), 9)) <= left:
            return


def rounded_map(output: Rows, deviation: Rows, step: float) -> Rows:
    """Return a map, shape (m, V), in steps of about ``step`` for coordinates of these deviations, multiplied by them.

    Rows that matter less than such a rounding does are zero.
    """
    weight = np.sqrt(np.square(output).mean(1)) * deviation
    output = np.where(weight[:, None] < step / 12**0.5, np.float32(0), output)
    wanted = np.abs(output).max(0).mean() * deviation / max(step, 1e-12)
    grid = np.clip(np.rint(2 ** (np.rint(2 * np.log2(np.maximum(wanted, 1))) / 2)), 1, 127)  # few: they deflate
    return _rounded(output, dim=0, grid=torch.from_numpy(grid[:, None].astype(np.float32)))


def _points(encoder: Encoder, words: Words, rows: Rows) -> NDArray[np.float64]:
    """Return the sums of words that rows are coded as, shape (B, m)."""
    posterior: Residual = encoder.posterior(torch.from_numpy(rows))  # type: ignore[assignment]
    draw = posterior.embed(posterior.mode(), encoder.config)
    points: NDArray[np.float64] = words.points(draw).double().numpy()
    return points


@torch.no_grad()
def _codes(encoder: Encoder, features: NDArray[np.floating]) -> Codes:
    parts = [
        encoder.posterior(torch.from_numpy(np.asarray(features[i : i + _ROWS], np.float32))).mode().numpy()
        for i in range(0, len(features), _ROWS)
    ]
    return Codes.from_symbols(np.concatenate(parts), alphabet=2)


def _fit_tables(
    encoder: Encoder, features: NDArray[np.floating], views: NDArray[np.floating] | None, options: LatentOptions,
    report: Callable[[Any], None],
) -> dict[str, Any]:  # fmt: skip
    kind, few = _kind(encoder), len(features) < _LINEAR_ROWS
    hidden = (0 if few else _HIDDEN[kind]) if options.prior_hidden is None else options.prior_hidden
    # Signs of coordinates hardly depend on each other, and their weights would be most of the network.
    named = sum(bits for bits in encoder.config.stages if bits > 1)
    joint = named if kind == "vectors" and named > 1 else None
    codes = _codes(encoder, features[:_MOST_CODES])
    more = None if views is None else _codes(encoder, views[:_MOST_CODES])
    record = fit_code_tables(
        encoder, codes, more, entropy=options.entropy, hidden=hidden,
        joint=joint, passes=_PASSES[kind], max_time=options.max_time and options.max_time / 2, seed=options.seed,
        precision=options.precision, report=report,
    )  # fmt: skip
    if (network := encoder.entropy_network()) is not None and options.prior_hidden is None:
        ones = IndependentModel(encoder.ones.numpy().astype(np.uint16), 2)
        tables = Tables(encoder.config.ladder, ones, encoder.vector_decoder(), network)
        if len(tables.data) > _MOST_TABLES[kind]:
            encoder.set_entropy(None)
            record = record | {"reason": "tables too large"}
    return record


@torch.no_grad()
def _fit_temperatures(encoder: Encoder, features: NDArray[np.floating], views: NDArray[np.floating] | None) -> None:
    """Set each stage's temperature so that a row's distances predict the words of its view, or near neighbour.

    They minimise the negative log likelihood, as temperature scaling does (Guo et al., arXiv 1706.04599).
    """
    clean = np.asarray(features[:_PAIRS], np.float32)
    near = clean[nearest_rows(clean, 1)[:, 0]] if views is None else views[:_PAIRS]
    other = np.asarray(near, np.float32)
    words = encoder.decoder
    seen = encoder.posterior(torch.from_numpy(other)).mode()
    start = torch.from_numpy(clean)
    unit = torch.stack([4 * stage.var(0, correction=0).sum() for stage in words.stages()]).clamp(min=1e-12).log()
    stages = np.repeat(np.arange(len(words.bits)), words.bits)
    words.log_temperature.copy_(unit)
    posterior: Residual = encoder.posterior(start)  # type: ignore[assignment]
    best, costs = unit.clone(), torch.full((len(words.bits),), torch.inf)
    for temperature in _TEMPERATURES:
        tried = posterior.tempered(float(temperature)).log_prob(seen).mean(0)
        cost = torch.zeros(len(words.bits)).index_add_(0, torch.from_numpy(stages), -tried)
        better = cost < costs
        best, costs = torch.where(better, unit + float(np.log(temperature)), best), torch.where(better, cost, costs)
    words.log_temperature.copy_(best)
