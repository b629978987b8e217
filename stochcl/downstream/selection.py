"""Selection of the latents that a task needs, as a scikit-learn selector that avoids redundant ones."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from stochcl.entropy.vectors import ResidualDecoder

    Floats = NDArray[np.float64]

__all__ = ["LatentSelector"]

_ROWS = 1 << 14  # centred at a time
_LEAST = 1e-9  # share of a column's variance below which the chosen columns determine it


class LatentSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """Selects latents one by one, each for its gain in a linear model of those chosen before.

    Forward selection by least squares for all targets together (stepwise regression, Efroymson, 1960; for several
    targets simultaneous orthogonal least squares). Classes are targets as indicators divided by the root of their
    shares, so that a latent's gain is chi-square / N, to second order twice the mutual information given the
    latents chosen before: a copy of one adds nothing.

    On 1,024 bits per image it is no worse than conditional mutual information maximisation (CMIM, Fleuret, 2004) and
    L1 logistic regression, which takes ten times as long. Targets may also be numbers.

    Parameters
    ----------
    latents : int, optional
        K, the number to select; half by default.
    ridge : float
        Added to each column's variance, as a share of the mean variance; larger values help small samples.
    categorical : bool
        Treat values as categories, not quantities: each latent enters the model as indicators of its values.

    Attributes
    ----------
    order_ : ndarray of int, shape (K,)
        Selected columns, best first; the first k are the selection of size k.
    gains_ : ndarray of float, shape (K,)
        Share of the targets' variance that each column adds, summed over targets.
    n_features_in_ : int
        D.
    feature_names_in_ : ndarray of str
        Set if all column names of the input are strings.

    Examples
    --------
    >>> codes = np.array([[0, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0]] * 5)
    >>> chosen = LatentSelector(latents=2).fit(codes, [0, 1, 2, 3] * 5)
    >>> chosen.order_.tolist()  # the second says what the first says
    [0, 2]
    """

    def __init__(self, latents: int | None = None, *, ridge: float = 0.1, categorical: bool = False) -> None:
        self.latents = latents
        self.ridge = ridge
        self.categorical = categorical

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Select from rows, shape (N, D), and classes or numbers, shape (N,), or several numbers, (N, T).

        Raises
        ------
        ValueError
            If rows are not finite, targets do not match them or are constant, or a parameter is invalid.
        """
        rows, y = validate_data(self, X, y, multi_output=True, ensure_min_samples=2)
        width = rows.shape[1]
        count = max(1, width // 2) if self.latents is None else self.latents
        if not 1 <= count <= width:
            raise ValueError(f"latents is 1 to the {width} that there are, not {count}")
        if not self.ridge > 0:
            raise ValueError(f"ridge is more than 0, not {self.ridge}")
        targets = _targets(np.asarray(y))
        if self.categorical:
            gram, cross, groups = indicator_products(rows, targets)
            self.order_, self.gains_ = _forward_groups(gram, cross, groups, int(count), self.ridge)
        else:
            self.order_, self.gains_ = _forward(*_products(rows, targets), int(count), self.ridge)
        return self

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        mask = np.zeros(self.n_features_in_, bool)
        mask[self.order_] = True
        return mask

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags


def order_of_words(
    symbols: NDArray[Any], y: ArrayLike, decoder: ResidualDecoder, count: int, *, ridge: float = 0.1
) -> tuple[NDArray[np.intp], Floats]:
    """Select bits of residual codes, best first, and return them with their gains, as LatentSelector does.

    A bit of a word's name means nothing without the others, nor a word without those before it. So all names come
    first, in order, and share their gain; then signs, one by one, by their gain given the words' sum. On CIFAR-10's
    training split (10,000 images to learn from, 10,000 to score on; 75.8 % with all 256 bits of the default model),
    128 selected bits give 73.1 %, the first 128 give 72.3 %, and bits selected without regard to names 66.7 %.
    """
    stages, symbols = decoder.columns, symbols.astype(np.uint8)
    named = np.concatenate([np.zeros(0, np.intp), *(names for names in stages if len(names) > 1)])
    signs = np.setdiff1d(np.arange(decoder.latents), named)
    words = decoder.select(named.tolist()).decode(symbols[:, named]) if len(named) else symbols[:, named]
    gram, cross = _products(np.hstack([words, symbols[:, signs]]), _targets(np.asarray(y)))
    width = words.shape[1]
    inner = gram[:width, :width] + ridge * np.eye(width)
    share = np.linalg.solve(inner, np.hstack([gram[:width, width:], cross[:width]]))
    of_signs, of_targets = share[:, : len(signs)], share[:, len(signs) :]
    gains = np.full(len(named), (cross[:width] * of_targets).sum() / max(1, len(named)))
    cross = cross[width:] - gram[width:, :width] @ of_targets
    gram = gram[width:, width:] - gram[width:, :width] @ of_signs
    order, added = _forward(gram, cross, max(0, count - len(named)), ridge)
    return np.concatenate([named, signs[order]])[:count], np.concatenate([gains, added])[:count]


def _targets(y: NDArray[Any]) -> Floats:
    """Return centred targets of variance 1, shape (N, T); a class gives its indicator over the root of its share."""
    if type_of_target(y) in ("binary", "multiclass") and y.ndim == 1:
        classes, numbers = np.unique(y, return_inverse=True)
        targets = np.eye(len(classes))[numbers]
        shares = targets.mean(axis=0)
        found: Floats = (targets - shares) / np.sqrt(shares)
        return found
    values = np.asarray(y, np.float64).reshape(len(y), -1)
    centred: Floats = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    centred /= np.where(spread > 0, spread, 1)
    return centred


def _products(rows: NDArray[Any], targets: Floats) -> tuple[Floats, Floats]:
    """Return the covariances of standardised columns, (D, D), and those with the targets, (D, T)."""
    mean = rows.mean(axis=0, dtype=np.float64)
    scale = rows.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1)
    gram = np.zeros((rows.shape[1], rows.shape[1]))
    cross = np.zeros((rows.shape[1], targets.shape[1]))
    for start in range(0, len(rows), _ROWS):
        part = (rows[start : start + _ROWS] - mean) / scale
        gram += part.T @ part
        cross += part.T @ targets[start : start + _ROWS]
    return gram / len(rows), cross / len(rows)


