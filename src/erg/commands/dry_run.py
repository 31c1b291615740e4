"""What a run would need: one step on a few images, and estimates."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from erg.allocator import blocks_kept
from erg.data.budget import kept_side
from erg.data.cache import Cache
from erg.data.manifest import Manifest, Row, look_at
from erg.data.masked import Masked, masks_of
from erg.data.source import DataError


@blocks_kept()
def dry_run(
    run: Any, source: Any, *, minutes: float | None = None, device: str | None = None
) -> int:
    """Open some images, and their masks if there are any, do one step, print time, memory and disk.

    As many as a step holds at once are opened, but at least 64 and at most 512.

    Args:
        run: what would be done.
        source: the data.
        minutes: in which the run would have to fit; None for as many steps as it says [minutes].
        device: where; None as in training.

    Raises:
        DataError: none of the images opened can be read, or their masks are of no use.
        ValueError: the run cannot be carried out.
    """
    import torch

    from erg.commands.show import tell
    from erg.encoders import parameter_count
    from erg.train.data import check_masks_serve, with_size
    from erg.train.loop import Data, Loop

    masks = None
    if run.mask is not None:
        masks = masks_of(source, run.mask)
        check_masks_serve(run, len(source))
    run = with_size(run, len(source))
    at_once = run.batch // run.accumulate
    few = min(max(64, min(at_once, 512)), len(source))
    chosen = np.linspace(0, len(source) - 1, few).astype(int).tolist()
    short_side = kept_side(run.image_size)
    looked = list(look_at(source, short_side=short_side, items=chosen))
    images = [item for _, item in looked if item is not None]
    skipped = len(looked) - len(images)
    if not images:
        raise DataError(f"none of {skipped} items looked at could be read. Check the data.")
    tell(f"Opened {len(images)} items, {skipped} could not be read.")
    manifest = Manifest.of([row for row, _ in looked])
    if source.kind == "array":
        items: Any = np.stack(images)
        rows = np.arange(len(images))
    else:
        items, rows = _kept(looked), manifest.ok
    if masks is not None:
        seen = list(look_at(masks, short_side=short_side, items=chosen))
        found = Manifest.of([row for row, _ in seen])
        if len(found.ok) or len(chosen) == len(source):
            items = Masked(items, _kept(seen), manifest, found)
            tell(items.summary())
        else:  # others may have some
            tell(f"None of the {len(chosen)} images looked at has a mask that can be read.")
    batch = min(at_once, len(images))
    loop = Loop(
        replace(run, batch=batch, accumulate=1),
        Data(items, rows, np.arange(0)),
        device=torch.device(device) if device else None,
    )
    try:
        loop.after_epoch()
    except ValueError as error:
        if len(images) + skipped == len(source):
            raise  # the run would have no more
        what = str(error).partition(". ")[0]
        tell(f"What {run.method} does after an epoch was left out, with so few images: {what}.")
    sides = sorted(run.sides().items(), reverse=True)  # from the largest, which take most memory
    loop.step(0, [loop.loader.views(sides[0][1][0])])
    wait_for(loop.device)
    seconds = 0.0
    for _, (step, share) in sides:
        start = time.perf_counter()
        loop.step(1, [loop.loader.views(step)])
        wait_for(loop.device)
        seconds += share * (time.perf_counter() - start) * run.batch / batch
    loop.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    if loop.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(loop.device)
    weights = sum(t.numel() * t.element_size() for t in loop.method.state_dict().values())
    cache = int(np.mean([image.nbytes for image in images])) * len(source)
    cache *= 1 if masks is None else 2  # a mask is kept as its image is
    tell(f"{parameter_count(loop.method):,} trainable parameters on {loop.device}.")
    if minutes is None:
        length = f"{run.steps * seconds / 60:.1f} minutes in all"
    else:  # as `measured` counts, but for what looks at the run
        length = (
            f"about {max(1, int(0.95 * 60 * minutes / seconds)):,} steps in {minutes:g} minutes"
        )
    tell(f"Time: about {seconds:.2f} s a step, {length}.")
    tell(f"Memory: {peak / 2**30:.1f} GiB so far, with {batch} of {at_once} images at once.")
    tell(
        f"Disk: {cache / 2**30:.2f} GiB of decoded images while training (if they fit), "
        f"{3 * 2 * weights / 2**20:.0f} MiB of checkpoints."
    )
    return 0


def _kept(looked: Sequence[tuple[Row, np.ndarray | None]]) -> Cache:
    """Decoded images as they are kept in training; nothing of those that cannot be read."""
    nothing = np.zeros((0, 0, 3), dtype=np.uint8)
    return Cache.of([nothing if item is None else item for _, item in looked])


def wait_for(device: Any) -> None:
    """Wait for what an accelerator was given to do, which is not done when it is given."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)
