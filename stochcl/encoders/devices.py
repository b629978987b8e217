"""Work for a device that is not waited for: what a step needs is there already, or arrives while it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stochcl.errors import TrainingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_RESIDENT = 0.3  # of a GPU's free memory, that images may take
_NEVER = 1 << 62


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; a GPU goes on working meanwhile.

    A copy from memory that the system may move waits for all the work that a GPU has been given.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Pixels:
    """Images of a run, 8-bit, of which batches are taken; kept on a GPU where they fit.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, S, S, 3)
    device : torch.device
        Where batches are needed.
    resident : bool, optional
        Whether all images are kept there; by default where they take less than a third of a GPU's free memory.
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


class Watch:
    """Notices numbers that are not finite.

    On a CPU at once. Asking a GPU at every step would make it wait for its next work, so it is asked every so many
    steps, and whoever writes something that lasts calls :meth:`check` before.

    Parameters
    ----------
    device : torch.device
    every : int, optional
        Steps between two questions; 1 on a CPU and 20 elsewhere by default.
    """

    def __init__(self, device: torch.device, every: int | None = None) -> None:
        self.every = (1 if device.type == "cpu" else 20) if every is None else every
        self._first: Tensor | None = None

    @torch.no_grad()
    def see(self, value: Tensor, step: int) -> None:
        """Look at the number that a step came to, before its weights change.

        Raises
        ------
        TrainingError
            If it, or one before, is not finite, and it is time to ask.
        """
        bad = torch.where(value.detach().isfinite(), _NEVER, step)
        self._first = bad if self._first is None else torch.minimum(self._first, bad)
        if step % self.every == 0:
            self.check()

    def check(self) -> None:
        """Raise TrainingError if any number so far was not finite."""
        first, self._first = self._first, None
        if first is not None and (step := int(first)) < _NEVER:
            raise TrainingError(f"the loss is not finite at step {step:,}; try a lower learning rate.")
