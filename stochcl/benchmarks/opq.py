"""Indices of an optimised product quantiser (Ge et al., 2013): what people keep of embeddings today."""

from __future__ import annotations

import numpy as np

from stochcl.benchmarks import models
from stochcl.benchmarks.baselines.products import CENTROIDS, train_product
from stochcl.benchmarks.codesets import CodeSet, split
from stochcl.benchmarks.extras import need
from stochcl.codes import Codes
from stochcl.errors import SourceError

_TRAINING = 12_000  # faiss asks for 39 rows a centroid
_CLUSTERS = 50
_RANK = 12


def opq(rows: int, latents: int, seed: int) -> CodeSet:
    """OPQ indices of seeded vectors: 50 clusters of low-rank Gaussian noise, 4 dimensions an index."""
    need("faiss", "quantising vectors")
    indices = max(1, latents // 8)
    rng = np.random.default_rng([seed, 3])
    dim = 4 * indices
    centres = rng.normal(0, 1.0, (_CLUSTERS, dim))
    loadings = rng.normal(0, 0.5, (_CLUSTERS, min(_RANK, dim), dim))
    weights = rng.dirichlet(np.ones(_CLUSTERS))

    def vectors(count: int) -> np.ndarray:
        cluster = np.sort(rng.choice(_CLUSTERS, size=count, p=weights))
        out = centres[cluster] + rng.normal(0, 0.2, (count, dim))
        for k in np.unique(cluster):
            mine = cluster == k
            out[mine] += rng.normal(size=(mine.sum(), loadings.shape[1])) @ loadings[k]
        return rng.permutation(out).astype(np.float32)

    quantise = train_product(vectors(_TRAINING), indices, seed).quantise
    fitting, coded = (Codes.from_symbols(quantise(vectors(rows)), alphabet=CENTROIDS) for _ in range(2))
    about = f"{indices} OPQ indices of seeded vectors of {dim} dimensions"
    return CodeSet("opq", coded, models.fitted(fitting), about)


def opq_of(name: str, features: np.ndarray, latents: int, seed: int) -> CodeSet:
    """OPQ indices of somebody's features, shape (N, dim), float."""
    need("faiss", "quantising vectors")
    if len(features) < 2 * CENTROIDS:
        raise SourceError(f"{name}: a quantiser of {CENTROIDS} values needs {2 * CENTROIDS} rows or more.")
    if not np.isfinite(features).all():
        raise SourceError(f"{name}: some of its numbers are not finite; leave those rows out.")
    indices = max(1, min(latents // 8, features.shape[1]))
    quantise = train_product(np.ascontiguousarray(features, np.float32), indices, seed).quantise
    codes = Codes.from_symbols(quantise(features), alphabet=CENTROIDS)
    return split(name, codes, f"{indices} OPQ indices of {features.shape[1]} features")
