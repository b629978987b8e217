"""A page that explains an archive: what its latents cost, mean and do."""

from __future__ import annotations

from stochcl.api.explaining.writing import SAMPLE, SCHEMA, write_report

__all__ = ["SAMPLE", "SCHEMA", "write_report"]
