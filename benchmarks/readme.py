"""Write what the benchmarks found into the table of the README.

    python benchmarks/readme.py

Every benchmark with a `claims` function and a results.json, or a folder of them, has its rows: what
is claimed, the bar, and the median that was measured, with the lowest and the highest, or what the
row says. Nothing is measured here.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"

ORDER = (
    "views", "training_step", "time_to_accuracy", "small_images", "ntxent", "embedding",
    "starting",
    "beside_lightly", "methods", "autoencoders", "layers", "anomalies", "binary_codes",
    "audio_denoising", "figures",
)  # fmt: skip


def load(name: str, file: str = "run.py") -> Any:
    """A script of a benchmark as a module."""
    script = HERE / name / file
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(script.parent))  # as when it is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(script.parent))
    return module


def rows(name: str) -> list[tuple[str, str, str]]:
    """What the benchmark in a folder claims, the bar, and what it measured."""
    results = HERE / name / "results.json"
    if results.exists():
        done = json.loads(results.read_text())
    else:
        files = sorted((HERE / name / "results").glob("*.json"))
        done = {file.stem: json.loads(file.read_text()) for file in files}
    if not done:
        return []
    return load(name).claims(done)


def write() -> None:
    """Replace what stands between the two marks."""
    lines = ["| what | bar | measured |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for name in ORDER for row in rows(name)]
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    README.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")
    print("\n".join(lines))


if __name__ == "__main__":
    write()
