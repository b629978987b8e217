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


def all_gather(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks; each has the same number."""
    if world_size() == 1:
        return rows
    everything: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return everything


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over processes; backwards, gradients are summed as well."""
    if world_size() == 1:
        return values
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


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


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        distributed.all_gather(parts, rows)
        ctx.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        begin = distributed.get_rank() * ctx.rows
        return total[begin : begin + ctx.rows]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        distributed.all_reduce(total)
        return total


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

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


class _GlobalBatchNorm1d(_GlobalBatchNorm, nn.BatchNorm1d):
    pass


class _GlobalBatchNorm2d(_GlobalBatchNorm, nn.BatchNorm2d):
    pass


_GLOBAL: dict[type[nn.Module], type[_GlobalBatchNorm]] = {
    nn.BatchNorm1d: _GlobalBatchNorm1d,
    nn.BatchNorm2d: _GlobalBatchNorm2d,
}


def globalise_batch_norms(module: nn.Module) -> None:
    """Replace a network's batch normalisations by ones whose statistics are those of all processes' batches.

    Parameters, buffers and names stay; in a single process nothing changes.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, nn.modules.batchnorm._BatchNorm) or isinstance(child, _GlobalBatchNorm):
                continue
            kind = _GLOBAL.get(type(child))
            if kind is None:
                what = type(child).__name__
                raise UsageError(f"networks with {what} train in one process only; start a single one.")
            made = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            made.weight, made.bias = child.weight, child.bias
            made.running_mean, made.running_var = child.running_mean, child.running_var
            made.num_batches_tracked = child.num_batches_tracked
            made.train(child.training)
            setattr(parent, name, made)
