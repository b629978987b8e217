"""What has been measured, kept beside the results, so that a run goes on where another was interrupted."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl import __version__
from stochcl.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_EDITION = 1  # counts changes after which what was measured before is not what would be


class Cache:
    """A folder of arrays and facts, each under a digest of all that it depends on.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def key(*parts: object) -> str:
        """Return the digest of what a result depends on."""
        return hashlib.sha256(json.dumps([_EDITION, __version__, *parts]).encode()).hexdigest()[:24]

    def get(self, key: str) -> tuple[dict[str, NDArray[Any]], Any] | None:
        """Return the arrays and facts that were kept, or None; what cannot be read counts as not there."""
        try:
            data = (self.folder / f"{key}.npz").read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            return arrays, json.loads(str(arrays.pop("facts")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def put(self, key: str, facts: Any, **arrays: NDArray[Any]) -> None:
        """Keep arrays and facts (JSON values); they are there complete, or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
        with replacing(self.folder / f"{key}.npz") as file:
            file.write(buffer.getbuffer())
