"""The loop: from a Run to a trained method, exactly repeatable and resumable at any step."""

import copy
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import nn

from erg import distributed
from erg.data.cache import Masked, Stream
from erg.data.loader import Images, Loader
from erg.data.source import DataError
from erg.method import Loss, Method
from erg.train.checkpoint import Diverged, load_checkpoint, save_checkpoint, state_hash
from erg.train.features import computing_in, features, plain_attention, whole_images
from erg.train.folder import RunFolder
from erg.train.health import Health, Observer, Watched
from erg.train.log import Clock, Log, diverged
from erg.train.optim import build_optimiser
from erg.train.preempt import Stopped, Watch
from erg.train.run import Run, Strategy
from erg.train.sharding import check_shardable, shard, whole
from erg.train.shards import local
from erg.train.shortcut import Shortcut
from erg.views.kernels import compile_kernels
from erg.views.random import Purpose, bits
from erg.views.types import Views

PATIENCE = "ERG_TIMEOUT"
"""Environment variable: how long processes wait for each other [seconds]."""

IN_A_ROW = 10
"""Steps that may be left out one after another; a run that needs more has diverged."""

RETURNS = 100
"""Places in a run that it can go back to, evenly spaced, the start among them."""


@dataclass(frozen=True)
class Data:
    """What a run trains on.

    Args:
        images: decoded images by row of the manifest, or vectors [n d].
        train: rows to train on.
        held: rows held out for watching.
        labels: class number per row, -1 for none; for watching only.
    """

    images: Images | np.ndarray
    train: np.ndarray
    held: np.ndarray
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Progress:
    """Where training is, for whoever shows it.

    Args:
        step: optimiser steps done.
        steps: in all.
        images_per_second: over the last second or so, of all processes.
        loss: the last loss logged, by part.
        health: the last look of an observer.
    """

    step: int
    steps: int
    images_per_second: float
    loss: dict[str, float]
    health: dict[str, Any]


