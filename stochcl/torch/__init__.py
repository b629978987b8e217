"""Codes for PyTorch's data loaders: a map-style data set, and a stream; torch is imported here and nowhere below."""

from __future__ import annotations

from stochcl.torch.dataset import CodesDataset
from stochcl.torch.stream import CodesStream

__all__ = ["CodesDataset", "CodesStream"]
