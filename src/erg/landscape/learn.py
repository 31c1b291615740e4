"""Training in seconds: the loss of any method, in a loop without a run folder."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from erg.data.cache import Cache
from erg.data.loader import Loader
from erg.method import Method
from erg.train.optim import build_optimiser
from erg.train.run import Optimiser, Run
from erg.views.plan import Plan

QUICK = Optimiser(lr=3e-3, weight_decay=0.0)
"""For networks of two layers on vectors."""

MLP: dict[str, Any] = {"encoder": "mlp", "encoder_args": {"width": 128, "depth": 2, "dim": 64}}
"""The encoder of methods that train one, for the plane."""


def method(
    name: str, features: int, *, seed: int = 0, encoder: str = "identity",
    encoder_args: dict[str, Any] | None = None, **arguments: Any,
) -> Method:  # fmt: skip
    """A method of the catalogue, for vectors or small images, before training.

    Args:
        name: of the method.
        features: of a vector; side of an image [pixels].
        seed: of its weights.
        encoder: `identity`, or `mlp` for methods that train one; `conv` for images.
        encoder_args: of the encoder.
        arguments: of the method.

    Raises:
        ValueError: an unknown name or argument.
    """
    run = Run(
        method=name, method_args=arguments, encoder=encoder, encoder_args=encoder_args or {},
        image_size=features, seed=seed,
    )  # fmt: skip
    return run.build()


def check_steps(steps: int, least: int) -> None:
    """Refuse a training too short for a figure that shows parts of it.

    Raises:
        ValueError: fewer steps than the least number.
    """
    if steps < least:
        raise ValueError(
            f"this figure shows parts of its training, for which {steps} steps are too few. Use "
            f"{least} or more."
        )


def learn(
    untrained: Method,
    points: Float[Tensor, "n d"] | Cache,
    *,
    steps: int = 2000,
    batch: int = 256,
    optimiser: Optimiser = QUICK,
    plan: Plan | None = None,
    seed: int = 0,
    watch: Callable[[int], None] = lambda done: None,
) -> Method:
    """Train a method on vectors or images, in place; it comes back in evaluation mode.

    Args:
        untrained: the method.
        points: what it learns from; images for methods without closed forms.
        steps: of the optimiser.
        batch: points per step; an epoch is n // batch steps.
        optimiser: how parameters are changed.
        plan: if not the method's own; of it only `noise` and `zeroed` have a meaning for vectors.
        seed: of everything random.
        watch: called with the number of steps done, in evaluation mode: with 0 before anything,
            closed forms too.
    """
    model, plan = untrained, plan or untrained.plan()
    trained = build_optimiser(optimiser, model)
    images = points.numpy() if isinstance(points, Tensor) else points
    count = len(points.height) if isinstance(points, Cache) else len(points)
    loader = Loader(
        images, np.arange(count), plan, batch=batch, seed=seed,
        image_size=model.encoder.image_size, mean=model.encoder.mean, std=model.encoder.std,
    )  # fmt: skip
    watch_in(model, watch, 0)
    _after_epoch(model, points)
    for step in range(steps):
        progress = step / steps
        torch.manual_seed(seed + step)
        loss = model.loss(loader.views(step), progress)
        if trained is not None:
            for group in trained.param_groups:
                group["lr"] = optimiser.learning_rate(progress)
            loss.total.backward()
            for parameter in model.frozen(progress):
                parameter.grad = None
            trained.step()
            trained.zero_grad(set_to_none=True)
        model.after_step(progress)
        if (step + 1) % loader.steps_per_epoch == 0:
            _after_epoch(model, points)
        watch_in(model, watch, step + 1)
    return model.eval()


def watch_in(model: Method, watch: Callable[[int], None], done: int) -> None:
    """Call `watch` in evaluation mode, and train on."""
    model.eval()
    watch(done)
    model.train()


@torch.no_grad()
def _after_epoch(model: Method, points: Tensor | Cache) -> None:
    if type(model).after_epoch is not Method.after_epoch:
        assert isinstance(points, Tensor), f"{type(model).__name__} needs vectors"
        model.after_epoch(model.encoder(points))
