"""fit: from a Run and its data to a trained method in a run folder."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from erg import catalog, distributed
from erg.data.cache import Cache, Share, default_budget, open_images, open_vectors
from erg.data.loader import Images
from erg.data.manifest import Manifest
from erg.data.masked import Masked, masks_of, open_masks
from erg.data.source import DataError, Source, open_source
from erg.data.splits import hold_out
from erg.data.stream import Stream
from erg.encoders import Encoder, load_encoder, save_encoder
from erg.method import Method
from erg.train.checkpoint import load_checkpoint
from erg.train.features import at_once, device_of, features, whole_images
from erg.train.folder import RunFolder
from erg.train.health import HELD_EPOCH, Health, Observer, record_energies
from erg.train.launch import in_group, leads, relaunch, restarted
from erg.train.loop import Data, Loop
from erg.train.preempt import INTERRUPTED, STOPPED, Leave, Stopped
from erg.train.processes import (
    fabric_for,
    leave_group,
    machine,
    once_a_machine,
    several_processes,
)
from erg.train.run import Run, environment
from erg.train.shortcut import Shortcut
from erg.train.training import Progress, measured, train
from erg.views.pixels import Pixels
from erg.views.plan import Plan


@dataclass(frozen=True)
class Fitted:
    """A trained method and where it lies.

    Args:
        run: what was done.
        folder: of the run.
        method: trained, in evaluation mode.
    """

    run: Run
    folder: Path
    method: Method

    @property
    def encoder(self) -> Encoder:
        """The trained encoder alone."""
        return self.method.encoder

    def embed(self, images: np.ndarray | Sequence[Image.Image | np.ndarray]) -> np.ndarray:
        """Vectors [n d] of uint8 images [n h w 3], of a list of them or of PIL images."""
        arrays = [np.asarray(i.convert("RGB") if isinstance(i, Image.Image) else i) for i in images]
        for array in arrays:
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
                raise ValueError(
                    f"embed takes uint8 images [h w 3] (got {array.dtype} {list(array.shape)}). "
                    "Convert them, or give PIL images."
                )
        device = device_of(self.method)
        encoder = self.method.encoder
        views = whole_images(
            InMemory(arrays), np.arange(len(arrays)), image_size=encoder.image_size,
            mean=encoder.mean, std=encoder.std,
        )  # fmt: skip
        autocast = self.run.autocast(device)
        return features(self.method.encode, self.method, views, device=device, autocast=autocast)


class InMemory:
    """Decoded images of any sizes as a source of pixels."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.packed = Pixels.pack(arrays)

    def pixels(self, rows: np.ndarray) -> Pixels:
        p = self.packed
        return Pixels(p.flat, p.offset[rows], p.height[rows], p.width[rows])


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

    Images, and their masks if there are any, are kept at twice the encoder's size (shorter side),
    enough for crops of a quarter of the area at full sharpness. Of several processes, whose group
    has to be there, the first of each machine decodes them, and all read its file.
    """
    frozen = Manifest.load(folder.manifest) if resume and folder.manifest.exists() else None
    number, ranks = machine()
    file, machines = folder.cache(number), distributed.world() // len(ranks)
    if budget is None and machines > 1:  # which may have the folder, and so its disk, in common
        budget = default_budget(file) // machines
    manifest, images = open_items(
        source,
        short_side=_short_side(image_size),
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
            images, manifest, masks, short_side=_short_side(image_size),
            file=file.with_name(f"{file.name}.masks"), budget=budget,
            found=Manifest.load(_masks_file(folder)) if frozen is not None else None,
            share=once_a_machine, progress=progress,
        )  # fmt: skip
    chosen, held = hold_out(manifest, share=0.05, at_most=hold)
    labels = manifest.labels[0] if label is not None else None
    return Data(images, chosen, held, labels, manifest.hashes[held]), manifest


def _short_side(image_size: int) -> int:
    return max(64, 2 * image_size)


def _masks_file(folder: RunFolder) -> Path:
    return folder.path / "masks.parquet"


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
        short_side=_short_side(fitted.run.image_size),
        found=Manifest.load(_masks_file(RunFolder(fitted.folder))),
    )  # fmt: skip


def open_items(
    source: Source,
    *,
    short_side: int,
    file: Path | None = None,
    budget: int | None = None,
    max_skipped: float = 0.2,
    max_lost: float = 0.0,
    manifest: Manifest | None = None,
    share: Share | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Manifest, Images | np.ndarray]:
    """The manifest of a source, and its images (for sources of vectors or tokens, these [n d])."""
    if source.kind == "array":
        return open_vectors(source, max_skipped=max_skipped, manifest=manifest, progress=progress)
    return open_images(
        source,
        short_side=short_side,
        file=file,
        budget=budget,
        max_skipped=max_skipped,
        max_lost=max_lost,
        manifest=manifest,
        share=share,
        progress=progress,
    )


def fit(
    run: Run,
    data: Any = None,
    out: str | Path | None = None,
    *,
    observers: Sequence[Observer] | None = None,
    minutes: float | None = None,
    resume: bool = False,
    device: str | None = None,
    devices: int = 1,
    show: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
    prepared: Callable[[int, int], None] | None = None,
    started: float | None = None,
    max_skipped: float = 0.2,
    cache_gb: float | None = None,
) -> Fitted:
    """Train, and leave everything about it in a folder.

    Args:
        run: what to do.
        data: what to train on, if not `run.data`: anything `open_source` opens.
        out: the run folder; by default runs/NAME-N.
        observers: who watches; by default `Shortcut` and `Health`.
        minutes: if given, the number of steps is measured to fit and frozen before the first.
        resume: go on from the newest checkpoint.
        device: cpu, cuda or mps; by default what is there.
        devices: processes on this machine. More than one are started by torch.distributed.run, read
            the data by its name, and print what they have to say.
        show: called with progress.
        tell: called with lines worth printing.
        prepared: called with (images looked at, images in all) while data are opened.
        started: `time.monotonic()` from which `minutes` count; by default the call.
        max_skipped: largest share of items that may be unreadable before the run stops, or vanish
            or change while it reads them again.
        cache_gb: largest size of all decoded images [GB], kept in one file for all processes of a
            machine; larger sets are decoded whenever they are used. By default a third of the free
            disk.

    Raises:
        ValueError: the run, its data or the folder are not usable; the text says what to do.
        Stopped: a signal asked for it; resumable.
        Diverged: the loss is not finite.
        Lost: another process has died or does not answer.
    """
    if devices > 1 and not in_group():
        options = {
            "--minutes": None if resume else minutes, "--device": device,
            "--max-skipped": max_skipped, "--cache-gb": cache_gb,
        }  # fmt: skip
        if data is not None or observers is not None or show is not None or prepared is not None:
            raise ValueError(
                f"{devices} processes take their data from run.data and have no observers or "
                "callbacks from here. Leave data, observers, show and prepared out."
            )
        return _in_processes(run, Path(out) if out else next_folder(run), devices, resume, options)
    started = time.monotonic() if started is None else started
    tell = tell or (lambda _: None)
    where = torch.device(device) if device else None
    folder = RunFolder(Path(out) if out is not None else _free_folder(run, where))
    lead = leads()  # the process group starts later
    # torchrun starts the same command again after a process has died. A run that never came to its
    # first step is begun.
    resume = (resume or restarted()) and folder.run_file.exists()
    if resume and minutes is not None:
        run = replace(run, steps=folder.read_run()["steps"])  # as they were measured
    if folder.run_file.exists() and not resume:
        raise ValueError(
            f"{folder.path} already holds a run. Go on with it (--resume {folder.path}), or choose "
            "another folder (--out)."
        )
    with Leave():  # while nothing is to be saved; the loop has its own way
        if lead:
            folder.lock()
        try:
            source = data if isinstance(data, Source) else None
            source = source or open_source(run.data if data is None else data, label=run.label)
            masks = None if run.mask is None else masks_of(source, run.mask)
            if masks is not None:
                check_masks_serve(run, len(source))
            if several_processes():
                fabric_for(where)  # they join: the first of a machine decodes for all
            with distributed.counting_on_others():
                opened, manifest = open_data(
                    source, folder, image_size=run.image_size, label=run.label, masks=masks,
                    hold=run.hold_out, max_skipped=max_skipped, resume=resume, progress=prepared,
                    budget=None if cache_gb is None else int(cache_gb * 1e9),
                )  # fmt: skip
                tell(manifest.summary())
                tell(_kept(opened.images))
                run = with_size(run, len(manifest))
                loop = Loop(
                    run, opened, device=where, like=_begun_with(run, folder) if resume else None
                )
                _check_same(manifest)
            if isinstance(opened.images, Masked):
                tell(opened.images.summary())
            elif _takes_masks(loop.loader.plan):
                tell("Backgrounds stay in all views, since no masks were given (--mask).")
            try:
                watching = (Shortcut(), Health()) if observers is None else observers
                if minutes is not None and not resume:
                    loop.run = run = measured(run, loop, minutes, started, watching)
                    loop.loader.side_at = run.side
                    tell(f"{run.steps} steps fit into {minutes:g} minutes on this machine.")
                first = loop.whole()
                if lead:
                    manifest.save(folder.manifest)
                    if isinstance(opened.images, Masked):
                        opened.images.found.save(_masks_file(folder))
                    folder.write_run({**run.to_json(), "environment": environment()})
                    # Also of a run that was killed before it came here: nothing is loaded yet.
                    if not (folder.encoder_start / "config.json").exists():
                        save_encoder(first.encoder, folder.encoder_start)
                    if not (folder.path / "pictures" / "energies.json").exists():
                        _record_start(loop, folder)
                del first  # a copy of everything, where processes hold shares
                method = train(
                    loop, folder, observers=watching, show=show, tell=tell, resume=resume
                )
                if lead:
                    save_encoder(method.encoder, folder.encoder)
                if distributed.rank() == machine()[1][0]:
                    folder.drop_cache()  # a machine may have a folder of its own
                return Fitted(run, folder.path, method.eval())
            finally:
                loop.close()
        finally:
            leave_group()
            folder.unlock()


def _free_folder(run: Run, device: torch.device | None) -> Path:
    """`next_folder`, the same for all processes.

    Raises:
        ValueError: torchrun has started them again, and nobody knows where they began.
    """
    if not several_processes():
        return next_folder(run)
    if restarted():
        raise ValueError(
            "processes that are started again have to know the folder of their run. Name it with "
            "--out."
        )
    fabric_for(device)
    chosen = [str(next_folder(run))]
    torch.distributed.broadcast_object_list(chosen)
    return Path(chosen[0])


def _check_same(manifest: Manifest) -> None:
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


def _kept(images: Images | np.ndarray) -> str:
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


def _takes_masks(plan: Plan) -> bool:
    return any(view.background > 0 for view in (*plan.main, *plan.local))


def check_masks_serve(run: Run, rows: int) -> None:
    """Refuse masks for a plan without them, before anything is decoded."""
    plan = run.plan or replace(with_size(run, rows), init=None).build().plan()
    if not _takes_masks(plan):
        raise ValueError(
            f"no view of {run.method} is made with masks, so they would change nothing. Leave "
            "--mask out, use RELICv2, or a plan with a background above 0."
        )


def with_size(run: Run, rows: int) -> Run:
    """Methods that remember every image are told how many there are."""
    if "size" in catalog.arguments(catalog.find(run.method)) and "size" not in run.method_args:
        return replace(run, method_args={**run.method_args, "size": rows})
    return run


def _in_processes(
    run: Run, folder: Path, devices: int, resume: bool, options: dict[str, Any]
) -> Fitted:
    """The same run in several processes, started as the command line starts them."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "run.json"
        file.write_text(json.dumps(run.to_json()))
        arguments = ["--resume", str(folder)] if resume else ["--from", str(file), "--out"]
        arguments += [] if resume else [str(folder)]
        for name, value in options.items():
            arguments += [] if value is None else [name, str(value)]
        command = ["pretrain", *arguments, "--method", run.method, "--no-report"]
        code = relaunch(command, devices)
    if code in (STOPPED, INTERRUPTED):
        built = _rebuilt(run, RunFolder(folder))
        saved = load_checkpoint(RunFolder(folder).checkpoints, built, None)
        raise Stopped(code, saved.step if saved else 0)
    if code:
        raise RuntimeError(f"the processes left with {code}. What they printed says why.")
    return load(folder, method=run.method)


