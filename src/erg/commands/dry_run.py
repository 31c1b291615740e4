"""What a run would need: one step on a few images, and estimates."""

import resource
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np


def dry_run(run: Any, source: Any) -> int:
    """Open 64 images, do one step, print time, memory and disk.

    Args:
        run: what would be done.
        source: the data.
    """
    from erg.commands.show import tell
    from erg.encoders import parameter_count
    from erg.train.fit import InMemory
    from erg.train.loop import Data, Loop

    images: list[np.ndarray] = []
    skipped = 0
    for i in np.linspace(0, len(source) - 1, min(64, len(source))).astype(int):
        try:
            images.append(source.read(int(i), max(64, 2 * run.image_size)))
        except ValueError:
            skipped += 1
    tell(f"Opened {len(images)} items, {skipped} could not be read.")
    if source.kind == "array":
        items: Any = np.stack(images)
    else:
        items = InMemory(images)
    few = Data(items, np.arange(len(images)), np.arange(0))
    batch = min(run.batch, len(images))
    loop = Loop(replace(run, batch=batch, accumulate=1), few)
    loop.after_epoch()
    loop.step(0, [loop.loader.views(0)])
    start = time.perf_counter()
    loop.step(1, [loop.loader.views(1)])
    seconds = (time.perf_counter() - start) * run.batch / batch
    loop.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    weights = sum(t.numel() * t.element_size() for t in loop.method.state_dict().values())
    cache = int(np.mean([image.nbytes for image in images])) * len(source)
    tell(f"{parameter_count(loop.method):,} trainable parameters on {loop.device}.")
    tell(f"Time: about {seconds:.2f} s a step, {run.steps * seconds / 60:.1f} minutes in all.")
    tell(f"Memory: {peak / 2**30:.1f} GiB so far, with a batch of {batch} of {run.batch}.")
    tell(
        f"Disk: {cache / 2**30:.2f} GiB of decoded images while training (if they fit), "
        f"{3 * 2 * weights / 2**20:.0f} MiB of checkpoints."
    )
    return 0
