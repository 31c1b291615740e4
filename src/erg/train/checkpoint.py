"""Checkpoints: safetensors files that are either whole or not there.

A checksum stands beside each, and a file without its own is no checkpoint. Where processes hold
shares, a checkpoint is a folder of shards instead. Nothing is pickled, so even a hostile checkpoint
can do no more than be refused.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from erg import distributed
from erg.durable import (
    check_room,
    check_written,
    explained,
    open_regular,
    sha256,
    write_atomically,
)
from erg.train.folder import sweep_checkpoints
from erg.train.sharding import whole
from erg.train.shards import (
    Kind,
    Saved,
    local,
    open_files,
    open_shards,
    remove_shards,
    save_shards,
    shards_whole,
)

FORMAT = "1"
KEPT = 2

STATE = {
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "SGD": {"momentum_buffer"},
    "LARS": {"momentum_buffer"},
    "LARC": {"momentum_buffer"},
}
"""What each optimiser keeps of a parameter."""

_NAME = re.compile(r"step_(\d{9,})\.(safetensors|json)")


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
    keep: int | None = None,
) -> Path:
    """Write step_N.safetensors and its checksum; once they read back, drop all but two.

    Where processes hold shares, step_N.json and a folder of shards, for which all have to call
    this. Any number of processes, with or without shares, goes on from either.

    Args:
        folder: of the checkpoints; it is made, but not the run folder it stands in.
        step: optimiser steps done.
        method: of which parameters and buffers are saved.
        optimiser: of which all state is saved.
        writes: whether this process writes what is not its share.
        keep: the step of another checkpoint that is not dropped.

    Raises:
        NoSpace: the disk has not enough room; older checkpoints are untouched.
        Unwritable: the folder is read-only or gone, or the disk does not give back what was
            written; older checkpoints are untouched.
        Diverged: a number is not finite; nothing is written.
    """
    tensors, scalars = _state(method, optimiser)
    shared = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    path = folder / f"step_{step:09d}.{'json' if shared else 'safetensors'}"
    if not (writes or shared):
        return path
    bad = _not_finite(tensors, method)
    if shared and distributed.agree(bad is not None, _device(method)):
        bad = bad or "what another process holds"
    if bad is not None:
        raise Diverged(
            f"{bad} is not finite at step {step}, so nothing was saved. Lower --lr, or resume from "
            "the last checkpoint with another seed."
        )
    about = {"format": FORMAT, "step": str(step), "scalars": json.dumps(scalars)}
    if shared:
        save_shards(path, tensors, about)
    else:
        _save_whole(path, tensors, about)
    if writes:
        with explained(folder):
            _drop_others(path, step, keep)
    return path


def _save_whole(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    content = save(
        {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, about
    )
    with explained(path.parent):
        path.parent.mkdir(exist_ok=True)
    check_room(path.parent, len(content))
    # The checksum first: a checkpoint is there from the moment its file is moved to its place.
    with explained(path.parent):
        path.unlink(missing_ok=True)  # damaged, or the start of a run that is written once more
    write_atomically(_sidecar(path), hashlib.sha256(content).hexdigest().encode())
    write_atomically(path, content)
    check_written(path, content)


def _state(
    method: nn.Module, optimiser: Optimizer | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that is saved: tensors by name, and what is none."""
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    scalars: dict[str, Any] = {}
    for number, state in _optimiser_state(optimiser):
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{number}.{name}"] = value
            else:
                scalars[f"{number}.{name}"] = value
    return tensors, scalars


def _drop_others(path: Path, step: int, keep: int | None) -> None:
    """Keep the checkpoint of a step, the newest whole ones before it, and one that is asked for.

    What is of a later step was damaged, or the run would have gone on from there.
    """
    folder, kept = path.parent, 1
    for found, other in _newest_first(folder):
        if other == path or found == keep:
            continue
        if found < step and kept < KEPT and _whole(other):
            kept += 1
        elif other.suffix == ".json":
            remove_shards(other)
        else:
            other.unlink(missing_ok=True)
            _sidecar(other).unlink(missing_ok=True)
    sweep_checkpoints(folder)


def load_checkpoint(
    folder: Path, method: nn.Module, optimiser: Optimizer | None, *, until: int | None = None
) -> Restored | None:
    """Load the newest checkpoint that is whole; None where there is none.

    Several processes have to call this together, and load the same one.

    Args:
        folder: of the checkpoints.
        method: whose parameters and buffers are replaced.
        optimiser: whose state is replaced; None where only the method is wanted.
        until: the last step whose checkpoint may be taken; None for any.

    Raises:
        ValueError: checkpoints are there and all are damaged, or belong to another run.
    """
    damaged: list[str] = []
    device = _device(method)
    for step, path in _newest_first(folder):
        if until is not None and step > until:
            continue
        saved = open_shards(path) if path.suffix == ".json" else _open_whole(path)
        ours = saved is not None and saved.about.get("format") == FORMAT
        broken = saved is None or (ours and saved.about.get("step") != str(step))
        if not distributed.agree(broken, device) and saved is not None:
            if not ours:
                raise ValueError(
                    f"{path.name} has format {saved.about.get('format')!r}, not {FORMAT}. Use its "
                    "erg."
                )
            likes, scalars = _checked(saved, method, optimiser)
            tensors = saved.take(likes)
            broken = tensors is None or _not_finite(tensors, method) is not None
            if not distributed.agree(broken, device) and tensors is not None:
                _restore(method, optimiser, tensors, scalars)
                return Restored(step, tuple(damaged))
        damaged.append(path.name)
    if damaged:
        raise ValueError(
            f"all checkpoints of {folder.parent.name} are damaged ({', '.join(damaged)}). "
            "Start the run again."
        )
    return None


