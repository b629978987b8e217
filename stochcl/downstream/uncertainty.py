"""Uncertainty scores of codes, how well they flag errors and foreign rows, and the gain from refusing rows."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.downstream.distances import DISTANCES, Nearest
from stochcl.downstream.metrics import Z95, wilson
from stochcl.downstream.probes import make_estimator
from stochcl.errors import UsageError, require
from stochcl.files import PathLike, write_file
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


ENTROPY, ATYPICAL, LENGTH = "entropy", "atypical entropy", "code length"
NEIGHBOURS, CONFIDENCE = "neighbours", "confidence"

SCORES = {
    ENTROPY: "entropy of the posterior (of residual codes: of the first word), in bits",
    ATYPICAL: "distance of that from the median of the codes that were trained on, in bits",
    LENGTH: "length of the code under the model, in bits",
    NEIGHBOURS: "mean distance to the nearest codes that were trained on",
    CONFIDENCE: "1 - the probe's largest probability",
}
"""Descriptions of the scores; higher is less certain."""

NEEDS_LABELS = frozenset({CONFIDENCE})

_NEIGHBOURS = 10
_ROWS = 20_000  # rows searched for neighbours, at most: a seeded sample of the training rows


@dataclass(frozen=True, eq=False)
class CodeBatch:
    """Rows of codes: the probe's input, symbols, bits per row, and the stored uncertainty, if any."""

    x: NDArray[Any]
    symbols: NDArray[Any]
    lengths: NDArray[np.float32]
    entropy: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def floats(self) -> NDArray[Any]:
        """The probe's input as floats."""
        return self.x if self.x.dtype.kind == "f" else self.x.astype(np.float32)

    def take(self, rows: NDArray[Any]) -> CodeBatch:
        """Return a subset of the rows."""
        entropy = None if self.entropy is None else self.entropy[rows]
        return CodeBatch(self.x[rows], self.symbols[rows], self.lengths[rows], entropy)


class UncertaintyScorer:
    """Scores rows with a probe and the rows it was trained on.

    ``binary`` says that symbols are 0 or 1, which neighbours compare by Hamming distance; otherwise they compare the
    probe's input.
    """

    def __init__(
        self, rows: CodeBatch, labels: NDArray[Any], *, estimator: str = "auto", binary: bool, seed: int = 0
    ) -> None:
        symbols = rows.x.dtype.kind != "f"
        self.estimator, probe = make_estimator(
            estimator, "classification", rows=len(rows), seed=seed, symbols=symbols, binary=binary and symbols
        )
        if not hasattr(probe, "predict_proba"):
            raise UsageError(f"{self.estimator}: it gives no probabilities; choose logistic, knn or boosting.")
        try:
            self.probe = probe.fit(rows.floats, labels)
        except ValueError as exc:
            reason = str(exc).splitlines()[0].rstrip(".:")
            raise UsageError(f"{self.estimator} cannot be trained on these codes: {reason}.") from exc
        self._distance = DISTANCES["hamming" if binary else "symbols" if symbols else "cosine"]
        # A test of typicality, as Nalisnick et al. (arXiv 1906.02994) apply it to likelihoods: images without detail
        # have less entropy than usual, and the usual entropy is known without labels.
        self._usual = None if rows.entropy is None else float(np.median(rows.entropy))
        self._binary = binary
        chosen = np.random.default_rng(seed).permutation(len(rows))[:_ROWS]
        self._known = (rows.symbols if binary else rows.x)[np.sort(chosen)]

    def answers(self, rows: CodeBatch) -> tuple[NDArray[Any], dict[str, NDArray[np.float64]]]:
        """Return the probe's answers and the available scores, each of shape (N,)."""
        shares = self.probe.predict_proba(rows.floats)
        near = Nearest(rows.symbols if self._binary else rows.x, self._distance, min(_NEIGHBOURS, len(self._known)))
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


REFUSED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the least certain images to refuse."""


@dataclass(frozen=True)
class Auroc:
    """The probability that positives score higher (ties count half), and its 95 % interval (DeLong et al., 1988)."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"auroc": round(self.value, 4), "interval": [round(self.low, 4), round(self.high, 4)]}


