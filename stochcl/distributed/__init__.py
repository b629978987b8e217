"""Compressing on more than one machine."""

from __future__ import annotations

from stochcl.distributed.compression import compress_folder

__all__ = ["compress_folder"]
