"""Scores of latents by known factors (MIG and DCI), and whether models of other seeds have the same latents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 20
"""Bins of equal count for numbers, as in Locatello et al. (arXiv 1811.12359, appendix C)."""

SIMILAR = 0.8
"""The least ratio of the smallest to the largest information of seeds' best latents that counts as alike."""

_BLOCK = 1 << 22  # cells of latents and images at a time
_TREES = 10  # as in Eastwood and Williams' forests
_DEPTH = 12


def in_bins(values: NDArray[np.floating], bins: int = BINS) -> NDArray[np.int64]:
    """Cut each column of numbers, shape (N,) or (N, D), into bins of equal count; equal numbers share a bin.

    Examples
    --------
    >>> in_bins(np.array([0.3, 0.1, 9.0, 0.2]), 2).tolist()
    [1, 0, 1, 0]
    """
    if bins < 2:
        raise UsageError(f"numbers are cut into 2 bins or more, not {bins}.")
    columns = values.reshape(len(values), -1)
    edges = np.quantile(columns, np.arange(1, bins) / bins, axis=0)
    found = np.stack([np.searchsorted(edges[:, d], columns[:, d], side="right") for d in range(columns.shape[1])], 1)
    return found.astype(np.int64).reshape(values.shape)


def entropy(classes: NDArray[np.integer]) -> float:
    """Return the entropy of a discrete variable, shape (N,), in nats, from its frequencies."""
    counts = np.unique(classes, return_counts=True)[1] / len(classes)
    return float(-(counts * np.log(counts)).sum())


