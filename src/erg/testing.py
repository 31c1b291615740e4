"""check_method: what every method must keep, for ours and for yours.

    from erg.testing import check_method
    check_method(MyMethod)

Each check raises AssertionError with a sentence that says what is wrong and what the contract asks.
"""

import copy
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from erg import catalog
from erg.encoders import Encoder, build_encoder
from erg.method import Loss, Method
from erg.train.optim import build_optimiser
from erg.train.run import Optimiser, Run
from erg.views.make import make_tokens, make_views
from erg.views.pixels import Pixels
from erg.views.types import Views

SIDE, BATCH = 32, 8


@dataclass(frozen=True)
class Bench:
    """A method with its encoder and data small enough to check in a second.

    Args:
        kind: the method class.
        arguments: its arguments, small.
        encoder: name of the encoder.
        encoder_arguments: of the encoder.
        dtype: of all weights.
    """

    kind: type[Method]
    arguments: dict[str, Any]
    encoder: str
    encoder_arguments: dict[str, Any]
    dtype: torch.dtype = torch.float32

    def build(self, seed: int = 0) -> Method:
        """The same weights for the same seed, in channels-last memory."""
        torch.manual_seed(seed)
        encoder: Encoder = build_encoder(self.encoder, SIDE, **self.encoder_arguments)
        method = self.kind(encoder, **self.arguments).to(self.dtype)
        return method.to(memory_format=torch.channels_last)

    def views(self, method: Method, step: int) -> Views:
        """Views of noise-textured pictures, or of random tokens, as the method's plan asks."""
        random, plan = np.random.default_rng(step), method.plan()
        index = np.arange(BATCH, dtype=np.int64)
        if plan.kind == "tokens":
            tokens = random.integers(0, method.encoder.vocabulary, (BATCH, SIDE))
            return make_tokens(tokens, plan, seed=0, epoch=0, step=step, index=index)
        coarse = random.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8)
        images = [np.kron(c, np.ones((5, 5, 1), dtype=np.uint8)) for c in coarse]
        made = make_views(
            Pixels.pack(images), plan, seed=0, epoch=0, step=step, index=index, image_size=SIDE,
            mean=method.encoder.mean, std=method.encoder.std,
        )  # fmt: skip
        return made.to(dtype=self.dtype)


def check_method(
    kind: type[Method],
    *,
    arguments: dict[str, Any] | None = None,
    encoder: str = "conv",
    encoder_arguments: dict[str, Any] | None = None,
) -> None:
    """Check that a method keeps the contract.

    Args:
        kind: the method class.
        arguments: keyword-only arguments that make it small.
        encoder: name of an encoder it accepts.
        encoder_arguments: of that encoder.

    Raises:
        AssertionError: something the contract asks is not so.
    """
    bench = Bench(kind, arguments or {}, encoder, encoder_arguments or {})
    for check in (
        check_facts, check_loss, check_gradients, check_energy, check_encode,
        check_evaluation_changes_nothing, check_deterministic, check_resume, check_config,
    ):  # fmt: skip
        check(bench)


def _started(bench: Bench, seed: int = 0) -> Method:
    """Built, and with closed forms and clusters started on the features of one batch."""
    method = bench.build(seed).train()
    views = bench.views(method, 0)
    method.after_epoch(method.encoder(views.main[0].data).detach())
    return method


def _steps(bench: Bench, method: Method, optimiser: Any, first: int, last: int) -> list[float]:
    """Losses of steps first to last - 1 of a run of 4, trained where there is an optimiser."""
    losses: list[float] = []
    for step in range(first, last):
        torch.manual_seed(step)
        loss = method.train().loss(bench.views(method, step), step / 4)
        losses.append(float(loss.total.detach()))
        if optimiser is not None:
            optimiser.zero_grad()
            loss.total.backward()
            for parameter in method.frozen(step / 4):
                parameter.grad = None
            optimiser.step()
        torch.manual_seed(step)
        method.after_step(step / 4)
    return losses


def check_facts(bench: Bench) -> None:
    """A cell, a docstring that begins with the equation, documented keyword-only arguments."""
    kind = bench.kind
    assert hasattr(kind, "cell"), f"{kind.__name__} states no cell: set cell = Cell(...)."
    lines = (kind.__doc__ or "").strip().splitlines()
    assert lines, f"{kind.__name__} has no docstring: begin with its energy."
    assert "F(" in lines[0], f"the first line of {kind.__name__} should give its energy F."
    for name in catalog.arguments(kind):
        assert f"{name}:" in (kind.__doc__ or ""), f"argument {name} is not in the docstring."


