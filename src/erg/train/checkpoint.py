"""Checkpoints: safetensors files that are either whole or not there.

A checksum stands beside each, and a file without its own is no checkpoint. Nothing is pickled, so
even a hostile checkpoint can do no more than be refused.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from erg.durable import NoSpace, Unwritable, explained, open_regular, write_atomically
from erg.train.sharding import share_of, whole

FORMAT = "1"
KEPT = 2
HEADER = 1 << 24
"""Longest header that is read [bytes]; ours take about 100 bytes a tensor."""

STATE = {
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "SGD": {"momentum_buffer"},
    "LARS": {"momentum_buffer"},
}
"""What each optimiser keeps of a parameter."""

_NAME = re.compile(r"step_(\d{9,})\.safetensors")


class Diverged(RuntimeError):
    """Weights or the optimiser's state are no longer finite numbers."""


@dataclass(frozen=True)
class Restored:
    """Which checkpoint was loaded.

    Args:
        step: optimiser steps done.
        skipped: newer files that were damaged.
    """

    step: int
    skipped: tuple[str, ...] = ()


def save_checkpoint(
    folder: Path,
    step: int,
    method: nn.Module,
    optimiser: Optimizer | None,
    *,
    writes: bool = True,
) -> Path:
    """Write step_N.safetensors and its checksum; once they read back, drop all but two.

    What processes hold in shares is put together first, so that all of them have to call this and
    one writes: the file is the same, and any number of processes goes on from it.

    Args:
        folder: of the checkpoints; it is made, but not the run folder it stands in.
        step: optimiser steps done.
        method: of which parameters and buffers are saved.
        optimiser: of which all state is saved.
        writes: whether this process writes, or only gives its shares.

    Raises:
        NoSpace: the disk has not enough room; older checkpoints are untouched.
        Unwritable: the folder is read-only or gone, or the disk does not give back what was
            written; older checkpoints are untouched.
        Diverged: a number is not finite; nothing is written.
    """
    path = folder / f"step_{step:09d}.safetensors"
    tensors, scalars = _state(method, optimiser, writes)
    if not writes:
        return path
    if (bad := _not_finite(tensors, method)) is not None:
        raise Diverged(
            f"{bad} is not finite at step {step}, so nothing was saved. Lower --lr, or resume from "
            "the last checkpoint with another seed."
        )
    content = save(
        {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()},
        metadata={"format": FORMAT, "step": str(step), "scalars": json.dumps(scalars)},
    )
    with explained(folder):
        folder.mkdir(exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < len(content) + (1 << 20):
        raise NoSpace(
            f"a checkpoint needs {len(content) >> 20} MB and the disk of {folder} has "
            f"{free >> 20} MB. Make room and resume; the last checkpoint is intact."
        )
    # The checksum first: a checkpoint is there from the moment its file is moved to its place.
    write_atomically(_sidecar(path), hashlib.sha256(content).hexdigest().encode())
    write_atomically(path, content)
    if not _whole(path):
        raise Unwritable(
            f"{path} does not read back as it was written. Look after its disk; the checkpoint "
            "before is kept."
        )
    with explained(folder):
        _drop_others(folder, step)
    return path


def _state(
    method: nn.Module, optimiser: Optimizer | None, keep: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that is saved: tensors by name, whole, and what is none; empty without `keep`."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}

    def take(name: str, tensor: Tensor) -> None:
        found = whole(tensor)
        if keep:  # one tensor at a time is whole on the device
            tensors[name] = found if found is tensor else found.cpu()

    for name, tensor in method.state_dict().items():
        take(f"method.{name}", tensor)
    for number, state in _optimiser_state(optimiser):
        for name, value in state.items():
            if isinstance(value, Tensor):
                take(f"optimiser.{number}.{name}", value)
            else:
                scalars[f"{number}.{name}"] = value
    return tensors, scalars


def _drop_others(folder: Path, step: int) -> None:
    """Keep the checkpoint of a step and the newest whole ones before it.

    What is of a later step was damaged, or the run would have gone on from there.
    """
    kept = 1
    for found, path in _newest_first(folder):
        if found == step:
            continue
        if found < step and kept < KEPT and _whole(path):
            kept += 1
            continue
        path.unlink(missing_ok=True)
        _sidecar(path).unlink(missing_ok=True)
    for sidecar in folder.glob("step_*.sha256"):
        if not sidecar.with_suffix(".safetensors").exists():
            sidecar.unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, method: nn.Module, optimiser: Optimizer | None
) -> Restored | None:
    """Load the newest checkpoint that is whole; None where there is none.

    Raises:
        ValueError: checkpoints are there and all are damaged, or belong to another run.
    """
    damaged: list[str] = []
    for step, path in _newest_first(folder):
        found = _read(path)
        if found is None or _not_finite(found[1], method) is not None:
            damaged.append(path.name)
            continue
        about, tensors = found
        if about.get("format") != FORMAT:
            raise ValueError(
                f"{path.name} has format {about.get('format')!r}, not {FORMAT}. Use its erg."
            )
        if about.get("step") != str(step):
            damaged.append(path.name)
            continue
        _restore(method, optimiser, tensors, about.get("scalars", ""))
        return Restored(step, tuple(damaged))
    if damaged:
        raise ValueError(
            f"all checkpoints of {folder.parent.name} are damaged ({', '.join(damaged)}). "
            "Start the run again."
        )
    return None


def _newest_first(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of all checkpoints, whole or not."""
    named = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.safetensors")]
    return sorted(((int(m[1]), path) for m, path in named if m is not None), reverse=True)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """Metadata and tensors of a file; None where it is damaged."""
    if not _whole(path):
        return None
    try:
        with open_regular(path) as start:
            if int.from_bytes(start.read(8), "little") > HEADER:
                return None
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError):
        return None


def _restore(
    method: nn.Module, optimiser: Optimizer | None, tensors: dict[str, Tensor], scalars: str
) -> None:
    """Everything is checked before anything is changed."""
    weights = {
        name.removeprefix("method."): t for name, t in tensors.items() if name.startswith("method.")
    }
    mine = method.state_dict()
    _check_weights(mine, weights)
    state = {} if optimiser is None else _checked_state(optimiser, tensors, scalars)
    method.load_state_dict({name: share_of(t, mine[name]) for name, t in weights.items()})
    if optimiser is None:
        return
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    for parameter, kept in optimiser.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # In the parameter's memory layout, which files do not keep: fused steps walk both
                # in memory order.
                kept[name] = torch.empty_like(parameter).copy_(value).detach()


def _check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        mine, theirs = (_kind(weights.get(name)) for weights in (expected, found))
        if mine != theirs:
            raise ValueError(
                f"the checkpoint is of another method or encoder: {name!r} is {theirs} there and "
                f"{mine} here. Resume with what the run was started with."
            )


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _checked_state(
    optimiser: Optimizer, tensors: dict[str, Tensor], scalars: str
) -> dict[int, dict[str, Any]]:
    """The optimiser's state by number of parameter.

    Its compiled steps trust shapes and types, so that a state of others would let them write
    anywhere in memory.

    Raises:
        ValueError: it is not the state of this optimiser.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    found: dict[int, dict[str, Any]] = {}
    for name, value in {**_plain_numbers(scalars), **tensors}.items():
        if not name.startswith("optimiser."):
            continue
        _, number, key = [*name.split(".", 2), "", ""][:3]
        place = int(number) if re.fullmatch(r"[0-9]{1,9}", number) else len(parameters)
        if place >= len(parameters):
            raise _foreign(f"it has no parameter for {name!r}")
        if isinstance(value, Tensor) and value.ndim:
            wanted = _kind(parameters[place])
            if _kind(value) != wanted:
                raise _foreign(f"{name!r} is {_kind(value)}, not {wanted}")
            value = share_of(value, parameters[place])
        elif isinstance(value, Tensor) and not value.is_floating_point():
            raise _foreign(f"{name!r} is {_kind(value)}")
        found.setdefault(place, {})[key] = value
    wanted_keys = STATE.get(type(optimiser).__name__)
    for place, state in found.items():
        if wanted_keys is not None and state.keys() != wanted_keys:
            raise _foreign(f"it keeps {sorted(state)} of parameter {place}")
    return found


def _plain_numbers(text: str) -> dict[str, Any]:
    """State that is no tensor, by name."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    plain = bool | int | float | None
    if not isinstance(values, dict) or not all(isinstance(v, plain) for v in values.values()):
        raise _foreign("its metadata are damaged")
    return {f"optimiser.{name}": value for name, value in values.items()}


def _foreign(what: str) -> ValueError:
    return ValueError(f"the checkpoint is of another optimiser: {what}. Start the run again.")


def _not_finite(tensors: Mapping[str, Tensor], method: nn.Module) -> str | None:
    """The first parameter or state of the optimiser that is not finite."""
    learnt = {f"method.{name}" for name, _ in method.named_parameters()}
    for name, tensor in tensors.items():
        checked = name in learnt or name.startswith("optimiser.")
        if checked and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name.removeprefix("method.")
    return None


def _optimiser_state(optimiser: Optimizer | None) -> list[tuple[int, dict[str, Any]]]:
    return [] if optimiser is None else list(optimiser.state_dict()["state"].items())


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _whole(path: Path) -> bool:
    try:
        with open_regular(_sidecar(path)) as file:
            expected = file.read(100).strip()
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest().encode() == expected
    except OSError:
        return False


def state_hash(module: nn.Module) -> str:
    """Hash of all parameters and buffers, bit for bit; in shares, all processes have to ask."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode())
        held: Any = whole(tensor.detach()).cpu().contiguous().flatten()
        total.update(held.view(torch.uint8).numpy())
    return total.hexdigest()
