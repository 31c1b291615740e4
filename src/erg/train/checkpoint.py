"""Checkpoints: safetensors files that are either whole or not there.

Written beside their final place, flushed, renamed, and the folder flushed too; a checksum stands
beside each. Nothing is pickled, so even a hostile checkpoint can do no more than be refused.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

FORMAT = "1"
KEPT = 2


class NoSpace(OSError):
    """Not enough room for a checkpoint."""


@dataclass(frozen=True)
class Restored:
    """Which checkpoint was loaded.

    Args:
        step: optimiser steps done.
        skipped: newer files that were damaged.
    """

    step: int
    skipped: tuple[str, ...] = ()


def write_atomically(path: Path, content: bytes) -> None:
    """A file that appears whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(
    folder: Path, step: int, method: nn.Module, optimiser: Optimizer | None
) -> Path:
    """Write step_N.safetensors and its checksum, then drop all but the newest two.

    Raises:
        NoSpace: the disk has not enough room; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"method.{name}": t for name, t in method.state_dict().items()}
    scalars: dict[str, Any] = {}
    for number, state in _optimiser_state(optimiser):
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{number}.{name}"] = value
            else:
                scalars[f"{number}.{name}"] = value
    content = save(
        {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()},
        metadata={"format": FORMAT, "step": str(step), "scalars": json.dumps(scalars)},
    )
    free = shutil.disk_usage(folder).free
    if free < len(content) + (1 << 20):
        raise NoSpace(
            f"a checkpoint needs {len(content) >> 20} MB and the disk of {folder.name} has "
            f"{free >> 20} MB. Make room and resume; the last checkpoint is intact."
        )
    path = folder / f"step_{step:09d}.safetensors"
    write_atomically(path, content)
    write_atomically(_sidecar(path), hashlib.sha256(content).hexdigest().encode())
    for old in sorted(folder.glob("step_*.safetensors"))[:-KEPT]:
        old.unlink()
        _sidecar(old).unlink(missing_ok=True)
    return path


def load_checkpoint(
    folder: Path, method: nn.Module, optimiser: Optimizer | None
) -> Restored | None:
    """Load the newest checkpoint that is whole; None where there is none.

    Raises:
        ValueError: checkpoints are there and all are damaged, or belong to another run.
    """
    damaged: list[str] = []
    for path in sorted(folder.glob("step_*.safetensors"), reverse=True):
        if not _whole(path):
            damaged.append(path.name)
            continue
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("format") != FORMAT:
            raise ValueError(f"{path.name} has format {about.get('format')}, not {FORMAT}.")
        _restore(method, optimiser, tensors, json.loads(about["scalars"]))
        return Restored(int(about["step"]), tuple(damaged))
    if damaged:
        raise ValueError(
            f"all checkpoints of {folder.parent.name} are damaged ({', '.join(damaged)}). "
            "Start the run again."
        )
    return None


def _restore(
    method: nn.Module,
    optimiser: Optimizer | None,
    tensors: dict[str, Tensor],
    scalars: dict[str, Any],
) -> None:
    weights = {
        name.removeprefix("method."): t for name, t in tensors.items() if name.startswith("method.")
    }
    try:
        method.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"the checkpoint is of another method or encoder: {first}") from None
    if optimiser is None:
        return
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *(("optimiser." + k, v) for k, v in scalars.items())]:
        if name.startswith("optimiser."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    for parameter, kept in optimiser.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # In the parameter's memory layout, which files do not keep: fused steps walk both
                # in memory order.
                kept[name] = torch.empty_like(parameter).copy_(value).detach()


def _optimiser_state(optimiser: Optimizer | None) -> list[tuple[int, dict[str, Any]]]:
    return [] if optimiser is None else list(optimiser.state_dict()["state"].items())


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _whole(path: Path) -> bool:
    try:
        expected = _sidecar(path).read_text().strip()
        return hashlib.sha256(path.read_bytes()).hexdigest() == expected
    except OSError:
        return False


def state_hash(module: nn.Module) -> str:
    """Hash of all parameters and buffers, bit for bit."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
