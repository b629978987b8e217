"""Residual latents fitted in closed form to a finished encoder: words, output map, tables, temperatures."""

from __future__ import annotations

import time
import zlib
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stochcl.encoders import layout
from stochcl.encoders.config import residual_stages
from stochcl.encoders.latents import Latents, Residual, log_softmax, signed_root
from stochcl.entropy.independent import IndependentModel
from stochcl.entropy.tables import Tables
from stochcl.entropy.vectors import MAX_RESIDUAL
from stochcl.errors import UsageError
from stochcl.training.entropy import fit_code_tables, hard_codes
from stochcl.training.latents import FittedLatents
from stochcl.training.loop import FitProgress
from stochcl.training.words import (
    beam_encode,
    decode_words,
    nearest_rows,
    on_grid,
    ordered,
    refit,
    residual_books,
    sign_stages,
    space,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stochcl.encoders.encoder import Encoder
    from stochcl.training.options import LatentOptions

    Rows = NDArray[np.floating]
    Names = NDArray[np.intp]

OBJECTIVES = ("nt-xent", "reconstruct")
"""Objectives that residual latents can be fitted for: telling rows apart, or distances."""

_SHRINK = {"views": 1.5, "neighbours": 1.0}  # powers of the shrinkage, by views or by neighbours
_STEP = {"images": 0.3, "vectors": 0.5}  # step of the words, relative to the root mean square error after the stage
_MOST_ROWS = 40_000  # rows to fit words to
_WORDS_WIDTH = 96, 192  # coordinates of words of two or more bits: the least and, for vectors, the most
_WORDS_BY_COLUMNS = 192 * 384  # for vectors: the wider they are, the larger the share of their map in the tables
_SEEN = 512  # principal axes in which the metric of vectors is computed
_MAP_STEP = {"nt-xent": 1.0, "reconstruct": 0.5}  # step of the output map, relative to the error of the codes
_MOST_LOST = 0.1  # share of the map's explained power that smaller tables may cost
_COARSER = 17  # attempts with coarser steps (a factor of 1.2 each) to keep tables small
_OTHER_TABLES = 11_000, 16  # bytes of tables besides words and map: the entropy network, and a self-test per column
_ROWS_A_WORD = 8
_HIDDEN = {"images": 96, "vectors": 128}  # units of the entropy network
_PASSES = {"images": 20, "vectors": 60}
_MOST_TABLES = {"images": 300_000, "vectors": 150_000}  # bytes; a network that exceeds them is dropped
_LINEAR_ROWS = 4000  # fewer rows get a network without hidden units
_NEAR, _ROUNDS = 0.02, 3  # relative tolerance of the rate; most fits
_MOST_CODES = 100_000
_PAIRS = 2000  # to fit temperatures to
_TEMPERATURES = np.geomspace(1e-3, 1e3, 121)  # relative to the spread of a stage's words


def rounded_books(rows: Rows, books: list[Rows], share: float) -> list[Rows]:
    """Round books in steps that are a share of each stage's residual error: tables deflate to a third."""
    if not books:
        return books
    names, left, out = beam_encode(rows, books), rows.copy(), []
    for stage, book in enumerate(books):
        left -= book[names[:, stage]]
        step = max(share * float(np.sqrt((left**2).mean())), 1e-12)
        out.append(on_grid(book, grid=int(np.clip(np.rint(np.abs(book).max() / step), 1, 127))))
    return out


@dataclass(frozen=True, eq=False)
class Fitted:
    """The result of a fit: the map to the reduced space, and words; named ones use ``narrow`` coordinates."""

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
    """Fit a residual code of these stages to rows, shape (N, d), and optionally to a view of each.

    ``kind`` says whether rows are features of images or vectors; ``known`` is an earlier fit to them, whose words are
    kept if the sizes match. Signs of vectors are those of single coordinates, which cost nothing in the tables:
    rotated ones were no better on text, and worse from 128 bits.
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
    """Return a fit extended by sign stages to ``stages`` stages."""
    left = (rows - fitted.mean) @ fitted.matrix
    if fitted.books:
        left -= decode_words(beam_encode(left, fitted.books), fitted.books, left.shape[1])
    signs = sign_stages(left, stages - len(fitted.books), fitted.narrow if kind == "images" else 0)
    return replace(fitted, signs=on_grid(signs, axis=1))


def check_objective(objective: str) -> None:
    """Raise UsageError if residual latents cannot be fitted for an objective."""
    if objective not in OBJECTIVES:
        raise UsageError(
            f"residual latents are fitted for {' or '.join(OBJECTIVES)}, not {objective}; choose another --posterior."
        )


def fit_residual(
    encoder: Encoder, features: NDArray[np.floating], held: NDArray[np.floating], options: LatentOptions, *,
    views: NDArray[np.floating] | None = None, report: Callable[[Any], None] = lambda progress: None,
) -> FittedLatents:  # fmt: skip
    """Fit residual latents to an encoder's features at the target rate, and set them and their tables in the encoder.

    Parameters
    ----------
    encoder : Encoder
        Its latents are replaced.
    features : ndarray of float, shape (N, V)
        Standardised features of the training inputs.
    held : ndarray of float, shape (M, V)
        Of inputs that are not fitted to, to measure the rate on; training features replace them if there are none.
    options : LatentOptions
    views : ndarray of float, shape (N, V), optional
        Features of an augmented view of each training input; by default near neighbours are used.
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
        costs = encoder.bits_by_latent(hard_codes(encoder, held))
        rounds, rate = rounds + 1, float(costs.sum())
        report(
            FitProgress(rounds / _ROUNDS, f"residual latents: {rate:,.1f} bits per held-out row at {bits} latents")
        )
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
        return part if shift is None else signed_root(part + shift) * spread

    rows = transformed(features)
    fitted = fit(
        rows, stages, kind=_kind(encoder), views=None if views is None else transformed(views),
        objective=options.objective, width=config.reduced, seed=options.seed, known=known,
    )  # fmt: skip
    encoder.set_residual(stages, fitted.matrix.shape[1], config.transform)
    _set(encoder, {
        "head.weight": (fitted.matrix * np.reshape(spread, (-1, 1))).T.astype(np.float16),  # as in a model file
        "head.mean": fitted.mean @ fitted.matrix, "decoder.signs": fitted.signs,
        **{f"decoder.books.{i}": book for i, book in enumerate(fitted.books)},
        **({} if shift is None else {"head.shift": shift}),
    })  # fmt: skip
    if config.columns:
        _set_output(encoder, np.asarray(features[chosen], np.float32), _MAP_STEP[options.objective])
    return fitted


def _kind(encoder: Encoder) -> str:
    return "images" if encoder.config.columns is None else "vectors"


def _set(encoder: Encoder, tensors: dict[str, NDArray[Any]]) -> None:
    found = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}
    encoder.load_state_dict(encoder.state_dict() | found)


