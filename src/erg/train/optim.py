"""Optimisers, with parameter groups by rule: 1-D parameters are neither decayed nor adapted, but by
LARC, which knows no exceptions."""

# What does many tensors at once, as torch's own optimisers do it, has no public name yet.
# pyright: reportPrivateImportUsage=false

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW, Optimizer

from erg.train.run import Optimiser


class LayerWise(Optimizer, ABC):
    """Momentum on updates whose size is told by that of the parameter: v <- m v + u, p <- p - lr v.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: m.
        weight_decay: wd.
        eta: trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(params, {**defaults, "adapt": True})

    @abstractmethod
    def updates(self, p: list[Tensor], g: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """u of all parameters p of a group, whose gradients are g."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            p = [each for each in group["params"] if each.grad is not None]
            if not p:
                continue
            v = [self._momentum(each) for each in p]
            torch._foreach_mul_(v, group["momentum"])
            torch._foreach_add_(v, self.updates(p, [each.grad for each in p], group))
            torch._foreach_add_(p, v, alpha=-group["lr"])

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


def _norms(tensors: list[Tensor]) -> Float[Tensor, " n"]:
    """Of whole tensors, also where processes hold shares of them."""
    found = torch.stack(torch._foreach_norm(tensors))
    return found.full_tensor() if isinstance(found, DTensor) else found


def _scaled(by: Float[Tensor, " n"], tensors: list[Tensor]) -> list[Tensor]:
    return [each * tensor for each, tensor in zip(by, tensors, strict=True)]


class LARS(LayerWise):
    """Layer-wise adaptive rate scaling (You et al. 2017), as SimCLR, BYOL and VICReg use it.

    g' = g + wd p;  u = q g' with q = eta ||p|| / ||g'|| if both norms are > 0, else 1. Groups with
    `adapt` False are plain SGD with momentum (u = g).
    """

    def updates(self, p: list[Tensor], g: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        if not group["adapt"]:
            return g
        decayed = list(torch._foreach_add(g, p, alpha=group["weight_decay"]))
        norm, size = _norms(decayed), _norms(p)
        trust = torch.where((norm > 0) & (size > 0), group["eta"] * size / norm, 1.0)
        return _scaled(trust, decayed)


class LARC(LayerWise):
    """Layer-wise adaptive rate control without clipping, as SwAV and SEER use it.

    u = q (g + wd p) with q = eta ||p|| / (||g|| + wd ||p|| + 1e-8) if both norms are > 0, else
    u = g: the norm of the decay is added to that of the gradient, not taken of their sum as LARS
    does. No parameter is left out: biases and gains are decayed and adapted too.
    """

    def updates(self, p: list[Tensor], g: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        decay, norm, size = group["weight_decay"], _norms(g), _norms(p)
        adapted = (norm > 0) & (size > 0)
        trust = group["eta"] * size / (norm + decay * size + 1e-8)
        shrunk = _scaled(decay * adapted.to(size), p)  # wd p, of those that are adapted
        decayed = list(torch._foreach_add(g, shrunk))
        return _scaled(torch.where(adapted, trust, 1.0), decayed)


def groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices and kernels; biases, gains and other 1-D ones,
    which are not decayed (nor adapted by LARS)."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    many = [p for p in trainable if p.ndim > 1]
    few = [p for p in trainable if p.ndim <= 1]
    return [
        {"params": many, "weight_decay": weight_decay, "adapt": True},
        {"params": few, "weight_decay": 0.0, "adapt": False},
    ]


def build_optimiser(chosen: Optimiser, module: nn.Module) -> Optimizer | None:
    """The optimiser of a run; None where the method trains nothing by gradient."""
    of = [group for group in groups(module, chosen.weight_decay) if group["params"]]
    if not of:
        return None
    if chosen.name == "adamw":
        return AdamW(of, lr=chosen.lr, betas=(chosen.momentum, chosen.beta2), fused=True)
    if chosen.name == "sgd":
        # Shares of parameters have no fused step of sgd.
        fused = not any(isinstance(p, DTensor) for group in of for p in group["params"])
        sgd = SGD(of, lr=chosen.lr, momentum=chosen.momentum, nesterov=True, fused=fused)
        # The fused step wants them of all parameters or of none, and what was frozen has its first
        # gradient later than the others. It makes them of that gradient, which is from 0 the same.
        for p in (p for group in of for p in group["params"]):
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    if chosen.name == "lars":
        return LARS(of, lr=chosen.lr, momentum=chosen.momentum)
    everything = [p for group in of for p in group["params"]]
    decay = chosen.weight_decay
    return LARC(everything, lr=chosen.lr, momentum=chosen.momentum, weight_decay=decay)