def _record_start(loop: Loop, folder: RunFolder) -> None:
    """Energies before training, for the page to set beside those after."""
    if len(loop.data.held) < 4 or distributed.active():
        return
    pictures = folder.path / "pictures"
    pictures.mkdir(exist_ok=True)
    few = at_once(512, loop.loader.image_size, loop.loader.mean)
    views = loop.loader.make(loop.data.held[:few], epoch=HELD_EPOCH)
    (pictures / "energies.json").unlink(missing_ok=True)
    record_energies(pictures / "energies.json", loop.method, views, "before")


def load(path: str | Path, *, method: str | None = None, device: str = "cpu") -> Fitted:
    """A finished or stopped run from its folder, with the weights of its newest checkpoint.

    Raises:
        ValueError: no run folder, or no checkpoint.
    """
    folder = RunFolder(Path(path))
    run = Run.from_json(folder.read_run(), method=method)
    built = _rebuilt(run, folder, device)
    if load_checkpoint(folder.checkpoints, built, None) is None:
        raise ValueError(f"{path} has no checkpoint yet. Let the run reach its first one.")
    return Fitted(run, folder.path, built.eval())


def _begun_with(run: Run, folder: RunFolder) -> Encoder | None:
    """The encoder that a run started from, where it was one that has come from elsewhere."""
    if run.init is None or not (folder.encoder_start / "config.json").exists():
        return None
    return load_encoder(folder.encoder_start)


def _rebuilt(run: Run, folder: RunFolder, device: str = "cpu") -> Method:
    """The method of a run, whose weights a checkpoint holds."""
    return replace(run, init=None).build(device, like=_begun_with(run, folder))


def next_folder(run: Run) -> Path:
    """The first of runs/METHOD-1, runs/METHOD-2, ... that is not there."""
    name = run.method.rsplit(":", 1)[-1].lower()
    number = 1
    while (path := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return path
