"""Each of the eight methods for some minutes on Imagenette at 128 pixels: does it learn?

    python benchmarks/eight_methods/run.py DATA [--minutes 3] [--seeds 0]

Every method is stopped half-way by a signal and resumed, so that the run is that of a real life.
What is measured: AUROC of matched against mismatched energies before and after training (for
methods without pairs: of images against noise and shuffled patches), kNN and linear probe against
the encoder before training, on a test set.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from erg import catalog
from erg.cli import main
from erg.durable import write_atomically
from erg.train.run import environment

METHODS = (
    "SimCLR", "SwAV", "VICReg", "BYOL", "Rotation", "MAE", "DenoisingAutoencoder", "KMeans",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results.json"


def measure(name: str, data: Path, minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train with an interruption, evaluate, and collect the numbers."""
    out, train = folder / "run", str(data / "imagenette128_train.parquet")
    erg = [sys.executable, "-m", "erg.cli", "pretrain"]
    command = [
        *erg, train, "--method", name, "--out", str(out), "--minutes", str(minutes),
        "--seed", str(seed), "--no-report",
    ]  # fmt: skip
    start = time.monotonic()
    process = subprocess.Popen(command)
    while process.poll() is None and time.monotonic() - start < 30 * minutes:
        time.sleep(0.5)
    interrupted = process.poll() is None
    if interrupted:
        os.kill(process.pid, signal.SIGTERM)
    code = process.wait()
    assert code == (75 if interrupted else 0), f"{name} left with {code}"
    if interrupted:
        code = subprocess.run([*erg, "--resume", str(out), "--no-report"], check=False).returncode
        assert code == 0, f"{name} resumed left with {code}"
    seconds = time.monotonic() - start
    test = str(data / "imagenette128_val.parquet")
    assert main(["evaluate", str(out), train, "--label", "label", "--test", test]) == 0
    assert main(["report", str(out), "--redraw"]) == 0
    energies = json.loads((out / "pictures" / "energies.json").read_text())
    scores = json.loads((out / "scores.json").read_text())
    run = json.loads((out / "run.json").read_text())
    return {
        "seconds": round(seconds, 1),
        "interrupted": interrupted,
        "encoder": run["encoder"],
        "steps": run["steps"],
        "auroc_before": energies["before"]["auroc"],
        "auroc_after": energies["after"]["auroc"],
        "scores": {row["name"]: row["scores"] for row in scores["rows"]},
        "environment": environment(),
    }


def run() -> None:
    """Measure what is not in results.json yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=catalog.names())
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in options.seeds:
        for name in options.methods:
            key = f"{name}, seed {seed}, {options.minutes:g} minutes"
            if key not in done:
                with tempfile.TemporaryDirectory() as folder:
                    done[key] = measure(name, options.data, options.minutes, seed, Path(folder))
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
    print_table(done)


def print_table(done: dict[str, Any]) -> None:
    """AUROC and accuracies, before and after."""
    print("| run | AUROC before | after | 20-NN before | after | linear before | after |")
    print("|---|---|---|---|---|---|---|")
    for key, found in done.items():
        before, after = found["scores"]["before training"], found["scores"]["encoder"]
        cells = [found["auroc_before"]["value"], found["auroc_after"]["value"]]
        for kind in ("knn20", "linear"):
            cells += [before[kind]["value"], after[kind]["value"]]
        print(f"| {key} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")


if __name__ == "__main__":
    run()
