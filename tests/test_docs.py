"""README, CONTRIBUTING and examples do what they say."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from erg.cli import COMMANDS

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


def shell_lines() -> list[str]:
    lines = [
        line.split("  #")[0].strip()
        for block in blocks(ROOT / "README.md", "sh")
        for line in block.splitlines()
    ]
    return [line for line in lines if line.startswith("erg ")]


@pytest.mark.parametrize("line", shell_lines())
def test_erg_lines_name_real_commands_and_options(line: str) -> None:
    """Each option must be one the command knows; what they do is tested with the commands."""
    _, command, *words = shlex.split(line)
    assert command in COMMANDS
    done = subprocess.run(
        [sys.executable, "-m", "erg.cli", command, "--help"], capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout


def test_links_inside_the_project_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_house_is_as_the_design_page_says() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    for part in (ROOT / "src" / "erg").iterdir():
        if part.is_dir() and part.name != "__pycache__":
            assert f"{part.name}/" in text or f"{part.name} " in text, f"{part.name} is not told of"
