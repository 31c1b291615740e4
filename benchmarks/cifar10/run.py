"""CIFAR-10 in ten minutes on a CPU with default choices: kNN and linear probe, against baselines.

python benchmarks/cifar10/run.py DATA [--seeds 0 1 2] [--minutes 10]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from erg.cli import main
from erg.durable import write_atomically
from erg.train.run import environment

RESULTS = Path(__file__).parent / "results.json"


def run() -> None:
    """Measure every seed that is not in results.json yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in options.seeds:
        name = f"seed {seed}, {options.minutes:g} minutes"
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            start = time.monotonic()
            code = main([
                "pretrain", str(options.data / "cifar10_train.parquet"), "--out", str(out),
                "--minutes", str(options.minutes), "--seed", str(seed), "--no-report",
            ])  # fmt: skip
            assert code == 0, f"training left with {code}"
            seconds = time.monotonic() - start
            code = main([
                "evaluate", str(out), str(options.data / "cifar10_train.parquet"), "--label",
                "label", "--test", str(options.data / "cifar10_test.parquet"),
            ])  # fmt: skip
            assert code == 0, f"evaluation left with {code}"
            scores = json.loads((out / "scores.json").read_text())
            for where in ("data", "test"):  # folders are private
                scores[where] = Path(scores[where]).name
            done[name] = {
                "training_seconds": round(seconds, 1),
                "steps": json.loads((out / "run.json").read_text())["steps"],
                "scores": scores,
                "environment": environment(),
            }
        write_atomically(RESULTS, json.dumps(done, indent=1).encode())


if __name__ == "__main__":
    run()
