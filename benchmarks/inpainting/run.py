"""Text and holes out of images not seen in training, beside the median and biharmonic filling.

    python benchmarks/inpainting/run.py DATA [--seeds 0 1 2] [--sets cifar10] [--threads 1]

An inpainter is trained on the images of a training set and tested on 200 of its test set, CIFAR-10
at 32 pixels and Imagenette at 64. `erg`, the median and biharmonic filling are told where the
overlay is; `erg, blind` is not. `one vector` is the denoising autoencoder of erg.methods, whose
decoder makes an image from one vector: how well it repeats images without any overlay. What is in
results.json already is not measured again. Each run leaves a picture beside it, which git ignores.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import binding

import erg
from erg.apply.inpaint import images_of, score_inpainter, train_inpainter
from erg.data.cache import open_images
from erg.data.source import open_source
from erg.durable import write_atomically
from erg.evaluate.restoration import psnr
from erg.train.run import environment
from erg.views.plan import WHOLE

RESULTS = Path(__file__).parent / "results.json"
MEASURES = (("psnr", 2), ("psnr_hidden", 2), ("ssim", 3))
"""What is told of every way, and with how many digits."""
SETS = {
    "cifar10": ("cifar10_train.parquet", "cifar10_test.parquet", 32),
    "imagenette": ("imagenette128_train.parquet", "imagenette128_val.parquet", 64),
}


def measure(data: Path, name: str, steps: int, seed: int) -> dict[str, Any]:
    """Train on one set, test on the other."""
    train, test, size = SETS[name]
    manifest, images = open_images(open_source(str(data / train)), short_side=2 * size)
    other, held = open_images(open_source(str(data / test)), short_side=2 * size)
    start, cpu = time.perf_counter(), time.process_time()
    network = train_inpainter(images, manifest.ok, size=size, steps=steps, seed=seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    scores, picture = score_inpainter(network, held, other.ok, size=size, seed=seed)
    write_atomically(RESULTS.parent / f"{name}-{steps}-{seed}.png", picture)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "images": [len(manifest.ok), len(other.ok)],
        "scores": scores,
        "machine": {"processor": binding.get_host_cpu_name(), "cores": os.cpu_count()},
        "versions": environment(),
    }


def one_vector(data: Path, minutes: float, seed: int) -> dict[str, Any]:
    """PSNR of the denoising autoencoder's reconstruction of clean CIFAR-10 images."""
    train, test, size = SETS["cifar10"]
    run = erg.Run(
        method="DenoisingAutoencoder", encoder="conv", image_size=size, data=str(data / train),
        encoder_args={"width": 32}, batch=64, steps=1, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        fitted = erg.fit(run, out=Path(place) / "run", minutes=minutes, observers=())
    other, held = open_images(open_source(str(data / test)), short_side=2 * size)
    rows = other.ok[:200]
    y = images_of(held, rows, size, seed, WHOLE, len(rows)).make(rows, epoch=0).main[0].data
    mean, std = (torch.tensor(v)[:, None, None] for v in (fitted.encoder.mean, fitted.encoder.std))
    method: Any = fitted.method
    with torch.no_grad():
        made = method.reconstruct((y - mean) / std) * std + mean
    pairs = zip(y.permute(0, 2, 3, 1).numpy(), made.permute(0, 2, 3, 1).numpy(), strict=True)
    value = float(np.mean([psnr(a, b.clip(0, 1)) for a, b in pairs]))
    return {"psnr": value, "minutes": minutes, "versions": environment()}


def run() -> None:
    """Measure what is missing, write after each repetition, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in options.seeds:
        for name in options.sets:
            key = f"{name}, {options.steps} steps, seed {seed}"
            if key not in done:
                done[key] = measure(options.data, name, options.steps, seed)
                write_atomically(RESULTS, json.dumps(done, indent=1).encode())
    key = "one vector, 3 minutes, seed 0"
    if "cifar10" in options.sets and key not in done:
        done[key] = one_vector(options.data, 3, 0)
        write_atomically(RESULTS, json.dumps(done, indent=1).encode())
    table(done)


def table(done: dict[str, Any]) -> None:
    """Means over runs of as many steps, lowest and highest run; then how far erg is ahead."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, found in done.items():
        if "scores" in found:
            groups.setdefault(key.rpartition(", ")[0], []).append(found["scores"]["kinds"])
    for title, what, sign in (("way", "mean", ""), ("erg is ahead of", "ahead", "+")):
        print(f"\n| set, overlay | {title} | PSNR [dB] | of hidden pixels | SSIM |")
        print("|---|---|---|---|---|")
        rows_of(groups, what, sign)
    for key, found in done.items():
        if "psnr" in found:
            print(f"\n{key}: clean images are repeated at {found['psnr']:.2f} dB")


def rows_of(groups: dict[str, list[dict[str, Any]]], what: str, sign: str) -> None:
    """Means over runs with their lowest and highest, a line for each way."""
    for name, runs in groups.items():
        for kind in runs[0]:
            for way in runs[0][kind]["psnr"][what]:
                cells = []
                for measure, digits in MEASURES:
                    values = [found[kind][measure][what][way]["value"] for found in runs]
                    mean, low, high = (
                        f"{f(values):{sign}.{digits}f}" for f in (statistics.mean, min, max)
                    )
                    cells.append(f"{mean} ({low} to {high})")
                print(f"| {name}, {kind} | {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run()
