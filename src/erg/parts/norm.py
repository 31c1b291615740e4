"""Batch normalisation whose statistics are those of the batch of all processes.

torch's SyncBatchNorm refuses to run on CPU; this one works with any back end and keeps the state
keys of torch's BatchNorm. With one process it *is* torch's BatchNorm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erg import distributed
from erg.energy import at_least_float32


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalise each feature (or channel) with the mean and variance of the global batch.

    Takes [b d] or [b c h w]. Statistics are computed in at least float32; running averages hold
    the unbiased variance, as torch's do.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"expected [b d] or [b c h w] (got {list(input.shape)}).")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and distributed.active()):
            return super().forward(input)
        self._check_input_dim(input)
        x = at_least_float32(input)
        dims = [0] if x.ndim == 2 else [0, 2, 3]
        count = torch.tensor(x.numel() // x.shape[1], dtype=x.dtype, device=x.device)
        count = distributed.sum(count)
        shape = (1, -1, *([1] * (x.ndim - 2)))
        mean = distributed.sum(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = distributed.sum(centred.square().sum(dims)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight.to(x.dtype)
        y = centred * scale.view(shape)
        if self.affine:
            y = y + self.bias.to(x.dtype).view(shape)
        return y.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(variance.to(self.running_var.dtype), rate)


class BatchNormAct(BatchNorm):
    """Batch normalisation followed by an activation: the counterpart of timm's fused layer."""

    def __init__(self, like: nn.BatchNorm2d, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(like.num_features)
        self.drop, self.act = drop, act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def across_processes(module: nn.Module) -> nn.Module:
    """Replace every torch BatchNorm (timm's with activation too) inside a module by ours.

    Parameters and buffers are kept, so the state keys stay the same.
    """
    for name, child in module.named_children():
        if isinstance(child, BatchNorm) or not isinstance(child, nn.modules.batchnorm._BatchNorm):
            across_processes(child)
            continue
        if hasattr(child, "act") and hasattr(child, "drop"):
            ours: BatchNorm = BatchNormAct(child, child.drop, child.act)  # type: ignore[arg-type]
        else:
            ours = BatchNorm(child.num_features)
        ours.eps, ours.momentum = child.eps, child.momentum
        ours.affine, ours.track_running_stats = child.affine, child.track_running_stats
        ours.weight, ours.bias = child.weight, child.bias
        ours.running_mean, ours.running_var = child.running_mean, child.running_var
        ours.num_batches_tracked = child.num_batches_tracked
        ours.training = child.training
        setattr(module, name, ours)
    return module


def standardise(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Each feature to mean 0 and variance 1 over the global batch [b d], nothing learned."""
    if not distributed.active():
        return F.batch_norm(at_least_float32(x), None, None, training=True, eps=eps)
    x = at_least_float32(x)
    mean = distributed.mean(x)
    variance = distributed.mean((x - mean).square())
    return (x - mean) * (variance + eps).rsqrt()
