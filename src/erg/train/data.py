"""The data of a run: looked at once, kept decoded where they fit, and some held out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from erg import catalog, distributed
from erg.data.budget import default_budget, kept_side
from erg.data.cache import Cache, open_items
from erg.data.loader import Images
from erg.data.manifest import Manifest
from erg.data.masked import Masked, masks_of, open_masks
from erg.data.source import DataError, Source
from erg.data.splits import hold_out
from erg.data.stream import Stream
from erg.train.fitted import Fitted
from erg.train.folder import RunFolder
from erg.train.loop import Data
from erg.train.processes import machine, once_a_machine
from erg.train.run import Run
from erg.views.plan import Plan


def open_data(
    source: Source,
    folder: RunFolder,
    *,
    image_size: int,
    label: str | None = None,
    masks: Source | None = None,
    hold: int = 1000,
    max_skipped: float = 0.2,
    budget: int | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Data, Manifest]:
    """Look at every item once, decode what fits, and hold some out of training.

    Images, and their masks if there are any, are kept as `kept_side` says. Of several processes,
    whose group has to be there, the first of each machine decodes them, and all read its file.
    """
    frozen = Manifest.load(folder.manifest) if resume and folder.manifest.exists() else None
    number, ranks = machine()
    file, machines = folder.cache(number), distributed.world() // len(ranks)
    if budget is None and machines > 1:  # which may have the folder, and so its disk, in common
        budget = default_budget(file) // machines
    manifest, images = open_items(
        source,
        short_side=kept_side(image_size),
        max_lost=max_skipped,
        file=file,
        budget=budget,
        max_skipped=max_skipped,
        manifest=frozen,
        share=once_a_machine,
        progress=progress,
    )
    if masks is not None:
        assert isinstance(images, Cache | Stream)  # others have no masks
        images = open_masks(
            images, manifest, masks, short_side=kept_side(image_size),
            file=file.with_name(f"{file.name}.masks"), budget=budget,
            found=Manifest.load(folder.masks) if frozen is not None else None,
            share=once_a_machine, progress=progress,
        )  # fmt: skip
    chosen, held = hold_out(manifest, at_most=hold)
    labels = manifest.labels[0] if label is not None else None
    return Data(images, chosen, held, labels, manifest.hashes[held]), manifest


def with_masks(
    fitted: Fitted, images: Images | np.ndarray, manifest: Manifest, source: Source
) -> Images | np.ndarray:
    """Images of a run's data with the masks that it was trained with, if any, read when asked for.

    Args:
        fitted: a run whose folder says which masks there were.
        images: as sharp as in training; vectors, which have no masks, come back as they are.
        manifest: of the images.
        source: of the images.
    """
    if fitted.run.mask is None or not isinstance(images, Cache | Stream):
        return images
    return open_masks(
        images, manifest, masks_of(source, fitted.run.mask), budget=0,
        short_side=kept_side(fitted.run.image_size),
        found=Manifest.load(RunFolder(fitted.folder).masks),
    )  # fmt: skip


def check_same(manifest: Manifest) -> None:
    """Whether all processes read the same: their orders and hold-outs follow from it.

    Raises:
        DataError: a file was there, or could be read, for some of them alone.
    """
    if not distributed.active():
        return
    everyone: list[Any] = [None] * distributed.world()
    torch.distributed.all_gather_object(everyone, (manifest.identity, len(manifest.ok)))
    if len(set(everyone)) != 1:
        raise DataError(
            "the processes do not read the same data: a file is there, or can be read, for some of "
            "them alone. Give all of them the same, and start again."
        )


def where_kept(images: Images | np.ndarray) -> str:
    """Where the decoded images are."""
    read = images.images if isinstance(images, Masked) else images
    if isinstance(read, Stream):
        return (
            "Decoded whenever they are used, since all of them take more room than they may "
            "(--cache-gb)."
        )
    flat = read.flat if isinstance(read, Cache) else np.asarray(read)
    where = "in memory"
    if isinstance(flat.base, np.memmap):
        where = "on disk, for all processes of a machine" if distributed.active() else "on disk"
    return f"Decoded once: {flat.nbytes / 1e6:,.1f} MB {where}."


def takes_masks(plan: Plan) -> bool:
    """Whether some view is made with masks."""
    return any(view.background > 0 for view in (*plan.main, *plan.local))


def check_masks_serve(run: Run, rows: int) -> None:
    """Refuse masks for a plan without them, before anything is decoded."""
    plan = run.plan or replace(with_size(run, rows), init=None).build().plan()
    if not takes_masks(plan):
        raise ValueError(
            f"no view of {run.method} is made with masks, so they would change nothing. Leave "
            "--mask out, use RELICv2, or a plan with a background above 0."
        )


def with_size(run: Run, rows: int) -> Run:
    """Methods that remember every image are told how many there are."""
    if "size" in catalog.arguments(catalog.find(run.method)) and "size" not in run.method_args:
        return replace(run, method_args={**run.method_args, "size": rows})
    return run


def close(images: Images | np.ndarray) -> None:
    """End the threads that decode, where images are decoded when asked for."""
    for each in (images.images, images.masks) if isinstance(images, Masked) else (images,):
        if isinstance(each, Stream):
            each.close()
