"""Whether a code is alive: what its latents say, whether they say it twice, and how sure the posterior is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.encoders.tree import node_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stochcl.codes import Codes

DEAD_BITS = 0.05
"""A latent of less entropy says next to nothing: fewer than six rows in a thousand are not like the others."""

_FEW = 50  # rows of which little can be said
_COLLAPSED = 1.0  # bit of all latents together
_MOSTLY_DEAD, _SAME, _UNDECIDED = 0.9, 0.8, 0.1


def code_health(codes: Codes, family: str) -> dict[str, Any]:
    """Return what there is to say of hard codes, for a training record.

    Parameters
    ----------
    codes : Codes
        Of images that were not trained on, with the posterior's entropy as uncertainty.
    family : str
        Of the latents: symbols of a categorical latent have no order, and so no correlation of their own.

    Returns
    -------
    dict
        ``rows``, ``latents``; ``used`` and ``dead``, how many latents' symbols have more than 0.05 bits of entropy
        over the rows, and how many have not; ``bits``, the sum of these entropies; ``distinct``, how many different
        codes there are; ``correlation``, the mean absolute correlation between the symbols of two used latents (of a
        categorical latent: of whether it is its commonest one), 0 where there are not two; ``entropy``, the
        posterior's, in bits a row, and ``certainty``, 1 where that is zero and 0 where it is as high as it can
        be: both None where there is no uncertainty.
    """
    entropies = marginal_entropies(codes)
    used = entropies > DEAD_BITS
    entropy = None
    if codes.uncertainty is not None and len(codes):
        entropy = float(np.mean(codes.uncertainty, dtype=np.float64))
    most = codes.latents * np.log2(codes.alphabet)
    return {
        "rows": len(codes),
        "latents": codes.latents,
        "used": int(used.sum()),
        "dead": int((~used).sum()),
        "bits": round(float(entropies.sum()), 3),
        "distinct": len(np.unique(codes.packed, axis=0)),
        "correlation": round(_correlation(codes.symbols()[:, used], family), 4),
        "entropy": None if entropy is None else round(entropy, 3),
        "certainty": None if entropy is None else round(1 - entropy / most, 4),
    }


def said_of_health(health: dict[str, Any]) -> tuple[str, ...]:
    """Return warnings, as sentences, where a code is dead or dying; none where all is well or rows are few."""
    rows, latents, used = health["rows"], health["latents"], health["used"]
    if rows < _FEW:
        return ()
    found = []
    if health["bits"] < _COLLAPSED:
        found.append(
            f"the code has collapsed: its {latents:,} latents together say {health['bits']:.2f} bits of an input, "
            f"and {health['distinct']:,} different codes stand for {rows:,} inputs; make bits cheaper (a higher "
            "rate, a lower beta, a longer warm-up) or lower the learning rate"
        )
    elif used < (1 - _MOSTLY_DEAD) * latents:
        found.append(
            f"{health['dead']:,} of {latents:,} latents are dead: they have the same value for nearly every input; "
            "fewer latents would give the same code, and cheaper bits would bring them to life"
        )
    if used > 1 and health["correlation"] > _SAME:
        found.append(
            f"the latents repeat each other: the mean correlation of two of them is {health['correlation']:.2f}; the "
            "objective does not tell inputs apart by more than a few directions"
        )
    if health["certainty"] is not None and health["certainty"] < _UNDECIDED:
        found.append(
            f"the posterior is undecided: its entropy is {health['entropy']:,.0f} bits an input, near that of coin "
            "tosses; train for longer, or make noise weigh less (a lower temperature)"
        )
    return tuple(f"warning: {sentence}" for sentence in found)


def marginal_entropies(codes: Codes) -> NDArray[np.float64]:
    """Return the entropy of each latent's symbols over the rows, in bits, shape (D,)."""
    if not len(codes):
        return np.zeros(codes.latents)
    ones, visits = node_counts(codes)

    def weighted_log(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = counts * np.log2(np.maximum(counts, 1) / np.maximum(visits, 1))
        return logs

    # A symbol's entropy is that of its decisions, each where it is taken.
    entropies: NDArray[np.float64] = -(weighted_log(ones) + weighted_log(visits - ones)).sum(axis=1) / len(codes)
    return np.maximum(entropies, 0)


def _correlation(symbols: NDArray[np.integer], family: str) -> float:
    """Return the mean absolute correlation between two columns."""
    rows, latents = symbols.shape
    if latents < 2 or rows < 2:
        return 0.0
    if family == "categorical":
        commonest = [np.bincount(column).argmax() for column in symbols.T]
        symbols = symbols == np.array(commonest)
    x = symbols.astype(np.float32)
    x -= x.mean(axis=0)
    deviation = np.sqrt(np.square(x).mean(axis=0))
    x /= np.maximum(deviation, 1e-6)
    r = np.abs(x.T @ x) / rows
    return float((r.sum() - np.trace(r)) / (latents * (latents - 1)))
