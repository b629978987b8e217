"""Packages of the ``bench`` extra, which may be missing."""

from __future__ import annotations

from importlib.util import find_spec

from stochcl.errors import MissingExtraError

_PACKAGES = {"faiss": "faiss-cpu", "zstandard": "zstandard", "brotli": "brotli"}


def need(module: str, what: str = "it") -> None:
    """Raise MissingExtraError, one sentence that says what to install, where a module cannot be imported."""
    if find_spec(module) is None:
        raise MissingExtraError(f"{what} needs {_PACKAGES[module]}; install it with: pip install 'stochcl[bench]'.")
