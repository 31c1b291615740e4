"""Checkpoints are whole or not there."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from erg.train import checkpoint
from erg.train.checkpoint import (
    NoSpace,
    load_checkpoint,
    save_checkpoint,
    state_hash,
    write_atomically,
)
from erg.train.optim import build_optimiser
from erg.train.run import Optimiser


def trained(seed: int = 0, name: str = "adamw") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimiser = build_optimiser(Optimiser(name=name), module)
    assert optimiser is not None
    for _ in range(2):
        module(torch.randn(8, 3)).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return module, optimiser


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_everything_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    module, optimiser = trained(0, name)
    save_checkpoint(tmp_path, 7, module, optimiser)
    other, other_optimiser = trained(1, name)
    assert state_hash(other) != state_hash(module)
    restored = load_checkpoint(tmp_path, other, other_optimiser)
    assert restored is not None
    assert (restored.step, restored.skipped) == (7, ())
    assert state_hash(other) == state_hash(module)
    mine, theirs = optimiser.state_dict()["state"], other_optimiser.state_dict()["state"]
    for number, state in mine.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[number][key]))


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent", nn.Linear(1, 1), None) is None


def test_every_damage_falls_back_to_the_one_before(tmp_path: Path) -> None:
    module, optimiser = trained()
    save_checkpoint(tmp_path, 1, module, optimiser)
    older = state_hash(module)
    with torch.no_grad():
        module[0].weight.add_(1)
    newest = save_checkpoint(tmp_path, 2, module, optimiser)
    whole = newest.read_bytes()
    torch.manual_seed(0)
    places = torch.randint(0, len(whole), (40,)).tolist()
    damages = [whole[:p] + bytes([whole[p] ^ (1 << p % 8)]) + whole[p + 1 :] for p in places]
    damages += [whole[:length] for length in (0, 1, 8, len(whole) // 2, len(whole) - 1)]
    for damaged in damages:
        newest.write_bytes(damaged)
        restored = load_checkpoint(tmp_path, module, optimiser)
        assert restored is not None
        assert restored.step == 1
        assert restored.skipped == (newest.name,)
        assert state_hash(module) == older


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    module, optimiser = trained()
    save_checkpoint(tmp_path, 1, module, optimiser).write_bytes(b"x")
    with pytest.raises(ValueError, match="all checkpoints"):
        load_checkpoint(tmp_path, module, optimiser)


def test_a_checkpoint_without_its_checksum_is_not_whole(tmp_path: Path) -> None:
    module, optimiser = trained()
    save_checkpoint(tmp_path, 1, module, optimiser)
    save_checkpoint(tmp_path, 2, module, optimiser).with_suffix(".sha256").unlink()
    restored = load_checkpoint(tmp_path, module, optimiser)
    assert restored is not None
    assert restored.step == 1


def test_only_the_newest_two_are_kept_and_no_strays(tmp_path: Path) -> None:
    module, optimiser = trained()
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, module, optimiser)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        f"step_{step:09d}.{kind}" for step in (4, 5) for kind in ("safetensors", "sha256")
    ]


def test_a_full_disk_leaves_the_last_one_intact(tmp_path: Path, monkeypatch) -> None:
    module, optimiser = trained()
    save_checkpoint(tmp_path, 1, module, optimiser)
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoSpace, match="Make room"):
        save_checkpoint(tmp_path, 2, module, optimiser)
    restored = load_checkpoint(tmp_path, module, optimiser)
    assert restored is not None
    assert restored.step == 1


def test_another_method_is_named(tmp_path: Path) -> None:
    module, optimiser = trained()
    save_checkpoint(tmp_path, 1, module, optimiser)
    with pytest.raises(ValueError, match="another method or encoder"):
        load_checkpoint(tmp_path, nn.Linear(3, 4), None)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, b"old")

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"new and longer")
    assert file.read_bytes() == b"old"


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    module, optimiser = trained()
    path = save_checkpoint(tmp_path, 3, module, optimiser)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"]["step"] == "3"
    assert b"pickle" not in raw
