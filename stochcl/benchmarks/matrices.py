"""The matrices of the embeddings benchmark, and how what is left of them is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.benchmarks import probing
from stochcl.data import MatrixSource, open_source
from stochcl.errors import SourceError
from stochcl.messages import escape_name as printable

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_QUERIES = 2_000


@dataclass(frozen=True, eq=False)
class Data:
    """The matrices, and what every method is measured against.

    Parameters
    ----------
    train, test : ndarray of float32, shape (N, V)
    labels, test_labels : ndarray or None
    queries : ndarray of int
        Rows of ``test`` whose neighbours are looked for among the others.
    true : ndarray of int, shape (n, 10)
        Their nearest rows.
    """

    train: NDArray[np.float32]
    test: NDArray[np.float32]
    labels: NDArray[np.generic] | None
    test_labels: NDArray[np.generic] | None
    queries: NDArray[np.intp]
    true: NDArray[np.intp]

    @classmethod
    def read(cls, train: Path, test: Path, labels: Path | None, test_labels: Path | None, seed: int) -> Data:
        """Read matrices, .npy, and labels, .npy of integers or text, if there are any; draw queries."""
        fitted, measured = _matrix(train), _matrix(test)
        if fitted.shape[1] != measured.shape[1]:
            msg = f"{printable(test)}: these rows have {measured.shape[1]:,} columns, and those of"
            raise SourceError(f"{msg} {printable(train)} have {fitted.shape[1]:,}.")
        if len(measured) <= probing.NEIGHBOURS:
            raise SourceError(f"{printable(test)}: {len(measured)} rows are too few to look for neighbours in.")
        queries = np.sort(np.random.default_rng([seed, 19]).permutation(len(measured))[:_QUERIES])
        return cls(
            fitted,
            measured,
            _labels(labels, len(fitted)),
            _labels(test_labels, len(measured)),
            queries,
            probing.neighbours(measured[queries], measured, queries),
        )

    def judge(self, train: NDArray[np.float32], test: NDArray[np.float32], seed: int) -> dict[str, Any]:
        """Return what decoded training and test rows are good for."""
        found: dict[str, Any] = {"accuracy": None, "penalty": None}
        if self.labels is not None and self.test_labels is not None:
            accuracy, penalty = probing.linear_accuracy(train, self.labels, test, self.test_labels, seed=seed)
            found = {"accuracy": round(accuracy, 4), "penalty": penalty}
        asymmetric = probing.neighbours(self.test[self.queries], test, self.queries)
        symmetric = probing.neighbours(test[self.queries], test, self.queries)
        error = probing.relative_error(self.test, test, self.train.mean(axis=0))
        return found | {
            "recall": round(probing.recall(self.true, asymmetric), 4),
            "recall_symmetric": round(probing.recall(self.true, symmetric), 4),
            "relative_error": round(error, 6),
        }


def _matrix(path: Path) -> NDArray[np.float32]:
    source = open_source(path)
    if not isinstance(source, MatrixSource):
        raise SourceError(f"{printable(path)}: this holds images; the benchmark of embeddings takes a matrix.")
    vectors = source.take(slice(None))
    if not np.isfinite(vectors).all():
        raise SourceError(f"{printable(path)}: some of its numbers are not finite; leave those rows out.")
    return vectors


def _labels(path: Path | None, rows: int) -> NDArray[np.generic] | None:
    if path is None:
        return None
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise SourceError(
            f"{printable(path)}: these labels cannot be read ({exc}); save them with numpy.save."
        ) from exc
    if not isinstance(labels, np.ndarray) or labels.shape != (rows,) or labels.dtype.kind not in "iuU":
        raise SourceError(f"{printable(path)}: labels are one integer or text for each of {rows:,} rows.")
    return labels
