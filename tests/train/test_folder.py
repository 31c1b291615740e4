"""The run folder: one run at a time, nothing believed, nothing followed."""

import fcntl
import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from erg.durable import LONGEST, Unwritable, read_json
from erg.train.folder import Busy, RunFolder


def test_looking_makes_no_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "typo")
    with pytest.raises(ValueError, match="is no run folder"):
        folder.read_run()
    assert folder.first("health") is None
    assert folder.seconds() == 0
    assert not folder.path.exists()
    folder.event(1, "step")
    assert folder.path.exists()


def test_names_that_are_no_text_are_spelled_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write_run({"data": "photos\udcff"})
    assert folder.read_run() == {"data": "photos\udcff"}
    folder.event(1, "lost", warning="photos\udcff")
    assert folder.first("lost") == {"step": 1, "kind": "lost", "warning": "photos\udcff"}


def test_steps_in_a_row(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.in_a_row("left out", 3) == 0
    for step in (2, 4, 5):
        folder.event(step, "left out")
    folder.event(6, "step")
    assert [folder.in_a_row("left out", step) for step in (2, 3, 4, 5, 6)] == [1, 0, 1, 2, 0]


def test_a_folder_that_vanished_is_not_made_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.event(1, "step")
    shutil.rmtree(folder.path)
    for write in (
        lambda: folder.event(2, "step"),
        lambda: folder.timing(2, seconds=1.0),
        lambda: folder.write_run({}),
    ):
        with pytest.raises(Unwritable, match=r"cannot be written \(No such file") as failed:
            write()
        assert "\n" not in str(failed.value)
    assert not folder.path.exists()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(Unwritable, match=r"run cannot be written \(File exists\)"):
        RunFolder(tmp_path / "run").lock()


# The lock -------------------------------------------------------------------------------------


def test_a_second_run_hears_who_is_there(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.lock()
    first.lock()  # again is no problem
    with pytest.raises(Busy, match=rf"\({os.getpid()} on {socket.gethostname()}\)\. Wait"):
        second.lock()
    first.unlock()
    assert not list(tmp_path.iterdir())
    second.lock()
    second.unlock()


@pytest.mark.parametrize(
    "left", ["4194304 on {here}", "1 on {here}", "{mine} on {here}", "17 on another-host", "\x1b["]
)
def test_a_lock_left_behind_is_none(tmp_path: Path, left: str) -> None:
    """Of a dead process, of a number given to another since, of another machine, of nobody."""
    text = left.format(here=socket.gethostname(), mine=os.getpid())
    (tmp_path / "lock").write_text(text + "\n")
    folder = RunFolder(tmp_path)
    folder.lock()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()} on {socket.gethostname()}\n"
    folder.unlock()


def test_a_lock_that_cannot_be_written_is_let_go(tmp_path: Path, monkeypatch) -> None:
    def full() -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "gethostname", full)
        with pytest.raises(Unwritable, match="disk is full") as failed:
            RunFolder(tmp_path).lock()
    assert failed.tb is not None, "what still holds the file, if it is open"
    again = RunFolder(tmp_path)
    again.lock()
    again.unlock()


