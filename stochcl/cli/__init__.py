"""The command line: each command parses, calls one function, prints."""

from __future__ import annotations

from stochcl.cli.main import main

__all__ = ["main"]
