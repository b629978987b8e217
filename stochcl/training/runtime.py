"""Device, precision and processes of training (through Lightning Fabric), and collective operations.

The loss of the whole batch is the mean of the processes' losses, and so is its gradient. A process that gathers all
rows, for example for the matrix of similarities, therefore returns to each process the *sum* of all processes'
gradients for its rows: averaged afterwards, that is the gradient of the whole batch's loss.
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
    """Return this process's number; 0 writes and prints."""
    return distributed.get_rank() if world_size() > 1 else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over processes; the backward pass sums gradients too."""
    if world_size() == 1:
        return values
    found: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return found


def all_gather(rows: Tensor) -> Tensor:
    """Return the rows of all processes in rank order; each process has the same number."""
    parts = [torch.zeros_like(rows)] * world_size()
    parts[rank()] = rows
    return all_reduce_sum(torch.cat(parts)) if len(parts) > 1 else rows


@torch.no_grad()
def all_reduce_mean(values: Tensor) -> Tensor:
    """Return the mean over processes, without a gradient."""
    return all_reduce_sum(values.detach()) / world_size()


def global_mean(values: Tensor) -> Tensor:
    """Return a value whose mean over processes is the mean of all their values; a process may have none."""
    if world_size() == 1:
        return values.mean()
    count = all_reduce_sum(torch.tensor(float(values.numel()), device=values.device))
    return values.sum() * world_size() / count


def broadcast(value: float, device: torch.device) -> float:
    """Return the first process's number."""
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
    """Like torch's SyncBatchNorm, which refuses the CPU, with collectives that run there."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        values = x.float()
        count = x.numel() // x.shape[1] * world_size()
        # In two passes, because the mean of squares minus the squared mean would cancel.
        mean = all_reduce_sum(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = all_reduce_sum(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.float().view(shape) + self.bias.float().view(shape)
        return out.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Accept any number of axes."""

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


def globalise_batch_norms(module: nn.Module) -> None:
    """Make a network's batch normalisations use the statistics of all processes' batches.

    Parameters, buffers and names are kept; in a single process nothing changes.
    """
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.__class__ = _GlobalBatchNorm  # type: ignore[assignment]
        elif isinstance(norm, nn.modules.batchnorm._BatchNorm) and not isinstance(norm, _GlobalBatchNorm):
            what = type(norm).__name__
            raise UsageError(f"networks with {what} train in one process only; start a single one.")


_RESIDENT = 0.3  # share of a GPU's free memory that images may take


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device without waiting for the GPU.

    From pageable memory, the copy would wait until the GPU is idle.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class DeviceImages:
    """8-bit images from which batches are taken, kept on a GPU if they fit.

    By default they are if they take less than 30 % of its free memory.
    """

    def __init__(self, images: NDArray[np.uint8], device: torch.device, *, resident: bool | None = None) -> None:
        self._images, self._device = images, device
        if resident is None:
            resident = device.type == "cuda" and images.nbytes < _RESIDENT * torch.cuda.mem_get_info(device)[0]
        self._there = torch.from_numpy(images).to(device) if resident else None

    def take(self, rows: NDArray[np.integer]) -> Tensor:
        """Return these rows' images on the device, uint8, shape (B, 3, S, S), channels last."""
        if self._there is None:
            return to_device(torch.from_numpy(self._images[rows]), self._device).permute(0, 3, 1, 2)
        return self._there[to_device(torch.from_numpy(rows), self._device)].permute(0, 3, 1, 2)


_PRECISIONS: dict[str, Any] = {"bf16": "bf16-mixed", "fp32": "32-true"}  # Fabric's names
_ACCELERATORS = ("cpu", "cuda", "mps")
_PARTING = 0.1  # seconds for a thread to get the lock and drop a few tensors


class Runtime:
    """The device and the processes of a run.

    Under torchrun, its processes train together. Otherwise Fabric starts the same program once per device of
    ``devices``. ``first`` is the process that writes and prints; ``precision`` of the network is bf16 or fp32.
    """

    def __init__(self, options: TrainOptions) -> None:
        chosen = choose_device(options.device)
        if chosen.type not in _ACCELERATORS:
            raise UsageError(f"training runs on {', '.join(_ACCELERATORS)}, not on {chosen.type}.")
        from lightning_fabric import Fabric  # takes seconds, and only training needs it
        from lightning_fabric.strategies.ddp import DDPStrategy

        for name in ("lightning.fabric", "lightning_fabric"):  # or every process prints a banner
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
        self.first = rank() == 0  # also after the processes have separated

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.fabric.device

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return a module that runs in the chosen precision and averages gradients over processes."""
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
        """Leave the process group; processes then continue or end independently."""
        if self._opened and distributed.is_available() and distributed.is_initialized():
            # The group's thread needs the interpreter's lock to release the tensors it summed last. Dropping the
            # group waits for that thread, and a reducer does so holding the lock: a deadlock.
            distributed.barrier()
            time.sleep(_PARTING)
            distributed.destroy_process_group()


def _started_by_torchrun() -> tuple[int, int] | None:
    """Return the number of local processes and of machines if torchrun started this process, else None."""
    try:
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return local, max(1, world // max(1, local))
