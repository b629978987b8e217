"""Collective operations of the processes that train one network, with the right gradients.

The loss of the whole batch is the mean of the processes' losses, and its gradient the mean of theirs. A process that
gathers all rows, for the matrix of similarities for one, therefore sends back to each process the *sum* of the
gradients that all processes have for its rows: averaged afterwards, that is the gradient of the whole batch's loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from stochcl.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


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
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


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
