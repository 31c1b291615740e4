"""A run on more shards than are kept decoded: bounded memory, and exact after being stopped.

python benchmarks/shards/run.py FOLDER [--gigabytes 5] [--steps 60]

Writes tar shards of uncompressed images into FOLDER (once), then trains twice on them with nothing
kept decoded, once through and once stopped half-way and resumed, each in a process of its own whose
memory is watched. What stands in results.json is not measured again.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from erg.train.run import environment

RESULTS = Path(__file__).parent / "results.json"
SIDE, IN_SHARD = 256, 1000
STOPPED = 75


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


def train(folder: Path, out: Path, steps: int, stop: int) -> int:
    """What a child does: train with nothing kept decoded; stop after a step, or go through."""
    import signal

    from erg.data import cache
    from erg.train.fit import fit
    from erg.train.preempt import Stopped
    from erg.train.run import Run

    cache.default_budget = lambda _: 0
    run = Run(
        method="SimCLR", encoder="conv", image_size=32, data=str(folder), batch=256, steps=steps
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
    shards = options.folder / "shards"
    if options.child:
        out, stop = options.child
        sys.exit(train(shards, Path(out), options.steps, int(stop)))
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    name = f"{options.gigabytes:g} GB, {options.steps} steps"
    part = done.setdefault(name, {"environment": environment()})
    part["images"] = write_shards(shards, options.gigabytes)
    told = [str(options.folder), "--steps", str(options.steps), "--child"]
    half = options.steps // 2
    for what, place, stop, code in (
        ("through", "through", 0, 0),
        ("stopped", "stopped", half, STOPPED),
        ("resumed", "stopped", 0, 0),
    ):
        if what not in part:
            part[what] = watched([*told, str(options.folder / place), str(stop)], code)
            RESULTS.write_text(json.dumps(done, indent=1))
    last = Path("checkpoints") / f"step_{options.steps:09}.safetensors"
    ends = [(options.folder / place / last).read_bytes() for place in ("through", "stopped")]
    part["bit_equal"] = ends[0] == ends[1]
    RESULTS.write_text(json.dumps(done, indent=1))
    print(json.dumps(part, indent=1))


if __name__ == "__main__":
    run()
