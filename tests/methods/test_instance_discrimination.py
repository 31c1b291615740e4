"""Instance discrimination: the golden number, loops over the memory, what is remembered when."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.instance_discrimination import InstanceDiscrimination
from erg.testing import check_method
from erg.views.types import View, Views


def views(index: list[int], *, step: int = 0) -> Views:
    generator = torch.Generator().manual_seed(step)
    data = torch.randn(len(index), 3, 16, 16, generator=generator, dtype=torch.float64)
    return Views((View(data),), torch.tensor(index), step=step, pairing="alone")


def a_method(**arguments: Any) -> InstanceDiscrimination:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    small: dict[str, Any] = {"size": 9, "dim": 5, "temperature": 0.3}
    method = InstanceDiscrimination(encoder, **{**small, **arguments}).double()
    method.memory.rows.copy_(nn.functional.normalize(method.memory.rows, dim=1))
    return method


def cosines(method: InstanceDiscrimination, batch: Views) -> list[list[float]]:
    """Of every view with every image remembered."""
    z = method.projector(method.encoder(batch.main[0].data))
    rows = method.memory.rows
    return [[float((a @ b) / a.norm() / b.norm()) for b in rows] for a in z.detach()]


def test_noise_contrastive_estimation_is_golden(golden) -> None:
    """N = 10, K = 2; the memory is made so that h = exp(m . z / T) / Z has the values given."""
    method = InstanceDiscrimination(
        build_encoder("identity", 3), size=10, negatives=2, temperature=1.0, dim=3
    ).double()
    method.projector = nn.Sequential()
    method.partition.fill_(2.0)  # Z
    noise = torch.randint(10, (2,), generator=torch.Generator().manual_seed(7)).tolist()
    own = next(i for i in range(10) if i not in noise)
    assert len(set(noise)) == 2
    for i, h in zip((own, *noise), (0.3, 0.1, 0.2), strict=True):
        method.memory.rows[i] = torch.tensor([math.log(2 * h), 5, -3], dtype=torch.float64)
    z = torch.tensor([[4.0, 0.0, 0.0]], dtype=torch.float64)
    loss = method.loss(Views((View(z),), torch.tensor([own]), step=7), 0.0)
    assert golden.agrees("instance discrimination, N 10, K 2, h 0.3; 0.1, 0.2", loss.total)


def test_softmax_is_the_loop_over_the_memory() -> None:
    method, batch = a_method(), views([4, 0, 7, 2])
    found = cosines(method, batch)
    pull = -sum(found[b][i] for b, i in enumerate((4, 0, 7, 2))) / 4 / 0.3
    others = [math.log(sum(math.exp(c / 0.3) for c in row)) for row in found]
    method.eval()
    found = cosines(method, batch)
    energies = [-0.3 * math.log(sum(math.exp(c / 0.3) for c in row)) for row in found]
    assert method.energy(None, batch.main[0]).tolist() == pytest.approx(energies, rel=1e-10)
    loss = method.train().loss(batch, 0.0)
    assert loss.pull["instance"].item() == pytest.approx(pull, rel=1e-10)
    assert loss.push["others"].item() == pytest.approx(sum(others) / 4, rel=1e-10)


def test_energy_of_two_views_is_minus_their_cosine() -> None:
    method = a_method().eval()
    x, y = (views([0, 1, 2], step=s).main[0] for s in (1, 2))
    a, b = (method.projector(method.encoder(v.data)) for v in (x, y))
    wanted = -nn.functional.cosine_similarity(a, b)
    assert torch.allclose(method.energy(x, y), wanted, atol=1e-12)


def test_estimation_is_the_loop_over_the_noise_with_the_first_batchs_partition() -> None:
    method = a_method(negatives=4)
    partition = 0.0
    for step, index in enumerate(([4, 0, 7], [1, 8, 3])):
        batch = views(index, step=step)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randint(9, (4,), generator=generator).tolist()
        found = cosines(method, batch)
        e = [[math.exp(c / 0.3) for c in row] for row in found]
        if step == 0:
            drawn = [e[b][j] for b, i in enumerate(index) for j in (i, *noise)]
            partition = 9 * sum(drawn) / len(drawn)
        pull = push = 0.0
        for b, i in enumerate(index):
            h = e[b][i] / partition
            pull -= math.log(h / (h + 4 / 9)) / 3
            push -= sum(math.log(4 / 9 / (e[b][j] / partition + 4 / 9)) for j in noise) / 3
        loss = method.loss(batch, 0.0)
        assert loss.pull["instance"].item() == pytest.approx(pull, rel=1e-10)
        assert loss.push["noise"].item() == pytest.approx(push, rel=1e-10)
        assert method.partition.item() == pytest.approx(partition, rel=1e-12)


def test_before_training_the_partition_is_the_batchs_and_not_kept() -> None:
    method, batch = a_method(negatives=4), views([4, 0, 7])
    method.eval().loss(batch, 0.0)
    assert method.partition.item() == 0
    looked = method.loss(batch, 0.0).total.item()
    method.partition.fill_(1.0)
    assert method.loss(batch, 0.0).total.item() != pytest.approx(looked, rel=1e-3)


@pytest.mark.parametrize("negatives", [0, 4])
def test_memory_moves_halfway_after_the_loss(negatives: int) -> None:
    method, batch = a_method(negatives=negatives), views([4, 0, 7])
    before = method.memory.rows.clone()
    fresh = copy.deepcopy(method)
    z = nn.functional.normalize(fresh.projector(fresh.encoder(batch.main[0].data)), dim=1)
    loss = method.loss(batch, 0.0)
    loss.total.backward()  # the rows it was computed from are still there
    moved = nn.functional.normalize(before[[4, 0, 7]] + z, dim=1)
    assert torch.allclose(method.memory.rows[[4, 0, 7]], moved, atol=1e-12)
    others = [1, 2, 3, 5, 6, 8]
    assert torch.equal(method.memory.rows[others], before[others])
    assert not method.memory.rows.requires_grad
    after = method.memory.rows.clone()
    method.eval().loss(batch, 0.0)
    assert torch.equal(method.memory.rows, after)


@pytest.mark.parametrize("negatives", [0, 4])
def test_gradient_is_that_with_the_memory_as_a_constant(negatives: int) -> None:
    method, batch = a_method(negatives=negatives), views([4, 0, 7])
    rows = method.memory.rows.clone()
    method.loss(batch, 0.0).total.backward()
    found = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()
    z = nn.functional.normalize(method.projector(method.encoder(batch.main[0].data)), dim=1)
    scores = z @ rows.T / 0.3
    if negatives:
        noise = torch.randint(9, (4,), generator=torch.Generator().manual_seed(0))
        h = scores.exp() / method.partition
        own = h[torch.arange(3), batch.index]
        terms: Tensor = -(own / (own + 4 / 9)).log()
        terms = terms - (4 / 9 / (h[:, noise] + 4 / 9)).log().sum(dim=1)
        terms.mean().backward()
    else:
        nn.functional.cross_entropy(scores, batch.index).backward()
    assert found.keys() == {name for name, _ in method.named_parameters()}
    for name, p in method.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, found[name], atol=1e-10), name


def test_an_image_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="image 9 has no place in a memory of 9 rows"):
        a_method().loss(views([3, 9]), 0.0)


def test_noise_contrastive_estimation_keeps_the_contract() -> None:
    check_method(InstanceDiscrimination, arguments={"size": 20, "negatives": 6, "dim": 8})


def test_plan_is_one_view_of_strong_colours() -> None:
    plan = a_method().plan()
    (view,) = plan.main
    assert plan.pairs == "alone"
    assert (view.crop, view.grey, view.jitter, view.hue) == ((0.2, 1.0), 0.2, 1.0, 0.4)
