"""Run: everything a training run is, as frozen data that can be written down and repeated."""

import dataclasses
import math
import os
import platform
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any, Literal, get_args

import torch

from erg import catalog
from erg.encoders import build_encoder
from erg.method import Method
from erg.schedule import Schedule, WarmupCosine
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
        if self.strategy not in ("ddp", "fsdp"):
            raise ValueError(f"no strategy is called {self.strategy!r}. Use ddp or fsdp.")
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

    def build(self, device: torch.device | str = "cpu") -> Method:
        """Seed, then make the encoder and the method on a device; the same weights every time.

        Raises:
            ValueError: unknown names or arguments, each with what to do.
        """
        kind = catalog.find(self.method)
        catalog.check_arguments(kind, self.method_args)
        torch.manual_seed(int(bits(self.seed, Purpose.WEIGHTS)) >> 1)
        encoder = build_encoder(self.encoder, self.image_size, init=self.init, **self.encoder_args)
        if self.recompute:
            encoder.recompute()
        method = kind(encoder, **self.method_args)
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
        return {"format": FORMAT, **{f.name: _plain(getattr(self, f.name)) for f in fields(self)}}

    @classmethod
    def from_json(cls, data: dict[str, Any], *, method: str | None = None) -> "Run":
        """Read what `to_json` wrote. Names resolve through the catalogue and nothing is imported.

        Args:
            data: the contents of a run.json.
            method: must repeat a method given by path, which is code, before it is believed.

        Raises:
            ValueError: not a run of format 1, unknown fields, or a method by path not repeated.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"this is no run of format {FORMAT} (got {found!r}). Use its erg.")
        known = {f.name for f in fields(cls)}
        try:
            given = {name: _thing(value) for name, value in data.items() if name in known}
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"the run is damaged ({error}). Use its erg.") from None
        name = given.get("method")
        if not isinstance(name, str):
            raise ValueError(f"a run names its method as text (got {name!r}).")
        if name not in catalog.names() and method != name:
            raise ValueError(
                f"the run's method {name!r} is not in the catalogue. If it is code you trust, "
                f"repeat it: --method {name}"
            )
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"the run is damaged ({error}). Use its erg.") from None


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


_DATA = {kind.__name__: kind for kind in (Plan, Augmentation, Masking, Tiles, Optimiser)}


def _plain(value: Any) -> Any:
    """Frozen data as JSON: dataclasses carry their name, infinities are spelled out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"type": type(value).__name__, **inner}
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and math.isinf(value):
        return {"type": "float", "value": str(value)}
    return value


def _thing(value: Any) -> Any:
    """Undo `_plain`; only the data types named here are ever made."""
    if isinstance(value, list):
        return tuple(_thing(inner) for inner in value)
    if not isinstance(value, dict):
        return value
    inner = {name: _thing(item) for name, item in value.items() if name != "type"}
    name = value.get("type")
    if name is None:
        return inner
    if name == "float":
        return float(inner["value"])
    kinds: dict[str, type[Any]] = {**_DATA, **catalog.SCHEDULES}
    if name not in kinds:
        raise ValueError(f"a run.json holds no {name!r}. Known: {', '.join(kinds)}.")
    return kinds[name](**inner)


__all__ = ["FORMAT", "Optimiser", "Precision", "Run", "Schedule", "Strategy", "environment"]
