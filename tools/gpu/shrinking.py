"""Checkpoints made small enough to travel between two leases of a machine, and brought back to full size."""

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
    """Write weights as float16, and of the optimizer's moments those that are asked for, as bfloat16.

    Second moments are as small as 1e-12, which float16 does not hold. Without first moments, a run gathers them again
    in some ten steps; without second ones the optimizer's steps are those of a beginning.

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
                # No numbers, but the shape: that many zeros.
                metadata[f"{_SHRUNK}:{name}"] = ",".join(map(str, tensor.shape))
            else:
                tensors[name] = tensor.to(_type(name, tensor))
    metadata[_SHRUNK] = moments
    save_file(tensors, output, metadata)


def _type(name: str, tensor: torch.Tensor) -> torch.dtype:
    if tensor.dtype != torch.float32 or tensor.ndim < 2:  # statistics, counters, biases: small, and not to be rounded
        return tensor.dtype
    if name.startswith("optimizer."):
        return torch.bfloat16
    return torch.float16 if float(tensor.abs().max()) < _LARGEST else torch.bfloat16


def grow(path: Path) -> bool:
    """Bring a shrunk checkpoint, in place, to what training goes on from; tell whether it was one."""
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
    """Let Adam count from nothing where its second moments begin from nothing: it divides by what they add up to."""
    for name, tensor in tensors.items():
        second = tensors.get(name.removesuffix(".step") + ".exp_avg_sq")
        if name.endswith(".step") and second is not None and not second.any():
            tensor.zero_()
