"""Views per second of lightly's transforms, measured in lightly's own environment.

`run.py` calls it, which says on what; it needs only lightly and what that needs. It first writes a
line of JSON about itself; then, for every number of seconds it reads, a line with its speed over
that time. It ends with its input.
"""

import argparse
import json
import platform
import random
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from lightly.transforms import DINOTransform, SimCLRTransform
from PIL import Image

# The recipes of the papers, as the library has them by default; sizes as ours.
TRANSFORMS = {
    "simclr_32": lambda: SimCLRTransform(input_size=32, gaussian_blur=0.0),
    "simclr_224": lambda: SimCLRTransform(input_size=224),
    "dino": lambda: DINOTransform(global_crop_size=224, local_crop_size=96, n_local_views=8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Views per second of lightly.")
    parser.add_argument("case", choices=list(TRANSFORMS))
    parser.add_argument("images", help="uint8 [n h w 3], an .npy file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 - the generator that libraries share
    transform = TRANSFORMS[options.case]()
    images = [Image.fromarray(image) for image in np.load(options.images, allow_pickle=False)]
    views = transform(images[0])  # warms up
    if any(view.dtype != torch.float32 or view.shape[0] != 3 for view in views):
        raise SystemExit("The views are no float32 images [3 h w].")
    about = {
        "sides": [view.shape[-1] for view in views],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("lightly", "torch", "torchvision", "pillow")},
        },
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        seconds = float(line)
        start, made = time.perf_counter(), 0
        while made == 0 or time.perf_counter() - start < seconds:
            batch = [transform(image) for image in images]
            for same in zip(*batch, strict=True):
                torch.stack(same)  # what training is given: a batch of each view
            made += len(images) * len(views)
        rate = made / (time.perf_counter() - start)
        print(json.dumps({"views_per_second": rate}), flush=True)


if __name__ == "__main__":
    main()
