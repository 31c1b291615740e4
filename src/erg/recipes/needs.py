"""What a run takes on any number of devices: counted without one, scaled by a measured speed."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from erg.encoders import parameter_count
from erg.method import Method
from erg.parts.teacher import Teacher
from erg.train.run import Run


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
        activations: kept for the backward pass of one image, in bfloat16 [bytes].
        operations: to train on one image [floating-point operations].
    """

    encoder: int
    state: int
    activations: int
    operations: int


@dataclass(frozen=True)
class Estimate:
    """What a run takes on some devices.

    Args:
        memory: of each device [GiB].
        hours: from start to end [hours].
        device_hours: of all devices together [hours].
    """

    memory: float
    hours: float
    device_hours: float


def needs(run: Run) -> Needs:
    """Count parameters, bytes and operations of a run, on no device."""
    method = on_meta(run)
    plan = run.plan or method.plan()
    main, local = (
        [view.pixels(run.image_size) for view in views] for views in (plan.main, plan.local)
    )
    passes = {side: one_pass(method.encoder, side) for side in {*main, *local}}
    taught = any(isinstance(module, Teacher) for module in method.modules())
    operations = 3 * sum(passes[side][0] for side in main + local)
    operations += taught * sum(passes[side][0] for side in main)
    trained = parameter_count(method)
    states = 2 if run.optimiser.name == "adamw" else 1
    held = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    return Needs(
        encoder=sum(p.numel() for p in method.encoder.parameters()),
        state=held + 4 * trained * (1 + states),
        activations=sum(passes[side][1] for side in main + local),
        operations=operations,
    )


def estimate(run: Run, of: Needs, devices: int, speed: float) -> Estimate:
    """What a run takes on equal devices that share each batch, at no cost for talking.

    Args:
        run: whose batch and steps are taken.
        of: what `needs` counted.
        devices: number of them; every one holds all weights.
        speed: of one [floating-point operations a second]: images a second that a smaller run was
            measured to make on it, times the operations that `needs` counts for one of these.

    Raises:
        ValueError: more devices than images in a micro-batch.
    """
    micro = run.batch // run.accumulate
    if not 1 <= devices <= micro:
        raise ValueError(
            f"{devices} devices cannot share a micro-batch of {micro} images. Use 1 to {micro}."
        )
    share = -(-micro // devices)  # images of the fullest device
    memory = (of.state + share * of.activations) / 2**30
    device_hours = run.steps * run.accumulate * share * devices * of.operations / speed / 3600
    return Estimate(memory, device_hours / devices, device_hours)


def one_pass(encoder: nn.Module, side: int) -> tuple[int, int]:
    """Operations of a forward pass and bytes it keeps for the backward pass, per image."""
    kept: dict[int, torch.Tensor] = {}
    weights = {p.untyped_storage()._cdata for p in encoder.parameters()}
    images = 2  # batch norms take no single value

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage()._cdata] = t
        return t

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        encoder.train()(torch.empty(images, 3, side, side, device="meta"))
    size = sum(
        t.untyped_storage().nbytes() // t.element_size() * min(t.element_size(), 2)
        for place, t in kept.items()
        if place not in weights
    )
    return counter.get_total_flops() // images, size // images
