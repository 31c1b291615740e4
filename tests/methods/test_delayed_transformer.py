"""The delayed transformer: an energy that is a probability, and a language that it translates."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from erg.data.loader import Loader
from erg.encoders import build_encoder
from erg.methods.delayed_transformer import DelayedTransformer
from erg.train.optim import build_optimiser
from erg.train.run import Optimiser
from erg.views.types import View, Views

SMALL: dict[str, Any] = {"vocabulary": 3, "width": 8, "depth": 1, "heads": 2}


def a_method(n: int = 7, encoder: dict[str, Any] = SMALL, **arguments: Any) -> DelayedTransformer:
    torch.manual_seed(0)
    settings = {"depth": 1, "heads": 2, **arguments}
    return DelayedTransformer(build_encoder("sequence", n, **encoder), **settings).double().eval()


def drawn(b: int, n: int = 7, vocabulary: int = 3, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, vocabulary, (b, n)))


def test_energy_by_a_loop_over_places() -> None:
    method, data = a_method(given=3), drawn(3)
    data[1, 5:] = -1
    x, y = View(data), View(drawn(3, seed=1))
    for other in (x, y):
        logits = method.told(x, other).logits
        for b in range(3):
            each = [
                math.log(sum(math.exp(s) for s in logits[b, t].tolist()))
                - logits[b, t, int(other.data[b, 3 + t])].item()
                for t in range(4) if other.data[b, 3 + t] >= 0
            ]  # fmt: skip
            found = method.energy(x, other)[b].item()
            assert found == pytest.approx(sum(each) / len(each))
            assert method.by_place(x, other)[b, : len(each)].tolist() == pytest.approx(each)
    assert method.by_place(x, x)[1, 2:].tolist() == [0, 0]


def test_probabilities_of_all_answers_sum_to_one() -> None:
    """exp(-4 F(x, y)) = p(y | x), of all 81 y: what one gains, the others lose."""
    method = a_method(given=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    for first in drawn(2, 3):
        data = torch.cat([first.expand(len(every), 3), every], dim=1)
        view = View(data)
        assert torch.exp(-4 * method.energy(view, view)).sum().item() == pytest.approx(1)


def test_loss_is_the_mean_energy() -> None:
    method, view = a_method(), View(drawn(5))
    loss = method.loss(Views((view,), torch.arange(5), pairing="itself"), 0.0)
    assert (list(loss.pull), loss.push) == (["prediction"], {})
    assert loss.total.item() == pytest.approx(method.energy(view, view).mean().item())


def test_sequences_that_end_with_x_say_nothing_of_y() -> None:
    """Their energy is 0, and the loss is the mean over all others."""
    method, data = a_method(given=3), drawn(6)
    data[1, 3:], data[2, 1:], data[4, 5:] = -1, -1, -1
    view, some = View(data), torch.tensor([0, 3, 4, 5])
    found = method.energy(view, view)
    assert found[1:3].tolist() == [0, 0]
    assert method.by_place(view, view)[1:3].tolist() == [[0] * 4] * 2
    views = Views((view,), torch.arange(6), pairing="itself")
    loss = method.loss(views, 0.0).total
    assert loss.item() == pytest.approx(found[some].mean().item())
    assert loss.item() == pytest.approx(method.loss(views.take(some), 0.0).total.item())
    none = method.loss(views.take(torch.tensor([1, 2])), 0.0).total
    assert none.item() == 0
    none.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_x_is_half_and_its_vector_does_not_depend_on_y() -> None:
    method, data = a_method(), drawn(4)
    assert method.given == 3
    changed = data.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % 3
    assert torch.equal(method.encode(data), method.encode(changed))
    assert method.encode(data).shape == (4, 8)
    plan = method.plan()
    assert (plan.kind, plan.pairs, plan.main[0].mask) == ("tokens", "itself", None)


def test_completions_are_the_most_probable_tokens_in_turn() -> None:
    method, view = a_method(given=3), View(drawn(4))
    made = method.complete(view)
    assert made.shape == (4, 4)
    with_it = View(torch.cat([view.data[:, :3], made], dim=1))
    assert torch.equal(method.told(view, with_it).logits.argmax(dim=2), made)
    other = View(torch.cat([view.data[:, :3], torch.zeros(4, 4).long()], dim=1))
    assert torch.equal(method.complete(other), made)  # what y was is not looked at


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"which conv is not\. Use the encoder sequence"):
        DelayedTransformer(build_encoder("conv", 32))
    with pytest.raises(ValueError, match="share 7 tokens, and 7 of them are x"):
        a_method(given=7)


def test_it_learns_to_read_backwards_and_shows_where_it_looks() -> None:
    """y is x backwards: place t of y has to look at place 4 - t of x."""
    x = np.random.default_rng(0).integers(0, 8, (1100, 5))
    tokens = np.concatenate([x, x[:, ::-1]], axis=1)
    encoder = {"vocabulary": 8, "width": 32, "depth": 1, "heads": 2}
    method = a_method(10, encoder).float()
    loader = Loader(
        tokens, np.arange(1000), method.plan(), batch=64, seed=0, image_size=10, mean=(), std=()
    )
    held = loader.make(np.arange(1000, 1100), epoch=99)
    told = Optimiser(lr=1e-2, weight_decay=0.0)
    optimiser = build_optimiser(told, method.train())
    assert optimiser is not None
    for step in range(300):
        optimiser.param_groups[0]["lr"] = told.learning_rate(step / 300)
        optimiser.zero_grad()
        method.loss(loader.views(step), step / 300).total.backward()
        optimiser.step()
    method.eval()
    (view,) = held.main
    with torch.no_grad():
        matched = method.energy(view, view).mean()
        mismatched = method.energy(view, view.roll(1)).mean()
        weights = method.told(view, view).given[0].mean(dim=(0, 1))  # [t n]
    assert float(matched) < 0.3 < math.log(8) < float(mismatched)
    assert (method.complete(view) == view.data[:, 5:]).float().mean() > 0.95
    assert weights.argmax(dim=1).tolist() == [4, 3, 2, 1, 0]
