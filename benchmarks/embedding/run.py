"""A folder of JPEG files to embeddings: images per second, beside the bare network and lightly.

    python benchmarks/embedding/run.py DATA [--peer-python PYTHON] [--repetitions 5]

The pictures of Imagenette (128 pixels) are written into a folder. `erg.embed` goes all the way from
there to vectors, with timm's ResNet-18 at random: it finds, reads and decodes the files, makes the
views, runs the network. The network alone does the same batches from tensors that are ready, in the
same process and precision: as torch does it by itself, and from memory that is kept as erg keeps
it (erg/allocator.py). PYTHON is one that has lightly; without it lightly is left out. What is in
results.json already is not measured again, unless --again says so.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from llvmlite import binding

import erg
from erg.allocator import blocks_kept
from erg.durable import write_atomically
from erg.train.features import computing_in, evaluating
from erg.train.run import Precision, environment

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"

BATCH = 256  # of erg.embed
BARE = {"alone": "network alone", "alone, memory kept": "network alone, memory kept"}
PRECISIONS: dict[str, Precision] = {"bf16": "bf16", "fp32": "32"}


def write_folder(file: Path, folder: Path, images: int | None) -> int:
    """The encoded bytes of a parquet file, each as a file of its own; how many."""
    cells = pq.read_table(file, columns=["image"])["image"].slice(0, images)
    for i, cell in enumerate(cells):
        (folder / f"{i:05d}.jpg").write_bytes(cell.as_py())
    return len(cells)


def measure(folder: Path, images: int, precision: str, size: int, seed: int) -> dict[str, Any]:
    """`erg.embed`, then the network alone, after a first batch of both that does not count."""
    run = erg.Run(
        method="SimCLR", encoder="resnet18", image_size=size, seed=seed,
        precision=PRECISIONS[precision],
    )  # fmt: skip
    fitted = erg.Fitted(run, folder, run.build().eval())
    ready = torch.randn(BATCH, 3, size, size).to(memory_format=torch.channels_last)
    fitted.embed(np.zeros((BATCH, size, size, 3), dtype=np.uint8))
    alone(fitted, ready, BATCH)
    start = time.perf_counter()
    vectors = erg.embed(fitted, str(folder)).vectors
    seconds = time.perf_counter() - start
    assert vectors.shape == (images, 512), f"{vectors.shape} vectors of {images} images"
    start = time.perf_counter()
    alone(fitted, ready, images)
    lasted = time.perf_counter() - start
    with blocks_kept():
        alone(fitted, ready, BATCH)
        start = time.perf_counter()
        alone(fitted, ready, images)
        kept = time.perf_counter() - start
    return {
        "images": images,
        "seconds": round(seconds, 3),
        "alone": round(lasted, 3),
        "alone, memory kept": round(kept, 3),
        "seed": seed,
        "machine": {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()},
        "versions": environment(),
    }


def alone(fitted: erg.Fitted, ready: torch.Tensor, images: int) -> np.ndarray:
    """As many images through the network as there are, in batches."""
    device = torch.device("cpu")
    with evaluating(fitted.method), computing_in(device, fitted.run.autocast(device)):
        return np.concatenate([
            fitted.encoder(ready[: min(BATCH, images - start)]).float().numpy()
            for start in range(0, images, BATCH)
        ])  # fmt: skip


def measure_peer(python: str, folder: Path, precision: str, size: int) -> dict[str, Any]:
    """One process of peer.py."""
    command = [
        python, str(HERE / "peer.py"), str(folder), "--precision", precision, "--image-size",
        str(size), "--batch", str(BATCH),
    ]  # fmt: skip
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    machine = {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()}
    return {**json.loads(printed.splitlines()[-1]), "machine": machine}


def run() -> None:
    """Measure what is missing, write after each repetition, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--images", type=int, help="at most so many")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.again else {}
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), options.image_size
        file = options.data / "imagenette128_train.parquet"
        images = write_folder(file, folder, options.images)
        for repetition in range(options.repetitions):
            for precision in options.precisions:
                key = f"{precision}; {size} pixels; repetition {repetition}"
                if f"erg; {key}" not in done:
                    found = measure(folder, images, precision, size, repetition)
                    done[f"erg; {key}"] = found
                    write_atomically(RESULTS, json.dumps(done, indent=1).encode())
                if f"lightly; {key}" not in done and options.peer_python is not None:
                    found = measure_peer(options.peer_python, folder, precision, size)
                    done[f"lightly; {key}"] = found
                    write_atomically(RESULTS, json.dumps(done, indent=1).encode())
    table(done)


def speeds(done: dict[str, Any]) -> dict[str, list[float]]:
    """Images per second of every repetition."""
    found: dict[str, list[float]] = {}
    for key, value in done.items():
        case = key.rsplit(";", 1)[0]
        found.setdefault(case, []).append(value["images"] / value["seconds"])
        for alone in (name for name in BARE if name in value):
            bare = case.replace("erg", BARE[alone], 1)
            found.setdefault(bare, []).append(value["images"] / value[alone])
    return found


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured (lowest to highest of the repetitions)."""
    speed = speeds(done)
    found: list[tuple[str, str, str]] = []
    for case in (case for case in speed if case.startswith("erg")):
        for name in BARE.values():
            ours, bare = speed[case], speed[case.replace("erg", name, 1)]
            ratios = [a / b for a, b in zip(ours, bare, strict=True)]
            ratio = statistics.median(ours) / statistics.median(bare)
            measured = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, n = {len(ratios)})"
            found.append((f"JPEG folder to embeddings / {name}: {case}", ">= 0.9", measured))
    return found


def table(done: dict[str, Any]) -> None:
    """Medians over repetitions, then what is claimed."""
    print("| | images/s | lowest | highest |\n|---|---|---|---|")
    for case, rates in speeds(done).items():
        print(f"| {case} | {statistics.median(rates):.0f} | {min(rates):.0f} | {max(rates):.0f} |")
    print("\n| | bar | measured |\n|---|---|---|")
    for row in claims(done):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    run()
