"""Bits per image against accuracy: our codes beside what else one could keep of the same images."""

from __future__ import annotations

from stochcl.benchmarks.rate_accuracy.request import FIT_IMAGES, GROUPS, PROBES, Request
from stochcl.benchmarks.rate_accuracy.running import SCHEMA, benchmark_rate_accuracy
from stochcl.benchmarks.rate_accuracy.telling import COLUMNS, lines, summary, title
from stochcl.benchmarks.rate_accuracy.writing import write_all

__all__ = [
    "COLUMNS",
    "FIT_IMAGES",
    "GROUPS",
    "PROBES",
    "SCHEMA",
    "Request",
    "benchmark_rate_accuracy",
    "lines",
    "summary",
    "title",
    "write_all",
]
