"""What there is to say of an archive's latents: every figure of the page, none of its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stochcl.api.explaining.probing import Probe, train_probe
from stochcl.downstream import interpretation as of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stochcl.api.explaining.material import Material

_FLIPPED = 200  # rows that a latent is flipped in
_KNOWN = 10_000  # among which nearest ones are sought
_MAPPED = 3000  # points of the map
_VALUES = 2048  # of categories, among which associations are counted
_CERTAIN = 12
TYPICAL, RANDOM = 8, 4


@dataclass(frozen=True, eq=False)
class Findings:
    """The page's figures; columns count the archive's latents, rows the sample's rows.

    Parameters
    ----------
    counts : ndarray of int, shape (D, K)
        How often each value was taken.
    alone : ndarray, shape (D,)
        Entropy of each latent by itself, bits.
    weights : ndarray, shape (D,)
        Share of the vectors' variance that goes with it.
    information : Information or None
    compared : ndarray of int, shape (M,)
        The columns of ``associated``.
    associated : ndarray, shape (M, M)
    strongest : ndarray of int
        Columns, the strongest first.
    strength : str
        What strong means: information, weight or entropy.
    sides : dict of int to list of Side
    probe : Probe or None
    interventions : list of Intervention
    projection : Projection
        Of ``mapped`` rows.
    mapped : ndarray of int
    certain, uncertain : ndarray of int
        Rows of the archive, the most extreme first; empty where no uncertainty is stored.
    notes : tuple of str
    """

    counts: NDArray[np.int64]
    alone: NDArray[np.float64]
    weights: NDArray[np.float64]
    information: of.Information | None
    compared: NDArray[np.integer]
    associated: NDArray[np.float64]
    strongest: NDArray[np.integer]
    strength: str
    sides: dict[int, list[of.Side]]
    probe: Probe | None
    interventions: list[of.Intervention]
    projection: of.Projection
    mapped: NDArray[np.integer]
    certain: NDArray[np.integer]
    uncertain: NDArray[np.integer]
    notes: tuple[str, ...]


def find(material: Material, *, shown: int, seed: int, tell: Callable[[str], None] = lambda what: None) -> Findings:
    """Compute all figures.

    Parameters
    ----------
    material : Material
    shown : int
        How many of the strongest latents are looked at closely.
    seed : int
        Of whatever is drawn.
    tell : callable
        Told what is being done.
    """
    sample, labels, notes = material.sample, material.labels, list(material.notes)
    rng = np.random.default_rng(seed)
    tell("counting")
    counts = of.value_counts(sample.symbols, material_alphabet(material))
    alone, weights = of.entropies(counts), of.weights(sample)
    information = None
    if labels is not None:
        known = labels.known
        ordered = sample.kind != "categories"
        information = of.mutual_information(sample.symbols[known], labels.y[known], ordered=ordered)
    scores, strength = _scores(alone, weights, information)
    compared = _compared(counts, scores, sample.kind)
    tell("comparing latents")
    associated = of.associations(sample, compared)
    changing = (counts[compared] > 0).sum(axis=1) > 1
    best = of.strongest(np.where(changing, scores[compared], -np.inf), associated, shown)
    strongest = compared[best[changing[best]]]
    tell("choosing images")
    y = None if labels is None else labels.y
    sides = {
        int(column): of.sides(sample, int(column), typical=TYPICAL, random=RANDOM, y=y, seed=seed)
        for column in strongest
    }
    tell("training a probe")
    probe, said = (None, []) if labels is None else train_probe(sample, labels, seed)
    notes += said
    tell("flipping latents")
    flipped = np.arange(len(sample)) if probe is None else probe.held
    interventions = of.intervene(
        sample,
        strongest.tolist(),
        rows=np.sort(rng.permutation(flipped)[:_FLIPPED]),
        known=np.sort(rng.permutation(len(sample))[:_KNOWN]),
        probe=None if probe is None else probe.answers,
        classes=labels is not None and labels.task == "classification",
    )
    tell("drawing the map")
    projection = of.project(sample.x)
    mapped = np.sort(rng.permutation(len(sample))[:_MAPPED])
    certain, uncertain = _certain(material.uncertainty)
    return Findings(
        counts, alone, weights, information, compared, associated, strongest, strength, sides, probe, interventions,
        projection, mapped, certain, uncertain, tuple(notes),
    )  # fmt: skip


def material_alphabet(material: Material) -> int:
    """Return how many values counts have columns for."""
    return max(2, int(material.sample.symbols.max()) + 1)


def _scores(
    alone: NDArray[np.float64], weights: NDArray[np.float64], information: of.Information | None
) -> tuple[NDArray[np.float64], str]:
    if information is not None:
        return information.bits, "information"
    return (weights, "weight") if weights.any() else (alone, "entropy")


def _compared(counts: NDArray[np.int64], scores: NDArray[np.float64], kind: str) -> NDArray[np.integer]:
    """Return which latents are held against each other: all, or of categories the strongest, for they take much."""
    if kind != "categories":
        return np.arange(len(counts))
    order = np.argsort(-scores, kind="stable")
    values = (counts[order] > 0).sum(axis=1).cumsum()
    return np.sort(order[: max(1, int((values <= _VALUES).sum()))])


def _certain(uncertainty: NDArray[np.float32] | None) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    if uncertainty is None:
        none = np.arange(0)
        return none, none
    order = np.argsort(uncertainty, kind="stable")
    half = min(_CERTAIN, len(order) // 2)
    return order[:half], order[::-1][:half]
