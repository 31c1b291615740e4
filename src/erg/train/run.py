"""Run: everything a training run is, as frozen data that can be written down and repeated."""

import math
import os
import platform
import reprlib
import types
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from erg import catalog
from erg.encoders import Encoder, build_encoder
from erg.method import Method
from erg.parts.convolution import with_right_gradients
from erg.schedule import Constant, Schedule, WarmupCosine
from erg.train.plain import damaged, fits, in_words, made, plain, restored
from erg.views.plan import Augmentation, Masking, Plan, Tiles
from erg.views.random import Purpose, bits

FORMAT = 1
OptimiserName = Literal["adamw", "sgd", "lars", "larc"]
Precision = Literal["auto", "32", "bf16", "64"]
Strategy = Literal["ddp", "fsdp"]
NotFinite = Literal["stop", "skip", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """How parameters are changed.

    Args:
        name: adamw, sgd (Nesterov momentum), lars or larc (see `train.optim`).
        lr: peak learning rate, for the batch size of the run (nothing is scaled behind the scenes).
        weight_decay: per step and unit learning rate; biases, gains and other 1-D parameters get
            none, but of larc.
        warmup: share of training over which the learning rate rises from 0.
        end: last learning rate, as a fraction of the peak.
        momentum: of sgd, lars and larc; beta 1 of adamw.
        beta2: of adamw.
        clip: largest norm of all gradients together; 0 for no clipping.
    """

    name: OptimiserName = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    end: float = 0.0
    momentum: float = 0.9
    beta2: float = 0.999
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in get_args(OptimiserName):
            raise ValueError(f"no optimiser is called {self.name!r}. Use adamw, sgd, lars or larc.")
        if not self.lr > 0:
            raise ValueError(f"lr should be greater than 0 (got {self.lr}).")
        if not self.clip >= 0:  # a negative one would turn the gradient round
            raise ValueError(f"clip should be at least 0 (got {self.clip}).")
        self.learning_rate(0.0)  # refuses a warm-up that is not within the run

    def learning_rate(self, progress: float) -> float:
        """At a fraction of training done."""
        return WarmupCosine(self.lr, self.warmup, self.end * self.lr)(progress)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run: which method, encoder, data and optimiser, for how long, from which seed.

    Args:
        method: a name of the catalogue, or path/to/file.py:ClassName.
        method_args: its keyword-only arguments.
        encoder: one of ours or any timm architecture.
        encoder_args: its further arguments.
        image_size: side of the encoder's input [pixels]; number of features for vectors.
        init: weights to start from (see `encoders.build_encoder`); None for random.
        data: what `erg.data.source.open_source` opens; empty where data came from memory.
        label: where labels are found, for watching only; methods never see them.
        mask: where masks of what stands out in the images are (see `erg.data.source.masks_of`): a
            parquet column, or a folder beside that of the images; None for none.
        plan: views to make, if not the method's own.
        resolution: share of `image_size` that views have as their side while training, rounded to 8
            pixels: smaller ones at first make for more steps in the same time.
        optimiser: how parameters are changed.
        batch: images per optimiser step, over all processes.
        accumulate: micro-batches per optimiser step.
        steps: optimiser steps.
        seed: of everything random.
        precision: auto takes bf16 where the processor has it.
        compile: whether torch.compile makes the encoder's code; other bits than without.
        recompute: whether the encoder's blocks are computed again for the backward pass instead of
            being remembered (activation checkpointing): less memory, a third more time.
        strategy: how several processes share the work: ddp, each with the whole method, or fsdp,
            each with a share of every parameter.
        not_finite: what happens where the loss or a gradient is not a finite number: stop; skip,
            which leaves the step out; or rollback, which also goes back to the weights of the last
            whole hundredth of the run. More than ten such steps in a row stop it all the same.
        hold_out: images kept out of training for watching, at most 5 % of all.
        checkpoint_minutes: between checkpoints [minutes].
    """

    method: str
    method_args: dict[str, Any] = field(default_factory=dict)
    encoder: str
    encoder_args: dict[str, Any] = field(default_factory=dict)
    image_size: int
    init: str | None = None
    data: str = ""
    label: str | None = None
    mask: str | None = None
    plan: Plan | None = None
    resolution: Schedule = Constant(1.0)
    optimiser: Optimiser = Optimiser()
    batch: int = 256
    accumulate: int = 1
    steps: int = 1000
    seed: int = 0
    precision: Precision = "auto"
    compile: bool = False
    recompute: bool = False
    strategy: Strategy = "ddp"
    not_finite: NotFinite = "stop"
    hold_out: int = 1000
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        for name in ("image_size", "batch", "accumulate", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1 (got {getattr(self, name)}).")
        if not all(0 < self.resolution(i / 100) <= 1 for i in range(101)):  # nor nan
            raise ValueError(
                f"resolution is a share of image_size, above 0 and at most 1 (got "
                f"{self.resolution}). Three quarters are 0.75."
            )
        if self.strategy not in ("ddp", "fsdp"):
            raise ValueError(f"no strategy is called {self.strategy!r}. Use ddp or fsdp.")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"no precision is called {self.precision!r}. Use auto, 32, bf16 or 64."
            )
        if self.not_finite not in get_args(NotFinite):
            raise ValueError(
                f"nothing is known to do called {self.not_finite!r}. Use stop, skip or rollback."
            )
        if self.compile and self.recompute:
            raise ValueError(
                "compile and recompute do not go together: code that torch.compile makes chooses "
                "itself what it remembers. Leave one of them out."
            )
        if self.batch % self.accumulate:
            raise ValueError(
                f"a batch of {self.batch} cannot be split into {self.accumulate} equal parts. "
                "Choose accumulate so that it divides batch."
            )

    def side(self, step: int) -> int:
        """Side of the views of a step [pixels]; number of features for vectors."""
        share = self.resolution(step / self.steps)
        rounded = max(8, 8 * round(share * self.image_size / 8))
        return self.image_size if share == 1 else min(rounded, self.image_size)

    def sides(self) -> dict[int, tuple[int, float]]:
        """Where each side of views is first seen in training [step], and in which share of it."""
        looked = [self.steps * i // 100 for i in range(100)]
        seen = [self.side(step) for step in looked]
        return {side: (looked[seen.index(side)], seen.count(side) / 100) for side in seen}

    def build(self, device: torch.device | str = "cpu", *, like: Encoder | None = None) -> Method:
        """Seed, then make the encoder and the method on a device; the same weights every time.

        Args:
            device: to put them on.
            like: an encoder that this run has had, whose form and normalisation are taken instead
                of those of `init`, which need not be there any more: its weights come later.

        Raises:
            ValueError: unknown names or arguments, or numbers that the device does not have, each
                with what to do.
        """
        if self.precision == "64" and torch.device(device).type == "mps":
            raise ValueError(
                f"{device} has no numbers of 64 bits, in which this run is computed. Choose the "
                "device cpu (--device cpu), or another precision."
            )
        kind = catalog.find(self.method)
        catalog.check_arguments(kind, self.method_args)
        _check_values(kind, self.method_args)
        torch.manual_seed(int(bits(self.seed, Purpose.WEIGHTS)) >> 1)
        if like is None:
            given, init = self.encoder_args, self.init
        else:
            given, init = like.arguments, None
        encoder = build_encoder(self.encoder, self.image_size, init=init, **given)
        if like is not None:
            encoder.mean, encoder.std = like.mean, like.std
        if self.recompute:
            encoder.recompute()
        method = with_right_gradients(kind(encoder, **self.method_args))
        dtype = torch.float64 if self.precision == "64" else torch.float32
        return method.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)

    def autocast(self, device: torch.device) -> torch.dtype | None:
        """The half-precision type to compute in on a device, or None for full precision."""
        if self.precision in ("32", "64"):
            return None
        if self.precision == "bf16":
            return torch.bfloat16
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else None
        if device.type == "cpu":
            return torch.bfloat16 if has_bf16_instructions() else None
        return None

    def to_json(self) -> dict[str, Any]:
        """As plain data; `from_json` reads it back."""
        return {"format": FORMAT, **{f.name: plain(getattr(self, f.name)) for f in fields(self)}}

    @classmethod
    def from_json(cls, data: dict[str, Any], *, method: str | None = None) -> "Run":
        """Read what `to_json` wrote. Names resolve through the catalogue and nothing is imported.

        Args:
            data: the contents of a run.json.
            method: must repeat a method given by path, which is code, before it is believed.

        Raises:
            ValueError: not a run of format 1, a value that is not of the type of its field, or a
                method by path that is not repeated.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"this is no run of format {FORMAT} (got {reprlib.repr(found)}). Use its erg."
            )
        known = {f.name for f in fields(cls)}
        told = {name: value for name, value in data.items() if name in known}
        try:
            run: Run = made(cls, {name: restored(told[name], _KINDS, name) for name in told})
        except RecursionError:
            raise damaged("it is nested too deeply") from None
        if run.method not in catalog.names() and method != run.method:
            raise ValueError(
                f"the run's method {run.method!r} is not in the catalogue. If it is code you "
                f"trust, repeat it: --method {run.method!r}"
            )
        return run


