"""How commands talk, to whoever listens and however little can be shown."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from erg.commands.show import console, tell, warn

TALKS = """
import sys
from pathlib import Path

from rich.table import Table

from erg.commands.show import console, counting, tell

tell("first")
sys.stdin.read()  # until the reader has left
with counting("Counting") as progress:
    progress(1, 2)
    tell("second")
console.print(Table("third"))
print("fourth")
Path(sys.argv[1]).write_text("whole")
"""


def test_work_goes_on_where_the_reader_leaves(tmp_path: Path) -> None:
    """As in `erg ... | head -1`."""
    out = tmp_path / "out"
    talking = subprocess.Popen(
        [sys.executable, "-c", TALKS, str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert talking.stdin is not None
    assert talking.stdout is not None
    assert talking.stderr is not None
    assert talking.stdout.readline() == b"first\n"
    talking.stdout.close()
    talking.stdin.close()
    error = talking.stderr.read()
    talking.stderr.close()
    assert (talking.wait(timeout=60), error) == (0, b"")
    assert out.read_text() == "whole"


def test_letters_that_cannot_be_shown_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    tell("\u56fe\xe9.png")
    warn("\u50cf")
    table = Table("name")
    table.add_row(Text("\u7247"))
    console.print(table)
    said = shown.getvalue()
    assert said.startswith(b"\\u56fe\xe9.png\n\\u50cf\n")
    assert b"\\u7247" in said
