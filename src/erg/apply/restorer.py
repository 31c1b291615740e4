"""What networks that restore share: descent, and a folder to be kept in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from erg.durable import open_regular, read_json, write_atomically
from erg.train.checkpoint import Diverged
from erg.train.optim import build_optimiser
from erg.train.run import Optimiser
from erg.views.random import Purpose, bits

FORMAT = 1
LARGEST = 1 << 28
"""Most bytes of weights that are read."""


class Restorer(nn.Module):
    """A network that restores what was corrupted, rebuilt from its arguments.

    Attributes:
        command: of erg, which trains it.
        arguments: of its constructor, JSON-able.
    """

    command: ClassVar[str]
    arguments: dict[str, Any]


R = TypeVar("R", bound=Restorer)


def seeded(seed: int) -> None:
    """Seed what weights are drawn from."""
    torch.manual_seed(int(bits(seed, Purpose.WEIGHTS)) >> 1)


def put(network: R, device: str) -> R:
    """A network on a device.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        reason = str(error).partition("\n")[0][:80]
        raise ValueError(
            f"there is no device {device!r} here ({reason}). Choose cpu or cuda; erg doctor shows "
            "which there are."
        ) from None


def within(name: str, value: object, low: int, high: int) -> int:
    """An integer in [low, high]; files that say otherwise are refused before memory is taken.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} should be a whole number from {low} to {high} (got {value!r}).")
    return value


def descend(
    network: nn.Module,
    loss: Callable[[int], Tensor],
    optimiser: Optimiser,
    steps: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train by gradient; the loss of every step.

    Args:
        network: in training mode meanwhile, in evaluation mode afterwards.
        loss: of a step, a function of its number: the randomness is its own.
        optimiser: how parameters are changed.
        steps: how often.
        progress: called with (steps done, steps).

    Raises:
        ValueError: there is nothing to train, or no step.
        Diverged: the loss is not finite.
    """
    if steps < 1:
        raise ValueError(f"training takes one step at least (got {steps}). Choose more.")
    chosen = build_optimiser(optimiser, network)
    if chosen is None:
        raise ValueError("the network has nothing to train.")
    network.train()
    losses: list[Tensor] = []
    for step in range(steps):
        for group in chosen.param_groups:
            group["lr"] = optimiser.learning_rate(step / steps)
        value = loss(step)
        value.backward()
        if optimiser.clip:
            nn.utils.clip_grad_norm_(network.parameters(), optimiser.clip)
        chosen.step()
        chosen.zero_grad(set_to_none=True)
        losses.append(value.detach())
        if progress is not None:
            progress(step + 1, steps)
    network.eval()
    found = torch.stack(losses).float().cpu()
    if not bool(found.isfinite().all()):
        raise Diverged("the loss is not finite. Use another seed, or fewer or longer clips.")
    return found.tolist()


def save_restorer(network: Restorer, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT, "restorer": type(network).__name__, "arguments": network.arguments,
    }  # fmt: skip
    weights = {k: t.detach().cpu().contiguous().clone() for k, t in network.state_dict().items()}
    write_atomically(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode())


def load_restorer(kind: type[R], folder: Path) -> R:
    """Read what `save_restorer` wrote, in evaluation mode.

    Raises:
        ValueError: the folder holds no such network, or its weights do not fit.
    """
    try:
        config = read_json(folder / "config.json")
        if (config.get("format"), config.get("restorer")) != (FORMAT, kind.__name__):
            raise ValueError(f"its config.json is of no {kind.__name__} of format {FORMAT}")
        network = kind(**config["arguments"])
        with open_regular(folder / "model.safetensors") as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"its weights are longer than {LARGEST >> 20} MB")
        network.load_state_dict(load(content))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{folder} holds no model for erg {kind.command} ({reason}). Give the folder that "
            f"erg {kind.command} wrote."
        ) from None
    return network.eval()
