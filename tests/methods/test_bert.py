"""BERT: the energy by a loop over places, what training shows, and a language that it learns."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from erg.data.loader import Loader
from erg.encoders import TokenTransformer, build_encoder
from erg.methods.bert import BERT
from erg.train.optim import build_optimiser
from erg.train.run import Optimiser
from erg.views.make import make_tokens
from erg.views.plan import Masking
from erg.views.types import Mask, View, Views

SMALL: dict[str, Any] = {"vocabulary": 7, "width": 8, "depth": 2, "heads": 2}


def a_method(n: int = 9, encoder: dict[str, Any] = SMALL, **arguments: Any) -> BERT:
    torch.manual_seed(0)
    return BERT(build_encoder("sequence", n, **encoder), **arguments).double().eval()


def drawn(b: int, n: int = 9, vocabulary: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, (b, n))


def views_of(method: BERT, tokens: np.ndarray, first: int = 0, step: int = 0) -> Views:
    index = np.arange(first, first + len(tokens))
    return make_tokens(tokens, method.plan(), seed=0, epoch=0, step=step, index=index)


def hidden_of(view: View) -> Tensor:
    assert view.mask is not None
    return view.mask.hidden[:, 0]


def by_loop(method: BERT, tokens: Tensor, y: Tensor, places: Tensor) -> list[float]:
    """The mean of -log softmax over the places of each sequence whose y is a token."""
    found = []
    for b in range(len(y)):
        energies = []
        for i in range(y.shape[1]):
            if places[b, i] and y[b, i] >= 0:
                scores = method.head(tokens[b, i]).tolist()
                total = sum(math.exp(score) for score in scores)
                energies.append(-math.log(math.exp(scores[int(y[b, i])]) / total))
        found.append(sum(energies) / max(len(energies), 1))
    return found


def test_energy_by_a_loop_over_hidden_places() -> None:
    method = a_method(ratio=0.4)
    tokens = drawn(4)
    tokens[1, 6:] = -1
    (view,) = views_of(method, tokens).main
    other = view.roll(1)
    hidden = hidden_of(view)
    assert not hidden[1, 6:].any()
    assert hidden[2, 6:].any(), "or the shorter y asks for nothing that it lacks"
    assert view.mask is not None
    seen = method.encoder.masked(view.data, view.mask, method.unknown)[1]
    for y in (view, other):
        wanted = by_loop(method, seen, y.data, hidden)
        assert method.energy(view, y).tolist() == pytest.approx(wanted)


def test_what_is_hidden_does_not_reach_the_energy_but_through_y() -> None:
    method = a_method(ratio=0.4)
    (view,) = views_of(method, drawn(3)).main
    changed = torch.where(hidden_of(view), (view.data + 3) % 7, view.data)
    before = method.energy(view, view)
    torch.testing.assert_close(method.energy(view.with_data(changed), view), before)
    assert not torch.allclose(method.energy(view, view.with_data(changed)), before)


def test_every_place_hidden_in_turn() -> None:
    method = a_method()
    data = torch.from_numpy(drawn(2))
    data[1, 7:] = -1
    found = method.by_place(data).detach()
    assert found[1, 7:].tolist() == [0, 0]
    for b, i in [(0, 0), (0, 8), (1, 3)]:
        hidden = torch.zeros(1, 1, 9, dtype=torch.bool)
        hidden[0, 0, i] = True
        view = View(data[b : b + 1], mask=Mask(hidden, (1, 9)))
        assert float(found[b, i]) == pytest.approx(method.energy(view, view).item())


def test_training_shows_blanks_other_tokens_and_the_right_ones() -> None:
    method = a_method(n=100, ratio=0.5)
    (view,) = views_of(method, drawn(400, 100)).main
    shown = method.shown(view, torch.arange(400), 3)
    hidden, blank = hidden_of(view), hidden_of(shown)
    assert torch.equal(hidden_of(view), views_of(method, drawn(400, 100)).main[0].mask.hidden[:, 0])
    assert not (blank & ~hidden).any()
    assert torch.equal(shown.data[~hidden | blank], view.data[~hidden | blank])
    rest = hidden & ~blank
    changed = rest & (shown.data != view.data)
    # Of 20,000 places: four standard deviations are 1.1 % and 0.9 %.
    assert float(blank.sum() / hidden.sum()) == pytest.approx(0.8, abs=0.011)
    assert float(changed.sum() / hidden.sum()) == pytest.approx(0.1 * 6 / 7, abs=0.008)
    counts = torch.bincount(shown.data[changed], minlength=7) / changed.sum()
    assert counts.tolist() == pytest.approx([1 / 7] * 7, abs=0.035)


def test_what_is_shown_depends_on_sequence_and_step_alone() -> None:
    method = a_method(n=30, ratio=0.5, blank=0.5, random=0.5)
    (view,) = views_of(method, drawn(40, 30)).main
    index = torch.arange(40)
    shown = method.shown(view, index, 3)
    half = method.shown(view.take(slice(1, None, 2)), index[1::2], 3)
    assert torch.equal(half.data, shown.data[1::2])
    assert torch.equal(hidden_of(half), hidden_of(shown)[1::2])
    assert not torch.equal(hidden_of(method.shown(view, index, 4)), hidden_of(shown))
    # Which places are blank says nothing about which token the others get.
    other = hidden_of(view) & ~hidden_of(shown)
    assert float(shown.data[other].double().mean()) == pytest.approx(3, abs=0.45)


def test_loss_is_the_energy_of_what_is_shown_at_all_that_was_hidden() -> None:
    method = a_method(ratio=0.4, blank=0.5, random=0.3)
    views = views_of(method, drawn(16), step=2)
    (view,) = views.main
    shown = method.shown(view, views.index, 2)
    assert shown.mask is not None
    seen = method.encoder.masked(shown.data, shown.mask, method.unknown)[1]
    wanted = by_loop(method, seen, view.data, hidden_of(view))
    loss = method.loss(views, 0.0)
    assert loss.push == {}
    assert loss.total.item() == pytest.approx(sum(wanted) / 16)
    # With nothing but blanks the loss is the mean energy.
    plain = a_method(ratio=0.4, blank=1.0, random=0.0)
    found = plain.loss(views, 0.0).total.item()
    assert found == pytest.approx(plain.energy(view, view).mean().item())


@pytest.mark.parametrize(("length", "asked"), [(1, 1), (3, 1), (7, 2), (9, 3)])
def test_of_every_sequence_a_share_is_hidden_and_at_least_one_token(
    length: int, asked: int
) -> None:
    method = a_method(blank=1.0, random=0.0, ratio=0.3)
    tokens = drawn(300)
    tokens[:, length:] = -1
    views = views_of(method, tokens, step=2)
    (view,) = views.main
    hidden = hidden_of(view)
    assert hidden.sum(dim=1).tolist() == [asked] * 300
    assert not hidden[:, length:].any()
    # Each place as often: four standard deviations are 0.12 at most.
    often = hidden.double().mean(dim=0)[:length].tolist()
    assert often == pytest.approx([asked / length] * length, abs=0.12)
    # And each of them counts.
    seen = method.encoder.masked(view.data, Mask(hidden[:, None], (1, 9)), method.unknown)[1]
    wanted = by_loop(method, seen, view.data, hidden)
    assert min(wanted) > 0
    assert method.loss(views, 0.0).total.item() == pytest.approx(sum(wanted) / 300)
    # The energy asks for something too, whatever the batch.
    found = method.energy(view, view)
    assert float(found.detach().min()) > 0
    torch.testing.assert_close(method.energy(view.roll(1), view.roll(1)), found.roll(1))


def test_plan_hides_a_share_of_tokens() -> None:
    plan = a_method(ratio=0.3).plan()
    assert (plan.kind, plan.pairs) == ("tokens", "itself")
    (view,) = plan.main
    assert view.mask == Masking(grid=(1, 9), ratio=0.3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"which conv is not\. Use the encoder sequence"):
        BERT(build_encoder("conv", 32))
    with pytest.raises(ValueError, match=r"shares of what is hidden \(got 0.8 and 0.3\)"):
        a_method(random=0.3)
    with pytest.raises(ValueError, match="shares of what is hidden"):
        a_method(blank=0.0)
    for ratio in (0.0, 1.0):
        with pytest.raises(ValueError, match="share of tokens that are hidden"):
            a_method(ratio=ratio)
    view = View(torch.zeros(2, 9).long())
    with pytest.raises(ValueError, match="BERT needs views with masks"):
        a_method().energy(view, view)


def a_language(rows: int, n: int = 8, vocabulary: int = 6) -> np.ndarray:
    """Sequences of a Markov chain of order 2 with random probabilities, most of them small."""
    random = np.random.default_rng(0)
    cumulated = random.dirichlet([0.1] * vocabulary, (vocabulary, vocabulary)).cumsum(axis=2)
    tokens = random.integers(0, vocabulary, (rows, n))
    for i in range(2, n):
        row = cumulated[tokens[:, i - 2], tokens[:, i - 1]]
        tokens[:, i] = (random.random((rows, 1)) > row[:, :-1]).sum(axis=1)
    return tokens


def counted(tokens: np.ndarray, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """-log of the shares of tokens [v], and of tokens behind each token [v v]."""
    single = np.bincount(tokens.ravel(), minlength=vocabulary) + 1.0
    double = np.ones((vocabulary, vocabulary))
    np.add.at(double, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    return -np.log(single / single.sum()), -np.log(double / double.sum(axis=1, keepdims=True))


def test_it_learns_a_language_better_than_unigrams_and_bigrams() -> None:
    tokens = a_language(2200)
    encoder = {"vocabulary": 6, "width": 32, "depth": 1, "heads": 4}
    method = a_method(8, encoder, ratio=0.2).float()
    loader = Loader(
        tokens, np.arange(2000), method.plan(), batch=64, seed=0, image_size=8, mean=(), std=()
    )
    held = loader.make(np.arange(2000, 2200), epoch=99)
    (view,) = held.main
    unigram, bigram = counted(tokens[:2000], 6)
    b, i = np.nonzero(hidden_of(view).numpy())
    b, i = b[i > 0], i[i > 0]
    now, before = tokens[2000 + b, i], tokens[2000 + b, i - 1]

    def held_out() -> tuple[float, float]:
        with torch.no_grad():
            return tuple(
                float(torch.cat([method.energy(x, y) for x, y in pairs]).mean())
                for pairs in (held.pairs(), held.mismatched())
            )  # type: ignore[return-value]

    start, _ = held_out()
    told = Optimiser(lr=1e-2)
    optimiser = build_optimiser(told, method.train())
    assert optimiser is not None
    for step in range(300):
        optimiser.param_groups[0]["lr"] = told.learning_rate(step / 300)
        optimiser.zero_grad()
        method.loss(loader.views(step), step / 300).total.backward()
        optimiser.step()
    method.eval()
    matched, mismatched = held_out()
    singles, doubles = float(unigram[now].mean()), float(bigram[before, now].mean())
    assert doubles < singles < start + 0.1
    assert matched < doubles - 0.4
    assert mismatched > matched + 0.8
    # It looks at what a token depends on: the neighbours, not the place itself, which is blank.
    assert isinstance(method.encoder, TokenTransformer)
    with torch.no_grad():
        (weights,) = method.encoder.attention(view.data, view.mask, method.unknown)
    where, place = hidden_of(view).nonzero(as_tuple=True)
    looked = weights.mean(dim=1)[where, place]  # [m n]
    apart = (torch.arange(8) - place[:, None]).abs()
    near = (looked * ((apart == 1) | (apart == 2))).sum(dim=1).mean()
    far = (looked * (apart > 2)).sum(dim=1).mean()
    assert near > 3 * far
