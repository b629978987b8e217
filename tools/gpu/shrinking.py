"""Shrink checkpoints to travel between two leases of a machine, and restore them to full size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

MOMENTS = ("none", "second", "all")
_FIRST = (".exp_avg", ".momentum_buffer")  # forget within some ten steps
_SECOND = (".exp_avg_sq",)
_SHRUNK = "shrunk"
_LARGEST = 65504.0  # of float16


def shrink(checkpoint: Path, output: Path, moments: str = "second") -> None:
    """Write weights as float16, and the chosen moments of the optimizer as bfloat16.

    Second moments are as small as 1e-12, which float16 does not hold. Without first moments, a run recovers them in
    about ten steps; without second ones the optimizer starts afresh.

    Parameters
    ----------
    checkpoint, output : Path
    moments : str
        One of ``MOMENTS``.
    """
    tensors, metadata = {}, {}
    with safe_open(checkpoint, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if name.endswith(_FIRST) and name.startswith("optimizer."):
                kept = moments == "all"
            else:
                kept = moments != "none" or not (name.endswith(_SECOND) and name.startswith("optimizer."))
            if not kept:
                # Store only the shape; the values are restored as zeros.
                metadata[f"{_SHRUNK}:{name}"] = ",".join(map(str, tensor.shape))
            else:
                tensors[name] = tensor.to(_type(name, tensor))
    metadata[_SHRUNK] = moments
    save_file(tensors, output, metadata)


def _type(name: str, tensor: torch.Tensor) -> torch.dtype:
    if tensor.dtype != torch.float32 or tensor.ndim < 2:  # small, and not to be rounded
        return tensor.dtype
    if name.startswith("optimizer."):
        return torch.bfloat16
    return torch.float16 if float(tensor.abs().max()) < _LARGEST else torch.bfloat16


def grow(path: Path) -> bool:
    """Restore a shrunk checkpoint in place for training; return whether it was one."""
    tensors = {}
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        if metadata.pop(_SHRUNK, None) is None:
            return False
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            tensors[name] = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    for name in [name for name in metadata if name.startswith(f"{_SHRUNK}:")]:
        shape = [int(n) for n in metadata.pop(name).split(",") if n]
        tensors[name.removeprefix(f"{_SHRUNK}:")] = torch.zeros(shape)
    _restart(tensors)
    partial = path.with_name(path.name + ".growing")
    save_file(tensors, partial, metadata)
    partial.replace(path)
    return True


def _restart(tensors: dict[str, torch.Tensor]) -> None:
    """Reset Adam's step count if its second moments are zero, because the count corrects their bias."""
    for name, tensor in tensors.items():
        second = tensors.get(name.removesuffix(".step") + ".exp_avg_sq")
        if name.endswith(".step") and second is not None and not second.any():
            tensor.zero_()