def mutual_information(symbols: NDArray[np.integer], classes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the mutual information of each latent with a discrete variable, in nats, from joint frequencies.

    For independent variables the expectation is (K - 1)(C - 1) / 2N, not zero; that much is noise.

    Parameters
    ----------
    symbols : ndarray of int, shape (N, D)
        Numbered from 0.
    classes : ndarray of int, shape (N,)

    Returns
    -------
    ndarray of float64, shape (D,)

    Examples
    --------
    >>> bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> (mutual_information(bits, np.array([0, 0, 1, 1])) / np.log(2)).round(6).tolist()
    [1.0, 0.0]
    """
    n, latents = symbols.shape
    values = int(symbols.max(initial=0)) + 1
    kinds, at = np.unique(classes, return_inverse=True)
    out = np.empty(latents)
    step = max(1, _BLOCK // max(n, values * len(kinds)))
    for start in range(0, latents, step):
        part = symbols[:, start : start + step].astype(np.int64)
        width = part.shape[1]
        cells = (np.arange(width) * values + part) * len(kinds) + at[:, None]
        joint = np.bincount(cells.ravel(), minlength=width * values * len(kinds)).reshape(width, values, -1) / n
        alone = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
        there = joint > 0
        ratio = np.divide(joint, alone, out=np.ones_like(joint), where=there)
        out[start : start + step] = (joint * np.log(ratio)).sum(axis=(1, 2))
    return np.maximum(out, 0)


def information(symbols: NDArray[np.integer], factors: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each latent's information about each factor, I(z_j; v_k) / H(v_k), 0 to 1, shape (D, F).

    Parameters
    ----------
    symbols : ndarray of int, shape (N, D)
    factors : ndarray of int, shape (N, F)
        Classes, or bins of numbers (:func:`in_bins`).

    Raises
    ------
    UsageError
        If the numbers of rows differ, or a factor never varies.
    """
    if len(symbols) != len(factors) or factors.ndim != 2 or symbols.ndim != 2:
        raise UsageError(f"codes of the shape {symbols.shape} and factors of {factors.shape} do not belong together.")
    spread = [entropy(column) for column in factors.T]
    if min(spread, default=0) <= 0:
        raise UsageError("a factor that never varies cannot be asked for.")
    told = [mutual_information(symbols, column) / h for column, h in zip(factors.T, spread, strict=True)]
    return np.stack(told, axis=1)


def gaps(told: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lead of each factor's best latent over its second best; their mean is MIG.

    The mutual information gap of Chen et al. (arXiv 1802.04942, equation 6). A latent of K values has at most log K
    of information, so one bit has at most log 2 / log 20 = 0.23 of a factor with 20 equal bins.

    Parameters
    ----------
    told : ndarray, shape (D, F)
        :func:`information`.

    Examples
    --------
    >>> gaps(np.array([[0.9, 0.0], [0.1, 0.5], [0.0, 0.5]])).round(6).tolist()
    [0.8, 0.0]
    """
    if len(told) == 1:
        return np.array(told[0])
    second, best = np.partition(told, len(told) - 2, axis=0)[-2:]
    return np.asarray(best - second, np.float64)


@dataclass(frozen=True, eq=False)
class DCI:
    """Disentanglement, completeness and informativeness, each at most 1, which is the best.

    Eastwood and Williams, *A framework for the quantitative evaluation of disentangled representations*, ICLR 2018.

    Parameters
    ----------
    disentanglement : float
        Whether each latent matters to only one factor: 1 - H_F(P_j), averaged over latents by importance.
    completeness : float
        Whether only one latent matters to each factor: 1 - H_D(P_k), mean over factors.
    informativeness : tuple of float
        The score of predicting each factor on held-out rows: R2, or accuracy for classes.
    completenesses : tuple of float
        Of each factor.
    importance : ndarray of float64, shape (D, F)
        Importance of each latent for each factor; columns add up to 1, or are 0 if no latent matters.
    """

    disentanglement: float
    completeness: float
    informativeness: tuple[float, ...]
    completenesses: tuple[float, ...]
    importance: NDArray[np.float64]


def disentanglement(importance: NDArray[np.float64]) -> float:
    """Return the disentanglement of importances, shape (D, F), F > 1.

    Examples
    --------
    >>> disentanglement(np.eye(3)), round(disentanglement(np.ones((4, 3))), 6)
    (1.0, 0.0)
    >>> round(disentanglement(np.array([[0.75, 0.25], [0.25, 0.75]])), 6)  # 1 - H(1/4), in bits
    0.188722
    """
    rows = importance.sum(axis=1)
    if rows.sum() <= 0:
        return 0.0
    return float((_concentration(importance) * rows).sum() / rows.sum())


def completenesses(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the completeness of each factor, shape (F,), from importances, shape (D, F); 0 if no latent matters.

    Examples
    --------
    >>> completenesses(np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]])).tolist()
    [1.0, 0.0, 0.0]
    """
    return _concentration(importance.T)


def _concentration(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 minus the entropy of each row, relative to its maximum; 0 for zero rows."""
    total = weights.sum(axis=1, keepdims=True)
    there = np.asarray(total[:, 0] > 0, np.float64)
    if weights.shape[1] == 1:
        return there
    p = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    terms: NDArray[np.float64] = p * np.log(np.where(p > 0, p, 1))
    found: NDArray[np.float64] = 1 + terms.sum(axis=1) / math.log(weights.shape[1])
    return np.maximum(found, 0) * there


def dci(
    train: tuple[NDArray[Any], NDArray[np.float64]], test: tuple[NDArray[Any], NDArray[np.float64]], *,
    classes: tuple[bool, ...], kind: str = "lasso", seed: int = 0,
) -> DCI:  # fmt: skip
    """Predict each factor from all latents, and score the spread of importances.

    Parameters
    ----------
    train, test : pair of ndarray
        Codes, shape (N, D), and factors, shape (N, F).
    classes : tuple of bool
        Which factors are classes.
    kind : str
        One of the paper's two. ``lasso``: importance is the size of a standardised column's weight (for classes the
        sum over classes, in logistic regression with that penalty); only linear relations count. ``forest``: ten
        trees; importance is the error reduction of a latent's splits.
    seed : int
        Of folds and forests.

    Raises
    ------
    UsageError
        If there is no such kind.
    """
    if kind not in _FITS:
        raise UsageError(f"there is no kind of importance {kind!r}; there are {', '.join(_FITS)}.")
    mean, deviation = train[0].mean(axis=0), train[0].std(axis=0)
    x, held = ((codes - mean) / np.where(deviation > 0, deviation, 1) for codes, _ in (train, test))
    importance = np.zeros((x.shape[1], train[1].shape[1]))
    scores = []
    for k, is_class in enumerate(classes):
        model, weight = _FITS[kind](x, train[1][:, k], is_class, seed)
        scores.append(float(model.score(held, test[1][:, k])))
        if weight.sum() > 0:
            importance[:, k] = weight / weight.sum()
    each = completenesses(importance)
    return DCI(disentanglement(importance), float(each.mean()), tuple(scores), tuple(each.tolist()), importance)


def _lasso(
    x: NDArray[np.float64], y: NDArray[np.float64], is_class: bool, seed: int
) -> tuple[Any, NDArray[np.float64]]:
    """Fit a linear model with an L1 penalty chosen by cross-validation, or on a fifth of the rows for classes."""
    from sklearn.linear_model import LassoCV, LogisticRegression
    from sklearn.model_selection import train_test_split

    if not is_class:
        model = LassoCV(cv=3, eps=3e-3, alphas=30, random_state=seed, max_iter=500, tol=1e-3)
        fitted = _quiet(model, x, y)
        return fitted, np.abs(fitted.coef_)
    part, kept, y_part, y_kept = train_test_split(x, y.astype(np.int64), test_size=0.2, random_state=seed, stratify=y)

    def made(c: float) -> Any:
        return LogisticRegression(C=c, l1_ratio=1, solver="saga", tol=1e-2, max_iter=100, random_state=seed)

    score = {c: _quiet(made(c), part, y_part).score(kept, y_kept) for c in (0.01, 0.03, 0.1)}
    fitted = _quiet(made(max(score, key=score.__getitem__)), x, y.astype(np.int64))
    return fitted, np.abs(fitted.coef_).sum(axis=0)


def _forest(
    x: NDArray[np.float64], y: NDArray[np.float64], is_class: bool, seed: int
) -> tuple[Any, NDArray[np.float64]]:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestClassifier if is_class else RandomForestRegressor
    model = kind(_TREES, max_depth=_DEPTH, max_features=1.0, random_state=seed)
    model.fit(x.astype(np.float32), y.astype(np.int64) if is_class else y)
    return model, model.feature_importances_


def _quiet(model: Any, x: NDArray[np.float64], y: NDArray[Any]) -> Any:
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


_FITS = {"lasso": _lasso, "forest": _forest}


@dataclass(frozen=True, eq=False)
class Matching:
    """Pairs of latents of two models.

    Parameters
    ----------
    pairs : ndarray of int, shape (D, 2)
        Rows of the first model and of the second.
    same : float
        Share of pairs whose two latents have most information about the same factor.
    chance : float
        The same for random pairs: the sum over factors of the product of the two models' shares of such latents.
    correlation : float
        Mean absolute correlation of the two latents' symbols over the same images.
    chance_correlation : float
        The same over all possible pairs.
    """

    pairs: NDArray[np.intp]
    same: float
    chance: float
    correlation: float
    chance_correlation: float

    def to_json(self) -> dict[str, Any]:
        names = ("same", "chance", "correlation", "chance_correlation")
        return {name: round(float(getattr(self, name)), 4) for name in names}


def correlations(first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the absolute correlation of each latent of one code with each of another's, shape (D, E).

    Parameters
    ----------
    first, second : ndarray of int, shape (N, D) and (N, E)
        Symbols of the same images. A constant latent has correlation 0.

    Examples
    --------
    >>> a = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> correlations(a, 1 - a).round(6).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    scaled = []
    for symbols in (first, second):
        centred = symbols - symbols.mean(axis=0)
        length = np.sqrt((centred**2).sum(axis=0))
        scaled.append(centred / np.where(length > 0, length, 1))
    found: NDArray[np.float64] = np.abs(scaled[0].T @ scaled[1]).clip(0, 1)
    return found


def match(
    told: tuple[NDArray[np.float64], NDArray[np.float64]], correlation: NDArray[np.float64], *,
    by: str = "information",
) -> Matching:  # fmt: skip
    """Pair the latents of two models one to one, at the least total cost (Hungarian method).

    Parameters
    ----------
    told : pair of ndarray, shape (D, F) and (E, F)
        Information of each latent about each factor (:func:`information`).
    correlation : ndarray, shape (D, E)
        :func:`correlations`.
    by : str
        ``information``: the cost of a pair is the sum over factors of the difference of their information; the
        correlation is then independent evidence. ``correlation``: the cost is 1 minus it; the agreement about factors
        is then independent evidence.

    Raises
    ------
    UsageError
        If there is no such cost.
    """
    from scipy.optimize import linear_sum_assignment

    if by not in ("information", "correlation"):
        raise UsageError(f"latents are matched by information or correlation, not {by!r}.")
    first, second = told
    cost = np.abs(first[:, None] - second[None]).sum(axis=2) if by == "information" else 1 - correlation
    rows, columns = linear_sum_assignment(cost)
    best = first.argmax(axis=1), second.argmax(axis=1)
    parts = [np.bincount(b, minlength=first.shape[1]) / len(b) for b in best]
    return Matching(
        np.stack([rows, columns], axis=1), float((best[0][rows] == best[1][columns]).mean()),
        float(parts[0] @ parts[1]), float(correlation[rows, columns].mean()), float(correlation.mean()),
    )  # fmt: skip


def best_latents(told: list[NDArray[np.float64]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return each factor's best latent in each model, its information, and whether these are alike.

    They are alike if the smallest information is at least :data:`SIMILAR` of the largest.

    Parameters
    ----------
    told : list of ndarray, shape (D, F)
        One of each model.
    names : tuple of str
        Of the factors.

    Examples
    --------
    >>> best_latents([np.array([[0.2], [0.5]]), np.array([[0.4], [0.1]])], ("x",))
    [{'factor': 'x', 'latents': [1, 0], 'information': [0.5, 0.4], 'ratio': 0.8, 'alike': True}]
    """
    found = []
    for k, name in enumerate(names):
        best = [int(one[:, k].argmax()) for one in told]
        says = [round(float(one[j, k]), 4) for one, j in zip(told, best, strict=True)]
        ratio = round(min(says) / max(says), 4) if max(says) > 0 else 0.0
        found.append(
            {"factor": name, "latents": best, "information": says, "ratio": ratio, "alike": ratio >= SIMILAR}
        )
    return found
