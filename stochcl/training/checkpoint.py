"""Checkpoints of a stage of training: modules, optimizer, counters, and the options they belong to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from stochcl.encoders.packaged import read_tensors
from stochcl.errors import TrainingError
from stochcl.files import replacing, writing
from stochcl.messages import escape_name

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


KIND = "stochcl-checkpoint-0"


def save_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write everything that a stage needs to go on as if it had not stopped."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        tensors |= {f"{prefix}.{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v).cpu().contiguous() for k, v in values.items()}
    with writing(path, "the checkpoint"), replacing(path) as file:
        file.write(save(tensors, {"kind": KIND, "state": json.dumps(state)}))


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> dict[str, Any]:
    """Restore modules and optimizer, and return the state."""
    try:
        tensors, metadata = read_tensors(path, framework="pt")
        state: dict[str, Any] = json.loads(metadata["state"])
        stored = dict(state["options"])
        differing = sorted(k for k in identity if stored.get(k) != identity[k])
        if metadata["kind"] != KIND or differing:
            same = "give the same options"
            if "precision" in differing:  # nobody need have given it: auto depends on the machine and the version
                same += f" (--precision {escape_name(str(stored.get('precision')))})"
            msg = (
                f"{escape_name(path)}: this checkpoint belongs to a run with another "
                f"{' and '.join(differing) or 'format'}; {same}, or delete it to start anew."
            )
            raise TrainingError(msg)
        slots = _optimizer_slots(tensors, optimizer)
        for prefix, module in modules.items():
            module.load_state_dict(_under(tensors, prefix))
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as exc:
        raise damaged(path, exc) from exc
    return state


def damaged(path: Path, exc: Exception) -> TrainingError:
    """Return the error of a checkpoint that cannot be restored."""
    return TrainingError(f"{escape_name(path)}: this checkpoint is damaged ({exc}); delete it to start anew.")


def _optimizer_slots(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state by the parameters' positions; all of it, or the weights would end elsewhere."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "optimizer").items():
        i, _, key = name.partition(".")
        slots.setdefault(int(i), {})[key] = tensor
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    if set(slots) != set(range(len(parameters))):
        msg = f"it has optimizer states of {len(slots)} parameters, not of {len(parameters)}"
        raise ValueError(msg)
    for position, slot in slots.items():
        shapes = {parameters[position].shape, torch.Size()}
        if set(slot) != set(slots[0]) or not {v.shape for v in slot.values()} <= shapes:
            msg = f"the optimizer's state of parameter {position} is incomplete or of another shape"
            raise ValueError(msg)
    return slots


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
