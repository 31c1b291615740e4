"""A method in shares (FSDP2): every process holds a part of every parameter and of its moments.

Units are the blocks of the backbones. A block is whole on every process only while it computes, and
the rest of the method from the start of `loss` to the end of its backward pass. A teacher is cut
like its student, so that it follows share by share. Buffers stay whole everywhere.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from erg.encoders import TimmEncoder
from erg.method import Method


def check_shardable(method: Method) -> None:
    """Whether a method can be trained in shares.

    Raises:
        ValueError: its backbone has no blocks, or the method needs all of its parameters at once.
    """
    kind, name = type(method), method.encoder.name
    if not isinstance(method.encoder, TimmEncoder) or not method.encoder.units():
        raise ValueError(
            f"fsdp shares out the blocks of a backbone, and {name} has none. Use a ViT or a RegNet "
            "of timm, or the strategy ddp."
        )
    if kind.after_epoch is not Method.after_epoch:
        raise ValueError(
            f"{kind.__name__} looks at all features after every epoch, which fsdp does not do. Use "
            "the strategy ddp."
        )
    single = [name for name, p in method.named_parameters() if p.ndim == 0]
    if single or not any(p.requires_grad for p in method.parameters()):
        what = f"the single number {single[0]}" if single else "nothing to learn"
        raise ValueError(
            f"{kind.__name__} has {what}, which fsdp cannot share out. Use the strategy ddp."
        )


def shard(method: Method, mesh: Any) -> Method:
    """Share a method out over the processes of a mesh, in place.

    Args:
        method: in full, the same on all of them.
        mesh: of one dimension.
    """
    method.to(memory_format=torch.contiguous_format)  # shares are cut from the first dimension
    for encoder in method.modules():
        if isinstance(encoder, TimmEncoder):
            for block in encoder.units():
                fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    register_fsdp_forward_method(method, "loss")
    return method


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its shares, for which all processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
