"""A disk that is full, read-only or gone: one line, and the checkpoint before is intact."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from erg import durable
from erg.durable import NoSpace, Unwritable
from erg.train.checkpoint import load_checkpoint, save_checkpoint, state_hash
from erg.train.folder import RunFolder

MB = 1 << 20


def megabytes(value: float) -> nn.Module:
    """A module whose checkpoint takes a little more than 3 MB."""
    module = nn.Linear(1024, 768)
    with torch.no_grad():
        module.weight.fill_(value)
    return module


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB, where mounting one is permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
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
        usage = shutil.disk_usage(small_disk)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))
    folder = small_disk / "checkpoints"
    save_checkpoint(folder, 1, megabytes(1), None)
    wanted = state_hash(megabytes_of(folder))
    failed = 0
    for free in range(13):
        stuff = small_disk / "stuff"
        stuff.unlink(missing_ok=True)
        stuff.write_bytes(bytes(max(0, os.statvfs(small_disk).f_bavail * 4096 - free * MB)))
        if (said := saving(folder)) is None:
            assert free >= 3
            break
        failed += 1
        assert "Make room" in said
        assert "\n" not in said
        assert not list(folder.glob(".*"))
        restored = load_checkpoint(folder, module := megabytes(0), None)
        assert restored is not None
        assert (restored.step, restored.skipped) == (1, ())
        assert state_hash(module) == wanted
    assert failed >= 3


def saving(folder: Path) -> str | None:
    """What is said where there is no room for the checkpoint of step 2."""
    try:
        save_checkpoint(folder, 2, megabytes(2), None)
    except NoSpace as error:
        return str(error)
    return None


def megabytes_of(folder: Path) -> nn.Module:
    module = megabytes(0)
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
