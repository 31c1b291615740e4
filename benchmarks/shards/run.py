"""A run on more shards than are kept decoded: bounded memory, and exact after being stopped.

python benchmarks/shards/run.py FOLDER [--gigabytes 5] [--steps 60]

Writes tar shards of uncompressed images into FOLDER (once), then trains twice on them with nothing
kept decoded, once through and once stopped half-way and resumed, each in a process of its own whose
memory is watched. However large the set, it takes at most BOUND more than as many steps on SMALL
gigabytes. What stands in results.json is not measured again; of a second training that was killed
both halves are.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from erg.durable import write_atomically
from erg.train.run import environment

RESULTS = Path(__file__).parent / "results.json"
SIDE, IN_SHARD = 256, 1000
STOPPED = 75
SMALL, BOUND = 0.4, 150e6
"""Size of a small set [GB], and how much more memory a large one may take [bytes]: half of what its
images take decoded, 64 pixels wide, if it is one of 5 GB."""


def shards_of(folder: Path, gigabytes: float) -> Path:
    """Where the shards of so many gigabytes are."""
    return folder / f"shards-{gigabytes:g}"


def write_shards(folder: Path, gigabytes: float) -> int:
    """Tar shards of about 0.2 GB each until there are enough; how many images they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    image = 3 * SIDE**2
    shards = round(gigabytes * 1e9 / (image * IN_SHARD))
    for shard in range(shards):
        path = folder / f"{shard:05}.tar"
        if path.exists():
            continue
        drawn = np.random.default_rng(shard)
        partial = path.with_suffix(".part")
        with tarfile.open(partial, "w") as tar:
            for i in range(IN_SHARD):
                coarse = drawn.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                grain = drawn.integers(0, 8, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels = np.kron(coarse // 2, np.ones((32, 32, 1), np.uint8)) + grain
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "BMP")
                info = tarfile.TarInfo(f"{shard * IN_SHARD + i:09}.bmp")
                info.size = stream.tell()
                stream.seek(0)
                tar.addfile(info, stream)
        partial.rename(path)
    return shards * IN_SHARD


def train(shards: Path, out: Path, steps: int, stop: int) -> int:
    """What a child does: train with nothing kept decoded; stop after a step, or go through."""
    import signal

    from erg.data import cache
    from erg.train.fit import fit
    from erg.train.preempt import Stopped
    from erg.train.run import Run

    cache.default_budget = lambda _: 0
    run = Run(
        method="SimCLR", encoder="conv", image_size=32, data=str(shards), batch=256, steps=steps
    )

    def show(progress) -> None:  # type: ignore[no-untyped-def]
        if progress.step == stop:
            signal.raise_signal(signal.SIGTERM)

    try:
        fit(run, out=out, show=show, resume=(out / "run.json").exists())
    except Stopped as stopped:
        return stopped.code
    return 0


def memory(pid: int) -> int:
    """Resident memory of a process that belongs to no file [bytes]."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def state(file: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """What a checkpoint says, and the bits of its tensors, in whatever order the file has them."""
    with safe_open(file, "pt") as opened:
        bits = {
            name: opened.get_tensor(name).flatten().view(torch.uint8).numpy().tobytes()
            for name in opened.keys()  # noqa: SIM118
        }
        return opened.metadata(), bits


def watched(arguments: list[str], code: int) -> dict[str, float]:
    """Seconds, and the peak and the mean of the memory of a child over its second half."""
    start = time.monotonic()
    seen: list[int] = []
    child = subprocess.Popen([sys.executable, __file__, *arguments])

    def look() -> None:
        while child.poll() is None:
            seen.append(memory(child.pid))
            time.sleep(0.2)

    looking = threading.Thread(target=look)
    looking.start()
    found = child.wait()
    looking.join()
    assert found == code, f"the run left with {found}"
    late = seen[len(seen) // 2 :] or [0]
    return {
        "seconds": round(time.monotonic() - start, 1),
        "peak_megabytes": round(max(seen, default=0) / 1e6, 1),
        "late_mean_megabytes": round(sum(late) / len(late) / 1e6, 1),
    }


def run() -> None:
    """Measure what is not in results.json yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--child", nargs=2, metavar=("OUT", "STOP"))
    options = parser.parse_args()
    if options.child:
        out, stop = options.child
        shards = shards_of(options.folder, options.gigabytes)
        sys.exit(train(shards, Path(out), options.steps, int(stop)))
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    name = f"{options.gigabytes:g} GB, {options.steps} steps"
    part = done.setdefault(name, {"environment": environment()})
    for gigabytes in (SMALL, options.gigabytes):
        part["images"] = write_shards(shards_of(options.folder, gigabytes), gigabytes)

    def keep() -> None:
        write_atomically(RESULTS, json.dumps(done, indent=1).encode())

    measure_missing(part, options, keep)
    keep()
    print(json.dumps(part, indent=1))
    if not part["bit_equal"] or not part["bounded"]:
        sys.exit(f"{name}: the ends differ, or memory grew by over {BOUND / 1e6:g} MB.")


def measure_missing(
    part: dict[str, Any], options: argparse.Namespace, keep: Callable[[], None]
) -> None:
    """The trainings, and whether both ends on all shards are the same and memory was bounded.

    Args:
        part: what was measured, which is added to.
        options: folder, gigabytes and steps.
        keep: called after each training.
    """
    runs = options.folder / f"runs-{options.gigabytes:g}-{options.steps}"
    if "resumed" not in part:
        part.pop("stopped", None)  # how far it was resumed before is not known
    for what, gigabytes, place, stop, code in (
        ("small", SMALL, "small", 0, 0),
        ("through", options.gigabytes, "through", 0, 0),
        ("stopped", options.gigabytes, "stopped", options.steps // 2, STOPPED),
        ("resumed", options.gigabytes, "stopped", 0, 0),
    ):
        if what in part:
            continue
        out = runs / place
        if what != "resumed" and out.exists():
            shutil.rmtree(out)  # of an earlier start, which would be resumed
        told = [str(options.folder), "--gigabytes", f"{gigabytes:g}", "--steps", str(options.steps)]
        part[what] = watched([*told, "--child", str(out), str(stop)], code)
        keep()
    if "bit_equal" not in part:
        last = Path("checkpoints") / f"step_{options.steps:09}.safetensors"
        ends = [
            (state(runs / place / last), (runs / place / "events.jsonl").read_bytes())
            for place in ("through", "stopped")
        ]
        part["bit_equal"] = ends[0] == ends[1]
    peaks = [part[what]["peak_megabytes"] for what in ("through", "stopped", "resumed")]
    part["more_megabytes"] = round(max(peaks) - part["small"]["peak_megabytes"], 1)
    part["bounded"] = part["more_megabytes"] <= BOUND / 1e6


if __name__ == "__main__":
    run()
