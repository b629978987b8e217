"""Objectives: what says that two views of an input belong together."""

from stochcl.encoders.objectives.base import Objective
from stochcl.encoders.objectives.byol import BYOL
from stochcl.encoders.objectives.nt_xent import NTXent, nt_xent
from stochcl.encoders.objectives.reconstruct import Reconstruct
from stochcl.encoders.objectives.vicreg import VICReg, decorrelation

__all__ = ["BYOL", "OBJECTIVES", "NTXent", "Objective", "Reconstruct", "VICReg", "decorrelation", "nt_xent"]

OBJECTIVES: dict[str, type[Objective]] = {
    "nt-xent": NTXent,
    "byol": BYOL,
    "vicreg": VICReg,
    "reconstruct": Reconstruct,
}
"""Objectives by their names."""
