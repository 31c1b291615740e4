"""Being asked to stop: remembered, passed on once, and forgotten afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from erg.train.launch import MARKER, Forwarding, leave
from erg.train.preempt import INTERRUPTED, STOPPED, Watch, code_of

ASKING = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def ask(number: int) -> None:
    """The handler runs in the main thread before the next line."""
    os.kill(os.getpid(), number)
    time.sleep(0)


@pytest.mark.parametrize("number", ASKING)
def test_a_request_is_remembered_and_nothing_else_happens(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Watch() as watch:
        assert watch.code == 0
        ask(number)
        assert watch.code == (130 if number == signal.SIGINT else 75)
    assert signal.getsignal(number) is before


def test_ctrl_c_twice_ends_it_at_once() -> None:
    with Watch() as watch:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            ask(number)
        assert watch.code == INTERRUPTED
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGINT)


def test_other_threads_leave_signals_alone() -> None:
    before = [signal.getsignal(number) for number in ASKING]
    seen: list[bool] = []

    def look() -> None:
        for guard in (Watch(), Forwarding()):
            with guard:
                seen.append([signal.getsignal(number) for number in ASKING] == before)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [True, True]


ECHO = """
import os, signal, time
def heard(number, _):  # print would not do: it may be what the signal interrupts
    os.write(1, signal.Signals(number).name.encode() + b"\\n")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, heard)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def group():
    process = subprocess.Popen(
        [sys.executable, "-c", ECHO], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(
    ("number", "heard"),
    [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGTERM"), ("SIGHUP", "SIGTERM"), ("SIGINT", "SIGINT")],
)
def test_a_group_hears_the_first_request_only(group, number: str, heard: str) -> None:
    with Forwarding() as asked:
        asked.start(group)
        for name in (number, "SIGINT", "SIGTERM"):
            ask(getattr(signal, name))
    assert group.stdout.readline().decode() == f"{heard}\n"
    group.terminate()
    assert group.stdout.readline() == b"SIGTERM\n", "nothing else came in between"
    assert asked.number is not None
    assert code_of(asked.number) == (INTERRUPTED if number == "SIGINT" else STOPPED)


def test_a_request_before_the_group_is_there_is_passed_on(group) -> None:
    with Forwarding() as asked:
        ask(signal.SIGTERM)
        asked.start(group)
    assert group.stdout.readline() == b"SIGTERM\n"


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Forwarding() as asked:
            ask(signal.SIGHUP)
        assert asked.number is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_worker_whose_parent_is_gone_leaves_all_the_same(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(MARKER, str(tmp_path / "gone" / "code"))
    monkeypatch.setenv("RANK", "0")
    assert leave(75) == 0
    assert leave(3) == 3
