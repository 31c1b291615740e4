"""Checkpoints are whole or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from erg.durable import NoSpace, Unwritable
from erg.train import checkpoint
from erg.train.checkpoint import Diverged, load_checkpoint, save_checkpoint, state_hash
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


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "larc"])
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
    places = torch.randint(0, len(whole), (200,)).tolist()
    damages = [whole[:p] + bytes([whole[p] ^ (1 << p % 8)]) + whole[p + 1 :] for p in places]
    lengths = torch.randint(0, len(whole), (45,)).tolist()
    damages += [whole[:n] for n in (0, 1, 8, len(whole) // 2, len(whole) - 1, *lengths)]
    assert len(damages) == 250
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
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
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


def test_what_does_not_read_back_costs_no_older_one(tmp_path: Path, monkeypatch) -> None:
    module, optimiser = trained()
    for step in (1, 2):
        save_checkpoint(tmp_path, step, module, optimiser)
    write = checkpoint.write_atomically

    def flips_a_bit(path: Path, content: bytes) -> None:
        write(path, content[:-1] + bytes([content[-1] ^ 1]))

    monkeypatch.setattr(checkpoint, "write_atomically", flips_a_bit)
    with pytest.raises(Unwritable, match="does not read back"):
        save_checkpoint(tmp_path, 3, module, optimiser)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    restored = load_checkpoint(tmp_path, module, optimiser)
    assert restored is not None
    assert (restored.step, restored.skipped) == (2, ("step_000000003.safetensors",))


def test_two_whole_ones_are_kept_where_newer_ones_are_damaged(tmp_path: Path) -> None:
    module, optimiser = trained()
    save_checkpoint(tmp_path, 3, module, optimiser)
    for step in (5, 9):
        save_checkpoint(tmp_path, step, module, optimiser).write_bytes(b"damaged")
    save_checkpoint(tmp_path, 7, module, optimiser)
    steps = [int(p.stem.removeprefix("step_")) for p in sorted(tmp_path.glob("*.safetensors"))]
    assert steps == [3, 7]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_run_folder_that_vanished_is_not_made_again(tmp_path: Path) -> None:
    module, optimiser = trained()
    with pytest.raises(Unwritable, match=r"cannot be written \(No such file"):
        save_checkpoint(tmp_path / "run" / "checkpoints", 1, module, optimiser)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["weight", "optimiser"])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, where: str) -> None:
    module, optimiser = trained()
    save_checkpoint(tmp_path, 1, module, optimiser)
    with torch.no_grad():
        if where == "weight":
            module[2].bias[1] = float("nan")
        else:
            optimiser.state[module[2].bias]["exp_avg_sq"][0] = float("inf")
    with pytest.raises(Diverged, match="is not finite at step 2"):
        save_checkpoint(tmp_path, 2, module, optimiser)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["step_000000001.safetensors"]


def test_a_running_mean_may_be_infinite(tmp_path: Path) -> None:
    """Buffers are no weights: what a method means by an infinity in one is its own affair."""
    module, optimiser = trained()
    module[1].running_mean.fill_(float("inf"))
    save_checkpoint(tmp_path, 1, module, optimiser)
    assert load_checkpoint(tmp_path, module, optimiser) is not None


# Hostile checkpoints: whole, with a right checksum, and made to do harm ------------------------


def forge(folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    """A checkpoint of step 2 that was changed by somebody who can compute checksums."""
    module, optimiser = trained()
    path = save_checkpoint(folder, 2, module, optimiser)
    tensors = load_file(path)
    about = {"format": "1", "step": "2", "scalars": "{}"}
    change(tensors, about)
    plant(path, save(tensors, metadata=about))


def plant(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.with_suffix(".sha256").write_text(hashlib.sha256(content).hexdigest())


def moment(tensors: dict[str, Tensor]) -> str:
    return next(name for name in tensors if name.endswith("exp_avg"))


FORGED: dict[str, Callable[[dict[str, Tensor], dict[str, str]], object]] = {
    "type of a weight": lambda t, _: t.update({"method.0.weight": t["method.0.weight"].half()}),
    "shape of a weight": lambda t, _: t.update({"method.0.weight": torch.zeros(4, 4)}),
    "weight too many": lambda t, _: t.update({"method.../../etc/passwd": torch.zeros(1)}),
    "weight missing": lambda t, _: t.pop("method.0.weight"),
    "state too short for compiled steps": lambda t, _: t.update({moment(t): torch.zeros(1)}),
    "state of another type": lambda t, _: t.update({moment(t): t[moment(t)].double()}),
    "state without its moments": lambda t, _: t.pop(moment(t)),
    "state of no parameter": lambda t, _: t.update({"optimiser.99.exp_avg": torch.zeros(3)}),
    "state of parameter -1": lambda t, _: t.update({"optimiser.-1.exp_avg": torch.zeros(3)}),
    "state without a name": lambda t, _: t.update({"optimiser.0": torch.zeros(3)}),
    "digits of another script": lambda t, _: t.update({"optimiser.\u0663.step": torch.zeros(())}),
    "code for a number": lambda _, about: about.update(scalars='{"0.step": "__import__"}'),
    "nested numbers": lambda _, about: about.update(scalars="[" * 100_000),
    "no numbers": lambda _, about: about.pop("scalars"),
    "not a dictionary": lambda _, about: about.update(scalars="[1]"),
    "format of the future": lambda _, about: about.update(format="2"),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_a_forged_checkpoint_is_refused_and_changes_nothing(tmp_path: Path, change) -> None:
    forge(tmp_path, change)
    module, optimiser = trained(1)
    before, kept = state_hash(module), repr(optimiser.state_dict())
    with pytest.raises(ValueError, match=r"another method|another optimiser|format") as refused:
        load_checkpoint(tmp_path, module, optimiser)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert state_hash(module) == before
    assert repr(optimiser.state_dict()) == kept


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


BROKEN = {
    "empty": b"",
    "a header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
    "a header of 17 MB": with_header(b"{" + b" " * 17_000_000 + b"}"),
    "a header cut short": (100).to_bytes(8, "little") + b"{}",
    "a header that is no JSON": with_header(b"import os"),
    "a tensor beyond the end": with_header(
        b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    ),
    "a tensor larger than its bytes": with_header(
        b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "names twice": with_header(
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"\0" * 8
    ),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.",
    "a step of another name": save({"method.w": torch.zeros(1)}, {"format": "1", "step": "3"}),
}  # fmt: skip


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_hostile_file_counts_as_damaged(tmp_path: Path, content: bytes) -> None:
    module, optimiser = trained()
    save_checkpoint(tmp_path, 1, module, optimiser)
    plant(tmp_path / "step_000000002.safetensors", content)
    restored = load_checkpoint(tmp_path, module, optimiser)
    assert restored is not None
    assert (restored.step, restored.skipped) == (1, ("step_000000002.safetensors",))


def test_weights_that_are_not_finite_count_as_damaged(tmp_path: Path) -> None:
    forge(tmp_path, lambda t, _: t["method.0.weight"].fill_(float("nan")))
    module, optimiser = trained(1)
    before = state_hash(module)
    with pytest.raises(ValueError, match="all checkpoints"):
        load_checkpoint(tmp_path, module, optimiser)
    assert state_hash(module) == before


def test_pipes_folders_and_other_names_are_passed_over(tmp_path: Path) -> None:
    module, optimiser = trained()
    save_checkpoint(tmp_path, 1, module, optimiser)
    os.mkfifo(tmp_path / "step_000000004.safetensors")  # reading it would wait for ever
    (tmp_path / "step_000000004.sha256").write_text("0" * 64)
    (tmp_path / "step_000000003.safetensors").mkdir()
    (tmp_path / "step_000000003.sha256").symlink_to("/dev/zero")  # and this has no end
    (tmp_path / "step_zzz.safetensors").write_bytes(b"")
    restored = load_checkpoint(tmp_path, module, optimiser)
    assert restored is not None
    assert restored.step == 1
    assert len(restored.skipped) == 2


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    module, optimiser = trained()
    path = save_checkpoint(tmp_path, 3, module, optimiser)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"]["step"] == "3"
    assert b"pickle" not in raw
