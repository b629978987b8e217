"""What goes wrong in a benchmark itself."""

from __future__ import annotations

from stochcl.errors import SourceError, StochclError


class BenchmarkError(StochclError):
    """A method gave back other codes than it was given, or did not end: no figure of that run stands."""


class NoDataError(SourceError):
    """A built-in set needs data that is not there; it is left out."""
