"""Checkpoints of a training run: safetensors too, so that resuming never loads a pickle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from stochcl.atomic import replacing
from stochcl.data import printable
from stochcl.errors import OutputError, TrainingError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

KIND = "stochcl-checkpoint-0"


def save_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write everything that a run needs to go on as if it had not stopped.

    Parameters
    ----------
    path : Path
        Replaced as a whole.
    modules : dict of str to Module
        Under their names.
    optimizer : Optimizer
        Its state is stored by the position of the parameters.
    state : dict
        Counters and options, JSON.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        tensors |= {f"{prefix}.{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v).cpu().contiguous() for k, v in values.items()}
    try:
        with replacing(path) as file:
            file.write(save(tensors, {"kind": KIND, "state": json.dumps(state)}))
    except OSError as exc:
        raise OutputError(f"{printable(path)}: the checkpoint cannot be written: {exc.strerror}.") from exc


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, options: dict[str, Any]
) -> dict[str, Any]:
    """Restore modules and optimizer, and return the state.

    Parameters
    ----------
    options : dict
        What the run was asked for; must be what the checkpoint's state holds as ``options``.

    Raises
    ------
    TrainingError
        If the checkpoint is damaged or belongs to another run.
    """
    shown = printable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state: dict[str, Any] = json.loads(metadata["state"])
        stored = dict(state["options"])
        differing = sorted(k for k in options if stored.get(k) != options[k])
        if metadata["kind"] != KIND or differing:
            same = "give the same options"
            if "precision" in differing:  # which nobody need have given: auto depends on the machine and the version
                same += f" (--precision {printable(str(stored.get('precision')))})"
            msg = (
                f"{shown}: this checkpoint belongs to a run with another {' and '.join(differing) or 'format'}; "
                f"{same}, or delete it to start anew."
            )
            raise TrainingError(msg)
        slots = _slots(tensors, optimizer)
        for prefix, module in modules.items():
            module.load_state_dict(_below(tensors, prefix))
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as exc:
        raise TrainingError(f"{shown}: this checkpoint is damaged ({exc}); delete it to start anew.") from exc
    return state


def _slots(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state by the parameters' positions; all of it, or the run would take another turn."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer").items():
        i, _, key = name.partition(".")
        slots.setdefault(int(i), {})[key] = tensor
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    if set(slots) != set(range(len(parameters))):
        msg = f"it has optimizer states of {len(slots)} parameters, not of {len(parameters)}"
        raise ValueError(msg)
    for position, slot in slots.items():
        shapes = {parameters[position].shape, torch.Size()}
        if set(slot) != set(slots[0]) or not {v.shape for v in slot.values()} <= shapes:
            msg = f"the optimizer's state of parameter {position} is not one"
            raise ValueError(msg)
    return slots


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
