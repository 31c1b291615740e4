"""Processes that were started together."""

import os

import pytest
import torch

from erg.data.manifest import default_threads
from erg.train import processes


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_compiles_what_makes_views_before_the_others(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def agree(flag: bool, device: torch.device) -> bool:
        done.append("wait")
        return flag

    monkeypatch.setattr(processes.distributed, "rank", lambda: rank)
    monkeypatch.setattr(processes.distributed, "agree", agree)
    monkeypatch.setattr(processes, "compile_kernels", lambda: done.append("compile"))
    processes.compile_in_turn(torch.device("cpu"))
    assert done == ["compile", "wait", "compile"][rank:]


def test_the_cores_of_a_machine_are_shared_among_its_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert default_threads() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_threads() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert default_threads() == 1
