"""The meaning of latents: rates, relation to labels and each other, and effects of flipping them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream.distances import DISTANCES, OF_KINDS, Nearest, without_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from stochcl.entropy.tables import Decoder

    Answers = Callable[[NDArray[Any]], NDArray[np.float64]]

LOW, HIGH = 0.1, 0.9  # quantiles used as low and high levels
ROWS = 4096  # rows converted to float at a time
SAME = 0.7  # latents associated at least this strongly count as redundant
LABEL_BINS = 10  # bins of a numeric label: deciles
LEVEL_BINS = 16  # latents with more levels are binned at quantiles
RISK = 0.05  # of a false alarm for any of the latents
SHOWN_VALUES = 4  # the most frequent values of a categorical latent
NEIGHBORS = 10
SHOWN_NEIGHBORS = 6
SHOWN_CLASSES = 3


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of codes, symbols of shape (N, D), and the decoder of these latents, if any."""

    symbols: NDArray[Any]
    kind: str
    decoder: Decoder | None = None
    x: NDArray[Any] = field(init=False, repr=False)
    """Vectors, float32, shape (N, V), or the symbols without a decoder."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", self.decode(self.symbols))

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def distance(self) -> str:
        """The key of :data:`~stochcl.downstream.distances.DISTANCES` for these rows."""
        return OF_KINDS[self.kind] if self.decoder is None else "cosine"

    def decode(self, symbols: NDArray[Any]) -> NDArray[Any]:
        """Decode symbols, shape (n, D), or return them unchanged without a decoder."""
        return symbols if self.decoder is None else self.decoder.decode(symbols)

    def ends(self, column: int) -> tuple[int, int]:
        """Return a latent's two ends: 0 and 1, two quantiles, or the most frequent categories."""
        values = self.symbols[:, column]
        if self.kind == "bits":
            return 0, 1
        if self.kind == "levels":
            low, high = np.quantile(values, [LOW, HIGH], method="nearest")
            return (int(low), int(high)) if low < high else (int(values.min()), int(values.max()))
        found = _by_frequency(values)
        return found[0], found[min(1, len(found) - 1)]

    def flipped(self, column: int, rows: NDArray[np.integer] | slice = slice(None)) -> NDArray[Any]:
        """Return the rows' symbols with the latent set to the farther of its :meth:`ends`."""
        low, high = self.ends(column)
        out = self.symbols[rows].copy()
        values = out[:, column].astype(np.int64)
        nearer_low = values == low if self.kind == "categories" else np.abs(values - low) < np.abs(values - high)
        out[:, column] = np.where(nearer_low, high, low)
        return out


def _by_frequency(values: NDArray[np.integer]) -> list[int]:
    seen, counts = np.unique(values, return_counts=True)
    found: list[int] = seen[np.argsort(-counts, kind="stable")].tolist()
    return found


def value_counts(symbols: NDArray[np.integer], alphabet: int) -> NDArray[np.int64]:
    """Count how often each latent takes each value, shape (D, K)."""
    return np.stack([np.bincount(column, minlength=alphabet) for column in symbols.T.astype(np.intp)])


