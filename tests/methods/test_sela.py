"""SeLa: a loop, labels used equally often, the best balanced labels by brute force."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg import inference
from erg.encoders import build_encoder
from erg.methods.sela import SeLa
from erg.views.plan import SWAV_GLOBAL, SWAV_LOCAL
from erg.views.types import View, Views


def views(*local: int, index: list[int] | None = None, seed: int = 0) -> Views:
    index = index or [0, 1, 2, 3, 4, 5]
    generator = torch.Generator().manual_seed(seed)
    crops = [
        View(torch.randn(len(index), 3, s, s, generator=generator, dtype=torch.float64))
        for s in (16, 16, *local)
    ]
    return Views(tuple(crops[:2]), torch.tensor(index), local=tuple(crops[2:]))


def a_method(**arguments: Any) -> SeLa:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    small: dict[str, Any] = {"size": 9, "prototypes": 3, "heads": 2, "hidden": 9, "dim": 5}
    return SeLa(encoder, **{**small, "small_crops": 2, **arguments}).double()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def told(z: Tensor, prototypes: Tensor, label: int, temperature: float) -> float:
    scores = [
        sum(p * q for p, q in zip(z.tolist(), row, strict=True)) / temperature
        for row in prototypes.tolist()
    ]
    return math.log(sum(map(math.exp, scores))) - scores[label]


def test_loss_is_the_loop_over_heads_and_crops() -> None:
    """Images 0, 2 and 4 have labels; the others take those of their batch."""
    method, batch = a_method(temperature=0.3).eval(), views(8, 8)
    method.labels[[0, 2, 4]] = torch.tensor([[0, 2], [1, 1], [2, 0]])
    z = method.embed(*batch.main, *batch.local).detach().chunk(4)
    total = 0.0
    for head in range(2):
        c = method.prototypes[head].detach()
        of_batch = method.balanced(method.logits(z[0], head), 3).tolist()
        for i in range(6):
            label = int(method.labels[i, head])
            label = label if label >= 0 else of_batch[i]
            total += sum(told(each[i], c, label, 0.3) for each in z) / (2 * 4 * 6)
    assert method.loss(batch, 0.5).total.item() == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_the_best_balanced_ones(seed: int) -> None:
    """Six images, three labels, each used twice: the least sum of -log p of all 90 ways."""
    method = a_method(sharpness=60.0)
    logits = drawn(6, 3, seed=seed)
    log_p = logits.log_softmax(dim=1).tolist()
    ways = set(itertools.permutations((0, 0, 1, 1, 2, 2)))
    assert len(ways) == 90
    best = min(ways, key=lambda way: -sum(log_p[i][k] for i, k in enumerate(way)))
    assert tuple(method.balanced(logits, 3000).tolist()) == best


def test_every_label_is_used_about_equally_often_however_lopsided_the_scores() -> None:
    method = a_method(prototypes=4, size=200)
    logits = drawn(200, 4) + torch.tensor([6.0, 0.0, -3.0, 0.0], dtype=torch.float64)
    assert logits.argmax(dim=1).bincount(minlength=4).max() > 190
    counts = method.balanced(logits, 200).bincount(minlength=4)
    assert counts.sum() == 200
    assert 40 <= int(counts.min()) <= int(counts.max()) <= 60


def test_labels_are_made_of_the_bank_after_every_epoch() -> None:
    method = a_method().train()
    nothing = torch.zeros(9, 16, dtype=torch.float64)
    method.after_epoch(nothing)
    assert method.labels.eq(-1).all()
    batch = views(8, 8, index=[8, 0, 3, 4])
    z = method.embed(*batch.main, *batch.local).detach()[:4]
    method.loss(batch, 0.0)
    assert torch.allclose(method.memory.rows[[8, 0, 3, 4]], z, atol=1e-12)
    assert method.labels.eq(-1).all()
    method.after_epoch(nothing)
    seen = [0, 3, 4, 8]
    for head in range(2):
        scores = method.memory.rows[seen] @ method.prototypes[head].detach().T / 0.1
        assert torch.equal(method.labels[seen, head], method.balanced(scores, 50))
    assert method.labels[[1, 2, 5, 6, 7]].eq(-1).all()
    labels = method.labels.clone()
    method.loss(views(8, 8, seed=3), 0.0)
    assert torch.equal(method.labels, labels)


def test_evaluation_remembers_nothing() -> None:
    method = a_method().eval()
    method.loss(views(8, 8), 0.5)
    assert not method.memory.rows.any()


def test_no_gradient_flows_through_the_labels_and_everything_learns() -> None:
    method, batch = a_method(), views(8, 8)
    method.labels.fill_(1)
    method.loss(batch, 0.0).total.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, _ in method.named_parameters()}
    method.zero_grad()
    z = method.embed(*batch.main, *batch.local)
    scores = torch.cat([z @ method.prototypes[head].T / 0.1 for head in range(2)])
    nn.functional.cross_entropy(scores, torch.ones(len(scores), dtype=torch.int64)).backward()
    for name, p in method.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, found[name], atol=1e-12), name


def test_gradient_is_that_of_finite_differences() -> None:
    """Of data and prototypes; labels of the batch, as before the first epoch ends, stay nearby."""
    identity = build_encoder("identity", 3)
    method = SeLa(identity, size=6, prototypes=3, heads=2, hidden=2, dim=3, small_crops=0).double()
    method.projector = nn.Sequential()
    method.eval()
    given = (drawn(6, 3, seed=1), drawn(6, 3, seed=2), drawn(2, 3, 3, seed=3))

    def total(x: Tensor, y: Tensor, prototypes: Tensor) -> Tensor:
        del method.prototypes
        method.prototypes = prototypes  # type: ignore[assignment]
        return method.loss(Views((View(x), View(y)), torch.arange(6)), 0.0).total

    assert torch.autograd.gradcheck(total, tuple(each.requires_grad_() for each in given))


def test_balanced_codes_are_the_scaled_probabilities() -> None:
    """diag(r) P^lambda diag(c): logarithms differ by a row's and a column's number (section 9)."""
    log_p = (0.2 * drawn(12, 4)).log_softmax(dim=1)
    q = inference.sinkhorn(log_p, 1 / 25.0, 4000)
    scaled = q.log() - 25 * log_p
    rows, columns = scaled.mean(dim=1, keepdim=True), scaled.mean(dim=0)
    assert torch.allclose(scaled, rows + columns - scaled.mean(), atol=1e-8)
    assert torch.allclose(q.sum(dim=1), torch.ones(12, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(q.sum(dim=0), torch.full((4,), 3.0, dtype=torch.float64), atol=1e-6)


def test_prototypes_are_unit_from_the_start_and_after_every_step() -> None:
    method = a_method()
    for _ in range(2):
        norms = method.prototypes.norm(dim=2)
        assert torch.allclose(norms, torch.ones(2, 3, dtype=torch.float64), atol=1e-6)
        with torch.no_grad():
            method.prototypes.mul_(3)
        method.after_step(0.5)


def test_energy_is_the_mean_over_heads() -> None:
    method = a_method().eval()
    x, y = views().main
    z, m = method.embed(x).detach(), method.embed(y).detach()
    for i, found in enumerate(method.energy(x, y).tolist()):
        wanted = 0.0
        for c in method.prototypes.detach():
            wanted += told(z[i], c, int((c @ m[i]).argmax()), 0.1) / 2
        assert found == pytest.approx(wanted, rel=1e-9)


def test_plan_has_two_large_and_some_small_crops() -> None:
    plan = a_method(small_crops=3).plan()
    assert (len(plan.main), [v.pixels(16) for v in plan.local]) == (2, [8, 8, 8])
    large = SeLa(build_encoder("conv", 224, width=8), hidden=4, dim=4).plan()
    assert large.main == (SWAV_GLOBAL,) * 2
    assert large.local == (SWAV_LOCAL,) * 4
