"""erg pretrain: learn an encoder from images without labels."""

import time
from collections.abc import Callable, Collection, Sequence
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
        encoder: any timm architecture, or conv, resnet, sequence, mlp, identity, pixels.
        image_size: side of the encoder's input [pixels].
        early: share of it that views have as their side in the first half of training, for encoders
            that take any size: 0.75 makes for more steps in the same time, 1 for none.
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
        resume: a run folder to go on with, as it was begun; from here on it may have more --steps,
            another --seed, --lr, --weight-decay or --clip, and another --not-finite or --strategy.
        from_: a run.json to repeat; the same may be changed.
        dry_run: open 64 images, do one step, print what the run would need, and stop.
        report: write report.html at the end.
        max_skipped: largest share of unreadable files.
        cache_gb: largest size of all decoded images [GB], kept in one file for all processes of a
            machine; larger sets are decoded whenever they are used. A third of the free disk if not
            given.
    """

    data: Annotated[str | None, tyro.conf.Positional] = None
    out: Path | None = None
    method: str | None = None
    encoder: str | None = None
    image_size: int | None = None
    early: float = 1.0
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


THIS_SITTING = frozenset([
    "resume", "from", "data", "method", "device", "devices", "nodes", "dry_run", "report",
    "max_skipped", "cache_gb",
])  # fmt: skip
"""Options that are about this machine and this time, and serve every run, begun or not."""

OF_RUN, OF_OPTIMISER = ("steps", "seed", "strategy", "not_finite"), ("lr", "weight_decay", "clip")
"""What may be changed on the way: any checkpoint goes on with it."""


def named(arguments: Sequence[str]) -> dict[str, str]:
    """Options as they stand on the command line, by the name of their field."""
    found: dict[str, str] = {}
    for word in arguments:
        if word.startswith("--"):
            option = word.partition("=")[0]
            found[option.removeprefix("--").removeprefix("no-").replace("-", "_")] = option
    return found


def check(options: Options, arguments: Sequence[str]) -> None:
    """Whether every option that stands on the command line has a meaning there.

    Raises:
        ValueError: one would change nothing, or contradicts another.
    """
    lengths = [f"--{n}" for n in ("steps", "epochs", "minutes") if getattr(options, n) is not None]
    if len(lengths) > 1:
        raise ValueError(f"{' and '.join(lengths)} each say how long to train. Give one of them.")
    if options.resume is None and options.from_ is None:
        return
    if options.resume is not None and options.from_ is not None:
        raise ValueError("--resume goes on with a run and --from repeats one. Give one of them.")
    serve = {*THIS_SITTING, *OF_RUN, *OF_OPTIMISER}
    how = "--resume"
    if options.resume is None:
        serve, how = serve | {"out", "minutes"}, "--from"
    lost = [option for name, option in named(arguments).items() if name not in serve]
    if lost:
        raise ValueError(
            f"{', '.join(lost)} would change nothing: with {how} a run is as its run.json says. "
            "Leave out what is named here, or begin another run."
        )


def pretrain(options: Options, given: Given, arguments: list[str]) -> int:
    """Carry out the command; the exit code."""
    started = time.monotonic()
    check(options, arguments)
    from erg.train.launch import in_group, relaunch
    from erg.train.preempt import Leave

    if (options.devices > 1 or options.nodes > 1) and not in_group():
        return relaunch(["pretrain", *arguments], options.devices, options.nodes)
    with Leave():  # before and after training, which has a way of its own
        return _pretrain_here(options, given, arguments, started)


def _pretrain_here(options: Options, given: Given, arguments: list[str], started: float) -> int:
    """In this process, perhaps one of several."""
    from erg.commands.as_python import python_of
    from erg.commands.show import compiling, counting, tell, training
    from erg.train.fit import fit
    from erg.train.launch import leads

    run, why, source = plan(options, given, named(arguments))
    for line in why:
        tell(line)
    if source.kind == "image":
        compiling()
    if options.dry_run:
        from erg.commands.dry_run import dry_run

        return dry_run(run, source, minutes=options.minutes, device=options.device)
    tell(python_of(run, options.minutes))
    with counting("Reading images") as prepared, training() as show:
        fitted = fit(
            run, source, options.resume or options.out, minutes=options.minutes,
            resume=options.resume is not None, device=options.device, show=show, tell=tell,
            prepared=prepared, started=started, max_skipped=options.max_skipped,
            cache_gb=options.cache_gb,
        )  # fmt: skip
    tell(f"The encoder is in {fitted.folder}/encoder.")
    if leads() and options.report:
        finish(fitted, source, fitted.run.label)
    return 0


def plan(options: Options, given: Given, said: Collection[str]) -> tuple[Any, list[str], Any]:
    """The Run, why it is as it is, and the opened source.

    Args:
        options: of the command.
        given: arguments of method and encoder.
        said: fields of the options that stand on the command line.
    """
    from erg.data.source import open_source
    from erg.durable import read_json
    from erg.recipes.default import default
    from erg.schedule import Constant, Step
    from erg.train.folder import RunFolder
    from erg.train.run import Optimiser, Run

    if options.resume is not None or options.from_ is not None:
        if options.resume is not None:
            told = RunFolder(options.resume).read_run()
        else:
            told = read_json(Path(str(options.from_)))
        before = Run.from_json(told, method=options.method)
        if options.method not in (None, before.method):
            raise ValueError(
                f"the run's method is {before.method}, and --method can only repeat it (got "
                f"{options.method}). Leave it out, or begin another run."
            )
        run = changed(before, options, said)
        if options.data is not None:
            run = replace(run, data=options.data)
            if options.resume is None:  # the rows of a memory are those of the new data
                args = {name: value for name, value in run.method_args.items() if name != "size"}
                run = replace(run, method_args=args)
        if not run.data:
            raise ValueError("the run was made from data in memory. Name the data to use.")
        why = [f"As before: {run.method}, {run.encoder}.", *differences(before, run)]
        return run, why, open_source(run.data, label=run.label)
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
        resolution=Step(options.early, 1.0) if options.early != 1 else Constant(1.0),
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


def changed(run: Any, options: Options, said: Collection[str]) -> Any:
    """A run that was begun, with what is said to be otherwise from here on.

    Raises:
        ValueError: it is resumed and would be shorter.
    """
    steps = options.steps
    if options.resume is not None and steps is not None and steps < run.steps:
        raise ValueError(
            f"the run is to have {run.steps:,} steps, some of which are done: it can have more, "
            f"not fewer (got --steps {steps}). Begin another run for that."
        )
    of_run, of_optimiser = (
        {name: getattr(options, name) for name in names if name in said}
        for names in (OF_RUN, OF_OPTIMISER)
    )
    return replace(run, optimiser=replace(run.optimiser, **of_optimiser), **of_run)


def differences(before: Any, after: Any) -> list[str]:
    """What a run does otherwise than it did before, as lines of text."""
    pairs = [(name, before, after) for name in OF_RUN]
    pairs += [(name, before.optimiser, after.optimiser) for name in OF_OPTIMISER]
    return [
        f"Changed: {name} {getattr(b, name)}, which was {getattr(a, name)}."
        for name, a, b in pairs
        if getattr(a, name) != getattr(b, name)
    ]


def look(source: Any) -> Any:
    """What the default recipe wants to know of a source: a few images are opened for it."""
    import numpy as np
    import torch

    from erg.data.arrays import Tokens
    from erg.data.source import DataError
    from erg.recipes.default import Seen

    n = len(source)
    sides: list[int] = []
    reason = ""
    for i in np.linspace(0, n - 1, min(n, 32)).astype(int):
        try:
            item = source.read(int(i))
        except (ValueError, OSError) as error:
            reason = str(error).rstrip(".")
            continue
        if source.kind == "array":
            words = source.vocabulary if isinstance(source, Tokens) else 0
            wide = int(np.size(item))
            return Seen(n, 1, torch.cuda.is_available(), vectors=wide, vocabulary=words)
        sides.append(min(item.shape[:2]))
    if not sides:
        raise DataError(
            f"none of {min(n, 32)} items looked at could be read as an image (the last: {reason}). "
            "Check the data."
        )
    return Seen(n, int(np.median(sides)), torch.cuda.is_available())


def finish(fitted: Any, source: Any, label: str | None) -> None:
    """Score, draw and write the page.

    What was trained is there: scores that cannot be computed cost neither pictures nor page.
    """
    import json

    from erg.apply.embed import open_for
    from erg.apply.pictures import draw_pictures
    from erg.apply.scores import score
    from erg.commands.evaluate import print_scores
    from erg.commands.show import counting, tell, warn
    from erg.durable import write_atomically
    from erg.report.build import write_report
    from erg.train.data import with_masks

    with counting("Reading images") as progress:
        opened = open_for(fitted.encoder, source, label=label, progress=progress)
    if source.kind == "image":
        file = fitted.folder / "scores.json"
        try:
            scores = score(fitted, opened, label=label, tell=tell)
        except ValueError as error:
            file.unlink(missing_ok=True)  # of the run before it was resumed
            warn(
                f"Not scored: {error} The trained encoder is kept. Score it on other images, or by "
                f"other labels: erg evaluate {fitted.folder} DATA --label WHERE"
            )
        else:
            scores["data"] = fitted.run.data
            write_atomically(file, json.dumps(scores).encode())
            print_scores(scores)
    images = with_masks(fitted, opened.images, opened.manifest, source)
    draw_pictures(fitted, replace(opened, images=images), tell=tell)
    tell(f"Look at {write_report(fitted.folder)}")
