"""Several processes that train one network: what they tell each other, with the right gradients.

Every process computes a loss that is averaged over all of them, and so are the gradients. A quantity that one process
has of all rows, like the matrix of similarities, therefore sends back to each process the *sum* of the gradients that
all processes have for its rows: averaged afterwards, that is the gradient of the loss of the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from stochcl.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


def processes() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return which of them this one is; 0 is the one that writes and prints."""
    return distributed.get_rank() if processes() > 1 else 0


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks; each has the same number."""
    if processes() == 1:
        return rows
    found: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return found


def summed(values: Tensor) -> Tensor:
    """Return the sum over processes; backwards, gradients are summed as well."""
    if processes() == 1:
        return values
    found: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def averaged(values: Tensor) -> Tensor:
    """Return the mean over processes, without a gradient."""
    return summed(values.detach()) / processes()


def mean_of_all(values: Tensor) -> Tensor:
    """Return what, averaged over processes, is the mean of all of their values.

    With as many values in every process that is the mean of its own; they may also have different numbers of them,
    or none.
    """
    if processes() == 1:
        return values.mean()
    count = summed(torch.tensor(float(values.numel()), device=values.device))
    return values.sum() * processes() / count


def from_first(values: list[float], device: torch.device) -> list[float]:
    """Return the numbers that the first process has."""
    if processes() == 1:
        return values
    told = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.broadcast(told, 0)
    found: list[float] = told.tolist()
    return found


def anywhere(found: bool, device: torch.device) -> bool:
    """Tell whether something is so in any process."""
    if processes() == 1:
        return found
    return bool(summed(torch.tensor(float(found), device=device)))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(processes())]
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


class _AcrossProcesses(nn.modules.batchnorm._BatchNorm):
    """What torch's SyncBatchNorm does, which refuses to run on the CPU, written with collectives that do."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        values = x.float()
        count = x.numel() // x.shape[1] * processes()
        # In two passes: a mean of squares less a squared mean would cancel.
        mean = summed(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = summed(centred.square().sum(axes)) / count
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


class _AcrossProcesses1d(_AcrossProcesses, nn.BatchNorm1d):
    pass


class _AcrossProcesses2d(_AcrossProcesses, nn.BatchNorm2d):
    pass


_KINDS: dict[type[nn.Module], type[_AcrossProcesses]] = {
    nn.BatchNorm1d: _AcrossProcesses1d,
    nn.BatchNorm2d: _AcrossProcesses2d,
}


def normalise_across_processes(module: nn.Module) -> None:
    """Let a network's batch normalisations take their statistics from the batches of all processes.

    Their parameters, buffers and names stay what they are; in a single process nothing changes.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, nn.modules.batchnorm._BatchNorm) or isinstance(child, _AcrossProcesses):
                continue
            kind = _KINDS.get(type(child))
            if kind is None:
                what = type(child).__name__
                raise UsageError(f"networks with {what} train in one process only; start a single one.")
            made = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            made.weight, made.bias = child.weight, child.bias
            made.running_mean, made.running_var = child.running_mean, child.running_var
            made.num_batches_tracked = child.num_batches_tracked
            made.train(child.training)
            setattr(parent, name, made)