def _latents(encoder: Encoder) -> Residual:
    found = Latents.of(encoder.config, encoder.arrays())
    assert isinstance(found, Residual)
    return found


def _roots(encoder: Encoder) -> tuple[Rows, Rows]:
    """Return the shift to the network's own zero, and factors that make roots those of its own numbers."""
    tensors = encoder.arrays()
    if encoder.config.columns:
        return tensors["norm.centre"] / tensors["norm.scale"], np.ones(encoder.config.columns, np.float32)
    eps: Any = encoder.norm.eps
    deviation = np.sqrt(tensors["norm.running_var"] + np.float32(eps))
    return tensors["norm.running_mean"] / deviation, np.sqrt(deviation)


def _set_output(encoder: Encoder, rows: Rows, share: float) -> None:
    """Set the least-squares map from decoded words to the rows.

    It is rounded in steps that are a share of the codes' error, or larger ones if tables would be too large, as long
    as the map keeps most of its explained power.
    """
    latents, words = _latents(encoder), layout.words(encoder.config, encoder.arrays())
    names = latents.names(hard_codes(encoder, rows).symbols())
    points = decode_words(names, words, encoder.config.reduced).astype(np.float64)
    middle, centre = points.mean(0, dtype=np.float64), rows.mean(0, dtype=np.float64)
    points = points - middle
    gram = points.T @ points
    ridge = 1e-4 * np.trace(gram) / len(gram) + 1e-9
    product = points.T @ (rows - centre)
    exact = np.linalg.solve(gram + ridge * np.eye(len(gram)), product)
    explained = float((exact * product).sum())
    error = max(np.square(rows - centre).sum() - explained, 0) / rows.size
    deviation = np.sqrt(gram.diagonal() / len(rows))
    left = _MOST_TABLES["vectors"] - _OTHER_TABLES[0] - _OTHER_TABLES[1] * rows.shape[1]
    for coarser in range(_COARSER):
        step = share * 2 ** (coarser / 4) * float(np.sqrt(error / len(gram)))
        output = rounded_map(exact.astype(np.float32), deviation, step)
        if coarser and float(((output - exact) * (gram @ (output - exact))).sum()) > _MOST_LOST * explained:
            return  # large tables are better than a useless map
        _set(encoder, {"decoder.output": output, "decoder.centre": (centre - middle @ output).astype(np.float32)})
        if len(zlib.compress(encoder.vector_decoder().to_bytes(), 9)) <= left:
            return


