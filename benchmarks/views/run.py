"""Views per second of one core, beside those of the library `lightly` from PyPI.

The claims: one core makes at least 60 times as many SimCLR views of 32 pixels per second as
lightly's own transforms of the same recipe, 10 times as many of 224 pixels with blur from images of
256 pixels, and 8 times as many of DINO's ten crops of an image.

    python benchmarks/views/run.py                                  # ours alone
    python -m venv PEER && PEER/bin/python -m pip install lightly
    python benchmarks/views/run.py --peer-python PEER/bin/python    # both, alternately

The peer measures itself in its own environment (`peer.py`) on the same images, decoded before, one
thread on each side. What is timed is the whole way from decoded images to new batches of
normalised float32 views. The repetitions of the two sides alternate, so that both meet the same
machine, and each is as many batches as fill `--seconds`. `results.json` holds them all, with
versions and the machine; it is written only when both sides were measured in all cases.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import binding

from erg.durable import write_atomically
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.plan import DINO_FIRST, DINO_LOCAL, DINO_SECOND, SIMCLR, Plan, two_views

HERE = Path(__file__).parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Case:
    """A recipe that both sides know by its name.

    Args:
        title: of the row.
        plan: our views.
        source: side of the images [pixels].
        size: of the views [pixels].
        batch: our images per call.
        peer_batch: of these, how many the peer takes in one batch.
        bar: of the ratio of ours to the peer's.
    """

    title: str
    plan: Plan
    source: int
    size: int
    batch: int
    peer_batch: int
    bar: float

    @property
    def sides(self) -> list[int]:
        """Side of each view of an image [pixels]."""
        return [view.pixels(self.size) for view in (*self.plan.main, *self.plan.local)]


# The names are those of peer.py.
CASES = {
    "simclr_32": Case(
        "SimCLR, no blur, 32 px of 32", two_views(replace(SIMCLR, blur=0.0)), 32, 32,
        batch=1024, peer_batch=128, bar=60,
    ),
    "simclr_224": Case(
        "SimCLR, 224 px of 256", two_views(SIMCLR), 256, 224,
        batch=64, peer_batch=16, bar=10,
    ),
    "dino": Case(
        "DINO, 2 x 224 + 8 x 96 px of 256",
        Plan(main=(DINO_FIRST, DINO_SECOND), local=(DINO_LOCAL,) * 8), 256, 224,
        batch=64, peer_batch=4, bar=8,
    ),
}  # fmt: skip


def images(case: Case, seed: int) -> np.ndarray:
    """Smooth random images, uint8 [n h w 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((case.batch, 3, case.source // 8, case.source // 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=case.source, mode="bicubic").clamp(0, 1)
    return (smooth * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


class Ours:
    """Makes the views of a case, an epoch after the other.

    Args:
        case: what to make.
        data: images, uint8 [n h w 3].
        seed: of the views.
    """

    def __init__(self, case: Case, data: np.ndarray, seed: int) -> None:
        self.case, self.seed, self.epoch = case, seed, 0
        self.pixels, self.index = Pixels.pack(list(data)), np.arange(len(data))
        self.rate(0.0)  # compiles, or loads what was compiled

    def rate(self, seconds: float) -> float:
        """Views per second, over as many batches as fill `seconds`, at least one."""
        start, batches = time.perf_counter(), 0
        while batches == 0 or time.perf_counter() - start < seconds:
            self.epoch += 1
            batches += 1
            make_views(
                self.pixels, self.case.plan, seed=self.seed, epoch=self.epoch, step=0,
                index=self.index, image_size=self.case.size, mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
            )  # fmt: skip
        made = batches * len(self.index) * len(self.case.sides)
        return made / (time.perf_counter() - start)


class Peer(AbstractContextManager["Peer"]):
    """The other library in its own process, which answers each line it reads with one of JSON.

    Args:
        python: of its environment.
        name: of the case.
        data: images, uint8 [n h w 3], of which it takes its batch.
        case: what to make.
        seed: of its generators.
    """

    def __init__(self, python: Path, name: str, data: np.ndarray, case: Case, seed: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        file = Path(self.folder.name) / "images.npy"
        np.save(file, data[: case.peer_batch])
        self.process = subprocess.Popen(
            [python, HERE / "peer.py", name, file, "--seed", str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD,
        )  # fmt: skip
        self.about: dict[str, Any] = self._answer()
        if self.about["sides"] != case.sides:
            raise RuntimeError(
                f"the peer's views have sides of {self.about['sides']} pixels, ours {case.sides}. "
                "Compare equal recipes."
            )

    def rate(self, seconds: float) -> float:
        """Views per second, over as many batches as fill `seconds`, at least one."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self._answer()["views_per_second"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the peer ended early. What it wrote above says why.")
        return json.loads(line)

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # it ends with its input
        self.process.wait()
        self.folder.cleanup()


def measure(
    name: str, python: Path | None, repeats: int, seconds: float, seed: int
) -> dict[str, Any]:
    """All repetitions of a case, ours and the peer's alternately."""
    case = CASES[name]
    data = images(case, seed)
    ours = Ours(case, data, seed)
    rates: dict[str, list[float]] = {"erg": []}
    found: dict[str, Any] = {
        "case": case.title, "sides": case.sides, "batch": case.batch, "bar": case.bar
    }  # fmt: skip
    if python is None:
        rates["erg"] = [ours.rate(seconds) for _ in range(repeats)]
    else:
        rates["lightly"] = []
        with Peer(python, name, data, case, seed) as peer:
            for _ in range(repeats):
                rates["erg"].append(ours.rate(seconds))
                rates["lightly"].append(peer.rate(seconds))
            found |= {"peer": peer.about, "peer_batch": case.peer_batch}
    medians = {side: statistics.median(values) for side, values in rates.items()}
    if python is not None:
        found["ratio"] = round(medians["erg"] / medians["lightly"], 1)
        pairs = zip(rates["erg"], rates["lightly"], strict=True)
        found["ratios"] = [round(mine / other, 1) for mine, other in pairs]
    found["views_per_second"] = {side: round(value, 1) for side, value in medians.items()}
    found["repetitions"] = {side: [round(v, 1) for v in values] for side, values in rates.items()}
    return found


def claims(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured (lowest to highest of the repetitions)."""
    return [
        (
            f"views/s of one core / lightly's: {row['case']}",
            f">= {row['bar']:g}",
            f"{row['ratio']:.1f} ({min(row['ratios']):.1f} to {max(row['ratios']):.1f}, "
            f"n = {len(row['ratios'])})",
        )
        for row in report["rows"]
    ]


def show(row: dict[str, Any]) -> None:
    """A line of the table."""
    cells = [f"{row['views_per_second']['erg']:,.0f}"]
    if "ratio" in row:
        cells += [f"{row['views_per_second']['lightly']:,.0f}", f"{row['ratio']}", f"{row['bar']}"]
    print(f"{row['case']:34}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Views per second of one core.")
    parser.add_argument("--peer-python", type=Path, help="python of an environment with lightly")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each repetition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    if options.peer_python is not None and options.repeats < 5:
        parser.error("a comparison needs at least 5 repetitions.")
    torch.set_num_threads(1)
    heads = ["erg"] + ["lightly", "ratio", "bar"] * (options.peer_python is not None)
    print(f"{'views/s':34}" + "".join(f"{head:>12}" for head in heads))
    rows = []
    for name in options.cases:
        rows.append(
            measure(name, options.peer_python, options.repeats, options.seconds, options.seed)
        )
        show(rows[-1])
    report = {
        "format": 1,
        "threads": 1,
        "repeats": options.repeats,
        "seconds": options.seconds,
        "seed": options.seed,
        "processor": binding.get_host_cpu_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("erg", "torch", "numba", "numpy")},
        },
        "rows": rows,
    }
    if options.peer_python is not None and options.cases == list(CASES):
        write_atomically(HERE / "results.json", (json.dumps(report, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
