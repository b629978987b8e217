"""Packaged models, and model files that take their backbone from one of them."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

ENDING = ".safetensors"
BASE = "base"
"""Metadata key of a model file: the hash of the backbone taken from a packaged model."""

_BACKBONE = "backbone."


_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def is_pickle(head: bytes) -> bool:
    """Tell whether the first bytes are those of a pickle, bare or in PyTorch's zip."""
    return head.startswith(_BEGINNINGS)


def read_tensors(
    path: Path, prefix: str | None = "", *, framework: str = "np"
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors of a safetensors file whose names start with ``prefix`` (None: none), and its metadata.

    They are numpy arrays, or tensors of another ``framework``. Errors are those of safetensors and the system.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            names = [] if prefix is None else [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as exc:
        raise ValueError(str(exc)) from exc


def embedded_models() -> tuple[Path, ...]:
    """Return the packaged model files, sorted by name."""
    folder = Path(str(resources.files("stochcl").joinpath("models")))
    return tuple(sorted(folder.glob(f"*{ENDING}")))


def canonical(value: object) -> bytes:
    """Return canonical JSON for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def hash_tensors(tensors: Mapping[str, ArrayLike], head: bytes = b"") -> str:
    """Return the hash of a head and of tensors' names, types, shapes and bytes, in hex."""
    digest = hashlib.sha256(head)
    for name, array in sorted((name, np.asarray(tensor)) for name, tensor in tensors.items()):
        digest.update(canonical([name, str(array.dtype), list(array.shape)]))
        digest.update(array.tobytes())
    return digest.hexdigest()


def without_packaged_backbone(tensors: dict[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], str | None]:
    """Return tensors without the backbone, and its hash; all tensors and None if no packaged model has it."""
    sha256 = hash_tensors({name: tensor for name, tensor in tensors.items() if name.startswith(_BACKBONE)})
    if _packaged_backbone(sha256) is None:
        return tensors, None
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_BACKBONE)}, sha256


def with_backbone(shown: str, tensors: dict[str, NDArray[Any]], metadata: dict[str, str]) -> dict[str, NDArray[Any]]:
    """Return a model file's tensors, with the backbone that it takes from a packaged model.

    Raises
    ------
    ModelError
        If this version of the package has no such backbone.
    """
    sha256 = metadata.get(BASE) if metadata.get("kind", "").startswith("stochcl-encoder") else None
    if sha256 is None:
        return tensors
    found = _packaged_backbone(sha256)
    if found is None:
        raise ModelError(
            f"{shown}: this model shares the backbone of a model that comes with stochcl, and this version brings "
            f"another one (not {sha256[:12]}); use the version that made it, or make it again with `stochcl adapt`."
        )
    return tensors | found


def _packaged_backbone(sha256: str) -> dict[str, NDArray[Any]] | None:
    """Return the packaged backbone with this hash, after checking it."""
    for path in embedded_models():
        try:
            tensors, _ = read_tensors(path, _BACKBONE)
        except (OSError, ValueError):  # damaged
            continue
        if tensors and hash_tensors(tensors) == sha256:
            return tensors
    return None
