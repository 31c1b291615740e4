"""Views per second of the compiled kernels.

The claim: one core makes at least 175,000 SimCLR views of 32 pixels per second (without blur, as
for CIFAR), and 2,900 of 224 pixels with blur from images of 256 pixels.

    python benchmarks/views/run.py                  # one core
    python benchmarks/views/run.py --threads 2
"""

import argparse
import json
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from llvmlite import binding

from erg.views.pixels import Pixels
from erg.views.plan import BYOL_SECOND, DINO_LOCAL, LIGHT, SIMCLR, SIMCLR_SMALL, Augmentation
from erg.views.render import make_view

# name, augmentation, side of the sources [pixels], image size [pixels], images, goal [views/s]
CASES: list[tuple[str, Augmentation, int, int, int, int | None]] = [
    ("SIMCLR_SMALL", SIMCLR_SMALL, 32, 32, 2048, 175_000),
    ("LIGHT", LIGHT, 32, 32, 2048, None),
    ("SIMCLR", SIMCLR, 256, 224, 128, 2_900),
    ("BYOL_SECOND", BYOL_SECOND, 256, 224, 128, None),
    ("LIGHT", LIGHT, 256, 224, 128, None),
    ("DINO_LOCAL", DINO_LOCAL, 256, 224, 128, None),
]


def sources(n: int, side: int, seed: int) -> Pixels:
    """Smooth random images, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((n, 3, side // 8, side // 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)
    return Pixels.pack(list((smooth * 255).byte().permute(0, 2, 3, 1).numpy()))


def measure(
    pixels: Pixels, augmentation: Augmentation, size: int, repeats: int, threads: int, seed: int
) -> list[float]:
    """Views per second of each repeat, every one an epoch of its own; one more warms up."""
    n = len(pixels.height)
    side = augmentation.pixels(size)
    out = np.empty((n, side, side, 3), dtype=np.float32)
    rates = []
    with ThreadPoolExecutor(threads) as executor:
        for epoch in range(repeats + 1):
            start = time.perf_counter()
            make_view(
                pixels,
                augmentation,
                view=0,
                geometry=0,
                seed=seed,
                epoch=epoch,
                index=np.arange(n),
                image_size=size,
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                pool=executor if threads > 1 else None,
                out=out,
            )
            rates.append(n / (time.perf_counter() - start))
    return rates[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description="Views per second of the kernels.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'recipe':14}{'source':>8}{'view':>6}{'views/s':>12}{'best':>12}{'goal':>12}")
    for name, augmentation, source, size, n, goal in CASES:
        pixels = sources(n, source, arguments.seed)
        rates = measure(
            pixels, augmentation, size, arguments.repeats, arguments.threads, arguments.seed
        )
        middle, best, side = statistics.median(rates), max(rates), augmentation.pixels(size)
        shown = f"{goal:,}" if goal else ""
        print(f"{name:14}{source:8}{side:6}{middle:12,.0f}{best:12,.0f}{shown:>12}")
        rows.append(
            {
                "recipe": name,
                "source": source,
                "view": side,
                "batch": n,
                "views_per_second": {"median": round(middle), "best": round(best)},
                "goal": goal,
            }
        )
    report = {
        "format": 1,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "processor": binding.get_host_cpu_name(),
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
            "torch": torch.__version__,
        },
        "rows": rows,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