def has_bf16_instructions() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AMX or AVX-512 BF16, or ARM's)."""
    try:
        features = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):
        return False
    return any(
        features.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16")
    )


def environment() -> dict[str, str]:
    """Versions and processor a run's exact bits depend on."""
    from llvmlite import binding  # what numba compiles for

    packages = ("torch", "torchvision", "timm", "lightning-fabric", "numba", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": binding.get_host_cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        **{name: version(name) for name in ("erg", *packages)},
    }


_KINDS: dict[str, type[Any]] = {
    **{kind.__name__: kind for kind in (Plan, Augmentation, Masking, Tiles, Optimiser)},
    **catalog.SCHEDULES,
}
"""Data types that stand in a run.json, by name."""


def _check_values(method: type[Method], given: dict[str, Any]) -> None:
    """Whether arguments of a method are of the types that its signature names, and numbers.

    Raises:
        ValueError: one is not, or is below 0, where none of our methods has a use for it.
    """
    try:
        types_of = get_type_hints(method.__init__)
    except Exception:  # a method of others may name what cannot be found
        return
    ours = method.__module__.startswith("erg.methods.")
    for name, found in given.items():
        kind = types_of.get(name, Any)
        value = tuple(found) if isinstance(found, list) else found
        of = get_origin(kind) or kind
        known = of in (Literal, tuple, Union, types.UnionType, bool, int, float, str)
        known = known or (isinstance(of, type) and issubclass(of, Schedule))
        if known and not fits(value, kind):
            raise ValueError(
                f"{method.__name__}'s {name} should be {in_words(kind)} (got "
                f"{reprlib.repr(found)})."
            )
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{method.__name__}'s {name} should be a number (got nan).")
        if ours and name != "seed" and isinstance(value, int | float) and value < 0:
            raise ValueError(f"{method.__name__}'s {name} should be at least 0 (got {value}).")
