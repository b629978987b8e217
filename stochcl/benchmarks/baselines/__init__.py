"""What people use on an embedding matrix instead of stochcl, all behind one interface."""

from __future__ import annotations

from stochcl.benchmarks.baselines.base import Baseline
from stochcl.benchmarks.baselines.floats import Float16, Float32, Int8
from stochcl.benchmarks.baselines.products import OptimisedProduct, Product, Residual, SmallResidual
from stochcl.benchmarks.baselines.scalar import PrincipalScalar
from stochcl.benchmarks.baselines.signs import Itq, PrincipalSigns, RandomSigns

__all__ = ["BASELINES", "FLOATS", "Baseline"]

BASELINES: dict[str, type[Baseline]] = {
    "random-signs": RandomSigns,
    "pca-signs": PrincipalSigns,
    "itq": Itq,
    "pq": Product,
    "opq": OptimisedProduct,
    "rq": Residual,
    "rq-4bit": SmallResidual,
    "pca-scalar": PrincipalScalar,
}
"""Those that are made for a number of bits."""

FLOATS: dict[str, tuple[type[Baseline], int]] = {
    "float32": (Float32, 32),
    "float16": (Float16, 16),
    "int8": (Int8, 8),
}
"""Those that keep every number, with the bits that they keep it in."""