def _forward(gram: Floats, cross: Floats, count: int, ridge: float) -> tuple[NDArray[np.intp], Floats]:
    """Choose columns one by one, removing each from all others (a step of a Cholesky factorisation)."""
    gram = gram + ridge * np.diag(gram).mean() * np.eye(len(gram))
    variance = np.diag(gram).copy()
    left = variance.copy()
    free = np.ones(len(gram), bool)
    order, gains = np.empty(count, np.intp), np.empty(count)
    for step in range(count):
        known = free & (left > _LEAST * variance)
        gain = np.where(known, (cross**2).sum(axis=1) / np.where(known, left, 1), np.where(free, 0.0, -1.0))
        # Rounded, so that the order of summation cannot break ties; the first of equal columns wins.
        best = int(gain.round(12).argmax())
        order[step], gains[step], free[best] = best, gain[best], False
        if left[best] > 0:
            share = gram[:, best] / left[best]
            cross = cross - np.outer(share, cross[best])
            gram -= np.outer(share, gram[best])
            left = np.diag(gram).copy()
    return order, gains


def indicator_products(rows: NDArray[Any], targets: Floats) -> tuple[Floats, Floats, list[slice]]:
    """Return covariances of the values' indicators, over the roots of their shares, and each latent's slice."""
    found = [np.unique(column, return_inverse=True) for column in rows.T]
    ends = np.cumsum([0] + [len(values) for values, _ in found])
    numbers = np.stack([start + number for start, (_, number) in zip(ends, found, strict=False)], axis=1)
    shares = np.bincount(numbers.reshape(-1), minlength=ends[-1]) / len(rows)
    gram = np.zeros((ends[-1], ends[-1]))
    cross = np.zeros((ends[-1], targets.shape[1]))
    for start in range(0, len(rows), _ROWS):
        part = numbers[start : start + _ROWS]
        indicators = np.zeros((len(part), ends[-1]))
        np.put_along_axis(indicators, part, 1, axis=1)
        indicators = (indicators - shares) / np.sqrt(shares)
        gram += indicators.T @ indicators
        cross += indicators.T @ targets[start : start + _ROWS]
    return gram / len(rows), cross / len(rows), [slice(a, b) for a, b in pairwise(ends.tolist())]


def _forward_groups(
    gram: Floats, cross: Floats, groups: list[slice], count: int, ridge: float
) -> tuple[NDArray[np.intp], Floats]:
    """Choose groups of columns one by one, as :func:`_forward` chooses columns."""
    gram = gram + ridge * np.diag(gram).mean() * np.eye(len(gram))
    order, gains = np.empty(count, np.intp), np.empty(count)
    free = np.ones(len(groups), bool)
    for step in range(count):
        gain = np.full(len(groups), -1.0)
        for i in np.flatnonzero(free):
            part = groups[i]
            gain[i] = (cross[part] * np.linalg.solve(gram[part, part], cross[part])).sum()
        best = int(gain.round(12).argmax())
        order[step], gains[step], free[best] = best, gain[best], False
        part = groups[best]
        share = np.linalg.solve(gram[part, part], gram[part]).T
        cross = cross - share @ cross[part]
        gram = gram - share @ gram[part]
        gram[part, part] = np.eye(part.stop - part.start)  # removed, but must not be singular
    return order, gains
