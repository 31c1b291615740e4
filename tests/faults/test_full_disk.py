"""A disk that is full, read-only or gone: one line, and the checkpoint before is intact."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from erg import durable
from erg.durable import NoSpace, Unwritable
from erg.train.checkpoint import load_checkpoint, save_checkpoint, state_hash
from erg.train.folder import RunFolder
from tests.faults.forks import scaled

MB = 1 << 20


def megabytes(value: float, size: int = 3) -> nn.Module:
    """A module whose checkpoint takes a little more than so many MB."""
    module = nn.Linear(1024, 256 * size)
    with torch.no_grad():
        module.weight.fill_(value)
    return module


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 16 MB or as many as are asked for, where mounting one is permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, size = shutil.which("mount"), getattr(request, "param", 16)
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("checked", [True, False], ids=["seen before", "met while writing"])
def test_full_at_every_megabyte(small_disk: Path, checked: bool, monkeypatch) -> None:
    """With the look at the free space before, and where the space goes after that look."""
    if not checked:
        without_looking(small_disk, monkeypatch)
    assert filled_up(small_disk, 3) >= 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("checked", [True, False], ids=["seen before", "met while writing"])
@pytest.mark.parametrize("small_disk", [256], indirect=True)
def test_full_at_every_megabyte_of_a_large_checkpoint(
    small_disk: Path, checked: bool, monkeypatch, tally: Callable[[str, int], None]
) -> None:
    if not checked:
        without_looking(small_disk, monkeypatch)
    size = scaled(64)
    failed = filled_up(small_disk, size)
    assert failed >= size
    tally("full disks that left the checkpoint before intact", failed)


def without_looking(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))


def filled_up(disk: Path, size: int) -> int:
    """How many whole numbers of free MB were too few for another checkpoint of so many MB; each
    time the one before is intact."""
    folder = disk / "checkpoints"
    save_checkpoint(folder, 1, megabytes(1, size), None)
    wanted = state_hash(megabytes_of(folder, size))
    for free in range(2 * size + 8):
        stuff = disk / "stuff"
        stuff.unlink(missing_ok=True)
        stuff.write_bytes(bytes(max(0, os.statvfs(disk).f_bavail * 4096 - free * MB)))
        if (said := saving(folder, size)) is None:
            assert free >= size
            return free
        assert "Make room" in said
        assert "\n" not in said
        assert not list(folder.glob(".*"))
        restored = load_checkpoint(folder, module := megabytes(0, size), None)
        assert restored is not None
        assert (restored.step, restored.skipped) == (1, ())
        assert state_hash(module) == wanted
    raise AssertionError("it never fits")


def saving(folder: Path, size: int = 3) -> str | None:
    """What is said where there is no room for the checkpoint of step 2."""
    try:
        save_checkpoint(folder, 2, megabytes(2, size), None)
    except NoSpace as error:
        return str(error)
    return None


def megabytes_of(folder: Path, size: int = 3) -> nn.Module:
    module = megabytes(0, size)
    assert load_checkpoint(folder, module, None) is not None
    return module


def test_events_say_that_the_disk_is_full(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "run")
    folder.event(1, "step")
    (small_disk / "stuff").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    with pytest.raises(NoSpace, match="Make room"):
        folder.event(2, "step", note="x" * 10_000)
    (small_disk / "stuff").unlink()
    folder.truncate(1)
    assert json.loads((small_disk / "run" / "events.jsonl").read_text()) == {
        "step": 1, "kind": "step"
    }  # fmt: skip


def test_the_temporary_folder_of_the_system_may_be_full(
    small_disk: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk))
    (small_disk / "stuff").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    save_checkpoint(tmp_path / "checkpoints", 1, megabytes(1), None)
    assert bool((megabytes_of(tmp_path / "checkpoints").weight == 1).all())


def test_a_read_only_disk(small_disk: Path) -> None:
    folder = small_disk / "run" / "checkpoints"
    folder.parent.mkdir()
    save_checkpoint(folder, 1, megabytes(1), None)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(Unwritable, match=r"cannot be written \(Read-only file"):
        save_checkpoint(folder, 2, megabytes(2), None)
    with pytest.raises(Unwritable, match="Read-only"):
        RunFolder(folder.parent).lock()
    assert bool((megabytes_of(folder).weight == 1).all()), "it can still be read"


def test_no_space_at_every_write(tmp_path: Path, monkeypatch) -> None:
    """Where nothing can be mounted: the n-th call that needs room fails, for every n."""
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, 1, megabytes(1), None)
    calls = [0, 0]  # so far, and the one to fail

    def counted(function):
        def called(*given, **named):
            calls[0] += 1
            if calls[0] == calls[1]:
                raise OSError(28, "No space left on device")
            return function(*given, **named)

        return called

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(durable, "open", counted(open), raising=False)
    for number in range(1, 100):
        calls[:] = [0, number]
        if saving(folder) is None:
            assert number == 9, "open, flush, move and flush the folder, of two files"
            break
        restored = load_checkpoint(folder, module := megabytes(0), None)
        assert restored is not None
        assert bool((module.weight == restored.step).all())
        assert restored.skipped == ()
        assert not list(folder.glob(".*"))
