"""Batch normalisation over the batch of all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from stochcl.encoders.distributed import processes, summed
from stochcl.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


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

    Raises
    ------
    UsageError
        If one is of a kind that this cannot be done with.
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
