"""Where training runs: device, precision, and how many processes, through Lightning Fabric."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from stochcl.encoders.inference import choose_device, precision_used
from stochcl.errors import UsageError
from stochcl.training.distributed import globalise_batch_norms, rank

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from stochcl.training.options import TrainOptions


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
        prepared: nn.Module = self.fabric.setup_module(module)
        return prepared

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
