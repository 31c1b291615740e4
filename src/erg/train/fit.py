"""fit: from a Run and its data to a trained method in a run folder."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from erg import distributed
from erg.allocator import blocks_kept
from erg.data.masked import Masked, masks_of
from erg.data.source import Source, open_source
from erg.encoders import save_encoder
from erg.train.checkpoint import load_checkpoint
from erg.train.data import (
    check_masks_serve,
    check_same,
    close,
    open_data,
    takes_masks,
    where_kept,
    with_size,
)
from erg.train.features import at_once
from erg.train.fitted import Fitted, begun_with, load, rebuilt
from erg.train.folder import RunFolder
from erg.train.health import HELD_EPOCH, Health, Observer, record_energies
from erg.train.launch import in_group, leads, relaunch, restarted
from erg.train.loop import Loop
from erg.train.preempt import INTERRUPTED, STOPPED, Leave, Stopped
from erg.train.processes import (
    fabric_for,
    leave_group,
    machine,
    several_processes,
)
from erg.train.run import Run, environment
from erg.train.shortcut import Shortcut
from erg.train.training import Progress, measured, train


@blocks_kept()
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
        if data is not None or observers is not None or show is not None or prepared is not None:
            raise ValueError(
                f"{devices} processes take their data from run.data and have no observers or "
                "callbacks from here. Leave data, observers, show and prepared out."
            )
        place = Path(out) if out is not None else next_folder(run)
        resume = resume and RunFolder(place).run_file.exists()
        options: dict[str, Any] = {
            "--device": device, "--max-skipped": max_skipped, "--cache-gb": cache_gb,
            **(_changeable(run, minutes) if resume else {"--minutes": minutes}),
        }  # fmt: skip
        return _in_processes(run, place, devices, resume, options)
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
                tell(where_kept(opened.images))
                run = with_size(run, len(manifest))
                loop = Loop(
                    run, opened, device=where, like=begun_with(run, folder) if resume else None
                )
                check_same(manifest)
            if isinstance(opened.images, Masked):
                tell(opened.images.summary())
            elif takes_masks(loop.loader.plan):
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
                        opened.images.found.save(folder.masks)
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
                close(opened.images)
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


def _changeable(run: Run, minutes: float | None) -> dict[str, Any]:
    """What may be otherwise from here on in a run that is gone on with, as options; steps that were
    measured to fit minutes stay."""
    how = run.optimiser
    return {
        "--steps": run.steps if minutes is None else None, "--seed": run.seed, "--lr": how.lr,
        "--weight-decay": how.weight_decay, "--clip": how.clip, "--strategy": run.strategy,
        "--not-finite": run.not_finite,
    }  # fmt: skip


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
        kept = RunFolder(folder)
        if kept.run_file.exists():  # it knows how many rows a memory has
            run = Run.from_json(kept.read_run(), method=run.method)
        saved = load_checkpoint(kept.checkpoints, rebuilt(run, kept), None)
        raise Stopped(code, saved.step if saved else None)
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


def next_folder(run: Run) -> Path:
    """The first of runs/METHOD-1, runs/METHOD-2, ... that is not there."""
    name = run.method.rsplit(":", 1)[-1].lower()
    number = 1
    while (path := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return path
