"""The names that objectives had before they became a package."""

from stochcl.encoders.objectives import decorrelation, nt_xent

__all__ = ["decorrelation", "nt_xent"]
