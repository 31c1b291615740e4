"""Batch normalisation whose statistics are those of the batch of all processes.

torch's SyncBatchNorm refuses to run on CPU; this one works with any back end and keeps the state
keys of torch's BatchNorm. With one process it *is* torch's BatchNorm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from erg import distributed
from erg.energy import at_least_float32
from erg.parts.recompute import again


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalise each feature (or channel) with the mean and variance of the global batch.

    Takes [b d], [b d n] or [b c h w]. Statistics are computed in at least float32; running averages
    hold the unbiased variance, as torch's do. They move once a batch, also where a block is
    computed again for the backward pass.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 3, 4):
            raise ValueError(f"expected [b d], [b d n] or [b c h w] (got {list(input.shape)}).")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and distributed.active()):
            return self._again(input) if self.training and again() else super().forward(input)
        self._check_input_dim(input)
        x = at_least_float32(input)
        dims = [0, *range(2, x.ndim)]
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

    def _again(self, input: Tensor) -> Tensor:
        """The same as before: running averages move in copies, which backward passes want too."""
        mean, variance = self.running_mean, self.running_var
        if mean is not None and variance is not None:
            mean, variance = mean.clone(), variance.clone()
        return F.batch_norm(input, mean, variance, self.weight, self.bias, True, 0.0, self.eps)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or again():
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

    def __init__(self, features: int, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(features)
        self.drop, self.act = drop, act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class TokenBatchNorm(BatchNorm):
    """Batch normalisation of tokens [... d]: over all tokens of all items."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, -2)).view_as(input)


def batch_norms_before_mlps(network: nn.Module, name: str) -> None:
    """Put batch norms in the place of the layer norms before a transformer's MLPs, in place.

    Those before attention stay (Chen et al. 2021, ViT-BN).

    Args:
        network: with blocks as timm's ViTs have, whose `norm2` stands before the MLP.
        name: of its architecture.

    Raises:
        ValueError: it has no such blocks.
    """
    blocks = [m for m in network.modules() if isinstance(getattr(m, "norm2", None), nn.LayerNorm)]
    if not blocks:
        raise ValueError(
            f"{name} has no layer norms before MLPs, which mlp_batch_norm changes. Use a ViT, for "
            "example vit_small_patch16_224."
        )
    for block in blocks:
        before: Any = block.norm2
        block.norm2 = TokenBatchNorm(before.normalized_shape[0])


def across_processes(module: nn.Module) -> nn.Module:
    """Replace every torch BatchNorm (timm's with activation too) in a module by ours.

    Parameters and buffers are kept, so the state keys stay the same.
    """
    if isinstance(module, BatchNorm):
        return module
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _ours(module)
    for name, child in module.named_children():
        setattr(module, name, across_processes(child))
    return module


def _ours(theirs: nn.modules.batchnorm._BatchNorm) -> BatchNorm:
    """Our layer with the parameters and buffers of one of torch's."""
    act, drop = getattr(theirs, "act", None), getattr(theirs, "drop", None)
    if isinstance(act, nn.Module) and isinstance(drop, nn.Module):
        ours: BatchNorm = BatchNormAct(theirs.num_features, drop, act)
    else:
        ours = BatchNorm(theirs.num_features)
    ours.eps, ours.momentum = theirs.eps, theirs.momentum
    ours.affine, ours.track_running_stats = theirs.affine, theirs.track_running_stats
    ours.weight, ours.bias = theirs.weight, theirs.bias
    ours.running_mean, ours.running_var = theirs.running_mean, theirs.running_var
    ours.num_batches_tracked = theirs.num_batches_tracked
    ours.training = theirs.training
    return ours
