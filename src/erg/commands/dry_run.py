"""What a run would need: one step on a few images, and estimates."""

import resource
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np


def dry_run(
    run: Any, source: Any, *, minutes: float | None = None, device: str | None = None
) -> int:
    """Open 64 images, do one step, print time, memory and disk.

    Args:
        run: what would be done.
        source: the data.
        minutes: in which the run would have to fit; None for as many steps as it says [minutes].
        device: where; None as in training.

    Raises:
        DataError: none of the images opened can be read.
    """
    import torch

    from erg.commands.show import tell
    from erg.data.source import DataError
    from erg.encoders import parameter_count
    from erg.train.fit import InMemory
    from erg.train.loop import Data, Loop

    images: list[np.ndarray] = []
    skipped = 0
    for i in np.linspace(0, len(source) - 1, min(64, len(source))).astype(int):
        try:
            images.append(source.read(int(i), max(64, 2 * run.image_size)))
        except (ValueError, OSError):
            skipped += 1
    if not images:
        raise DataError(f"none of {skipped} items looked at could be read. Check the data.")
    tell(f"Opened {len(images)} items, {skipped} could not be read.")
    if source.kind == "array":
        items: Any = np.stack(images)
    else:
        items = InMemory(images)
    few = Data(items, np.arange(len(images)), np.arange(0))
    batch = min(run.batch, len(images))
    loop = Loop(
        replace(run, batch=batch, accumulate=1),
        few,
        device=torch.device(device) if device else None,
    )
    try:
        loop.after_epoch()
    except ValueError as error:
        if len(images) + skipped == len(source):
            raise  # the run would have no more
        what = str(error).partition(". ")[0]
        tell(f"What {run.method} does after an epoch was left out, with so few images: {what}.")
    loop.step(0, [loop.loader.views(0)])
    wait_for(loop.device)
    start = time.perf_counter()
    loop.step(1, [loop.loader.views(1)])
    wait_for(loop.device)
    seconds = (time.perf_counter() - start) * run.batch / batch
    loop.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    if loop.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(loop.device)
    weights = sum(t.numel() * t.element_size() for t in loop.method.state_dict().values())
    cache = int(np.mean([image.nbytes for image in images])) * len(source)
    tell(f"{parameter_count(loop.method):,} trainable parameters on {loop.device}.")
    if minutes is None:
        length = f"{run.steps * seconds / 60:.1f} minutes in all"
    else:  # as `measured` counts, but for what looks at the run
        length = (
            f"about {max(1, int(0.95 * 60 * minutes / seconds)):,} steps in {minutes:g} minutes"
        )
    tell(f"Time: about {seconds:.2f} s a step, {length}.")
    tell(f"Memory: {peak / 2**30:.1f} GiB so far, with a batch of {batch} of {run.batch}.")
    tell(
        f"Disk: {cache / 2**30:.2f} GiB of decoded images while training (if they fit), "
        f"{3 * 2 * weights / 2**20:.0f} MiB of checkpoints."
    )
    return 0


def wait_for(device: Any) -> None:
    """Wait for what an accelerator was given to do, which is not done when it is given."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)
