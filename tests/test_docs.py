"""README, CONTRIBUTING and examples do what they say."""

import functools
import inspect
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from erg import catalog, distributed
from erg.cli import COMMANDS, _code
from erg.commands.options import ENCODER_PREFIX, PREFIX
from erg.encoders import CHANGES, OURS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


PYTHON = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where everything is imported already; what they print is not looked at."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example)], cwd=tmp_path, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def shell_lines(page: Path) -> list[str]:
    """What follows `erg`, or `-m erg.cli` of torchrun, in the lines of a page to be typed."""
    lines = [
        re.split(r"(?:^|\s)#", line)[0]
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    found = [re.search(r"(?:^|[\s/])(?:erg|erg\.cli) (.+)", line) for line in lines]
    return [each[1].strip() for each in found if each is not None]


SHELL = [
    pytest.param(line, id=f"{page.name}: {line}") for page in PAGES for line in shell_lines(page)
]


def test_pages_have_lines_to_be_typed() -> None:
    assert len(shell_lines(ROOT / "README.md")) >= 6
    assert len(SHELL) >= 35
    clusters = shell_lines(ROOT / "docs" / "clusters.md")
    assert "pretrain photos/ --out /shared/runs/big" in clusters, "also over several lines"


@functools.cache
def options_of(command: str) -> frozenset[str]:
    """All that the command knows, by its help."""
    done = subprocess.run(
        [sys.executable, "-m", "erg.cli", command, "--help"], capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    return frozenset(re.findall(r"--[a-z][a-z-]*", done.stdout))


@pytest.mark.parametrize("line", SHELL)
def test_erg_lines_name_real_commands_and_options(line: str) -> None:
    """Each option must be one the command knows; what they do is tested with the commands."""
    command, *words = shlex.split(line)
    assert command in COMMANDS
    named = dict(itertools.pairwise(words))
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        if option.startswith(PREFIX):
            known = {PREFIX + n.replace("_", "-") for n in catalog.arguments(method_in(named))}
        elif option.startswith(ENCODER_PREFIX):
            ours = OURS.get(named["--encoder"])
            names = [*CHANGES, *(inspect.signature(ours.__init__).parameters if ours else ())]
            known = {ENCODER_PREFIX + name.replace("_", "-") for name in names}
        else:
            known = options_of(command)
        assert option in known
    if command == "pretrain" and "--method" in named:
        method_in(named)


def method_in(named: dict[str, str]) -> type:
    return catalog.find(named["--method"])


def test_the_exit_code_of_processes_that_are_left_alone_is_the_one_told() -> None:
    text = " ".join((ROOT / "docs" / "clusters.md").read_text().split())
    assert f"They say so and leave with {_code(distributed.Lost('gone'))}, while" in text


def test_links_inside_the_project_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_house_is_as_the_design_page_says() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    for part in (ROOT / "src" / "erg").iterdir():
        if part.is_dir() and part.name != "__pycache__":
            assert f"{part.name}/" in text or f"{part.name} " in text, f"{part.name} is not told of"
