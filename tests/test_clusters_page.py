"""What docs/clusters.md tells to type exists, and the numbers it gives are those of the code."""

import inspect
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from erg.apply import parts
from erg.commands import embed, evaluate, pretrain
from erg.data import tables
from erg.train import launch, processes

PAGE = (Path(__file__).parent.parent / "docs" / "clusters.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.M | re.S)
OPTIONS = {"pretrain": pretrain.Options, "embed": embed.Options, "evaluate": evaluate.Options}


@pytest.mark.parametrize("block", BLOCKS)
def test_commands_and_their_options_exist(block: str) -> None:
    text = block.replace("\\\n", " ")
    found = re.findall(r"(?:erg|erg\.cli) (pretrain|embed|evaluate) ([^#\n]*)", text)
    assert found
    for command, rest in found:
        known = inspect.signature(OPTIONS[command]).parameters
        for word in shlex.split(rest):
            if word.startswith("--"):
                assert word.removeprefix("--").replace("-", "_") in known, word
    if "SBATCH" in block:
        shell = subprocess.run(["bash", "-n"], input=block, text=True, check=False)
        assert shell.returncode == 0
        for option in re.findall(r"WHAT=\"(--\w+)", block):
            assert option.removeprefix("--") in inspect.signature(pretrain.Options).parameters


def test_options_of_torchrun_exist() -> None:
    from torch.distributed.run import get_args_parser

    known = {o for action in get_args_parser()._actions for o in action.option_strings}
    told = set(re.findall(r"--(?:nnodes|nproc-per-node|rdzv-\w+|max-restarts)", PAGE))
    assert len(told) == 6
    assert told <= known


def test_names_and_numbers_are_those_of_the_code() -> None:
    assert f"`{processes.PATIENCE}`" in PAGE
    assert f"{launch.MARKER}=" in PAGE
    assert launch.HANDLED["TORCHELASTIC_SIGNALS_TO_HANDLE"] in PAGE
    assert f"shards of {parts.SHARD:,}" in PAGE
    assert tables._HELD_BYTES == 1 << 30
    assert tables._GROUP_BYTES == 1 << 31
    assert "--strategy fsdp" in PAGE
    assert "fsdp" in str(inspect.signature(pretrain.Options).parameters["strategy"].annotation)
