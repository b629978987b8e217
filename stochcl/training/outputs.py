"""The files of a training run: their names, checkpoints, and logs of figures."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochcl import __version__
from stochcl.encoders.packaged import read_tensors
from stochcl.errors import InputNotFound, MissingExtraError, OutputError, OutputExists, TrainingError, UsageError
from stochcl.files import PathLike, replacing, writing
from stochcl.messages import escape_name

if TYPE_CHECKING:
    import torch
    from _typeshed import DataclassInstance
    from torch import Tensor, nn

    from stochcl.encoders.pretrained import Initialisation


@dataclass(frozen=True)
class RunFiles:
    """The files of a training run: model, checkpoint and log."""

    output: Path
    log: Path | None

    @classmethod
    def of(cls, output: PathLike, log: PathLike | None) -> RunFiles:
        """Create from paths."""
        return cls(Path(output), None if log is None else Path(log))

    @property
    def checkpoint(self) -> Path:
        """The checkpoint, which exists while training runs."""
        return self.output.with_name(self.output.name + ".checkpoint")

    @property
    def table(self) -> Path:
        """The log that is written unless one is named."""
        return self.output.with_name(self.output.name + ".csv")

    def check(self, *, resume: bool, force: bool) -> None:
        """Refuse, before hours of training, an output that cannot be written or would replace another."""
        for path, what in ((self.output, "model"), (self.checkpoint, "checkpoint"), (self.log, "log")):
            if path is None:
                continue
            with writing(path, f"the {what}", "; give another name"):
                there = path.parent.is_dir() and os.access(path.parent, os.W_OK)
                if not there or path.is_dir():
                    raise OutputError(
                        f"{escape_name(path)}: no {what} can be written there; name a file in a folder that exists "
                        "and is writable."
                    )
        if self.output.exists() and not (force or resume):
            raise OutputExists(f"{escape_name(self.output)}: this file exists already; pass --force to replace it.")
        if self.checkpoint.exists() and not (force or resume):
            raise UsageError(
                f"{escape_name(self.checkpoint)}: this is the checkpoint of an interrupted run; pass --resume to "
                "continue it, or --force to start over."
            )
        if resume and not self.checkpoint.exists():
            shown = escape_name(self.checkpoint)
            raise InputNotFound(f"{shown}: there is no such checkpoint to resume; omit --resume.")

    def clear(self, *, resume: bool) -> None:
        """Remove the files of an earlier run unless it is resumed."""
        if not resume:
            self.checkpoint.unlink(missing_ok=True)
            if self.log is None:
                self.table.unlink(missing_ok=True)


def circumstances(hardware: str) -> dict[str, Any]:
    """Return a record's facts about versions and machine."""
    import torch

    return {
        "versions": {"stochcl": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "hardware": f"{hardware} of {torch.get_num_threads()} threads, {platform.machine()}",
    }


def run_record(loop: Any, init: Initialisation | None, measured: dict[str, float]) -> dict[str, Any]:
    """Return a record's facts about a run on images; ``loop`` is a Trainer or a Finetuner."""
    return {
        "images": len(loop.data.train), "held_out": len(loop.data.held), "steps": loop.step,
        "images_seen": loop.step * loop.batch, "seconds": round(loop.elapsed),
        "init": init.to_json() if init else None, "options": asdict(loop.options), "precision": loop.precision,
        "measured": {name: round(value, 4) for name, value in measured.items()}, "entropy": loop.entropy_record,
    } | circumstances(f"{loop.device.type}, {loop.world_size} processes")  # fmt: skip


KIND = "stochcl-checkpoint-0"


def save_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write everything that a stage needs to resume as if uninterrupted."""
    from safetensors.torch import save
    from torch import as_tensor

    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        tensors |= {f"{prefix}.{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": as_tensor(v).cpu().contiguous() for k, v in values.items()}
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
            if "precision" in differing:  # the user may not have set it: auto depends on machine and version
                same += f" (--precision {escape_name(str(stored.get('precision')))})"
            raise TrainingError(
                f"{escape_name(path)}: this checkpoint belongs to a run with another "
                f"{' and '.join(differing) or 'format'}; {same}, or delete it to start over."
            )
        slots = _optimizer_slots(tensors, optimizer)
        for prefix, module in modules.items():
            module.load_state_dict(_under(tensors, prefix))
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as exc:
        raise damaged(path, exc) from exc
    return state


def damaged(path: Path, exc: Exception) -> TrainingError:
    """Return the error for a checkpoint that cannot be restored."""
    return TrainingError(f"{escape_name(path)}: this checkpoint is damaged ({exc}); delete it to start over.")


def _optimizer_slots(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return the optimizer's state by parameter position; raise ValueError if it is incomplete."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, "optimizer").items():
        i, _, key = name.partition(".")
        slots.setdefault(int(i), {})[key] = tensor
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    if set(slots) != set(range(len(parameters))):
        raise ValueError(f"it has optimizer states of {len(slots)} parameters, not of {len(parameters)}")
    for position, slot in slots.items():
        shapes = {parameters[position].shape, ()}
        if set(slot) != set(slots[0]) or not {v.shape for v in slot.values()} <= shapes:
            raise ValueError(f"the optimizer's state of parameter {position} is incomplete or of another shape")
    return slots


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


class FileLog:
    """Appends figures to a file: a table if its name ends in .csv, else one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, progress: DataclassInstance) -> None:
        """Append a line; a new table starts with a header of all figures."""
        with writing(self.path, "the log"), self.path.open("a", encoding="utf-8", newline="") as file:
            if self.path.suffix.lower() != ".csv":
                file.write(json.dumps(_finite(progress)) + "\n")
                return
            table = csv.DictWriter(file, [f.name for f in fields(progress)], lineterminator="\n")
            if not file.tell():
                table.writeheader()
            table.writerow(_finite(progress))


class TensorBoardLog:
    """Scalars for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise MissingExtraError(
                "logs for TensorBoard need its package; install it with: pip install 'stochcl[tensorboard]'."
            ) from exc
        with writing(folder, "the log"):
            self._writer: Any = SummaryWriter(str(folder))

    def write(self, progress: DataclassInstance) -> None:
        """Add the figures at their step."""
        figures = _finite(progress)
        step = figures.pop("step")
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def _finite(progress: DataclassInstance) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(progress).items() if math.isfinite(value)}