def entropies(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the entropy of each latent in bits, shape (D,), from value counts, shape (D, K)."""
    from scipy.stats import entropy

    found: NDArray[np.float64] = entropy(counts, base=2, axis=1)
    return found


def weights(sample: Sample) -> NDArray[np.float64]:
    """Return the R2 of the vectors on each latent alone, shape (D,); zeros without a decoder."""
    if sample.decoder is None:
        return np.zeros(sample.symbols.shape[1])
    centred = sample.x - sample.x.mean(axis=0, dtype=np.float64).astype(np.float32)
    total = float(np.square(centred, dtype=np.float64).sum())
    if not total > 0 or not np.isfinite(total):  # a single row, or overflow in a foreign decoder
        return np.zeros(sample.symbols.shape[1])
    if sample.kind == "categories":
        return np.array([_between(column, centred) for column in sample.symbols.T]) / total
    products = np.zeros((sample.symbols.shape[1], centred.shape[1]), np.float32)
    for rows, part in _scaled(sample.symbols):
        products += part.T @ centred[rows]
    found: NDArray[np.float64] = np.square(products, dtype=np.float64).sum(axis=1) / len(sample) / total
    return found


def _between(values: NDArray[np.integer], centred: NDArray[np.floating]) -> float:
    """Return the sum of squares between groups of rows."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])
    sums = np.add.reduceat(centred[order], starts, axis=0, dtype=np.float64)
    sizes = np.diff(np.r_[starts, len(values)])
    return float((np.square(sums).sum(axis=1) / sizes).sum())


def _scaled(symbols: NDArray[Any]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield blocks of rows with standardised columns; zeros for a latent that never changes."""
    parts = [slice(start, start + ROWS) for start in range(0, len(symbols), ROWS)]
    mean = symbols.mean(axis=0, dtype=np.float64)
    squares = sum(np.square(symbols[rows] - mean).sum(axis=0) for rows in parts)
    spread = np.where(symbols.min(axis=0) < symbols.max(axis=0), np.sqrt(squares / len(symbols)), np.inf)
    for rows in parts:
        yield rows, ((symbols[rows] - mean) / spread).astype(np.float32)


def associations(sample: Sample, columns: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
    """Return Pearson correlations, or Cramer's V for categories, (D, D); 0 for a constant latent."""
    symbols = sample.symbols if columns is None else sample.symbols[:, columns]
    if sample.kind == "categories":
        return _cramer(symbols)
    gram = np.zeros((symbols.shape[1],) * 2)
    for _, part in _scaled(symbols):
        gram += part.T @ part
    return np.clip(gram / len(symbols), -1, 1)


def _cramer(symbols: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return Cramer's V of all pairs of columns, from products of their indicators."""
    from stochcl.downstream.selection import indicator_products  # scikit-learn takes a second to import

    gram, _, groups = indicator_products(symbols, np.zeros((len(symbols), 1)))
    starts = [group.start for group in groups]
    values = np.array([group.stop - group.start for group in groups])
    squares = np.add.reduceat(np.add.reduceat(np.square(gram), starts, axis=0), starts, axis=1)
    degrees = np.minimum(values[:, None], values[None, :]) - 1
    found: NDArray[np.float64] = np.sqrt(np.clip(squares / np.maximum(degrees, 1), 0, 1))
    return np.where(degrees > 0, found, 0)


def strongest(scores: NDArray[np.floating], associated: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Return the latents with the greatest scores; those associated with a chosen one by 0.7 or more come last."""
    order = np.argsort(-scores, kind="stable").tolist()
    chosen: list[int] = []
    for column in order:
        if len(chosen) == count:
            break
        if not chosen or np.abs(associated[column, chosen]).max() < SAME:
            chosen.append(column)
    chosen += [column for column in order if column not in chosen]
    return np.array(chosen[:count], np.intp)


@dataclass(frozen=True, eq=False)
class Information:
    """Mutual information of latents with a label, in bits, shape (D,), corrected for small samples.

    ``label_bits`` is the label's entropy; without any relation, no latent exceeds ``chance`` with 95 % probability.
    """

    bits: NDArray[np.float64]
    label_bits: float
    chance: float


def mutual_information(symbols: NDArray[np.integer], y: NDArray[Any], *, ordered: bool) -> Information:
    """Return the mutual information of each latent with a label.

    Estimated from counts minus the bias (Miller, 1955): (values - 1) (classes - 1) / (2 N ln 2). Numeric labels are
    binned at deciles; latents with more than 16 levels at 16 quantiles. ``chance`` is a G test with Bonferroni
    correction.
    """
    from scipy.stats import chi2
    from sklearn.metrics import mutual_info_score

    numbers = _binned(y, LABEL_BINS) if y.dtype.kind == "f" else np.unique(y, return_inverse=True)[1]
    found, numbers = np.unique(numbers, return_inverse=True)
    classes, bits, degrees = len(found), np.zeros(symbols.shape[1]), np.zeros(symbols.shape[1])
    for column, values in enumerate(symbols.T):
        kept, places = np.unique(_binned(values, LEVEL_BINS) if ordered else values, return_inverse=True)
        counts = np.bincount(numbers * len(kept) + places, minlength=classes * len(kept)).reshape(classes, -1)
        bits[column] = mutual_info_score(None, None, contingency=counts) / np.log(2)
        degrees[column] = (len(kept) - 1) * (classes - 1)
    unit = 2 * len(y) * np.log(2)
    most = chi2.isf(RISK / symbols.shape[1], np.maximum(degrees, 1)) - degrees
    chance = float(np.median(most)) / unit if classes > 1 else 0.0
    label_bits = float(entropies(np.bincount(numbers)[None])[0])
    return Information(np.maximum(bits - degrees / unit, 0), label_bits, chance)


def _binned(values: NDArray[Any], bins: int) -> NDArray[np.integer]:
    """Return each value's bin of quantiles, or its own number if there are few values."""
    found = np.unique(values)
    if len(found) <= bins:
        return np.searchsorted(found, values)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right")


@dataclass(frozen=True, eq=False)
class ActivationExamples:
    """Rows in which a latent has one value, or a low or high one, with examples.

    ``typical`` rows lie farthest in the direction that distinguishes this side; ``random`` ones are drawn from the
    rest. ``classes`` are the most over-represented ones: name, share here, share overall. ``means`` are those of
    numeric labels, here and overall.
    """

    name: str
    share: float
    typical: NDArray[np.intp]
    random: NDArray[np.intp]
    classes: tuple[tuple[str, float, float], ...] = ()
    means: tuple[float, float] | None = None


def activation_examples(
    sample: Sample, column: int, *, typical: int, random: int, y: NDArray[Any] | None = None, seed: int = 0
) -> list[ActivationExamples]:
    """Return both sides of a bit or level, or a category's most frequent values, with example rows."""
    rng = np.random.default_rng([seed, column])
    out = []
    for name, members in _members(sample, column):
        rows = np.flatnonzero(members)
        ordered = rows[np.argsort(-_along(sample, members)[rows], kind="stable")]
        others = ordered[typical:]
        drawn = np.sort(rng.choice(others, min(random, len(others)), replace=False)) if len(others) else others
        classes, means = ((), None) if y is None else _labels_of(y, members)
        out.append(ActivationExamples(name, len(rows) / len(sample), ordered[:typical], drawn, classes, means))
    return out


def _members(sample: Sample, column: int) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return the name and row mask of each side."""
    values = sample.symbols[:, column]
    low, high = sample.ends(column)
    if sample.kind == "bits":
        return [("on", values == 1), ("off", values == 0)]
    if sample.kind == "levels":
        return [("high", values >= high), ("low", values <= low)] if low < high else [("high", values >= high)]
    return [(f"value {value}", values == value) for value in _by_frequency(values)[:SHOWN_VALUES]]


def _along(sample: Sample, members: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Project rows onto the direction from the other rows' mean to these rows' mean."""
    if members.all() or not members.any():
        return np.zeros(len(members))
    x = sample.x.astype(np.float32, copy=False)
    direction = x[members].mean(axis=0) - x[~members].mean(axis=0)
    found: NDArray[np.float64] = np.nan_to_num((x @ direction).astype(np.float64))
    return found


def _labels_of(
    y: NDArray[Any], members: NDArray[np.bool_]
) -> tuple[tuple[tuple[str, float, float], ...], tuple[float, float] | None]:
    """Return the classes more frequent on a side than overall, or the means there and overall."""
    numbers = y.dtype.kind == "f"
    known = np.isfinite(y) if numbers else y != ""
    here, everywhere = y[members & known], y[known]
    if not len(here):
        return (), None
    if numbers:
        return (), (float(here.mean()), float(everywhere.mean()))
    names, counts = np.unique(everywhere, return_counts=True)
    usual = counts / len(everywhere)
    found = np.bincount(np.searchsorted(names, here), minlength=len(names)) / len(here)
    order = [i for i in np.argsort(usual - found, kind="stable")[:SHOWN_CLASSES].tolist() if found[i] > usual[i]]
    return tuple((str(names[i]), float(found[i]), float(usual[i])) for i in order), None


@dataclass(frozen=True, eq=False)
class Effect:
    """A flip's effect on one row: its nearest rows before and after, and the probe's answers, (2, C)."""

    row: int
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    answers: NDArray[np.float64] | None
    to: str


@dataclass(frozen=True, eq=False)
class Intervention:
    """The effect of flipping a latent, row by row.

    ``moved`` is the median distance that rows move, ``nearest`` the median distance to the nearest row before,
    ``kept`` the share of the 10 nearest rows that stays, ``changed`` the share of changed answers of a classifier.
    ``means``, (2, C), are the probe's mean answers with the latent at either end. ``example`` is the row whose
    neighbours change most, among rows that are not examples yet.
    """

    column: int
    moved: float
    nearest: float
    kept: float
    changed: float | None
    means: NDArray[np.float64] | None
    example: Effect


class Flips:
    """Flips latents, one at a time, in ``rows``, and finds their neighbours among the ``known`` rows."""

    def __init__(
        self, sample: Sample, rows: NDArray[np.integer], known: NDArray[np.integer], probe: Answers | None = None, *,
        classes: bool = True,
    ) -> None:  # fmt: skip
        self.sample, self.rows, self.known, self.probe, self.classes = sample, rows, known, probe, classes
        self._distance = DISTANCES[sample.distance]
        self._known = self._distance.prepare(sample.x[known])
        own = np.searchsorted(known, rows)  # each row's place among the known ones, or -1
        self._own = np.where(np.append(known, -1)[own] == rows, own, -1)
        self._base = self._distance.prepare(sample.x[rows])
        distances, self._before = self._nearest(self._base)
        self._typical = _median(distances[:, 0]) if distances.shape[1] else 0.0
        self._said = None if probe is None else probe(sample.x[rows])
        self._taken: set[int] = set()  # rows already used as examples

    def of(self, column: int) -> Intervention:
        """Flip one latent."""
        symbols = self.sample.flipped(column, self.rows)
        x = self.sample.decode(symbols)
        flipped = self._distance.prepare(x)
        _, after = self._nearest(flipped)
        moved = np.nan_to_num(np.diagonal(self._distance.between(self._base, flipped)).astype(np.float64))
        shared = (self._before[:, :, None] == after[:, None, :]).any(axis=2)
        then = None if self.probe is None else self.probe(x)
        order = np.lexsort((-moved, shared.sum(axis=1))).tolist()  # ties: the row that moves most
        most = next((row for row in order if row not in self._taken), order[0])
        self._taken.add(most)
        answers, changed = None, None
        if self._said is not None and then is not None:
            answers = np.stack([self._said[most], then[most]])
            changed = float((self._said.argmax(axis=1) != then.argmax(axis=1)).mean()) if self.classes else None
        before, later = (self.known[nearest[most][:SHOWN_NEIGHBORS]] for nearest in (self._before, after))
        value = int(symbols[most, column])
        on = value == self.sample.ends(column)[1]
        names = {"bits": ("off", "on"), "levels": ("low", "high")}.get(self.sample.kind, (f"value {value}",) * 2)
        to = names[on]
        example = Effect(int(self.rows[most]), before, later, answers, to)
        kept = float(shared.mean()) if shared.size else 1.0
        return Intervention(column, _median(moved), self._typical, kept, changed, self._means(column), example)

    def _means(self, column: int) -> NDArray[np.float64] | None:
        """Return the probe's mean answers over all rows with a latent at either end."""
        if self.probe is None:
            return None
        symbols, means = self.sample.symbols[self.rows], []
        for end in self.sample.ends(column):
            symbols[:, column] = end
            means.append(self.probe(self.sample.decode(symbols)).mean(axis=0))
        return np.stack(means)

    def _nearest(self, queries: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the nearest known rows, without the queries themselves."""
        found = Nearest(queries, self._distance, min(NEIGHBORS + 1, len(self._known)), prepared=True)
        found.add(self._known, prepared=True)
        return without_own(*found.sorted(), self._own)


def _median(values: NDArray[Any]) -> float:
    """Return the median, with infinite distances as 0."""
    return float(np.median(np.nan_to_num(values, posinf=0)))


def project(x: NDArray[Any]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Return rows on their first two principal components, shape (N, 2), and the components' shares of variance."""
    centred = np.nan_to_num(x.astype(np.float64), posinf=0, neginf=0)
    centred -= centred.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)  # scikit-learn's PCA needs two rows and two columns
    if len(values) < 2:
        values, vectors = np.r_[0.0, values], np.c_[np.zeros((len(vectors), 1)), vectors]
    axes = vectors[:, [-1, -2]]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    points: NDArray[np.float64] = centred @ (axes * np.where(signs == 0, 1, signs))
    total = max(float(values.sum()), 0.0)
    first, second = (max(float(value), 0.0) / total if total else 0.0 for value in (values[-1], values[-2]))
    return points + 0.0, (first, second)
