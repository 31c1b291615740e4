"""Checkpoints in shards: written by two processes, read by any number, whole or not there."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from erg.durable import NoSpace
from erg.train import shards
from erg.train.checkpoint import (
    Diverged,
    Restored,
    load_checkpoint,
    save_checkpoint,
    state_hash,
)
from erg.train.optim import build_optimiser
from erg.train.run import Optimiser
from erg.train.sharding import whole

ROOT = Path(__file__).parents[2]


class Small(nn.Module):
    """Rows that two processes cannot share evenly, buffers, a number, a tensor of two names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 1)  # of its single row and bias one process holds nothing
        self.again = self.last
        self.register_buffer("none", torch.zeros(0, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def made(seed: int, shared: bool) -> tuple[Small, torch.optim.Optimizer]:
    """A module and its optimiser after two steps."""
    module = Small(seed)
    if shared:
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    optimiser = build_optimiser(Optimiser(), module)
    assert optimiser is not None
    for _ in range(2):
        module(torch.randn(8, 3)).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return module, optimiser


def everything(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights, buffers and the optimiser's state, put together by the processes."""
    found = {f"method.{name}": whole(t) for name, t in module.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        found |= {f"optimiser.{number}.{key}": whole(value) for key, value in state.items()}
    return {name: t.detach().clone() for name, t in found.items()}


# What the two processes do -------------------------------------------------------------------


def child(out: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    module, optimiser = made(0, shared=True)
    folder = out / "run" / "checkpoints"
    if rank == 0:
        folder.parent.mkdir()
    for step in (1, 2, 3):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
        save_checkpoint(folder, step, module, optimiser, writes=rank == 0)
    truth = everything(module, optimiser)
    if rank == 0:
        save_file(truth, out / "truth.safetensors")
        shutil.copytree(folder, out / "three")
    told: dict[str, Any] = {}
    told["into shares"] = goes_back(folder, 3, truth)
    told["one file into shares"] = goes_back(out / "whole", 5, load_file(out / "whole.truth"))
    told["no space"] = stopped_by(NoSpace, no_room, folder, module, optimiser, rank)
    told["diverged"] = stopped_by(Diverged, not_finite, folder, module, optimiser, rank)
    told["torn on one"] = torn(out, rank, truth)
    (out / f"told-{rank}.json").write_text(json.dumps(told))
    killed_between_shards(folder, module, optimiser, rank)


def goes_back(folder: Path, step: int, truth: dict[str, torch.Tensor]) -> bool:
    """Loaded into other shares, it is what was saved, bit for bit."""
    module, optimiser = made(1, shared=True)
    restored = load_checkpoint(folder, module, optimiser)
    assert restored == Restored(step)
    assert all(isinstance(p, DTensor) for p in module.parameters())
    found = everything(module, optimiser)
    return found.keys() == truth.keys() and all(torch.equal(found[k], truth[k]) for k in truth)


def stopped_by(
    kind: type[BaseException], how: Callable[..., None], folder: Path, *given: Any
) -> list[str]:
    """What is said where step 4 cannot be saved, and what is there afterwards."""
    with pytest.raises(kind) as failed:
        how(folder, *given)
    torch.distributed.barrier()
    there = sorted(path.name for path in folder.glob("*.json"))
    torch.distributed.barrier()
    return [str(failed.value), *there]


def no_room(folder: Path, module: nn.Module, optimiser: Any, rank: int) -> None:
    """The disk is full for the second process, at the second look."""
    if rank == 1:
        write = shards.write_atomically

        def full(path: Path, content: bytes) -> None:
            shards.write_atomically = write
            raise NoSpace("its disk is full. Make room.")

        shards.write_atomically = full
    save_checkpoint(folder, 4, module, optimiser, writes=rank == 0)


def not_finite(folder: Path, module: nn.Module, optimiser: Any, rank: int) -> None:
    """In the share of the second process."""
    held = module.first.weight.to_local()
    before = held.detach().clone()
    with torch.no_grad():
        if rank == 1:
            held[0, 0] = float("nan")
        try:
            save_checkpoint(folder, 4, module, optimiser, writes=rank == 0)
        finally:
            held.copy_(before)


def torn(out: Path, rank: int, truth: dict[str, torch.Tensor]) -> list[Any]:
    """A shard that only the first process looks at is torn: both take the one before."""
    folder = out / "torn"
    if rank == 0:
        shutil.copytree(out / "three", folder)
        shard = folder / "step_000000003" / "shard_00001.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
    torch.distributed.barrier()
    module, optimiser = made(1, shared=True)
    restored = load_checkpoint(folder, module, optimiser)
    assert restored is not None
    older = torch.equal(1.5 * whole(module.first.weight), truth["method.first.weight"])
    return [restored.step, *restored.skipped, older]


def killed_between_shards(folder: Path, module: nn.Module, optimiser: Any, rank: int) -> None:
    """The first process has written its shard when the second dies before its own."""
    write = shards.write_atomically
    first = folder / "step_000000004" / "shard_00001.safetensors"

    def dying(path: Path, content: bytes) -> None:
        if rank == 1:
            while not first.exists():
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, content)

    shards.write_atomically = dying
    try:
        save_checkpoint(folder, 4, module, optimiser, writes=rank == 0)
    except RuntimeError:  # the other is gone
        os._exit(7)


def merged(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder of shards, put together by hand."""
    pieces: dict[str, list[tuple[list[int], torch.Tensor]]] = {}
    for shard in sorted(folder.iterdir()):
        with safe_open(shard, framework="pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
        for name, tensor in load_file(shard).items():
            pieces.setdefault(name, []).append((offsets[name]["saved_offsets"], tensor))
    found: dict[str, torch.Tensor] = {}
    for name, parts in pieces.items():
        rows = [tensor for _, tensor in sorted(parts, key=lambda part: part[0])]
        found[name] = torch.cat(rows) if len(rows) > 1 else rows[0]
    return found


# What is found afterwards --------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together")
    module, optimiser = made(2, shared=False)
    save_checkpoint(out / "whole", 5, module, optimiser)
    save_file(everything(module, optimiser), out / "whole.truth")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(out)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [p.returncode for p in processes] == [7, -signal.SIGKILL], "\n".join(said)[-5000:]
    return out


@pytest.fixture
def three(together: Path, tmp_path: Path) -> Path:
    """Checkpoints of steps 2 and 3, to be damaged."""
    shutil.copytree(together / "three", tmp_path / "three")
    return tmp_path / "three"


def told(together: Path, what: str) -> Any:
    both = [json.loads((together / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert both[0][what] == both[1][what]
    return both[0][what]


def test_shares_come_back_bit_for_bit(together: Path) -> None:
    assert told(together, "into shares") is True


def test_shares_are_cut_from_one_file(together: Path) -> None:
    assert told(together, "one file into shares") is True


def test_one_process_reads_what_two_have_written(together: Path, three: Path) -> None:
    module, optimiser = made(1, shared=False)
    assert load_checkpoint(three, module, optimiser) == Restored(3)
    truth, found = load_file(together / "truth.safetensors"), everything(module, optimiser)
    assert found.keys() == truth.keys()
    assert all(torch.equal(found[name], truth[name]) for name in truth)
    again = Small(1)
    assert load_checkpoint(three, again, None) == Restored(3)
    assert state_hash(again) == state_hash(module)


def test_every_process_has_written_about_half(three: Path) -> None:
    names = ["step_000000002", "step_000000002.json", "step_000000003", "step_000000003.json"]
    assert sorted(path.name for path in three.iterdir()) == names
    one, two = sorted((three / "step_000000003").iterdir())
    assert [one.name, two.name] == ["shard_00001.safetensors", "shard_00002.safetensors"]
    held = [load_file(one), load_file(two)]
    assert held[0]["method.first.weight"].shape == (3, 3)
    assert held[1]["method.first.weight"].shape == (2, 3)
    buffers = [{n for n in h if "running" in n} for h in held]
    assert not buffers[0] & buffers[1], "what both hold whole is written once"
    assert len(buffers[0] | buffers[1]) == 2
    raw = b"".join(path.read_bytes() for path in three.rglob("*") if path.is_file())
    assert b"pickle" not in raw


def test_the_files_hold_what_they_say(together: Path, three: Path) -> None:
    truth, found = load_file(together / "truth.safetensors"), merged(three / "step_000000003")
    assert found.keys() == truth.keys()
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_all_stop_where_the_disk_of_one_is_full(together: Path) -> None:
    said, *there = told(together, "no space")
    assert said == "its disk is full. Make room."
    assert there == ["step_000000002.json", "step_000000003.json"]


def test_all_stop_where_the_share_of_one_is_not_finite(together: Path) -> None:
    both = [json.loads((together / f"told-{rank}.json").read_text())["diverged"] for rank in (0, 1)]
    assert both[0][0].startswith("what another process holds is not finite at step 4")
    assert both[1][0].startswith("first.weight is not finite at step 4")
    assert both[0][1:] == both[1][1:] == ["step_000000002.json", "step_000000003.json"]


def test_all_go_back_where_one_sees_damage(together: Path) -> None:
    assert told(together, "torn on one") == [2, "step_000000003.json", True]


def test_killed_between_shards(together: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(together / "run" / "checkpoints", folder)
    there = sorted(path.name for path in (folder / "step_000000004").glob("shard*"))
    assert there == ["shard_00001.safetensors"]
    module, optimiser = made(1, shared=False)
    assert load_checkpoint(folder, module, optimiser) == Restored(3)
    # The next one takes the rest away, whatever its form.
    save_checkpoint(folder, 6, module, optimiser)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "step_000000003", "step_000000003.json",
        "step_000000006.safetensors", "step_000000006.sha256",
    ]  # fmt: skip
    save_checkpoint(folder, 7, module, optimiser)
    assert not list(folder.glob("step_000000003*"))
    assert load_checkpoint(folder, module, optimiser) == Restored(7)


# Damage --------------------------------------------------------------------------------------


def falls_back(three: Path) -> None:
    module, optimiser = made(1, shared=False)
    restored = load_checkpoint(three, module, optimiser)
    assert restored == Restored(2, ("step_000000003.json",))


def test_every_torn_or_missing_shard_falls_back(three: Path) -> None:
    for shard in sorted((three / "step_000000003").iterdir()):
        content = shard.read_bytes()
        places = torch.randint(0, len(content), (10,), generator=torch.manual_seed(0)).tolist()
        damages = [content[:p] + bytes([content[p] ^ 4]) + content[p + 1 :] for p in places]
        for damaged in [*damages, b"", content[:-1], content[:100], content + b"\0"]:
            shard.write_bytes(damaged)
            falls_back(three)
        shard.unlink()
        falls_back(three)
        os.mkfifo(shard)  # reading it would wait for ever
        falls_back(three)
        shard.unlink()
        shard.write_bytes(content)
    module, optimiser = made(1, shared=False)
    assert load_checkpoint(three, module, optimiser) == Restored(3)


def forged(three: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The JSON file of step 3, changed."""
    file = three / "step_000000003.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def moved_out(told: dict[str, Any]) -> None:
    told["shards"]["../step_000000002/shard_00002.safetensors"] = told["shards"].pop(
        "shard_00002.safetensors"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["shards"].pop("shard_00002.safetensors"),
        lambda told: told["shards"].pop("shard_00001.safetensors"),
        lambda told: told["shards"].update({"shard_00002.safetensors": None}),
        lambda told: told["shards"].update({"shard_00003.safetensors": "0" * 64}),
        lambda told: told.update(shards=[]),
        lambda told: told.update(shards={}),
        lambda told: told.pop("shards"),
        lambda told: told.update(step="4"),
        lambda told: told.update(scalars=[1]),
        moved_out,
    ],
)
def test_a_file_that_lists_other_shards_counts_as_damaged(three: Path, change) -> None:
    forged(three, change)
    falls_back(three)


@pytest.mark.parametrize(
    ("name", "named", "step"),
    [
        (".metadata", False, 3),
        ("step_000000003/.metadata", False, 2),
        ("step_000000003/.metadata", True, 2),
        ("step_000000003/shard_00002.safetensors", True, 2),
    ],
)
def test_metadata_of_shards_are_never_unpickled(
    three: Path, name: str, named: bool, step: int
) -> None:
    """Where torch.distributed.checkpoint itself keeps a pickle, and in the place of a shard."""
    from tests.faults.test_nothing_let_in import Gadget  # which the two processes do not need

    canary, file = three.parent / "canary", three / name
    content = pickle.dumps({"state_dict_metadata": Gadget(canary)})
    file.write_bytes(content)
    if named:  # with the checksum it has
        digest = hashlib.sha256(content).hexdigest()
        forged(three, lambda told: told["shards"].update({file.name: digest}))
    module, optimiser = made(1, shared=False)
    restored = load_checkpoint(three, module, optimiser)
    assert restored == Restored(step, ("step_000000003.json",) if step < 3 else ())
    save_checkpoint(three, 4, module, optimiser)
    assert not canary.exists()
    pickle.loads(content)
    assert canary.exists(), "it could have been made"


def test_a_checkpoint_without_its_list_is_none(three: Path) -> None:
    (three / "step_000000003.json").unlink()
    module, optimiser = made(1, shared=False)
    assert load_checkpoint(three, module, optimiser) == Restored(2)


def reshaped(three: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]):
    """The second shard, changed by somebody who can compute checksums."""
    path = three / "step_000000003" / "shard_00002.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + length])["__metadata__"]
    offsets = json.loads(about["DCP_SHARDING_INFO"])
    tensors = load_file(path)
    change(offsets, tensors)
    path.unlink()
    save_file(tensors, path, {"DCP_SHARDING_INFO": json.dumps(offsets)})
    forged(three, lambda told: told["shards"].update({path.name: shards.sha256(path)}))


WEIGHT = "method.first.weight"
FORGED: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], object]] = {
    "overlap": lambda o, t: o[WEIGHT].update(saved_offsets=[1, 0]),
    "gap": lambda o, t: o[WEIGHT].update(saved_offsets=[4, 0]),
    "before the start": lambda o, t: o[WEIGHT].update(saved_offsets=[-2, 0]),
    "beside": lambda o, t: o[WEIGHT].update(saved_offsets=[3, 1]),
    "beyond any number": lambda o, t: o[WEIGHT].update(saved_offsets=[1 << 70, 0]),
    "text": lambda o, t: o[WEIGHT].update(saved_offsets="__import__"),
    "too few": lambda o, t: o[WEIGHT].update(saved_offsets=[3]),
    "nowhere": lambda o, t: o.pop(WEIGHT),
    "no offsets": lambda o, t: o.update({WEIGHT: {}}),
    "rows missing": lambda o, t: (o.pop(WEIGHT), t.pop(WEIGHT)),
    "other columns": lambda o, t: t.update({WEIGHT: torch.zeros(2, 4)}),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_forged_shards_are_refused_and_change_nothing(three: Path, change) -> None:
    reshaped(three, change)
    module, optimiser = made(1, shared=False)
    before, kept = state_hash(module), repr(optimiser.state_dict())
    shutil.rmtree(three / "step_000000002")
    with pytest.raises(ValueError, match=r"all checkpoints .* are damaged|another method") as said:
        load_checkpoint(three, module, optimiser)
    assert "\n" not in str(said.value)
    assert state_hash(module) == before
    assert repr(optimiser.state_dict()) == kept


def test_the_forgery_can_succeed(three: Path) -> None:
    reshaped(three, lambda o, t: t[WEIGHT].fill_(7))
    module, optimiser = made(1, shared=False)
    assert load_checkpoint(three, module, optimiser) == Restored(3)
    assert bool((module.first.weight[3:] == 7).all())
    assert not bool((module.first.weight[:3] == 7).any())


if __name__ == "__main__":
    child(Path(sys.argv[1]))
