"""Scores of decoded vectors, and the size of codes as files."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks.run import BenchmarkError
from stochcl.compress import Archive, Header, Writer
from stochcl.downstream.metrics import wilson
from stochcl.entropy.independent import MAX_DECISIONS, IndependentModel
from stochcl.entropy.model import fit_linear
from stochcl.entropy.tables import Tables
from stochcl.lazy import cached_property

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stochcl.codes import Codes
    from stochcl.entropy.autoregressive import AutoregressiveModel

METRICS = {"accuracy": "accuracy", "recall@10": "recall", "map@1000": "map"}
"""The key of a row for each name of ``--metric``."""

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Weights of half the squared norm beside the mean loss; the best on held-out rows is used."""

NEAREST = (1, 5, 10, 20, 50)
"""Numbers of neighbours; the best on held-out rows is used."""

NEIGHBOURS = 10
RETRIEVED = 1000

_CHOOSING = 15_000  # training rows to choose the penalty on
_BLOCK = 1024  # queries per block of distances
_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores decoded rows the same way for every method.

    Accuracy: of a probe fitted to decoded training rows. Recall: of each query's nearest rows among the other test
    rows. mAP: of a query's class among the training rows.
    """

    train_labels: NDArray[np.str_]
    test_labels: NDArray[np.str_]
    train_mean: NDArray[np.float32]
    test: NDArray[np.float32]
    metrics: tuple[str, ...] = ("accuracy",)
    probe: str = "logistic"
    most_queries: int = 2000
    seed: int = 0

    @cached_property
    def queries(self) -> NDArray[np.intp]:
        """Test rows used as queries."""
        return np.sort(np.random.default_rng([self.seed, 19]).permutation(len(self.test))[: self.most_queries])

    @cached_property
    def true(self) -> NDArray[np.intp]:
        """The nearest rows of each query by the original vectors."""
        return neighbours(self.test[self.queries], self.test, self.queries)

    def scores(
        self, train: NDArray[np.float32], test: NDArray[np.float32], distance: str = "cosine"
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.generic]]]:
        """Return the facts of a row, and for each metric the score of every test row or query."""
        facts: dict[str, Any] = {}
        values: dict[str, NDArray[np.generic]] = {}
        for metric in self.metrics:
            key = METRICS[metric]
            if key == "accuracy":
                right, chosen = answers(self.probe, train, self.train_labels, test, self.test_labels, seed=self.seed)
                low, high = wilson(int(right.sum()), len(right))
                facts |= {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high}
                facts["chosen"] = chosen
                values[key] = right
                continue
            if key == "recall":
                more, scores = self._recall(test)
            else:
                more, scores = {}, self._precision(train, test, distance)
            low, high = interval(scores, self.seed)
            facts |= more | {key: round(float(scores.mean()), 4), f"{key}_low": low, f"{key}_high": high}
            values[key] = scores.astype(np.float32)
        return facts, values

    def _recall(self, test: NDArray[np.float32]) -> tuple[dict[str, Any], NDArray[np.floating]]:
        """Return more facts, and each query's recall; queries are floats if decoded rows have the features' shape."""
        symmetric = recalls(self.true, neighbours(test[self.queries], test, self.queries))
        more: dict[str, Any] = {"recall_symmetric": round(float(symmetric.mean()), 4), "relative_error": None}
        if test.shape != self.test.shape:
            return more, symmetric
        more["relative_error"] = round(relative_error(self.test, test, self.train_mean), 6)
        return more, recalls(self.true, neighbours(self.test[self.queries], test, self.queries))

    def _precision(
        self, train: NDArray[np.generic], test: NDArray[np.generic], distance: str
    ) -> NDArray[np.floating]:
        """Return each query's average precision among the first thousand training rows."""
        from stochcl.downstream.distances import DISTANCES, Nearest

        # Short codes often tie and ties are broken by row, so shuffle: sources are sorted by class.
        order = np.random.default_rng([self.seed, 41]).permutation(len(train))
        labels, wanted = self.train_labels[order], self.test_labels[self.queries]
        parts = []
        for start in range(0, len(self.queries), _BLOCK):
            part = self.queries[start : start + _BLOCK]
            found = Nearest(test[part], DISTANCES[distance], min(RETRIEVED, len(train)))
            found.add(train[order])
            parts.append(average_precision(labels[found.sorted()[1]] == wanted[start : start + _BLOCK, None]))
        return np.concatenate(parts)


