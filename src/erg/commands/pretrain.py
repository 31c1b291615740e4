"""erg pretrain: learn an encoder from images without labels."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro


def main(arguments: Sequence[str]) -> int:
    from erg.commands.options import (
        ENCODER_PREFIX,
        PREFIX,
        encoder_arguments,
        method_arguments,
        split_arguments,
    )

    mine, of_method = split_arguments(arguments, PREFIX)
    mine, of_encoder = split_arguments(mine, ENCODER_PREFIX)
    options = tyro.cli(Options, args=mine, prog="erg pretrain")
    given = Given(lambda method: method_arguments(method, of_method), encoder_arguments(of_encoder))
    return pretrain(options, given, list(arguments))


class Given(NamedTuple):
    """Arguments of the method and the encoder.

    Args:
        of_method: as the types of a method, which it is given by name, want them.
        of_encoder: by name.
    """

    of_method: Callable[[str | None], dict[str, Any]]
    of_encoder: dict[str, Any] | None


@dataclass(frozen=True)
class Options:
    """Learn an encoder from images without labels.

    Everything that is not said is chosen from what is seen, and printed with the reason. Arguments
    of the method follow its name: --method SimCLR --method.temperature 0.1 (see erg methods); so do
    those of the encoder: --encoder conv --encoder.width 32.

    Args:
        data: a folder, image, zip, tar, parquet, .npy or .txt file, or synthetic:N.
        out: the run folder; runs/METHOD-N if not given.
        method: a name (see erg methods), or path/to/file.py:ClassName.
        encoder: any timm architecture, or pixels, identity, mlp, sequence, conv.
        image_size: side of the encoder's input [pixels].
        init: weights to start from: a timm tag, `pretrained`, a .safetensors file or a folder.
        batch: images per step.
        accumulate: micro-batches per step, where a batch does not fit into memory.
        epochs: passes over the images.
        steps: optimiser steps, instead of epochs.
        minutes: measure, and do as many steps as fit [minutes].
        lr: peak learning rate.
        optimiser: adamw, sgd, lars or larc.
        weight_decay: per step and unit learning rate.
        clip: largest norm of the gradients; 0 for no clipping.
        label: where labels are found, for watching only: a parquet column, or `folder`.
        mask: masks of what stands out in the images, for methods that remove backgrounds (RELICv2):
            a parquet column, or a folder beside that of the images with masks of the same names.
        precision: auto takes bf16 where the processor has it.
        compile: compile the encoder with torch.compile: slower to start, faster on GPUs.
        recompute: compute the encoder's blocks again for the backward pass instead of keeping what
            is inside of them: less memory, a third more time.
        seed: of everything random.
        device: cpu, cuda or mps; chosen if not given.
        devices: processes on this machine.
        nodes: machines; start the same command on each under torchrun or SLURM.
        strategy: how processes share the work: ddp, each with the whole method, or fsdp, each with
            a share of every parameter of a ViT or RegNet.
        not_finite: what happens where the loss or a gradient is not a finite number: stop, skip the
            step, or rollback to the last whole hundredth of the run.
        resume: a run folder to go on with.
        from_: a run.json to repeat.
        dry_run: open 64 images, do one step, print what the run would need, and stop.
        report: write report.html at the end.
        max_skipped: largest share of unreadable files.
        cache_gb: largest size of all decoded images [GB] that are kept; larger sets are decoded
            whenever they are used. A third of the free disk if not given.
    """

    data: Annotated[str | None, tyro.conf.Positional] = None
    out: Path | None = None
    method: str | None = None
    encoder: str | None = None
    image_size: int | None = None
    init: str | None = None
    batch: int | None = None
    accumulate: int = 1
    epochs: float | None = None
    steps: int | None = None
    minutes: float | None = None
    lr: float | None = None
    optimiser: Literal["adamw", "sgd", "lars", "larc"] | None = None
    weight_decay: float | None = None
    clip: float = 0.0
    label: str | None = None
    mask: str | None = None
    precision: Literal["auto", "32", "bf16", "64"] = "auto"
    compile: bool = False
    recompute: bool = False
    seed: int = 0
    device: str | None = None
    devices: int = 1
    nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    not_finite: Literal["stop", "skip", "rollback"] = "stop"
    resume: Path | None = None
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    dry_run: bool = False
    report: bool = True
    max_skipped: float = 0.2
    cache_gb: float | None = None


def pretrain(options: Options, given: Given, arguments: list[str]) -> int:
    """Carry out the command; the exit code."""
    started = time.monotonic()
    from erg.commands.show import compiling, counting, tell, training
    from erg.train.launch import in_group, leads, relaunch

    if options.devices > 1 and not in_group():
        return relaunch(["pretrain", *arguments], options.devices, options.nodes)
    from erg.train.fit import fit, next_folder

    run, why, source = plan(options, given)
    for line in why:
        tell(line)
    if source.kind == "image":
        compiling()
    if options.dry_run:
        from erg.commands.dry_run import dry_run

        return dry_run(run, source)
    tell(python_of(run, options.minutes))
    out = options.resume or options.out or next_folder(run)
    with counting("Reading images") as prepared, training() as show:
        fitted = fit(
            run, source, out, minutes=options.minutes, resume=options.resume is not None,
            device=options.device, show=show, tell=tell, prepared=prepared, started=started,
            max_skipped=options.max_skipped, cache_gb=options.cache_gb,
        )  # fmt: skip
    tell(f"The encoder is in {fitted.folder}/encoder.")
    if leads() and options.report:
        finish(fitted, source, options.label)
    return 0


def plan(options: Options, given: Given) -> tuple[Any, list[str], Any]:
    """The Run, why it is as it is, and the opened source."""
    from erg.data.source import open_source
    from erg.durable import read_json
    from erg.recipes.default import default
    from erg.train.folder import RunFolder
    from erg.train.run import Optimiser, Run

    if options.resume is not None or options.from_ is not None:
        if options.resume is not None:
            told = RunFolder(options.resume).read_run()
        else:
            told = read_json(Path(str(options.from_)))
        run = Run.from_json(told, method=options.method)
        if options.data is not None:
            run = replace(run, data=options.data)
        if not run.data:
            raise ValueError("the run was made from data in memory. Name the data to use.")
        return (
            run,
            [f"As before: {run.method}, {run.encoder}."],
            open_source(run.data, label=run.label),
        )
    if options.data is None:
        raise ValueError("no data given. Write: erg pretrain FOLDER_OF_IMAGES")
    source = open_source(options.data, label=options.label)
    run, why = default(
        look(source),
        data=options.data,
        method=options.method,
        method_args=given.of_method(options.method),
        encoder=options.encoder,
        encoder_args=given.of_encoder,
        image_size=options.image_size,
        init=options.init,
        label=options.label,
        batch=options.batch,
        epochs=options.epochs,
        steps=options.steps,
        lr=options.lr,
        seed=options.seed,
        precision=options.precision,
        compile=options.compile,
        recompute=options.recompute,
        accumulate=options.accumulate,
    )
    changes: dict[str, Any] = {"clip": options.clip}
    if options.optimiser is not None:
        changes["name"] = options.optimiser
    if options.weight_decay is not None:
        changes["weight_decay"] = options.weight_decay
    optimiser = replace(run.optimiser, **changes)
    run = replace(
        run, optimiser=optimiser, strategy=options.strategy, mask=options.mask,
        not_finite=options.not_finite,
    )  # fmt: skip
    assert isinstance(run, Run)
    assert isinstance(run.optimiser, Optimiser)
    return run, [source.describe(), *why], source


def look(source: Any) -> Any:
    """What the default recipe wants to know of a source: a few images are opened for it."""
    import numpy as np
    import torch

    from erg.data.arrays import Tokens
    from erg.data.source import DataError
    from erg.recipes.default import Seen

    n = len(source)
    sides: list[int] = []
    for i in np.linspace(0, n - 1, min(n, 32)).astype(int):
        try:
            item = source.read(int(i))
        except ValueError:
            continue
        if source.kind == "array":
            words = source.vocabulary if isinstance(source, Tokens) else 0
            wide = int(np.size(item))
            return Seen(n, 1, torch.cuda.is_available(), vectors=wide, vocabulary=words)
        sides.append(min(item.shape[:2]))
    if not sides:
        raise DataError(
            f"none of {min(n, 32)} items looked at could be read as an image. Check the data."
        )
    return Seen(n, int(np.median(sides)), torch.cuda.is_available())


def python_of(run: Any, minutes: float | None) -> str:
    """The Python that does the same."""
    default = type(run)(method=run.method, encoder=run.encoder, image_size=run.image_size)
    told = [
        f"{name}={getattr(run, name)!r}"
        for name in type(run).__dataclass_fields__
        if name in ("method", "encoder", "image_size")
        or getattr(run, name) != getattr(default, name)
    ]
    limit = f", minutes={minutes:g}" if minutes else ""
    return f"In Python: erg.fit(erg.Run({', '.join(told)}){limit})"


def finish(fitted: Any, source: Any, label: str | None) -> None:
    """Score, draw and write the page."""
    import json

    from erg.apply.embed import open_for
    from erg.apply.pictures import draw_pictures
    from erg.apply.scores import score
    from erg.commands.evaluate import print_scores
    from erg.commands.show import counting, tell
    from erg.durable import write_atomically
    from erg.report.build import write_report
    from erg.train.fit import with_masks

    with counting("Reading images") as progress:
        opened = open_for(fitted.encoder, source, label=label, progress=progress)
    if source.kind == "image":
        scores = score(fitted, opened, label=label, tell=tell)
        scores["data"] = fitted.run.data
        write_atomically(fitted.folder / "scores.json", json.dumps(scores).encode())
        print_scores(scores)
    images = with_masks(fitted, opened.images, opened.manifest, source)
    draw_pictures(fitted, replace(opened, images=images), tell=tell)
    tell(f"Look at {write_report(fitted.folder)}")
