"""The loop: one run on one process, step by step, exactly repeatable."""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from erg import distributed
from erg.data.loader import Images, Loader
from erg.data.manifest import default_threads
from erg.encoders import Encoder
from erg.method import Loss, Method
from erg.train.checkpoint import Diverged
from erg.train.features import (
    check_plan,
    check_takes,
    computing_in,
    features,
    plain_attention,
    whole_images,
)
from erg.train.log import diverged
from erg.train.optim import build_optimiser
from erg.train.processes import compile_in_turn, fabric_for
from erg.train.run import Run
from erg.train.sharding import check_shardable, whole
from erg.train.shards import local
from erg.views.random import Purpose, bits
from erg.views.types import Views

WORTH = 0.003
"""What has to be left of a batch before other threads are asked to help with its views, on a CPU
[s]. The threads of the last step hold the cores for some milliseconds more: help for less came too
late in nine steps of ten, or took the core of the thread that asked for it."""


@dataclass(frozen=True)
class Data:
    """What a run trains on.

    Args:
        images: decoded images by row of the manifest, or vectors [n d].
        train: rows to train on.
        held: rows held out for watching.
        labels: class number per row, -1 for none; for watching only.
        contents: of each row held out, where some may be the same; for watching only.
    """

    images: Images | np.ndarray
    train: np.ndarray
    held: np.ndarray
    labels: np.ndarray | None = None
    contents: np.ndarray | None = None


class Loop:
    """One run on one process: its method, optimiser and loader, and the steps between them.

    Args:
        run: what to do.
        data: what to train on.
        device: where; None takes the first accelerator, or the CPU.
        threads: that make views; None: as many as there are cores, at most 8.
        like: the encoder of a run that was begun, see `Run.build`.
    """

    def __init__(
        self,
        run: Run,
        data: Data,
        *,
        device: torch.device | None = None,
        threads: int | None = None,
        like: Encoder | None = None,
    ) -> None:
        if len(data.train) < 2:
            raise ValueError(
                "training needs at least 2 images besides those held out (got "
                f"{len(data.train)}). Add more images."
            )
        self.run, self.data = run, data
        self.threads = default_threads() if threads is None else threads
        self.fabric = fabric_for(device, run.strategy)
        self.device = self.fabric.device
        # Float32 is float32, in convolutions too; bfloat16 is there for speed.
        torch.backends.cudnn.allow_tf32 = False
        self.method = run.build(self.device, like=like)
        encoder, own = self.method.encoder, self.method.plan()
        if not isinstance(data.images, np.ndarray):
            holds = "images"
            check_takes(encoder, holds)
        else:
            holds = "tokens" if data.images.dtype.kind == "i" else "vectors"
            check_takes(encoder, holds, data.images.shape[1])
        plan = run.plan or own
        check_plan(plan, own, encoder, holds, run.method, run.sides())
        if run.compile and self.method.differentiates_twice:
            raise ValueError(
                f"{run.method} differentiates its encoder twice, which code that torch.compile "
                "makes cannot be. Leave compile out."
            )
        self.wrapped: Any = None
        self.sharded = run.strategy == "fsdp" and distributed.active()
        if self.sharded:
            check_shardable(self.method)
            self.wrapped = self.fabric.setup_module(self.method)  # before the optimiser sees it
        self.optimiser = build_optimiser(run.optimiser, self.method)
        self.autocast = run.autocast(self.device)
        if not isinstance(data.images, np.ndarray):
            compile_in_turn(self.device)
        self.loader = Loader(
            data.images, data.train, plan, batch=run.batch, seed=run.seed,
            image_size=run.image_size, mean=encoder.mean, std=encoder.std,
            rank=distributed.rank(), world=distributed.world(), accumulate=run.accumulate,
            threads=self.threads, worth=WORTH if self.device.type == "cpu" else 0.0,
            # A quarter of the bytes cross to an accelerator, which normalises them there.
            output="float32" if self.device.type == "cpu" else "uint8",
            pin=self.device.type == "cuda",
            side_at=run.side,
        )  # fmt: skip
        self.step_loss = self._set_up()
        self.clusters = type(self.method).after_epoch is not Method.after_epoch

    def _set_up(self) -> Callable[[Views, float], Loss]:
        """`loss` through data-parallel training where there are several processes."""
        if self.run.compile:
            # In place, so that the names of weights stay; block by block, since many methods walk
            # through the blocks by themselves.
            for block in self.method.encoder.units() or [self.method.encoder]:
                block.compile()
        if not distributed.active() or self.optimiser is None or self.sharded:
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
        copied = self.run.build(self.device, like=self.method.encoder)
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
        # Elsewhere a copy that is not waited for could read views that are gone already.
        at_once = self.device.type == "cuda"
        return views.to(device=self.device, dtype=dtype, non_blocking=at_once)

    def after_epoch(self) -> None:
        """Give methods with closed forms or clustering the features of every training image."""
        if not self.clusters:
            return
        encoder = self.method.encoder
        dtype = next((p.dtype for p in self.method.parameters()), torch.float32)
        everyone = torch.zeros(0, encoder.dim, device=self.device, dtype=dtype)
        if self.method.needs_features():
            views = whole_images(
                self.data.images, self.data.train[distributed.rank() :: distributed.world()],
                image_size=self.run.image_size, mean=encoder.mean, std=encoder.std,
                threads=self.threads,
            )  # fmt: skip
            mine = features(encoder, encoder, views, device=self.device, autocast=self.autocast)
            everyone = distributed.gather(torch.from_numpy(mine).to(self.device, dtype))
        self.method.after_epoch(everyone)
        if distributed.active() and not self.sharded:
            # GPUs add up in orders of their own: what the first one found holds for all.
            for name, found in self.method.state_dict().items():
                if not name.startswith("encoder."):
                    found.copy_(distributed.of_first(found))

    def trial(self, steps: int = 8, lasting: float = 3.0) -> float:
        """Seconds per step, measured on a throw-away copy of all state.

        The first steps warm caches up and do not count; the median of the others does, of views of
        each size, and for methods that do something after an epoch a step's share of it.

        Args:
            steps: at least so many, of each size of views.
            lasting: and as many as fill so long [s].
        """
        method, optimiser = self.method, self.optimiser
        kept = copy.deepcopy(method.state_dict())
        kept_optimiser = copy.deepcopy(optimiser.state_dict()) if optimiser else None
        usual = 0.0
        for first, share in self.run.sides().values():
            seconds: list[float] = []
            while len(seconds) < steps or distributed.agree(sum(seconds) < lasting, self.device):
                start = time.perf_counter()
                step = first + len(seconds) % self.loader.steps_per_epoch
                step = step if step < first + share * self.run.steps else first
                with suppress(Diverged):  # the run will come to it and say so
                    self.step(step, self.loader.batches(step))
                seconds.append(time.perf_counter() - start)
            usual += share * float(np.median(seconds[3:]))
        epoch = 0.0
        if self.clusters:
            self.after_epoch()  # the first is the start of a clustering, not one of its steps
            start = time.perf_counter()
            self.after_epoch()
            epoch = time.perf_counter() - start
        method.load_state_dict(kept)
        if optimiser is not None and kept_optimiser is not None:
            optimiser.load_state_dict(kept_optimiser)
        return usual + epoch / self.loader.steps_per_epoch

    def close(self) -> None:
        """End the loader's threads."""
        self.loader.close()