def _newest_first(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of all checkpoints, whole or not."""
    named = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.*")]
    return sorted(((int(m[1]), path) for m, path in named if m is not None), reverse=True)


def _open_whole(path: Path) -> Saved | None:
    """A checkpoint of one file; None where it is damaged."""
    if not _whole(path):
        return None
    saved = open_files([path], {})
    if saved is None:
        return None
    with safe_open(path, framework="pt") as file:
        return replace(saved, about=file.metadata() or {})


def _checked(
    saved: Saved, method: nn.Module, optimiser: Optimizer | None
) -> tuple[dict[str, Tensor], dict[int, dict[str, Any]]]:
    """What each tensor of a checkpoint replaces, and the optimiser's plain numbers by parameter.

    Raises:
        ValueError: it is of another method, encoder or optimiser.
    """
    weights = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    _check_weights(
        {name: _kind(tensor) for name, tensor in weights.items()},
        {name: kind for name, kind in saved.kinds.items() if name.startswith("method.")},
    )
    if optimiser is None:
        return weights, {}
    likes, scalars = _checked_state(optimiser, saved.kinds, saved.about.get("scalars", ""))
    return {**weights, **likes}, scalars


def _restore(
    method: nn.Module,
    optimiser: Optimizer | None,
    tensors: dict[str, Tensor],
    state: dict[int, dict[str, Any]],
) -> None:
    """Everything was checked before anything is changed."""
    weights = {name: t for name, t in tensors.items() if name.startswith("method.")}
    method.load_state_dict({name.removeprefix("method."): t for name, t in weights.items()})
    if optimiser is None:
        return
    for name, tensor in tensors.items():  # in one order on all processes
        if name not in weights:
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    for parameter, kept in optimiser.state.items():
        for name, value in kept.items():
            if name != "step" and isinstance(value, Tensor) and value.shape == parameter.shape:
                # In the parameter's memory layout, which files do not keep: fused steps walk both
                # in memory order.
                kept[name] = torch.empty_like(parameter).copy_(value).detach()


def _check_weights(expected: Mapping[str, Kind], found: Mapping[str, Kind]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        mine, theirs = (_words(kinds.get(name)) for kinds in (expected, found))
        if mine != theirs:
            raise ValueError(
                f"the checkpoint is of another method or encoder: {name!r} is {theirs} there and "
                f"{mine} here. Resume with what the run was started with."
            )


def _kind(tensor: Tensor) -> Kind:
    return tensor.dtype, tuple(tensor.shape)


def _words(kind: Kind | None) -> str:
    if kind is None:
        return "missing"
    return f"{str(kind[0]).removeprefix('torch.')} {list(kind[1])}"


def _checked_state(
    optimiser: Optimizer, kinds: Mapping[str, Kind], scalars: str
) -> tuple[dict[str, Tensor], dict[int, dict[str, Any]]]:
    """What the optimiser's tensors are to be like, by name, and its plain numbers by parameter.

    Its compiled steps trust shapes and types, so that a state of others would let them write
    anywhere in memory.

    Raises:
        ValueError: it is not the state of this optimiser.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    likes: dict[str, Tensor] = {}
    plain: dict[int, dict[str, Any]] = {}
    keys: dict[int, set[str]] = {}
    for name, value in {**_plain_numbers(scalars), **kinds}.items():
        if not name.startswith("optimiser."):
            continue
        _, number, key = [*name.split(".", 2), "", ""][:3]
        place = int(number) if re.fullmatch(r"[0-9]{1,9}", number) else len(parameters)
        if place >= len(parameters) or not key:
            raise _foreign(f"it has no parameter for {name!r}")
        keys.setdefault(place, set()).add(key)
        if not isinstance(value, tuple):
            plain.setdefault(place, {})[key] = value
        elif value[1]:
            wanted = _kind(parameters[place])
            if value != wanted:
                raise _foreign(f"{name!r} is {_words(value)}, not {_words(wanted)}")
            likes[name] = parameters[place]
        elif value[0].is_floating_point:
            likes[name] = torch.empty((), dtype=value[0])
        else:
            raise _foreign(f"{name!r} is {_words(value)}")
    wanted_keys = STATE.get(type(optimiser).__name__)
    for place, kept in keys.items():
        if wanted_keys is not None and kept != wanted_keys:
            raise _foreign(f"it keeps {sorted(kept)} of parameter {place}")
    return likes, plain


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
        if checked and tensor.is_floating_point() and not bool(local(tensor).isfinite().all()):
            return name.removeprefix("method.")
    return None


def _optimiser_state(optimiser: Optimizer | None) -> list[tuple[int, dict[str, Any]]]:
    return [] if optimiser is None else list(optimiser.state_dict()["state"].items())


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _whole(path: Path) -> bool:
    if path.suffix == ".json":
        return shards_whole(path)
    try:
        with open_regular(_sidecar(path)) as file:
            expected = file.read(100).strip()
    except OSError:
        return False
    found = sha256(path)
    return found is not None and found.encode() == expected


def _device(method: nn.Module) -> torch.device:
    return next((tensor.device for tensor in method.state_dict().values()), torch.device("cpu"))


def state_hash(module: nn.Module) -> str:
    """Hash of all parameters and buffers, bit for bit; in shares, all processes have to ask."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode())
        held: Any = whole(tensor.detach()).cpu().contiguous().flatten()
        total.update(held.view(torch.uint8).numpy())
    return total.hexdigest()
