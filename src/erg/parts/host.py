"""Numbers that the host makes, on their way to a device."""

import torch
from torch import Tensor


def sent(made: Tensor, device: torch.device) -> Tensor:
    """What the host has made, on a device. A GPU is not waited for: from pinned memory it fetches
    them when it comes to them, and until then that memory is taken for nothing else."""
    if device.type != "cuda":
        return made.to(device)
    return made.pin_memory().to(device, non_blocking=True)
