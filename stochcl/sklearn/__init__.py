"""Estimators that encode: embeddings to codes, and images, or the names of an archive's rows, to codes.

>>> from stochcl.sklearn import CodesTransformer, EmbeddingCoder
>>> CodesTransformer(archive="codes.bin", output="vectors")
CodesTransformer(archive='codes.bin', output='vectors')
"""

from __future__ import annotations

from stochcl.sklearn.embeddings import EmbeddingCoder
from stochcl.sklearn.images import CodesTransformer

__all__ = ["CodesTransformer", "EmbeddingCoder"]
