"""What a run takes, counted without a device: parameters, bytes and operations."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from erg.encoders import Encoder, parameter_count
from erg.method import Method
from erg.parts.teacher import Teacher
from erg.train.run import Run
from erg.views.plan import Augmentation

ONE_EACH = ("MoCo", "MSN")
"""Methods that show one view to the encoder and another to its teacher."""


def on_meta(run: Run) -> Method:
    """The method of a run without memory for its weights, to count and to add up."""
    with torch.device("meta"):
        return run.build("meta")


@dataclass(frozen=True)
class Needs:
    """What a run takes, told from its networks alone.

    Encoders are counted, heads and losses are not; every crop passes forward and backward, and
    large crops once more where there is a teacher.

    Args:
        encoder: parameters of the encoder.
        state: weights, gradients, states of the optimiser, teachers and banks [bytes].
        block: weights and gradients of the largest block, which is whole while it computes, also
            where its shares are spread [bytes].
        activations: kept for the backward pass of one image, in bfloat16 [bytes].
        operations: to train on one image [floating-point operations].
    """

    encoder: int
    state: int
    block: int
    activations: int
    operations: int


def needs(run: Run) -> Needs:
    """Count parameters, bytes and operations of a run, on no device."""
    method = on_meta(replace(run, recompute=False))
    encoder = method.encoder
    main, local = crops(run, method)
    passes = {side: one_pass(encoder, side, run.recompute) for side in {*main, *local}}
    operations = sum(passes[side].forward + passes[side].backward for side in main + local)
    operations += is_taught(method) * sum(passes[side].forward for side in main)
    trained = parameter_count(method)
    states = 2 if run.optimiser.name == "adamw" else 1
    held = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    return Needs(
        encoder=sum(p.numel() for p in encoder.parameters()),
        state=held + 4 * trained * (1 + states),
        block=8 * max((parameter_count(block) for block in encoder.units()), default=0),
        activations=sum(passes[side].kept for side in main + local),
        operations=operations,
    )


def crops(run: Run, method: Method) -> tuple[list[int], list[int]]:
    """Sides of the large and of the small crops of an image that the encoder sees [pixels]."""
    plan = run.plan or method.plan()

    def sides(view: Augmentation) -> list[int]:
        side = view.pixels(run.image_size)
        return [side] if view.tiles is None else [view.tiles.pixels(side)[1]] * view.tiles.count

    main, local = ([s for view in views for s in sides(view)] for views in (plan.main, plan.local))
    return main[:1] if run.method in ONE_EACH else main, local


def is_taught(method: Method) -> bool:
    """Whether large crops pass through a slow copy of the encoder too."""
    return any(isinstance(module, Teacher) for module in method.modules())


class Pass(NamedTuple):
    """What an image takes that passes an encoder.

    Args:
        forward: floating-point operations of the forward pass.
        backward: of the backward pass, with those that are done again in it.
        kept: remembered in between, in bfloat16 [bytes].
    """

    forward: int
    backward: int
    kept: int


def one_pass(encoder: Encoder, side: int, recompute: bool = False) -> Pass:
    """What an image of some side takes that passes an encoder on no device.

    Args:
        encoder: which remembers everything.
        side: of the image [pixels].
        recompute: whether to count as if its blocks were computed again: their inputs are kept,
            and the inside of one of them at a time, of which the largest counts.
    """
    weights = {p.untyped_storage()._cdata for p in encoder.parameters()}
    images = 2  # batch norms take no single value
    counter = FlopCounterMode(display=False)
    kept = Kept(weights)
    meter = Meter(kept, counter)
    hooks = [
        hook
        for block in (encoder.units() if recompute else ())
        for hook in (
            block.register_forward_pre_hook(meter.enter),
            block.register_forward_hook(meter.leave),
        )
    ]
    with counter, torch.autograd.graph.saved_tensors_hooks(meter.keep, lambda t: t):
        encoder.train()(torch.empty(images, 3, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    forward, held = counter.get_total_flops(), kept.bytes() + meter.largest
    return Pass(forward // images, (2 * forward + meter.again) // images, held // images)


class Kept:
    """Tensors that are remembered, each place in memory once.

    Args:
        known: places that do not count.
    """

    def __init__(self, known: set[int]) -> None:
        self.known = known
        self.tensors: dict[int, Tensor] = {}

    def take(self, t: Tensor) -> None:
        place = t.untyped_storage()._cdata
        if place not in self.known:
            self.tensors[place] = t

    def bytes(self) -> int:
        """In bfloat16, or less where less is kept."""
        return sum(
            t.untyped_storage().nbytes() // t.element_size() * min(t.element_size(), 2)
            for t in self.tensors.values()
        )


class Meter:
    """Tells what is kept and done inside of blocks from all else.

    Args:
        outside: takes what is kept outside of them, and their inputs.
        counter: of operations.
    """

    def __init__(self, outside: Kept, counter: FlopCounterMode) -> None:
        self.outside, self.counter = outside, counter
        self.inside: Kept | None = None
        self.again, self.largest = 0, 0

    def keep(self, t: Tensor) -> Tensor:
        (self.inside or self.outside).take(t)
        return t

    def enter(self, _: nn.Module, inputs: tuple[object, ...]) -> None:
        for given in inputs:
            if isinstance(given, Tensor):
                self.outside.take(given)
        self.inside = Kept(self.outside.known | self.outside.tensors.keys())
        self.again -= self.counter.get_total_flops()

    def leave(self, *_: object) -> None:
        assert self.inside is not None
        self.largest = max(self.largest, self.inside.bytes())
        self.again += self.counter.get_total_flops()
        self.inside = None