class Loop:
    """One run on one process: its method, optimiser and loader, and the steps between them.

    Args:
        run: what to do.
        data: what to train on.
        device: where; None takes the first accelerator, or the CPU.
        threads: that make views.
    """

    def __init__(
        self, run: Run, data: Data, *, device: torch.device | None = None, threads: int = 2
    ) -> None:
        self.run, self.data = run, data
        self.fabric = _fabric(device, run.strategy)
        self.device = self.fabric.device
        self.method = run.build(self.device)
        self.wrapped: Any = None
        self.sharded = run.strategy == "fsdp" and distributed.active()
        if self.sharded:
            check_shardable(self.method)
            self.wrapped = self.fabric.setup_module(self.method)  # before the optimiser sees it
        self.optimiser = build_optimiser(run.optimiser, self.method)
        self.autocast = run.autocast(self.device)
        encoder = self.method.encoder
        if not isinstance(data.images, np.ndarray):
            _compile_in_turn(self.device)
        self.loader = Loader(
            data.images, data.train, run.plan or self.method.plan(), batch=run.batch,
            seed=run.seed, image_size=run.image_size, mean=encoder.mean, std=encoder.std,
            rank=distributed.rank(), world=distributed.world(), accumulate=run.accumulate,
            threads=threads,
            # A quarter of the bytes cross to an accelerator, which normalises them there.
            output="float32" if self.device.type == "cpu" else "uint8",
            pin=self.device.type == "cuda",
        )  # fmt: skip
        if len(data.train) < 2:
            raise ValueError(
                f"training needs at least 2 images (got {len(data.train)}). Add more images."
            )
        self.step_loss = self._set_up()
        self.clusters = type(self.method).after_epoch is not Method.after_epoch

    def _set_up(self) -> Callable[[Views, float], Loss]:
        """`loss` through data-parallel training where there are several processes."""
        if self.run.compile:
            self.method.encoder.compile()  # in place: the names of its weights stay
        if not distributed.active() or self.optimiser is None:
            return self.method.loss
        if self.sharded:
            return self.method.loss
        with warnings.catch_warnings():
            # Newer torch renames the option and has no other way yet to leave buffers alone.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            self.wrapped, optimiser = self.fabric.setup(self.method, self.optimiser)
        self.wrapped.mark_forward_method("loss")
        self.optimiser = optimiser.optimizer
        return lambda views, progress: self.wrapped.loss(views, progress)

    def whole(self) -> Method:
        """The method with all of its parameters, for which all processes have to ask: a copy where
        they hold shares."""
        if not self.sharded:
            return self.method
        copied = replace(self.run, init=None).build(self.device)
        copied.load_state_dict({k: whole(t) for k, t in self.method.state_dict().items()})
        return copied

    def seed(self, step: int, micro: int, what: int) -> None:
        """So that no generator's state has to be saved: it is a function of the step."""
        key = bits(self.run.seed, Purpose.STEP, step, distributed.rank(), micro, what)
        torch.manual_seed(int(key) >> 1)

    def step(self, step: int, batches: Sequence[Views]) -> dict[str, torch.Tensor]:
        """One optimiser step; parts of the loss, still on the device.

        Raises:
            Diverged: the loss or a gradient is not finite, on whichever process. Parameters are
                untouched, and so are buffers unless the run is to stop.
        """
        progress = step / self.run.steps
        self.method.train()
        before = {} if self.run.not_finite == "stop" else self._buffers()
        parts: dict[str, torch.Tensor] = {}
        for micro, views in enumerate(batches):
            views = self._to_device(views)
            self.seed(step, micro, 0)
            with self._keep_gradients(micro == len(batches) - 1), self._attention():
                with computing_in(self.device, self.autocast):
                    loss = self.step_loss(views, progress)
                total = loss.total / len(batches)
                if total.requires_grad:
                    self.fabric.backward(total)
            for kind, named in (("pull", loss.pull), ("push", loss.push)):
                for name, value in named.items():
                    key = f"{kind}/{name}"
                    share = value.detach() / len(batches)
                    parts[key] = parts[key] + share if key in parts else share
        for parameter in self.method.frozen(progress):
            parameter.grad = None
        self._check(step, parts, before)
        parts |= self._optimise(progress)
        self.seed(step, 0, 1)
        self.method.after_step(progress)
        return parts

    def _attention(self) -> AbstractContextManager[None]:
        return plain_attention(self.method.encoder, self.device, self.autocast)

    def _keep_gradients(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients cross processes once per optimiser step, with its last micro-batch."""
        if self.wrapped is None:
            return nullcontext()
        return self.fabric.no_backward_sync(self.wrapped, enabled=not last)

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Copies of what `Method.loss` may change."""
        return {name: held.detach().clone() for name, held in self.method.named_buffers()}

    def _check(
        self, step: int, parts: dict[str, torch.Tensor], before: dict[str, torch.Tensor]
    ) -> None:
        """Whether loss and gradients are finite everywhere; if not, the step leaves no trace."""
        if self.run.not_finite == "stop" and self.device.type != "cpu" and not distributed.active():
            return  # what is logged is looked at without waiting for the device
        gradients = [local(p.grad) for p in self.method.parameters() if p.grad is not None]
        seen = sum(parts.values(), nn.utils.get_total_norm(gradients))
        if not distributed.agree(not bool(seen.isfinite()), self.device):
            return
        lost = [name for name, value in parts.items() if not bool(value.isfinite())]
        what = "a gradient" if not lost else "the loss"
        for name, parameter in self.method.named_parameters() if not lost else ():
            if parameter.grad is not None and not bool(local(parameter.grad).isfinite().all()):
                lost = [name]  # the first is enough: the others mostly follow from it
                break
        self.method.zero_grad(set_to_none=True)
        if before:
            for name, held in self.method.named_buffers():
                held.copy_(before[name])
        elsewhere = "of another process" if distributed.active() else "all of them together"
        raise diverged(what, step, lost or [elsewhere])

    def _optimise(self, progress: float) -> dict[str, torch.Tensor]:
        if self.optimiser is None:
            return {}
        seen: dict[str, torch.Tensor] = {}
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        if self.run.optimiser.clip:
            norm = nn.utils.clip_grad_norm_(trained, self.run.optimiser.clip)
            seen["grad_norm"] = whole(norm)
        rate = self.run.optimiser.learning_rate(progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return seen

    def _to_device(self, views: Views) -> Views:
        dtype = torch.float64 if self.run.precision == "64" else torch.float32
        if self.device.type == "cpu" and dtype == torch.float32:
            return views
        return views.to(device=self.device, dtype=dtype, non_blocking=True)

    def after_epoch(self) -> None:
        """Give methods with closed forms or clustering the features of every training image."""
        if not self.clusters:
            return
        rows = self.data.train[distributed.rank() :: distributed.world()]
        encoder = self.method.encoder
        views = whole_images(
            self.data.images, rows, image_size=self.run.image_size,
            mean=encoder.mean, std=encoder.std,
        )  # fmt: skip
        mine = features(encoder, encoder, views, device=self.device, autocast=self.autocast)
        dtype = next((p.dtype for p in self.method.parameters()), torch.float32)
        everyone = distributed.gather(torch.from_numpy(mine).to(self.device, dtype))
        self.method.after_epoch(everyone)

    def trial(self, steps: int = 8, lasting: float = 3.0) -> float:
        """Seconds per step, measured on a throw-away copy of all state.

        The first steps warm caches up and do not count; the median of the others does, and for
        methods that do something after an epoch a step's share of it.

        Args:
            steps: at least so many.
            lasting: and as many as fill so long [s].
        """
        method, optimiser = self.method, self.optimiser
        kept = copy.deepcopy(method.state_dict())
        kept_optimiser = copy.deepcopy(optimiser.state_dict()) if optimiser else None
        seconds: list[float] = []
        while len(seconds) < steps or distributed.agree(sum(seconds) < lasting, self.device):
            start = time.perf_counter()
            step = len(seconds) % max(1, min(self.loader.steps_per_epoch, self.run.steps))
            with suppress(Diverged):  # the run will come to it and say so
                self.step(step, self.loader.batches(step))
            seconds.append(time.perf_counter() - start)
        epoch = 0.0
        if self.clusters:
            self.after_epoch()  # the first is the start of a clustering, not one of its steps
            start = time.perf_counter()
            self.after_epoch()
            epoch = time.perf_counter() - start
        method.load_state_dict(kept)
        if optimiser is not None and kept_optimiser is not None:
            optimiser.load_state_dict(kept_optimiser)
        return float(np.median(seconds[3:])) + epoch / self.loader.steps_per_epoch

    def close(self) -> None:
        """End the loader's threads."""
        self.loader.close()


@distributed.counting_on_others()
def train(
    loop: Loop,
    folder: RunFolder,
    *,
    observers: Sequence[Observer] = (),
    show: Callable[[Progress], None] | None = None,
    tell: Callable[[str], None] | None = None,
    resume: bool = False,
) -> Method:
    """All steps of a run, from the start or from the newest whole checkpoint.

    Args:
        loop: of the run.
        folder: where it is written.
        observers: who watches.
        show: called with progress.
        tell: called with lines worth printing.
        resume: go on from the newest checkpoint that is whole.

    Raises:
        Stopped: a signal asked for it; the state is saved.
        Diverged: the loss or a gradient is not finite and the run is to stop, or it was so too
            often; nothing after the last checkpoint is kept.
        Lost: another process has died or does not answer; nothing after the last checkpoint is
            kept.
    """
    run, writes = loop.run, distributed.rank() == 0
    restored = load_checkpoint(folder.checkpoints, loop.method, loop.optimiser) if resume else None
    done = restored.step if restored else 0
    if restored and restored.skipped and tell is not None:
        tell(f"Damaged, so left out: {', '.join(restored.skipped)}. Going on from step {done}.")
    if writes:
        folder.truncate(done or -1)
    watched = _watched(run, loop, folder.first("health"))
    for observer in observers:
        observer.start(watched)
    # Where a run goes back to is a function of the step, not of when it was saved or resumed.
    part = max(1, run.steps // RETURNS) if run.not_finite == "rollback" else 0
    clock = Clock(folder, writes)
    log = Log(folder, writes, run)
    health: dict[str, Any] = {}
    log_every = max(1, run.steps // 2000)

    def look(step: int) -> None:
        for observer in observers:
            if observer.due(step):
                log.write()
                # Every rank looks, since a method may speak with the others; rank 0 writes.
                seen = observer.look(loop.whole(), step)
                health.update(seen)
                if writes:
                    folder.event(step, **seen)

    def save(step: int) -> None:
        log.write()
        if writes:
            folder.flush()
        if writes or loop.sharded:
            save_checkpoint(
                folder.checkpoints, step, loop.method, loop.optimiser, writes=writes,
                keep=step // part * part if part else None,
            )  # fmt: skip
        _assert_equal_ranks(loop.method)

    lost = 0

    def count_lost() -> None:
        nonlocal lost
        mine = _lost(loop.data.images)
        everyone = sum(distributed.counts(len(mine), loop.device))
        if everyone > lost:
            lost = everyone
            said = f"{lost} images vanished or changed, and others stood in for them."
            said += f" The last: {list(mine.values())[-1]}" if mine else ""
            if writes:
                folder.event(done, "lost", images=lost, warning=said)
            if tell is not None:
                tell(said)

    def leave_out(step: int, why: Diverged) -> None:
        """Go on without a step; where the run is to go back, with what was there before it."""
        what = str(why).partition(". ")[0]
        said = f"{what[0].upper()}{what[1:]}; the step was left out."
        if part:
            start = step // part * part
            back = load_checkpoint(folder.checkpoints, loop.method, loop.optimiser, until=start)
            if back is None:
                raise why
            if back.step == 0:
                loop.after_epoch()  # as at the start: the first checkpoint is from before it
            said += f" The weights are those after step {back.step} again."
        if writes:
            folder.event(step + 1, "left out", warning=said)
        if tell is not None:
            tell(said)

    if done == 0:
        if part:
            save(0)
        loop.after_epoch()
    with Watch() as watch:
        if done == 0:
            look(0)
        depth, in_a_row = 0 if loop.device.type == "cpu" else 2, 0
        for step, batches in loop.loader.ahead(done, run.steps, depth):
            parts: dict[str, torch.Tensor] = {}
            try:
                parts = loop.step(step, batches)
                in_a_row = 0
            except Diverged as why:
                in_a_row += 1
                if run.not_finite == "stop" or in_a_row > IN_A_ROW:
                    raise
                leave_out(step, why)
            done = step + 1
            if done % log_every == 0 or done == run.steps or done == 1:
                clock.images = loop.loader.batch * log_every
                if parts:
                    log.take(step, parts)
                count_lost()
                speed = clock.tick(done)
                if show is not None and writes:
                    show(Progress(done, run.steps, speed, log.last, dict(health)))
            if done % loop.loader.steps_per_epoch == 0:
                loop.after_epoch()
            look(done)
            stop = distributed.agree(watch.code != 0, loop.device)
            if (
                stop
                or done == run.steps
                or (part and done % part == 0)
                or distributed.agree(
                    clock.since_saving() > 60 * run.checkpoint_minutes, loop.device
                )
            ):
                save(done)
                clock.saved()
            if stop and done < run.steps:
                raise Stopped(watch.code or 75, done)
    if done == 0 or not folder.checkpoints.exists():
        save(done)
    return loop.whole()


@distributed.counting_on_others()
def measured(
    run: Run, loop: Loop, minutes: float, started: float, observers: Sequence[Observer] = ()
) -> Run:
    """The run with as many steps as fit into `minutes`, of which some are gone.

    A twentieth is kept for saving. What `Health` and `Shortcut` take is measured too, on copies of
    them: with a large encoder a look at the held-out images lasts as long as many steps.

    Args:
        run: whose steps are counted.
        loop: of the run.
        minutes: in all [minutes].
        started: `time.monotonic()` from which they count.
        observers: who will watch.
    """
    seconds = float(distributed.mean(torch.tensor([loop.trial()])))
    whole = 0.95 * 60 * minutes
    steps = max(1, int(whole / seconds))
    looks = 0.0
    for observer in observers:
        if isinstance(observer, Health | Shortcut):
            own = copy.copy(observer)
            own.start(_watched(replace(loop.run, steps=steps), loop))
            for step in (0, 1) if own.due(0) else ():  # the first look is a longer one
                start = time.monotonic()
                own.look(loop.whole(), step)
                due = 1 if step == 0 else sum(own.due(later) for later in range(1, steps + 1))
                looks += (time.monotonic() - start) * due
    left = whole - looks - (time.monotonic() - started)
    left = float(distributed.mean(torch.tensor([left])))
    return replace(run, steps=max(1, int(left / seconds)))


def _lost(images: Images | np.ndarray) -> dict[int, DataError]:
    """Why images are lost that were readable at first."""
    read = images.images if isinstance(images, Masked) else images
    return read.lost if isinstance(read, Stream) else {}


def _watched(run: Run, loop: Loop, before: dict[str, Any] | None = None) -> Watched:
    return Watched(
        loop.loader, loop.data.held, loop.data.labels, loop.device, loop.autocast, run.steps,
        before=before,
    )  # fmt: skip


def _assert_equal_ranks(method: Method) -> None:
    """Buffers and weights are equal on all ranks by construction; this says so or stops."""
    if not distributed.active():
        return
    mine = state_hash(method)
    everyone: list[Any] = [None] * distributed.world()
    torch.distributed.all_gather_object(everyone, mine)
    if len(set(everyone)) != 1:
        raise RuntimeError(
            "weights or buffers differ between processes, so this run cannot be trusted. A method "
            "changes state from its local batch; see erg.testing.check_method."
        )


def leave_group() -> None:
    """End the process group, so that what follows on one process waits for no other."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def several_processes() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: torch.device | None = None) -> torch.device:
    """The device of this process, which first joins the others that torchrun started with it."""
    own = _fabric(device).device
    _compile_in_turn(own)
    return own


def _compile_in_turn(device: torch.device) -> None:
    """The first process compiles what makes views; the others then load that from the cache."""
    if distributed.rank() == 0:
        compile_kernels()
    distributed.agree(False, device)  # the others wait here
    compile_kernels()


def _fabric(device: torch.device | None, strategy: Strategy = "ddp") -> Fabric:
    """Device and process group; several processes are those that torchrun started."""
    accelerator = "auto" if device is None else device.type
    if not several_processes():
        return Fabric(accelerator=accelerator, devices=1)
    # Gloo and NCCL would wait half an hour, or for ever, for a process that hangs.
    patience = timedelta(seconds=float(os.environ.get(PATIENCE, "600")))
    world, nodes = int(os.environ["WORLD_SIZE"]), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    sharing = DDPStrategy(broadcast_buffers=False, timeout=patience)
    if strategy == "fsdp":
        sharing = ModelParallelStrategy(
            lambda method, mesh: shard(method, mesh["data_parallel"]),
            data_parallel_size=world, tensor_parallel_size=1, timeout=patience,
        )  # fmt: skip
    fabric = Fabric(
        accelerator=accelerator, devices=world // nodes, num_nodes=nodes, strategy=sharing
    )
    fabric.launch()
    return fabric