def check_loss(bench: Bench) -> None:
    """Finite scalar parts."""
    method = _started(bench)
    loss = method.loss(bench.views(method, 0), 0.5)
    assert isinstance(loss, Loss), f"loss returns {type(loss).__name__}, not Loss."
    assert loss.pull, "a loss names at least one part that pulls energies down."
    for name, part in {**loss.pull, **loss.push}.items():
        assert part.ndim == 0, f"part {name!r} has shape {list(part.shape)}, not that of a scalar."
        assert torch.isfinite(part), f"part {name!r} is {float(part.detach())}."


def check_gradients(bench: Bench) -> None:
    """Gradients reach the encoder if it is trained, and everything trainable; nothing frozen."""
    method = _started(bench)
    loss = method.loss(bench.views(method, 0), 0.5).total
    if not any(p.requires_grad for p in method.parameters()):
        assert not loss.requires_grad, "the loss has a gradient and nothing is trainable."
        return
    loss.backward()
    for name, p in method.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, f"{name} is trainable and gets no gradient."
            assert torch.isfinite(p.grad).all(), f"the gradient of {name} is not finite."
        else:
            assert p.grad is None, f"{name} is not trainable and gets a gradient."
    reached = any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in method.encoder.parameters()
    )
    assert reached == method.trains_encoder, (
        f"trains_encoder is {method.trains_encoder}, but gradients "
        f"{'reach' if reached else 'do not reach'} the encoder."
    )


def check_energy(bench: Bench) -> None:
    """F(x, y) has one finite value per item, for pairs that match and for those that do not."""
    method = _started(bench).eval()
    views = bench.views(method, 1)
    with torch.no_grad():
        for x, y in [*views.pairs(), *views.mismatched()]:
            energy = method.energy(x, y)
            assert energy.shape == (BATCH,), f"energy has shape {list(energy.shape)}, not [b]."
            assert torch.isfinite(energy).all(), "an energy is not finite."


def check_encode(bench: Bench) -> None:
    """One finite vector per image."""
    method = _started(bench).eval()
    with torch.no_grad():
        z = method.encode(bench.views(method, 0).main[0].data)
    assert z.ndim == 2, f"encode gives {list(z.shape)}, not [b d]."
    assert len(z) == BATCH, f"encode gives {len(z)} vectors for {BATCH} images."
    assert torch.isfinite(z).all(), "encode gives values that are not finite."


def check_evaluation_changes_nothing(bench: Bench) -> None:
    """In evaluation mode no parameter and no buffer changes."""
    method = _started(bench).eval()
    before = copy.deepcopy(method.state_dict())
    views = bench.views(method, 0)
    with torch.no_grad():
        method.loss(views, 0.5)
        for x, y in views.pairs():
            method.energy(x, y)
        method.encode(views.main[0].data)
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed in evaluation mode."


def check_deterministic(bench: Bench) -> None:
    """The same seed gives the same losses, bit for bit."""
    first, second = (
        _steps(bench, m, build_optimiser(Optimiser(), m), 0, 3)
        for m in (_started(bench), _started(bench))
    )
    assert first == second, f"two equal runs differ: {first} and {second}."


def check_resume(bench: Bench) -> None:
    """State dictionaries hold everything: a run continued from them equals one never stopped."""
    method = _started(bench)
    optimiser = build_optimiser(Optimiser(), method)
    _steps(bench, method, optimiser, 0, 2)
    saved = copy.deepcopy(method.state_dict())
    saved_optimiser = copy.deepcopy(optimiser.state_dict()) if optimiser else None
    through = _steps(bench, method, optimiser, 2, 4)

    other = bench.build(seed=1)
    other_optimiser = build_optimiser(Optimiser(), other)
    other.load_state_dict(saved)
    if other_optimiser is not None and saved_optimiser is not None:
        other_optimiser.load_state_dict(saved_optimiser)
    resumed = _steps(bench, other, other_optimiser, 2, 4)
    assert through == resumed, f"resuming changes the losses: {through} became {resumed}."
    for name, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), (
            f"{name} differs after resuming: some state is no parameter and no buffer."
        )


def check_config(bench: Bench) -> None:
    """A run with the method's defaults survives being written as JSON and read back."""
    if bench.kind.__name__ not in catalog.names():
        return
    run = Run(
        method=bench.kind.__name__,
        method_args={
            name: parameter.default
            for name, parameter in catalog.arguments(bench.kind).items()
            if parameter.default is not parameter.empty
        },
        encoder=bench.encoder,
        image_size=SIDE,
        plan=bench.build().plan(),
    )
    again = Run.from_json(json.loads(json.dumps(run.to_json(), allow_nan=False)))
    assert again == run, f"the run changes when written and read: {run} became {again}."
