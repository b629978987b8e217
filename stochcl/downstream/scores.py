"""How uncertain rows of codes are, by scores that need no labels, and by a probe's confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream.estimators import make_estimator
from stochcl.downstream.nearest import DISTANCES, Nearest
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENTROPY, ATYPICAL, LENGTH = "entropy", "atypical entropy", "code length"
NEIGHBOURS, CONFIDENCE = "neighbours", "confidence"

SCORES = {
    ENTROPY: "entropy of the posterior, in bits",
    ATYPICAL: "distance of that from the median of the codes that were trained on, in bits",
    LENGTH: "length of the code under the model, in bits",
    NEIGHBOURS: "mean distance to the nearest codes that were trained on",
    CONFIDENCE: "1 - the probe's largest probability",
}
"""Higher is less certain."""

NEEDS_LABELS = frozenset({CONFIDENCE})

_NEIGHBOURS = 10
_ROWS = 20_000  # among which neighbours are sought: a seeded sample of the rows trained on, where there are more


@dataclass(frozen=True, eq=False)
class Coded:
    """Rows of codes.

    Parameters
    ----------
    x : ndarray, shape (N, V)
        What a probe is given, vectors or symbols.
    symbols : ndarray of int, shape (N, D)
    lengths : ndarray of float32, shape (N,)
        Bits of each row.
    entropy : ndarray of float32, shape (N,), optional
        The stored uncertainty.
    """

    x: NDArray[Any]
    symbols: NDArray[Any]
    lengths: NDArray[np.float32]
    entropy: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[Any]) -> Coded:
        """Return some of the rows."""
        entropy = None if self.entropy is None else self.entropy[rows]
        return Coded(self.x[rows], self.symbols[rows], self.lengths[rows], entropy)


class Doubter:
    """A probe, and the rows that it was trained on, which give other rows their scores.

    Parameters
    ----------
    rows : Coded
        To train on.
    labels : ndarray of str, shape (N,)
    estimator : str
        Of :func:`~stochcl.downstream.estimators.make_estimator`; one that gives probabilities.
    binary : bool
        Whether symbols are 0 or 1: neighbours then go by Hamming distance, else by what the probe is given.
    seed : int

    Raises
    ------
    UsageError
        If the estimator gives no probabilities, or cannot be trained.
    """

    def __init__(
        self, rows: Coded, labels: NDArray[Any], *, estimator: str = "auto", binary: bool, seed: int = 0
    ) -> None:
        symbols = rows.x.dtype.kind != "f"
        self.estimator, probe = make_estimator(
            estimator, "classification", rows=len(rows), seed=seed, symbols=symbols, binary=binary and symbols
        )
        if not hasattr(probe, "predict_proba"):
            raise UsageError(
                f"{self.estimator}: it gives no probabilities to be held against; take logistic, knn or boosting."
            )
        try:
            self.probe = probe.fit(self._given(rows), labels)
        except ValueError as exc:
            reason = str(exc).splitlines()[0].rstrip(".:")
            raise UsageError(f"{self.estimator} cannot be trained on these codes: {reason}.") from exc
        self._distance = DISTANCES["hamming" if binary else "symbols" if symbols else "cosine"]
        # Images without detail have less entropy than usual, and what is usual is known without labels: a test of
        # typicality, as Nalisnick et al. (arXiv 1906.02994) make it of likelihoods.
        self._usual = None if rows.entropy is None else float(np.median(rows.entropy))
        self._binary = binary
        chosen = np.random.default_rng(seed).permutation(len(rows))[:_ROWS]
        self._known = self._compared(rows)[np.sort(chosen)]

    @staticmethod
    def _given(rows: Coded) -> NDArray[Any]:
        return rows.x if rows.x.dtype.kind == "f" else rows.x.astype(np.float32)  # as evaluate does

    def _compared(self, rows: Coded) -> NDArray[Any]:
        return rows.symbols if self._binary else rows.x

    def answers(self, rows: Coded) -> tuple[NDArray[Any], dict[str, NDArray[np.float64]]]:
        """Return the probe's answers, shape (N,), and the scores that these rows have, each of shape (N,)."""
        shares = self.probe.predict_proba(self._given(rows))
        near = Nearest(self._compared(rows), self._distance, min(_NEIGHBOURS, len(self._known)))
        near.add(self._known)
        scores = {
            ENTROPY: rows.entropy,
            ATYPICAL: None if rows.entropy is None or self._usual is None else np.abs(rows.entropy - self._usual),
            LENGTH: rows.lengths,
            NEIGHBOURS: near.sorted()[0].mean(axis=1, dtype=np.float64),
            CONFIDENCE: 1 - shares.max(axis=1),
        }
        answers = np.asarray(self.probe.classes_)[shares.argmax(axis=1)]
        return answers, {name: np.asarray(v, np.float64) for name, v in scores.items() if v is not None}
