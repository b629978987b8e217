"""Where training runs: device, precision and processes (through Lightning Fabric), and their collective operations.

The loss of the whole batch is the mean of the processes' losses, and its gradient the mean of theirs. A process that
gathers all rows, for the matrix of similarities for one, therefore sends back to each process the *sum* of the
gradients that all processes have for its rows: averaged afterwards, that is the gradient of the whole batch's loss.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from stochcl.encoders.inference import choose_device, precision_used
from stochcl.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stochcl.training.options import TrainOptions


def world_size() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return which of them this one is; 0 is the one that writes and prints."""
    return distributed.get_rank() if world_size() > 1 else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over processes; backwards, gradients are summed as well."""
    if world_size() == 1:
        return values
    found: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return found


def all_gather(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks; each has the same number."""
    parts = [torch.zeros_like(rows)] * world_size()
    parts[rank()] = rows
    return all_reduce_sum(torch.cat(parts)) if len(parts) > 1 else rows


@torch.no_grad()
def all_reduce_mean(values: Tensor) -> Tensor:
    """Return the mean over processes, without a gradient."""
    return all_reduce_sum(values.detach()) / world_size()


def global_mean(values: Tensor) -> Tensor:
    """Return a number whose mean over processes is the mean of all their values; a process may have none."""
    if world_size() == 1:
        return values.mean()
    count = all_reduce_sum(torch.tensor(float(values.numel()), device=values.device))
    return values.sum() * world_size() / count


def broadcast(value: float, device: torch.device) -> float:
    """Return the number that the first process has."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.broadcast(shared, 0)
    return float(shared)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Tell whether a flag is set in any process."""
    return flag if world_size() == 1 else bool(all_reduce_sum(torch.tensor(float(flag), device=device)))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


class _GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What torch's SyncBatchNorm does, which refuses to run on the CPU, written with collectives that do."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        values = x.float()
        count = x.numel() // x.shape[1] * world_size()
        # In two passes: a mean of squares less a squared mean would cancel.
        mean = all_reduce_sum(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = all_reduce_sum(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.float().view(shape) + self.bias.float().view(shape)
        return out.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Take any number of axes."""

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def globalise_batch_norms(module: nn.Module) -> None:
    """Replace a network's batch normalisations by ones whose statistics are those of all processes' batches.

    Parameters, buffers and names stay; in a single process nothing changes.
    """
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.__class__ = _GlobalBatchNorm  # type: ignore[assignment]
        elif isinstance(norm, nn.modules.batchnorm._BatchNorm) and not isinstance(norm, _GlobalBatchNorm):
            what = type(norm).__name__
            raise UsageError(f"networks with {what} train in one process only; start a single one.")


_RESIDENT = 0.3  # of a GPU's free memory, that images may take


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device, without waiting for a GPU's work.

    From pageable memory, the copy would wait until the GPU is idle.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class DeviceImages:
    """8-bit images that batches are taken from; kept on a GPU if they fit.

    By default if they take less than 30 % of a GPU's free memory.
    """

    def __init__(self, images: NDArray[np.uint8], device: torch.device, *, resident: bool | None = None) -> None:
        self._images, self._device = images, device
        if resident is None:
            resident = device.type == "cuda" and images.nbytes < _RESIDENT * torch.cuda.mem_get_info(device)[0]
        self._there = torch.from_numpy(images).to(device) if resident else None

    def take(self, rows: NDArray[np.integer]) -> Tensor:
        """Return images of these rows on the device, uint8, shape (B, 3, S, S), channels last."""
        if self._there is None:
            return to_device(torch.from_numpy(self._images[rows]), self._device).permute(0, 3, 1, 2)
        return self._there[to_device(torch.from_numpy(rows), self._device)].permute(0, 3, 1, 2)


_PRECISIONS: dict[str, Any] = {"bf16": "bf16-mixed", "fp32": "32-true"}  # in Fabric's words
_ACCELERATORS = ("cpu", "cuda", "mps")
_PARTING = 0.1  # seconds: ample for a thread to get the lock and drop a few tensors


class Runtime:
    """The device and the processes of a run.

    Under torchrun, its processes train together. Otherwise Fabric starts the same program once for each of
    ``devices``.

    ``first`` is the process that writes and prints; ``precision`` is bf16 or fp32, of the network.
    """

    def __init__(self, options: TrainOptions) -> None:
        chosen = choose_device(options.device)
        if chosen.type not in _ACCELERATORS:
            raise UsageError(f"training runs on {', '.join(_ACCELERATORS)}, not on {chosen.type}.")
        from lightning_fabric import Fabric  # seconds, and only training needs it
        from lightning_fabric.strategies.ddp import DDPStrategy

        for name in ("lightning.fabric", "lightning_fabric"):  # every process would introduce itself
            logging.getLogger(name).setLevel(logging.WARNING)
        local, nodes = _started_by_torchrun() or (options.devices, 1)
        self._opened = not distributed.is_initialized()
        self.precision = precision_used(options.precision, chosen.type)
        several = DDPStrategy(process_group_backend="nccl" if chosen.type == "cuda" else "gloo")
        self.fabric = Fabric(
            accelerator=chosen.type, num_nodes=nodes, precision=_PRECISIONS[self.precision],
            devices=[chosen.index] if local * nodes == 1 and chosen.index is not None else local,
            strategy=several if local * nodes > 1 else "auto",
        )  # fmt: skip
        self.fabric.launch()
        self.first = rank() == 0  # also after the processes have parted

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.fabric.device

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return a module that, called, runs in the precision chosen and averages gradients over processes."""
        if self.fabric.world_size > 1:
            globalise_batch_norms(module)
        return self.fabric.setup_module(module)

    def backward(self, loss: Tensor) -> None:
        """Compute gradients, averaged over processes."""
        self.fabric.backward(loss)

    def wait(self) -> None:
        """Wait for the other processes."""
        self.fabric.barrier()

    def close(self) -> None:
        """Take leave of the other processes; each goes on, or ends, as it likes."""
        if self._opened and distributed.is_available() and distributed.is_initialized():
            # A thread of the group needs the interpreter's lock to let go of the tensors that it summed last. Whoever
            # drops the group waits for the thread, and a reducer does so holding that lock: both wait for ever.
            distributed.barrier()
            time.sleep(_PARTING)
            distributed.destroy_process_group()


def _started_by_torchrun() -> tuple[int, int] | None:
    """Return processes on this machine, and machines, if torchrun started this one."""
    try:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return local, max(1, world // max(1, local))