def interval(scores: NDArray[np.floating], seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over queries."""
    rng = np.random.default_rng([seed, 31])
    draws = [scores[rng.integers(len(scores), size=len(scores))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def answers(
    probe: str, train: NDArray[np.float32], labels: NDArray[np.generic], test: NDArray[np.float32],
    test_labels: NDArray[np.generic], *, seed: int = 0,
) -> tuple[NDArray[np.bool_], float]:  # fmt: skip
    """Return which test rows a probe gets right, and its chosen setting.

    The setting is chosen on a fifth of (at most 15,000) training rows, never on test rows.
    """
    from sklearn.preprocessing import StandardScaler

    fit, settings = _PROBES[probe]
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    rows = np.random.default_rng([seed, 17]).permutation(len(train))[:_CHOOSING]
    fitted, kept = rows[len(rows) // 5 :], rows[: len(rows) // 5]
    scores = {s: fit(train[fitted], labels[fitted], s).score(train[kept], labels[kept]) for s in settings}
    best = max(scores, key=scores.__getitem__)
    right: NDArray[np.bool_] = fit(train, labels, best).predict(test) == test_labels
    return right, best


def _linear(x: NDArray[np.float32], y: NDArray[np.generic], penalty: float, *, svm: bool = False) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    strength = 1 / (penalty * len(x))
    model = LogisticRegression(C=strength, max_iter=100, tol=1e-3)
    if svm:
        model = LinearSVC(C=strength, dual=len(x) < x.shape[1], tol=1e-3, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the accuracy settles long before the weights do
        return model.fit(x, y)


def _nearest(x: NDArray[np.float32], y: NDArray[np.generic], count: float) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(min(int(count), len(x)), algorithm="brute").fit(x, y)


_PROBES: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "logistic": (_linear, PENALTIES),
    "svm": (partial(_linear, svm=True), PENALTIES),
    "knn": (_nearest, NEAREST),
}
PROBES = tuple(_PROBES)


def relative_error(vectors: NDArray[np.float32], decoded: NDArray[np.float32], mean: NDArray[np.float32]) -> float:
    """Return the squared error of decoded vectors relative to that of the training rows' mean."""
    lost = np.square(vectors - decoded, dtype=np.float64).sum()
    return float(lost / np.square(vectors - mean, dtype=np.float64).sum())


def neighbours(queries: NDArray[np.float32], base: NDArray[np.float32], own: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the ten nearest rows of ``base`` for each query except the query itself, unordered, shape (n, 10)."""
    norms = np.square(base).sum(axis=1)
    found = []
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        distances = norms - 2 * (queries[part] @ base.T)
        distances[np.arange(len(distances)), own[part]] = np.inf
        found.append(np.argpartition(distances, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])
    return np.concatenate(found)


def recalls(true: NDArray[np.intp], found: NDArray[np.intp]) -> NDArray[np.floating]:
    """Return the fraction of each query's true neighbours, shape (n, 10), that were found."""
    share: NDArray[np.floating] = (true[:, :, None] == found[:, None, :]).any(axis=2).mean(axis=1)
    return share


def average_precision(relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the average precision of each query over its results, shape (M,).

    AP@k as in papers on hashing: normalised by the number of relevant results among the k.

    Examples
    --------
    >>> average_precision(np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool)).round(4).tolist()
    [0.8333, 0.0]
    """
    found = np.cumsum(relevant, axis=1)
    precision = found / np.arange(1, relevant.shape[1] + 1)
    total = found[:, -1] if relevant.shape[1] else np.zeros(len(relevant))
    average: NDArray[np.float64] = (precision * relevant).sum(axis=1) / np.maximum(total, 1)
    return average


CODINGS = ("packed", "independent", "linear", "network")
"""Packed bits; symbols with a table each; logistic regressions on earlier symbols; a masked network."""

_NO_MODEL = "0" * 64
_MOST_LINEAR = 1024  # decisions per row; the number of weights grows with their square


def codings_of(codes: Codes, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return the codings that fit rows of this width; independent symbols replace a network that is too wide."""
    most = {"packed": 1 << 32, "independent": MAX_DECISIONS, "linear": _MOST_LINEAR, "network": _MOST_LINEAR}
    wide = codes.decisions_per_row > _MOST_LINEAR
    narrowed = ("independent" if wide and most[coding] == _MOST_LINEAR else coding for coding in asked)
    return tuple(c for c in dict.fromkeys(narrowed) if codes.decisions_per_row <= most[c])


def price(fitting: Codes, codes: Codes, coding: str, seed: int = 0) -> tuple[int, int]:
    """Return the bytes of codes as a file, and of the model needed to read it, fitted to the codes of other rows.

    Raises BenchmarkError if the file gives back other codes.
    """
    if coding == "packed":
        return codes.packed.nbytes, 0
    tables = _tables(fitting, coding, seed)
    header = Header("benchmark", _NO_MODEL, codes.latents, codes.latents, codes.alphabet, "none", tables.sha256)
    size, _ = through_a_file(header, tables, codes)
    return size, len(tables.data)


def through_a_file(header: Header, tables: Tables, codes: Codes) -> tuple[int, Codes]:
    """Write codes without names or tables, read them back, and return the file's size and its codes."""
    with tempfile.TemporaryDirectory(prefix="stochcl-") as folder:
        path = Path(folder, "codes.bin")
        with Writer(path, header, tables, embed_tables=False, names=False) as out:
            out.add(codes)
        with Archive(path, tables=[tables]) as archive:
            back, size = archive[:], archive.size
    if (back.packed != codes.packed).any():
        raise BenchmarkError("an archive gave back other codes; no figure of this run counts.")
    return size, back


def _tables(fitting: Codes, coding: str, seed: int) -> Tables:
    network: AutoregressiveModel | None = None
    if coding == "linear":
        network = fit_linear(fitting, seed=seed)
    elif coding == "network":  # like ``stochcl train``, which keeps a network only if it beats independent symbols
        from stochcl.training.entropy import fit_entropy

        network = fit_entropy(fitting, (fitting.latents,), seed=seed, precision="fp32").network
    return Tables((fitting.latents,), IndependentModel.fit(fitting), autoregressive=network)