def rounded_map(output: Rows, deviation: Rows, step: float) -> Rows:
    """Round each row of a map, shape (m, V), in steps of about ``step`` over its coordinate's deviation.

    Rows that matter less than the rounding are zero.
    """
    weight = np.sqrt(np.square(output).mean(1)) * deviation
    output = np.where(weight[:, None] < step / 12**0.5, np.float32(0), output)
    wanted = np.abs(output).max(0).mean() * deviation / max(step, 1e-12)
    grid = np.clip(np.rint(2 ** (np.rint(2 * np.log2(np.maximum(wanted, 1))) / 2)), 1, 127)  # few grids deflate well
    return on_grid(output, axis=0, grid=grid[:, None].astype(np.float32))


def _fit_tables(
    encoder: Encoder, features: NDArray[np.floating], views: NDArray[np.floating] | None, options: LatentOptions,
    report: Callable[[Any], None],
) -> dict[str, Any]:  # fmt: skip
    kind, few = _kind(encoder), len(features) < _LINEAR_ROWS
    hidden = (0 if few else _HIDDEN[kind]) if options.prior_hidden is None else options.prior_hidden
    # Signs of coordinates are nearly independent, and their weights would be most of the network.
    named = sum(bits for bits in encoder.config.stages if bits > 1)
    joint = named if kind == "vectors" and named > 1 else None
    codes = hard_codes(encoder, features[:_MOST_CODES])
    more = None if views is None else hard_codes(encoder, views[:_MOST_CODES])
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


def _fit_temperatures(encoder: Encoder, features: NDArray[np.floating], views: NDArray[np.floating] | None) -> None:
    """Set each stage's temperature so that a row's distances predict the words of its view or near neighbour.

    The temperatures minimise the negative log likelihood, as in temperature scaling (Guo et al., arXiv 1706.04599).
    """
    clean = np.asarray(features[:_PAIRS], np.float32)
    near = clean[nearest_rows(clean, 1)[:, 0]] if views is None else views[:_PAIRS]
    seen = hard_codes(encoder, near).symbols()
    latents, words = _latents(encoder), layout.words(encoder.config, encoder.arrays())
    points, names, rows = latents.parameters(clean), latents.names(seen), np.arange(len(clean))
    units = np.array([max(4 * float(stage.var(axis=0).sum()), 1e-12) for stage in words], np.float32)
    costs = []  # of each stage, by temperature
    for distances, name, unit in zip(latents.word_distances(points, seen), names.T, units, strict=False):
        logits = (-distances / (unit * np.float32(t)) for t in _TEMPERATURES)
        costs.append([float(-log_softmax(part)[rows, name].mean()) for part in logits])
    named = len(costs)
    margins = 4 * latents.sign_products(points, seen) * (2 * names[:, named:] - 1) / units[named:]
    costs += np.transpose([np.logaddexp(0, -margins / t).mean(axis=0) for t in _TEMPERATURES]).tolist()
    found = np.log(units) + np.log(_TEMPERATURES[np.argmin(costs, axis=1)])
    _set(encoder, {"decoder.log_temperature": found.astype(np.float32)})