def test_what_a_lock_says_is_shown_only_if_it_is_ours(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        file.write("1 on \x1b[2Jhost\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy, match=rf"training in {tmp_path.name}\. Wait"):
            RunFolder(tmp_path).lock()


def test_a_lock_removed_while_waiting_for_it_is_taken_anew(tmp_path: Path, monkeypatch) -> None:
    """One run leaves between another's opening and locking the file: the name is then free."""
    lock, calls = fcntl.flock, []

    def removed_meanwhile(file, how: int) -> None:
        if not calls:
            (tmp_path / "lock").unlink()
        calls.append(how)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    first = RunFolder(tmp_path)
    first.lock()
    assert len(calls) == 2
    with pytest.raises(Busy):
        RunFolder(tmp_path).lock()
    first.unlock()


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    RunFolder(tmp_path).lock()
    RunFolder(tmp_path).lock()


def test_the_next_start_removes_what_is_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for name in ("step_000000001", "step_000000002", "step_000000003.safetensors"):
        (folder / name).mkdir(parents=True)
        (folder / name / "shard_00001.safetensors").touch()
    for name in ("step_000000002.json", "step_000000004.sha256", "step_000000005.sha256",
                 "step_000000005.safetensors"):  # fmt: skip
        (folder / name).touch()
    run = RunFolder(tmp_path)
    run.lock()
    run.unlock()
    assert sorted(path.name for path in folder.iterdir()) == [
        "step_000000002", "step_000000002.json", "step_000000003.safetensors",
        "step_000000005.safetensors", "step_000000005.sha256",
    ]  # fmt: skip


def test_the_next_start_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    stray = tmp_path / "checkpoints" / ".step_000000001.safetensors.77.tmp"
    stray.write_bytes(b"half")
    (tmp_path / ".run.json.77.tmp").write_bytes(b"half")
    folder = RunFolder(tmp_path)
    folder.lock()
    folder.unlock()
    assert [p.name for p in tmp_path.rglob("*")] == ["checkpoints"]


# What stands in it may come from anywhere -----------------------------------------------------


@pytest.mark.parametrize("name", ["lock", "events.jsonl", "run.json"])
def test_links_are_not_written_through(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(victim)
    folder = RunFolder(run)
    if name == "run.json":
        folder.write_run({"format": 1})
        assert not folder.run_file.is_symlink()
    else:
        with pytest.raises(Unwritable, match="symbolic links"):
            folder.lock() if name == "lock" else folder.event(1, "step")
        folder.truncate(0)  # as every run begins: the link is gone
    assert victim.read_text() == "precious"


HOSTILE = {
    "no JSON": (b"import os", "Expecting value"),
    "no object": (b"[]", "holds no names"),
    "not Unicode": (b'{"a": "\xff"}', "decode"),
    "NaN": (b'{"lr": NaN}', "no finite number"),
    "infinity": (b'{"lr": -Infinity}', "no finite number"),
    "overflow": (b'{"lr": 1e400}', "no finite number"),
    "a name twice": (b'{"method": "SimCLR", "method": "./evil.py:Evil"}', "twice"),
    "nested": (b'{"a":' * 100_000, "recursion|nest"),
    "long": (b'{"a": "' + b"x" * LONGEST + b'"}', "longer than 1 MB"),
    "digits": (b'{"steps": ' + b"9" * 10_000 + b"}", "digits"),
    "empty": (b"", "Expecting value"),
}


@pytest.mark.parametrize(("content", "why"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_run_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"run.json is damaged \(.*({why}).*Restore") as refused:
        RunFolder(tmp_path).read_run()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    for name in ("run.json", "events.jsonl"):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        elif kind == "folder":
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="damaged"):
        RunFolder(tmp_path).read_run()
    with pytest.raises(OSError, match=r"no regular file|directory"):
        RunFolder(tmp_path).truncate(3)


def test_odd_lines_of_events_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.event(1, "step", loss=0.1, note="two\u2028lines")
    folder.event(2, "health")
    good = (tmp_path / "events.jsonl").read_bytes()
    odd = [b"5", b"[]", b'{"step": "1"}', b'{"step": true}', b"{}", b"\xff\xfe", b"[" * 99_999]
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b"\n".join(odd) + b"\n" + b'{"step": 1, "x": "' + b"y" * LONGEST + b'"}\n')
        file.write(b'{"step": 2, "kind": "cut short"}')
    assert folder.first("health") == {"step": 2, "kind": "health"}
    folder.truncate(9)
    assert (tmp_path / "events.jsonl").read_bytes() == good
    folder.truncate(1)
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]
    assert json.loads(lines[0])["note"] == "two\u2028lines"


def test_training_time_adds_up(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.timing(1, seconds=1.5)
    folder.timing(2, seconds=4.0)
    with (tmp_path / "timing.jsonl").open("a") as file:
        file.write('{"step": 3, "seconds": "many"}\n')
    assert folder.seconds() == 4.0


def test_json_that_is_absent_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent.json")
