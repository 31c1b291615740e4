"""What reads files, fed by libFuzzer: inputs that reach other lines are kept and changed further.

Needs atheris, and says so rather than to pass without. The checks are those of test_fuzz.py; slow,
ten minutes each.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.faults.forks import ROOT, scaled

SECONDS = 600
NAMES = ["image", "zip", "tar", "parquet", "npy", "checkpoint", "run.json"]


def attack(name: str, folder: Path, seconds: int) -> None:
    """Change the files of a corpus until time is up; what should not happen ends the process."""
    import atheris

    sys.modules.pop("zipfile", None)  # pytest has it; what is imported below is traced
    with atheris.instrument_imports(include=["erg", "PIL", "zipfile", "tarfile"]):
        from tests.faults import test_fuzz as fuzz

        def check_json(data: bytes, folder: Path) -> None:
            (folder / "run.json").write_bytes(data)
            try:
                fuzz.Run.from_json(fuzz.RunFolder(folder).read_run())
            except ValueError as error:
                fuzz.one_line(error)

        starts = {
            "image": [fuzz.encoded(0, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF")],
            "zip": [fuzz.archive("zip")],
            "tar": [fuzz.archive("tar")],
            "parquet": [fuzz.table()],
            "npy": [fuzz.in_memory(lambda stream: np.save(stream, fuzz.RGB))],
            "checkpoint": [fuzz.checkpoint(folder)],
            "run.json": [json.dumps(fuzz.a_run("BYOL").to_json()).encode()],
        }
        checks: dict[str, fuzz.Check] = {
            "image": fuzz.check_image,
            "zip": fuzz.check_source(".zip"),
            "tar": fuzz.check_source(".tar"),
            "parquet": fuzz.check_source(".parquet"),
            "npy": fuzz.check_source(".npy"),
            "checkpoint": fuzz.check_checkpoint,
            "run.json": check_json,
        }
    corpus, place = folder / "corpus", folder / "here"
    for made in (corpus, place):
        made.mkdir()
    for i, start in enumerate(starts[name]):
        (corpus / str(i)).write_bytes(start)
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-timeout=60",
         "-rss_limit_mb=4096", f"-artifact_prefix={folder}/"],
        lambda data: checks[name](data, place),
    )  # fmt: skip
    atheris.Fuzz()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("name", NAMES)
def test_it_works_or_says_why(name: str, tmp_path: Path, tally: Callable[[str, int], None]) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.fail('needs atheris, which pip install ".[test,fuzz]" installs')
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.test_guided", name, str(tmp_path),
         str(scaled(SECONDS))],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, cwd=ROOT,
    )  # fmt: skip
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-5000:]
    tried = re.findall(r"^#(\d+)\s+DONE", said, re.MULTILINE)
    assert int(tried[-1]) > 0, said[-5000:]
    tally(f"guided inputs of {name}", int(tried[-1]))


def test_without_what_it_needs_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match="atheris") as outcome:
        test_it_works_or_says_why("image", tmp_path, lambda what, number: None)
    assert outcome.type is pytest.fail.Exception


def test_what_went_wrong_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libFuzzer tells of it on the one stream, Python on the other."""
    (tmp_path / "atheris.py").write_text("print('Uncaught exception')\nraise SystemExit(77)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(AssertionError, match="Uncaught exception"):
        test_it_works_or_says_why("image", tmp_path, lambda what, number: None)


def test_what_is_to_be_traced_is_not_imported_before(tmp_path: Path) -> None:
    (tmp_path / "atheris.py").write_text(
        "import sys\n"
        "def instrument_imports(include):\n"
        "    sys.exit(f'already there: {sorted({*include} & {*sys.modules})}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.test_guided", "zip", str(tmp_path), "1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stderr.strip().endswith("already there: []"), done.stderr


@pytest.mark.parametrize("target", ["test-slow-fuzz-3", "test-slow-fuzz-4"])
def test_make_installs_what_it_needs(target: str, tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    told = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target, f"VENV={tmp_path}"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout.splitlines()  # fmt: skip
    extras = [line.rpartition("[")[2] for line in told if "pip install" in line]
    assert "fuzz" in extras[-1]
    assert "pytest tests/faults/test_guided.py" in told[-1]


if __name__ == "__main__":
    attack(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