def auroc(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> Auroc | None:
    """Return the AUROC of a score, shape (N,), that should be high for positives; None if either kind is missing."""
    if not positive.any() or positive.all():
        return None
    found, others = _placements(positive, score)
    value = float(found.mean())
    low, high = _interval(value, found, others)
    return Auroc(value, low, high)


def difference(
    positive: NDArray[np.bool_], first: NDArray[np.floating], second: NDArray[np.floating]
) -> tuple[float, float, float] | None:
    """Return the first score's AUROC minus the second's on the same rows, and its 95 % interval."""
    if not positive.any() or positive.all():
        return None
    a, b = _placements(positive, first), _placements(positive, second)
    value, half = float(a[0].mean() - b[0].mean()), _half(a[0] - b[0], a[1] - b[1])
    return value, value - half, value + half


def _placements(positive: NDArray[np.bool_], score: NDArray[np.floating]) -> tuple[NDArray[np.float64], ...]:
    """Return the share of negatives below each positive, and the share of positives above each negative."""
    from scipy.stats import rankdata

    inside, outside = score[positive], score[~positive]
    ranks = rankdata(np.concatenate([inside, outside]))
    m, n = len(inside), len(outside)
    below = (ranks[:m] - rankdata(inside)) / n
    above = 1 - (ranks[m:] - rankdata(outside)) / m
    return below, above


def _half(found: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return half the interval's width; 1 if a side has fewer than two rows, which have no variance."""
    if min(len(found), len(others)) < 2:
        return 1.0
    return float(Z95 * np.sqrt(found.var(ddof=1) / len(found) + others.var(ddof=1) / len(others)))


def _interval(value: float, found: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float]:
    """Return the interval; Wilson's if the variance is zero."""
    half = _half(found, others)
    if half == 0:
        few = min(len(found), len(others))
        return wilson(round(value * few), few)
    return max(0.0, value - half), min(1.0, value + half)


@dataclass(frozen=True)
class Kept:
    """The images kept when the least certain share is refused, and their accuracy with its 95 % interval (Wilson)."""

    refused: float
    images: int
    accuracy: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "refused": self.refused,
            "images": self.images,
            "accuracy": round(self.accuracy, 4),
            "interval": [round(self.low, 4), round(self.high, 4)],
        }


def refuse(
    wrong: NDArray[np.bool_], score: NDArray[np.floating], *, seed: int = 0, shares: tuple[float, ...] = REFUSED
) -> tuple[Kept, ...]:
    """Refuse the rows with the highest scores, and return the accuracy of the rest for each share."""
    chance = np.random.default_rng(seed).permutation(len(wrong))
    order = np.lexsort((chance, score))
    right = np.cumsum(~wrong[order])
    found = []
    for share in shares:
        images = max(1, round(len(wrong) * (1 - share)))
        held = int(right[images - 1])
        found.append(Kept(share, images, held / images, *wilson(held, images)))
    return tuple(found)


ENDINGS = (".png", ".svg", ".pdf")

_LOOKS = (  # line, mark, grey
    ("-", "o", "0.0"),
    ((0, (8, 2)), "x", "0.6"),
    ("--", "s", "0.35"),
    ("-.", "^", "0.5"),
    (":", "D", "0.2"),
)


def check_plot(path: PathLike) -> None:
    """Raise UsageError unless a plot of this file type can be drawn."""
    require("matplotlib", "a plot", "plots")
    if Path(path).suffix.lower() not in ENDINGS:
        raise UsageError(f"{escape_name(path)}: a plot is drawn as {', '.join(ENDINGS)}; give it such an ending.")


def draw_refusal(
    curves: Mapping[str, Sequence[Kept]], path: PathLike, *, title: str = "",
    chance: float | None = None,
) -> None:  # fmt: skip
    """Draw a line with its 95 % band for each score."""
    check_plot(path)
    from matplotlib.figure import Figure  # no window, and no state of pyplot's

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for (name, curve), (line, mark, grey) in zip(curves.items(), _LOOKS * len(curves), strict=False):
        refused = [100 * kept.refused for kept in curve]
        low, high = [100 * kept.low for kept in curve], [100 * kept.high for kept in curve]
        axes.fill_between(refused, low, high, color=grey, alpha=0.12, linewidth=0)
        accuracy = [100 * kept.accuracy for kept in curve]
        axes.plot(refused, accuracy, linestyle=line, marker=mark, color=grey, markersize=4, label=name)
    if chance is not None:
        axes.axhline(100 * chance, color="0.7", linewidth=0.8, label="refused at random")
    axes.set(xlabel="rows refused, the least certain first, in %", ylabel="accuracy on the others, in %")
    axes.set_title(title, fontsize="medium")
    axes.grid(color="0.9")
    axes.legend(title="uncertain by (band: 95 %)", fontsize="small", title_fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(path).suffix[1:].lower(), dpi=150)
    write_file(path, picture.getvalue(), "the plot")
